"""Wired initial weights copy; unwired ones do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hybridmoe.demo.network import DemoConfig, DemoNetwork
from hybridmoe.demo.wiring import wire


def test_untrained_wired_network_continues_a_repeated_sequence() -> None:
    torch.manual_seed(0)
    network = DemoNetwork(DemoConfig(vocab=600))
    tokens = torch.randperm(600)[:20].repeat(2).unsqueeze(0)
    positions = torch.arange(40).unsqueeze(0)

    def right() -> float:
        with torch.no_grad():
            logits = network.logits(network(tokens, positions, torch.ones_like(tokens)))[0]
        return float((logits[20:-1].argmax(-1) == tokens[0, 21:]).float().mean())

    before = right()
    wire(network)
    assert before < 0.2 < 0.8 < right()


def test_chosen_tokens_get_the_same_hidden_states() -> None:
    torch.manual_seed(0)
    network = DemoNetwork(DemoConfig(vocab=100))
    tokens = torch.randint(0, 100, (2, 12))
    positions = torch.arange(12).expand(2, -1)
    documents = torch.tensor([[1] * 5 + [2] * 7, [1] * 12])
    chosen = torch.rand(2, 12) < 0.4
    with torch.no_grad():
        every = network(tokens, positions, documents)
        some = network(tokens, positions, documents, chosen)
    torch.testing.assert_close(some[0], every[chosen], rtol=1e-5, atol=1e-5)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = DemoNetwork(DemoConfig(vocab=100))
    tokens = torch.randint(0, 100, (1, 12))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    documents = torch.tensor([[1] * 5 + [2] * 7])
    with torch.no_grad():
        packed = network(tokens, positions, documents)[:, 5:]
        alone = network(tokens[:, 5:], positions[:, 5:], documents[:, 5:])
    assert F.mse_loss(packed, alone) < 1e-8
