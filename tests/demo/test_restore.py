"""Restored networks compute the same as the exported file."""

import numpy as np
import torch

import hybridmoe
from hybridmoe.demo import demo_path
from hybridmoe.demo.restore import restore


def test_the_restored_network_is_the_file() -> None:
    network, vocabulary = restore(demo_path())
    with hybridmoe.load() as llm:
        text = "my name is Zorin\nWhat is 38 + 55? 布宜诺斯"
        ids = llm.tokenizer.encode(text)
        assert vocabulary.encode(text) == ids
        expected = llm.logits(ids)
    row = torch.tensor([ids])
    with torch.no_grad():
        states = network(row, torch.arange(len(ids))[None], torch.zeros_like(row))[0]
        got = (states @ network.head.T).numpy()
    # The kernels round activations to 8 bits: 0.15. Gate and up swapped: 0.47.
    assert np.abs(got - expected).mean() < 0.3
    assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.9
