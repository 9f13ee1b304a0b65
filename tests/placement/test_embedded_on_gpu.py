"""The embedded model on a GPU gives the CPU's responses, wherever its experts are."""

import random
from itertools import zip_longest

import numpy as np
import pytest
import torch
from engine_run import request, run

import hybridmoe
from hybridmoe import LLM
from hybridmoe.demo.evaluate import FAMILY_NAMES, Item, item

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import use_gpu

NUM_QUESTIONS = 100
MOST_NEAR_TIES = 2  # responses that rounding may turn
NEAR_TIE = 0.02  # of the largest logit


def held_out(count: int) -> list[Item]:
    """Questions of all families in turn, on which the model was not trained."""
    rng = random.Random(17)
    return [item(FAMILY_NAMES[i % len(FAMILY_NAMES)], rng) for i in range(count)]


def prompts_of(llm: LLM) -> list[list[int]]:
    """Token ids of the questions; one short prompt for the interpreter, which takes seconds."""
    if not torch.cuda.is_available():
        return [llm.tokenizer.encode("Once", add_special=True)]
    return [llm.encode_chat(one.stages[0][0], one.tools) for one in held_out(NUM_QUESTIONS)]


def responses(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Token ids of greedy responses; one token under the interpreter."""
    num_tokens = 200 if torch.cuda.is_available() else 1
    asked = (request(ids, num_tokens, ignore_eos=False) for ids in prompts)
    return [run(llm.engine, one)[0].ids for one in asked]


def assert_same(
    cpu: LLM, prompts: list[list[int]], got: list[list[int]], want: list[list[int]]
) -> None:
    """Compare responses; a few may differ from a token on that the CPU finds as good."""
    ends = sorted(cpu.tokenizer.eos_ids)
    num_ties = 0
    for prompt, ours, theirs in zip(prompts, got, want, strict=True):
        if ours == theirs:
            continue
        first = next(i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
        row = cpu.logits([*prompt, *theirs[:first]])[-1]
        our, their = (row[ids[first : first + 1] or ends].max() for ids in (ours, theirs))
        # As a prompt's, the same tokens may be ranked the other way.
        assert abs(their - our) < NEAR_TIE * np.abs(row).max(), (prompt, ours, theirs)
        num_ties += 1
    assert num_ties <= MOST_NEAR_TIES


def vram_for(llm: LLM, num_slots: int) -> int:
    """Return the VRAM, in bytes, with room for `num_slots` experts."""
    assert llm.plan.vram is not None
    used = sum(size for _, size in llm.plan.vram.parts)
    return used + num_slots * llm.plan.problem.sizes.slot_bytes


@pytest.mark.slow
def test_responses_are_the_cpus_wherever_experts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of its experts in slots, half of them, and none."""
    use_gpu(monkeypatch)
    with hybridmoe.load(device="cpu") as cpu:
        prompts = prompts_of(cpu)
        want = responses(cpu, prompts)
        num_experts = cpu.config.num_moe_layers * cpu.config.num_experts
        with hybridmoe.load(device="cuda", vram="4GiB") as llm:
            assert llm.plan.num_vram_slots == num_experts
            vram = vram_for(llm, num_experts // 2)
            assert all(check.is_right for check in llm.kernel_checks), llm.kernel_checks
            assert_same(cpu, prompts, responses(llm, prompts), want)
        with hybridmoe.load(device="cuda", vram=vram) as llm:
            assert 0 < llm.plan.num_vram_slots < num_experts
            assert_same(cpu, prompts, responses(llm, prompts), want)
        with hybridmoe.load(device="cuda", place=["exps=cpu"]) as llm:
            assert llm.plan.num_vram_slots == 0
            assert_same(cpu, prompts, responses(llm, prompts), want)
