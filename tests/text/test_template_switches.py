"""Switches of thinking: found by rendering, refused by name where a template has none."""

from typing import Any

import pytest
from thinking_templates import (
    ALWAYS,
    BOTH,
    EFFORT,
    EFFORT_CHECKED,
    NEVER,
    OPENS,
    OPTS_IN,
    OPTS_OUT,
    TWO_LEVELS,
)

from hybridmoe.errors import ConfigError
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.template_switches import TemplateChoice
from hybridmoe.text.thinking_options import LEVELS, PromptOptions, ThinkingOptions

ALWAYS_THINKS = "mode: the model always thinks"
HARDER = ALWAYS + "{% if reasoning_effort == 'max' %}Hard.{% endif %}"
LOW_OR_HIGH = (
    "{% if reasoning_effort and reasoning_effort not in ('low', 'high') %}"
    "{{ raise_exception('bad effort') }}{% endif %}[{{ reasoning_effort or 'none' }}]"
)
NEVER_THINKS = "mode: the model does not think: leave it out"


def choose(
    source: str, mode: str | None, variables: dict[str, Any] | None = None, **options: Any
) -> TemplateChoice:
    thinking = ThinkingOptions(mode=mode, name="mode", **options)
    chosen = PromptOptions(thinking=thinking, variables=variables or {})
    return ChatTemplate(source).switches.choose(chosen)


@pytest.mark.parametrize(
    ("source", "mode", "expected"),
    [
        (OPENS, "on", {"thinking": True}),
        (OPENS, "off", {"thinking": False}),
        (OPENS, "low", {"thinking": True}),
        (OPTS_IN, "on", {"thinking": True}),
        (OPTS_IN, "off", {"thinking": False}),
        (OPTS_IN, "medium", {"thinking": True}),
        (OPTS_OUT, "off", {"enable_thinking": False}),
        (BOTH, "off", {"enable_thinking": False}),
        (BOTH, "max", {"enable_thinking": True, "reasoning_effort": "max"}),
        (BOTH, "low", {"enable_thinking": True, "reasoning_effort": "low"}),
        (TWO_LEVELS, "low", {"enable_thinking": True, "reasoning_effort": "high"}),
        (TWO_LEVELS, "high", {"enable_thinking": True, "reasoning_effort": "high"}),
        (TWO_LEVELS, "xhigh", {"enable_thinking": True, "reasoning_effort": "max"}),
        (TWO_LEVELS, "max", {"enable_thinking": True, "reasoning_effort": "max"}),
        (TWO_LEVELS, "off", {"enable_thinking": False}),
        (EFFORT, "on", {}),
        (EFFORT, "high", {"reasoning_effort": "high"}),
        (EFFORT, "max", {"reasoning_effort": "high"}),
        (EFFORT, "minimal", {"reasoning_effort": "low"}),
        (EFFORT_CHECKED, "on", {"reasoning_effort": "high"}),
        (EFFORT_CHECKED, "off", {"reasoning_effort": "none"}),
        (EFFORT_CHECKED, "low", {"reasoning_effort": "high"}),
        (ALWAYS, "on", {}),
        (LOW_OR_HIGH, "medium", {"reasoning_effort": "high"}),
        (NEVER, "off", {}),
    ],
)
def test_a_mode_becomes_the_variables_that_the_template_knows(
    source: str, mode: str, expected: dict[str, Any]
) -> None:
    assert choose(source, mode) == (expected, ())
    assert choose(source, mode, is_wish=True) == (expected, ())


@pytest.mark.parametrize(
    ("source", "mode", "message"),
    [
        (ALWAYS, "off", ALWAYS_THINKS),
        (EFFORT, "off", ALWAYS_THINKS),
        (HARDER, "off", ALWAYS_THINKS),
        (ALWAYS, "high", "mode: the model always thinks: its chat template has no levels"),
        (NEVER, "on", NEVER_THINKS),
        (NEVER, "high", NEVER_THINKS),
    ],
)
def test_a_switch_that_the_template_does_not_know_is_refused(
    source: str, mode: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        choose(source, mode)


@pytest.mark.parametrize("source", [NEVER, ALWAYS])
@pytest.mark.parametrize("mode", LEVELS)
def test_what_agents_send_unasked_is_left_out(source: str, mode: str) -> None:
    assert choose(source, mode, is_wish=True) == ({}, ("mode",))
    assert choose(NEVER, "on", is_wish=True) == ({}, ("mode",))


def test_without_a_mode_nothing_is_set_or_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(BOTH)
    monkeypatch.setattr(template, "render", None)
    assert template.switches.choose(PromptOptions()) == ({}, ())


@pytest.mark.parametrize(
    ("source", "variables", "expected"),
    [
        (OPTS_IN, {"thinking": True}, {"thinking": True}),
        (OPTS_IN, {"enable_thinking": True}, {"thinking": True}),
        (OPTS_OUT, {"thinking": False}, {"enable_thinking": False}),
        (OPTS_OUT, {"reasoning_effort": "none"}, {"enable_thinking": False}),
        (OPTS_OUT, {"preserve_thinking": True}, {"preserve_thinking": True}),
        (OPTS_OUT, {"clear_thinking": False}, {"preserve_thinking": True}),
        ("{{ clear_thinking }}", {"preserve_thinking": True}, {"clear_thinking": False}),
        (NEVER, {"preserve_thinking": False}, {}),
        (NEVER, {"enable_thinking": False}, {}),
        (EFFORT, {"reasoning_effort": "any"}, {"reasoning_effort": "any"}),
    ],
)
def test_variables_of_other_templates_are_translated(
    source: str, variables: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert choose(source, None, variables).variables == expected


@pytest.mark.parametrize(
    ("source", "variables", "message"),
    [
        (OPTS_OUT, {"style": "x"}, "chat template does not read 'style'"),
        (ALWAYS, {"thinking": False}, "chat_template_kwargs.thinking: the model always thinks"),
        (NEVER, {"preserve_thinking": True}, "preserve_thinking: .* no switch to keep"),
        (OPTS_OUT, {"messages": "x"}, "'messages' is set by the request itself"),
        (OPTS_OUT, {"bos_token": "x"}, "'bos_token' is set by the request itself"),
        (OPTS_OUT, {"enable_thinking": [1]}, r"enable_thinking is \[1\]; expected a number"),
        (OPTS_OUT, {"x": float("nan")}, "x is nan"),
        (OPTS_OUT, {"x": 1 << 60}, "x is 1152921504606846976"),
        (OPTS_OUT, {"x": "y" * 5000}, "at most 4096 characters"),
        (OPTS_OUT, {f"x{i}": 1 for i in range(33)}, "33 entries; at most 32"),
        (OPTS_OUT, {"a b": 1}, "'a b' is not the name of a variable"),
    ],
)
def test_variables_that_cannot_be_set_are_refused(
    source: str, variables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(source, None, variables)


def test_a_written_variable_wins_over_a_field() -> None:
    assert choose(OPENS, "on", {"thinking": False}).variables == {"thinking": False}


def test_a_budget_reaches_a_template_that_reads_one() -> None:
    chosen = choose("{{ thinking_budget }}", None, budget_tokens=7)
    assert chosen.variables == {"thinking_budget": 7}
    assert choose(OPENS, None, budget_tokens=7).variables == {}


@pytest.mark.parametrize(
    ("given", "mode", "budget"),
    [
        (True, "on", None), (False, "off", None), ("none", "off", None), ("max", "max", None),
        ({"type": "enabled", "budget_tokens": 5}, "on", 5), ({"type": "disabled"}, "off", None),
        (None, None, None),
    ],
)  # fmt: skip
def test_the_argument_of_the_python_api(given: Any, mode: str | None, budget: int | None) -> None:
    options = ThinkingOptions.of_argument(given)
    assert (options.mode, options.budget_tokens) == (mode, budget)


@pytest.mark.parametrize(
    "given", ["hard", 7, {"type": "x"}, {"type": "enabled", "budget_tokens": -1}]
)
def test_other_arguments_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"thinking( budget)? is"):
        ThinkingOptions.of_argument(given)
