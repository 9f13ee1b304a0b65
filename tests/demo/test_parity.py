"""Parity of the embedded model with llama.cpp: same greedy tokens, same distributions."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from logit_distance import kl_divergence

import hybridmoe
from bench._llama_cpp import LlamaCpp
from hybridmoe.demo import demo_path
from hybridmoe.demo.corpus import dialogue, messages
from hybridmoe.text.chat_encoding import encode_chat
from hybridmoe.text.chat_template import ChatTemplate

NUM_PROMPTS = 40
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def llm() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load() as llm:
        yield llm


@pytest.fixture(scope="module")
def peer() -> Iterator[LlamaCpp]:
    with LlamaCpp(demo_path(), context_tokens=2048, num_threads=1, exact_attention=True) as peer:
        yield peer


def _prompts(llm: hybridmoe.LLM) -> list[list[int]]:
    """Render held-out questions in dialogues of the corpus."""
    template = ChatTemplate.from_metadata(llm.file.metadata, llm.tokenizer)
    rng = random.Random(20261123)
    found: list[list[int]] = []
    while len(found) < NUM_PROMPTS:
        drawn = dialogue(rng, "held")
        turns = messages(drawn)
        last = max(i for i, message in enumerate(turns) if message["role"] == "user")
        found.append(encode_chat(template, llm.tokenizer, turns[: last + 1], drawn.tools))
    return found


def test_greedy_responses_equal_llama_cpp(llm: hybridmoe.LLM, peer: LlamaCpp) -> None:
    """64 tokens, or fewer if the response ends; the end token counts."""
    kl, gaps = [], []
    for prompt in _prompts(llm):
        text = llm.tokenizer.decode(prompt, skip_special=False)
        response = llm.generate(text, temperature=0.0, max_tokens=NUM_TOKENS).token_ids
        ids = [*prompt, *response]
        peer.reset()
        theirs, ours = peer.logits(ids)[len(prompt) - 1 :], llm.logits(ids)[len(prompt) - 1 :]
        kl.append(kl_divergence(theirs, ours).mean())
        differing = np.flatnonzero(theirs.argmax(axis=1) != ours.argmax(axis=1))
        if differing.size:  # how much less llama.cpp likes our first different token
            row = theirs[differing[0]]
            gaps.append(float(row.max() - row[ours[differing[0]].argmax()]))
    assert np.mean(kl) <= 1e-3
    assert len(gaps) <= 0.05 * NUM_PROMPTS, f"{len(gaps)} of {NUM_PROMPTS} responses differ: {gaps}"
    assert max(gaps, default=0.0) < 0.5, f"not near-ties: {gaps}"
