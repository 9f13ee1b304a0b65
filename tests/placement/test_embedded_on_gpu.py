"""The embedded model on a GPU gives the CPU's responses, wherever its experts are."""

import random

import pytest
import torch

import hybridmoe
from hybridmoe import LLM
from hybridmoe.demo.evaluate import FAMILY_NAMES, Item, item

pytest.importorskip("triton", reason="needs triton (pip install hybridmoe[cuda])")

from interpreted_gpu import use_gpu

NUM_QUESTIONS = 100


def held_out(count: int) -> list[Item]:
    """Questions of all families in turn, on which the model was not trained."""
    rng = random.Random(17)
    return [item(FAMILY_NAMES[i % len(FAMILY_NAMES)], rng) for i in range(count)]


def responses(llm: LLM) -> list[str]:
    """Greedy responses; under the interpreter, which takes seconds a token, one of one token."""
    if not torch.cuda.is_available():
        return [llm.generate("Once", temperature=0.0, max_tokens=1).text]
    found = []
    for one in held_out(NUM_QUESTIONS):
        messages, _ = one.stages[0]
        result = llm.chat(messages, tools=one.tools, temperature=0.0, max_tokens=200)
        found.append(llm.tokenizer.decode(result.token_ids, skip_special=False))
    return found


def vram_for(llm: LLM, num_slots: int) -> int:
    """Return the VRAM, in bytes, with room for `num_slots` experts."""
    assert llm.plan.vram is not None
    used = sum(size for _, size in llm.plan.vram.parts)
    return used + num_slots * llm.plan.problem.sizes.slot_bytes


@pytest.mark.slow
def test_responses_are_the_cpus_wherever_experts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of its experts in slots, half of them, and none."""
    use_gpu(monkeypatch)
    with hybridmoe.load(device="cpu") as llm:
        want = responses(llm)
        num_experts = llm.config.num_moe_layers * llm.config.num_experts
    with hybridmoe.load(device="cuda", vram="4GiB") as llm:
        assert llm.plan.num_vram_slots == num_experts
        vram = vram_for(llm, num_experts // 2)
        assert all(check.is_right for check in llm.kernel_checks), llm.kernel_checks
        assert responses(llm) == want
    with hybridmoe.load(device="cuda", vram=vram) as llm:
        assert 0 < llm.plan.num_vram_slots < num_experts
        assert responses(llm) == want
    with hybridmoe.load(device="cuda", place=["exps=cpu"]) as llm:
        assert llm.plan.num_vram_slots == 0
        assert responses(llm) == want
