"""Switches of thinking that a chat template knows, found by rendering a question with and without.

Templates declare none. A variable that the source never reads is not tried. Names: `thinking`
(DeepSeek-V3.1, Kimi K2.5), `enable_thinking` (Qwen3, GLM), `reasoning_effort` (gpt-oss).
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from hybridmoe.errors import ConfigError, TemplateError
from hybridmoe.text.thinking_options import LEVELS, PromptOptions, ThinkingOptions

__all__ = ["TemplateChoice", "TemplateSwitches"]

_ON_OFF = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "enable_reasoning": (True, False),
    "reasoning": (True, False),
    "thinking_mode": ("thinking", "chat"),
}
_EFFORT = ("reasoning_effort", "thinking_effort")
_NO_LEVEL = "zq"  # a value that no template compares with
_WRITTEN_LEVELS = ("low", "medium", "high")  # of gpt-oss
_USER = {"role": "user", "content": "x"}
_QUESTIONS = ([{"role": "system", "content": "y"}, _USER], [_USER])
# Names of one thing: the same, or the opposite, of keeping the thoughts of earlier responses.
_KEEPING = {"preserve_thinking": True, "clear_thinking": False, "drop_thinking": False}


class Template(Protocol):
    """The part of a chat template that is asked."""

    source: str

    @property
    def read_names(self) -> frozenset[str]: ...
    def render(self, messages: Any, *, variables: Mapping[str, Any]) -> str: ...


class TemplateChoice(NamedTuple):
    """Variables that carry a caller's options to a template, and the options left out."""

    variables: dict[str, Any]
    ignored: tuple[str, ...] = ()  # names of fields without effect


class TemplateSwitches:
    """The switches of one template."""

    def __init__(self, template: Template) -> None:
        self._template = template

    @functools.cached_property
    def on_off(self) -> tuple[str, ...]:
        """Names of the variables that turn thinking on and off."""
        known = []
        for name, values in _ON_OFF.items():
            on, off = (self._with(name, value) for value in values)
            if on is not None and off is not None and on != off:
                known.append(name)
        return tuple(known)

    @functools.cached_property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """Levels that each variable of the effort takes; "none" among them turns thinking off."""
        known = {}
        for name in _EFFORT:
            texts = {level: self._with(name, level) for level in ("none", *LEVELS)}
            other = self._with(name, _NO_LEVEL)
            taken = [level for level, text in texts.items() if text is not None]
            if other is not None and _NO_LEVEL in other:  # written into the prompt as it is
                taken = list(_WRITTEN_LEVELS)
            elif other is not None:
                taken = _told_levels({level: texts[level] or "" for level in taken}, other)
            if len({self._default, other, *texts.values()}) > 1 and set(taken) - {"none"}:
                known[name] = tuple(taken)
        return known

    @property
    def thinks(self) -> bool:
        """True if the template has thoughts at all."""
        return bool("<think>" in self._template.source or self.on_off or self.levels)

    def choose(self, options: PromptOptions) -> TemplateChoice:
        """Find the variables for a caller's options.

        Errors: ConfigError, which names the option, for what the template does not know.
        """
        given = dict(options.variables)
        thinking = options.thinking
        for name in [name for name in given if name not in self._template.read_names]:
            value = given.pop(name)
            mode = _mode_of(name, value)
            if name in _KEEPING and isinstance(value, bool):
                given |= self._keeping(name, value)
            elif mode is not None:
                thinking = ThinkingOptions(mode=mode, name=f"chat_template_kwargs.{name}")
            else:
                raise ConfigError(
                    f"chat_template_kwargs: the model's chat template does not read {name!r:.80}"
                )
        chosen = self._mode(thinking)
        budget = options.thinking.budget_tokens
        if budget is not None and "thinking_budget" in self._template.read_names:
            chosen.variables["thinking_budget"] = budget
        return TemplateChoice({**chosen.variables, **given}, chosen.ignored)

    def _mode(self, thinking: ThinkingOptions) -> TemplateChoice:
        mode = thinking.mode
        if mode is None:
            return TemplateChoice({})
        off = {name: _ON_OFF[name][1] for name in self.on_off}
        on = {name: _ON_OFF[name][0] for name in self.on_off}
        if mode == "off":
            off = off or {name: "none" for name, levels in self.levels.items() if "none" in levels}
            if off or not self.thinks:
                return TemplateChoice(off)
            raise ConfigError(
                f"{thinking.name}: the model always thinks: its chat template has no switch to turn"
                " it off (a thinking budget of 0 tokens closes its thoughts at once)"
            )
        if not self.thinks:
            if thinking.is_wish:
                return TemplateChoice({}, (thinking.name,))
            raise ConfigError(f"{thinking.name}: the model does not think: leave it out")
        if mode == "on":
            if on:
                return TemplateChoice(on)
            return TemplateChoice({n: _nearest("medium", self.levels[n]) for n in self._starts_off})
        if self.levels:
            return TemplateChoice(on | {n: _nearest(mode, of) for n, of in self.levels.items()})
        if on:
            return TemplateChoice(on)
        if thinking.is_wish:
            return TemplateChoice({}, (thinking.name,))
        raise ConfigError(
            f"{thinking.name}: the model always thinks: its chat template has no levels; leave it"
            " out"
        )

    @property
    def _starts_off(self) -> list[str]:
        """Effort variables without which the model does not think."""
        return [
            name
            for name, levels in self.levels.items()
            if "none" in levels and self._with(name, "none") == self._default
        ]

    def _keeping(self, name: str, value: bool) -> dict[str, bool]:
        """Translate to the names that the template reads. Raises ConfigError without any."""
        keeps = value == _KEEPING[name]
        names = [other for other in _KEEPING if other in self._template.read_names]
        if not names and keeps:
            raise ConfigError(
                f"{name}: the model's chat template has no switch to keep earlier thoughts"
            )
        return {other: keeps == _KEEPING[other] for other in names}

    @functools.cached_property
    def _question(self) -> list[dict[str, str]] | None:
        """A conversation that the template renders; None if it fails on all."""
        for question in _QUESTIONS:
            try:
                self._template.render(question, variables={})
            except TemplateError:
                continue
            return question
        return None

    @functools.cached_property
    def _default(self) -> str | None:
        return self._render({})

    def _with(self, name: str, value: Any) -> str | None:
        """Render with one variable; None if the template refuses its value."""
        if name not in self._template.read_names:
            return self._default
        return self._render({name: value})

    def _render(self, variables: Mapping[str, Any]) -> str | None:
        if self._question is None:
            return None
        try:
            return self._template.render(self._question, variables=variables)
        except TemplateError:
            return None


def _told_levels(texts: Mapping[str, str], other: str) -> list[str]:
    """Levels that a template takes. other: its text for an unknown word.

    Where that text names a level (GLM-5.2: max), the words that it stands for are no levels.
    """
    told = [level for level, text in texts.items() if text != other]
    elsewhere = set[str]().union(*(_words(texts[level]) for level in told))
    meant = [level for level in LEVELS if level in _words(other) - elsewhere] if told else []
    if meant:
        return [level for level in texts if level in told or level in meant]
    return [level for level in texts if level in told or level != "none"]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _mode_of(name: str, value: Any) -> str | None:
    """Read a switch by the name that another model's template has for it."""
    if name in _EFFORT and value in ("none", *LEVELS):
        return "off" if value == "none" else str(value)
    if name in _ON_OFF and value in _ON_OFF[name]:
        return "on" if value == _ON_OFF[name][0] else "off"
    return None


def _nearest(level: str, taken: tuple[str, ...]) -> str:
    """Find the level that a template takes and that is nearest; the higher one of two."""
    at = LEVELS.index(level)
    known = [i for i, name in enumerate(LEVELS) if name in taken]
    return LEVELS[min(known, key=lambda i: (abs(i - at), -i))]
