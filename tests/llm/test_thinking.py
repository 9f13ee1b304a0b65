"""Thinking switches, budgets and prefill of the Python API, on the embedded model."""

from collections.abc import Iterator
from typing import Any

import pytest
from thinking_templates import OPENS

import hybridmoe
from hybridmoe.errors import ConfigError
from hybridmoe.text.chat_template import ChatTemplate

QUESTION = [{"role": "user", "content": "What is 47 + 38?"}]
# Thoughts of the embedded model, which has none, go on as long as they may.
OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}


@pytest.fixture(scope="module", params=[0, 4])
def llm(request: pytest.FixtureRequest) -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(context_tokens=512, speculate=request.param) as llm:
        yield llm


@pytest.fixture
def thinker(llm: hybridmoe.LLM, monkeypatch: pytest.MonkeyPatch) -> hybridmoe.LLM:
    monkeypatch.setattr(llm, "_template", lambda _: ChatTemplate(OPENS))
    return llm


@pytest.mark.parametrize("budget", [0, 1, 9])
@pytest.mark.parametrize("tools", [False, True])
def test_thoughts_end_with_the_budget(thinker: hybridmoe.LLM, budget: int, tools: bool) -> None:
    close = thinker.tokenizer.special_id("</think>")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    bias = {i: -50.0 for i in (close, *thinker.tokenizer.eos_ids)}
    options = {**OPTIONS, "logit_bias": bias, "tools": [tool] if tools else None}
    free = thinker.chat(QUESTION, thinking=True, **options)
    assert free.token_ids.count(close or -1) == 0
    thinking = {"type": "enabled", "budget_tokens": budget}
    result = thinker.chat(QUESTION, thinking=thinking, **options)
    assert result.token_ids.index(close or -1) == budget
    assert result.token_ids[:budget] == free.token_ids[:budget]
    assert len(result.token_ids) == 40
    assert result.text


def test_thinking_is_off_and_an_unknown_switch_is_refused(
    llm: hybridmoe.LLM, thinker: hybridmoe.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert thinker.chat(QUESTION, thinking=False, **OPTIONS).reasoning == ""
    assert thinker.chat(QUESTION, **OPTIONS).reasoning
    assert thinker.chat(QUESTION, template_kwargs={"thinking": False}, **OPTIONS).reasoning == ""
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="thinking: the model does not think"):
        llm.chat(QUESTION, thinking=True)


def test_the_last_message_is_continued(llm: hybridmoe.LLM) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "47+38: 7+8=15, 4+3+1=8,"}]
    result = llm.chat(begun, temperature=0.0)
    assert result.text == " 85"
    again = llm.chat(begun, temperature=0.0, continue_final_message=False)
    assert again.text != " 85"
