"""Plan of a compaction: what is summarized, what is kept, and that calls keep their results."""

import itertools
from typing import Any

import pytest

from hybridmoe.text.compaction import plan_compaction, summary_tokens

SYSTEM = {"role": "system", "content": "Be brief."}


def turns(*sizes: int) -> list[dict[str, Any]]:
    pairs = (
        ({"role": "user", "content": "q" * size}, {"role": "assistant", "content": "a" * size})
        for size in sizes
    )
    return list(itertools.chain.from_iterable(pairs))


def rounds(count: int) -> list[dict[str, Any]]:
    """Make a turn of an agent with `count` rounds of two calls each."""
    out: list[dict[str, Any]] = [{"role": "user", "content": "do it"}]
    for i in range(count):
        ids = [f"c{i}", f"d{i}"]
        calls = [{"id": x, "function": {"name": "f", "arguments": "{}"}} for x in ids]
        out.append({"role": "assistant", "content": None, "tool_calls": calls})
        out += [{"role": "tool", "tool_call_id": x, "content": "r" * 40} for x in ids]
    return out


def test_the_last_turns_that_fit_are_kept() -> None:
    messages = [SYSTEM, *turns(10, 10, 10, 10, 10)]
    plan = plan_compaction(messages, 0.5)
    assert plan is not None
    assert (plan.head, plan.old, plan.kept) == ([SYSTEM], messages[1:7], messages[7:])
    plan = plan_compaction(messages, 0.0)
    assert plan is not None
    assert plan.kept == messages[-2:]


@pytest.mark.parametrize("messages", [[], [SYSTEM], turns(9), [SYSTEM, *turns(9)], rounds(1)])
def test_there_must_be_something_before_the_last_turn(messages: list[dict[str, Any]]) -> None:
    assert plan_compaction(messages, 0.25) is None


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_no_call_loses_its_result(count: int, share: float) -> None:
    plan = plan_compaction([SYSTEM, *turns(5), *rounds(count)], share)
    assert plan is not None
    for part in (plan.old, plan.kept):
        called = [c["id"] for m in part for c in m.get("tool_calls", ())]
        assert called == [m["tool_call_id"] for m in part if m["role"] == "tool"]
    kept = sum(len(str(m)) for m in plan.kept)
    assert kept < 0.7 * len(str(plan.old + plan.kept))


def test_the_request_begins_as_the_conversation_does() -> None:
    messages = [SYSTEM, *turns(5, 5, 5)]
    plan = plan_compaction(messages, 0.0)
    assert plan is not None
    request = plan.request()
    assert request[:-1] == messages[:5]
    assert request[-1]["role"] == "user"
    assert plan.request("Only names.")[-1]["content"] == "Only names."


@pytest.mark.parametrize("messages", [turns(5, 5, 5), [SYSTEM, *turns(5), *rounds(4)]])
def test_roles_alternate_around_the_summary(messages: list[dict[str, Any]]) -> None:
    plan = plan_compaction(messages, 0.0)
    assert plan is not None
    after = plan.with_summary("All is well.")
    assert after[: len(plan.head)] == plan.head
    assert after[-len(plan.kept) :] == plan.kept
    assert sum("All is well." in str(m["content"]) for m in after) == 1
    roles = [m["role"] for m in after if m["role"] in ("user", "assistant")]
    assert roles[0] == "user"
    assert all(a != b or a == "assistant" for a, b in itertools.pairwise(roles))


def test_a_summary_is_a_sixteenth_of_the_context_within_bounds() -> None:
    assert list(map(summary_tokens, (256, 8192, 1 << 20))) == [64, 512, 4096]
