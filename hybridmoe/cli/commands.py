"""Slash commands of the chat: each is a method, its docstring the help text.

A command changes the session only after all of its input is checked; an error is one line.
"""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridmoe.cli.sampling_options import SAMPLING_NAMES, parse_sampling_value
from hybridmoe.cli.session import Session
from hybridmoe.cli.talk import Talk
from hybridmoe.cli.thinking import parse_thinking, shown_thinking
from hybridmoe.errors import ConfigError
from hybridmoe.text.thinking_options import ThinkingOptions
from hybridmoe.units import format_bytes

__all__ = ["COMMAND_NAMES", "Commands"]

_ALIASES = {
    "help": ("?",),
    "reset": ("clear", "new"),
    "regen": ("retry",),
    "exit": ("quit", "bye"),
}
_WORDS = ("exit", "quit", "bye", "help")  # alone, hardly a message
_PARAMETERS = {
    "temp": "temperature",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}


class Commands:
    """Slash commands over one conversation."""

    def __init__(
        self,
        talk: Talk,
        check_params: Callable[[dict[str, Any]], object],
        confirm: Callable[[str], bool] = lambda _question: True,
    ) -> None:
        """check_params: raises ConfigError for parameters that the model would refuse.

        confirm: asks before a file is overwritten.
        """
        self._talk = talk
        self._check_params, self.confirm = check_params, confirm
        self._table: dict[str, Callable[[str], None]] = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in vars(Commands)
            if name.startswith("_do_")
        }
        self._aliases = {alias: name for name, also in _ALIASES.items() for alias in also}
        self.is_done = False
        self._asked_about = ""

    def read(self, text: str) -> None:
        """Take a line of the user: a command, or a message; `//` begins one with a slash."""
        is_same, self._asked_about = text == self._asked_about, ""
        if text.startswith("//"):
            self._talk.ask(text[1:])
        elif text.startswith("/"):
            self.run(text)
        elif text.strip().lower() in _WORDS and not is_same:
            self._asked_about = text
            self._say(f"/{text.strip().lower()} is the command; once more sends it as a message")
        elif text.strip():
            self._talk.ask(text)

    def run(self, line: str) -> None:
        """Run `/name argument`."""
        name, argument = (*re.split(r"\s+", line[1:], maxsplit=1), "")[:2]
        known = self._aliases.get(name.lower(), name.lower())
        command = self._table.get(known)
        if command is None:
            close = difflib.get_close_matches(f"/{name.lower()}", COMMAND_NAMES, n=1)
            meant = f"; did you mean {close[0]}?" if close else ";"
            self._say(
                f"unknown command /{name:.40}{meant} /help lists them, // begins a message with /"
            )
            return
        try:
            command(argument.strip())
        except ConfigError as error:
            self._say(f"error: {error}")
        except OSError as error:
            self._say(f"error: {error.filename}: {error.strerror or error}")

    def _say(self, text: str) -> None:
        self._talk.screen.note(text)

    def _do_help(self, _: str) -> None:
        """/help             list the commands"""
        for command in self._table.values():
            self._say(str(command.__doc__))
        also = [f"/{alias} = /{name}" for alias, name in self._aliases.items()]
        self._say(f"Also: {', '.join(also)}.")
        self._say("// begins a message with a slash.")
        self._say('A \\ at the end of a line, Alt+Enter or """ continue a message.')
        self._say("Ctrl-C stops a response, Ctrl-D ends the program.")

    def _do_reset(self, _: str) -> None:
        """/reset            start a new conversation"""
        self._talk.session.messages.clear()
        self._say("a new conversation")

    def _do_system(self, text: str) -> None:
        """/system [TEXT]    set or show the system message; "" removes it"""
        session = self._talk.session
        if text:
            session.system = unquoted(text) or None
        self._say(f"system: {session.system}" if session.system else "no system message")

    def _do_params(self, text: str) -> None:
        """/params [N [V]]   show or set parameter N; V = default resets it, /params reset all"""
        params = self._talk.session.params
        name, _, value = text.replace("=", " ", 1).partition(" ")
        name = _PARAMETERS.get(name, name).replace("-", "_")
        if name == "reset":
            params.clear()
            name = ""
        if name and name not in SAMPLING_NAMES:
            close = difflib.get_close_matches(name, SAMPLING_NAMES, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"no parameter {name!r:.40}; {meant}known: {', '.join(SAMPLING_NAMES)}"
            )
        if value:
            changed = {key: old for key, old in params.items() if key != name}
            if value.strip() != "default":
                changed[name] = parse_sampling_value(name, value.strip())
            self._check_params(changed)
            params.clear()
            params.update(changed)
        effective = self._talk.effective_params()
        for key in (name,) if name else SAMPLING_NAMES:
            value = shown_value(getattr(effective, key))
            self._say(f"{key} = {value} ({self._talk.source_of(key)})")

    def _do_set(self, text: str) -> None:
        """/set N V          as /params N V; also /set system TEXT, think, nothink"""
        name, _, value = text.partition(" ")
        if name == "parameter":
            name, _, value = value.strip().partition(" ")
        match name:
            case "":
                self._do_params("")
            case "system":
                self._do_system(value.strip())
            case "think" | "nothink":
                self._do_think(value.strip() or ("on" if name == "think" else "off"))
            case _:
                self._do_params(f"{name} {value}".strip())

    def _do_show(self, text: str) -> None:
        """/show [WHAT]      show the conversation, or: info, system, parameters, thoughts"""
        session = self._talk.session
        match text:
            case "":
                for message in session.prompt():
                    self._say(f"{message['role']}: {message['content'] or '(tool calls)'}")
            case "info" | "model":
                self._say(self._talk.model_line)
            case "system":
                self._do_system("")
            case "parameters":
                self._do_params("")
            case "thoughts":
                self._do_thoughts("")
            case _:
                raise ConfigError(f"/show {text:.40}: expected info, system, parameters, thoughts")

    def _do_copy(self, _: str) -> None:
        """/copy             copy the last response to the clipboard, through the terminal"""
        text = self._last("content")
        if not text:
            raise ConfigError("no response yet")
        self._talk.screen.copy(text)
        self._say(f"copied {len(text):,} characters, if the terminal allows it (OSC 52)")

    def _last(self, key: str) -> str:
        """Text of the last response, or its thoughts."""
        responses = [m for m in self._talk.session.messages if m["role"] == "assistant"]
        return str(responses[-1].get(key) or "") if responses else ""

    def _do_think(self, text: str) -> None:
        """/think [MODE N]   think: on, off, LEVEL or default; at most N tokens; or show it"""
        if text:
            self._talk.set_thinking(parse_thinking(text, self._talk.session.thinking))
        self._say(shown_thinking(self._talk.session.thinking))

    def _do_thoughts(self, text: str) -> None:
        """/thoughts [HOW]   show the last thoughts; HOW: fold later ones, or leave them open"""
        if text not in ("", "fold", "open"):
            raise ConfigError(f"/thoughts {text:.40}: expected fold or open")
        if text:
            self._talk.screen.folds_thoughts = text == "fold"
            self._say(f"thoughts: {text}")
        else:
            self._say(self._last("reasoning_content") or "no thoughts")

    def _do_regen(self, _: str) -> None:
        """/regen            regenerate the last response"""
        backup = list(self._talk.session.messages)
        message = self._talk.session.drop_last_turn()
        if message is None:
            raise ConfigError("no message yet")
        before = len(self._talk.session.messages)
        self._talk.ask(message)
        if len(self._talk.session.messages) == before:  # failed or stopped at once
            self._talk.session.messages[:] = backup

    def _do_undo(self, _: str) -> None:
        """/undo             remove the last message and its response"""
        message = self._talk.session.drop_last_turn()
        self._say("no message yet" if message is None else f"removed: {message:.60}")

    def _do_compact(self, _: str) -> None:
        """/compact          let the model summarize all but the last turn, to free context"""
        self._talk.compact()

    def _do_stats(self, _: str) -> None:
        """/stats            show statistics of the last response and of the conversation"""
        totals = self._talk.totals
        if totals.last is None:
            self._say("no response yet")
            return
        self._say(f"last:  {totals.last_line}")
        self._say(
            f"total: {totals.turns} responses, {totals.prompt_tokens} prompt tokens"
            f" ({totals.cached_tokens} cached), {totals.generated_tokens} generated,"
            f" {totals.seconds:.1f} s"
        )
        if totals.draft_tokens:
            share = totals.accepted_tokens / totals.draft_tokens
            self._say(
                f"drafts: {totals.accepted_tokens} of {totals.draft_tokens} accepted ({share:.0%})"
            )
        if (experts := self._talk.expert_stats()) is not None:
            self._say(str(experts))

    def _do_save(self, text: str) -> None:
        """/save FILE        save the conversation to FILE as JSON, and its KV cache to FILE.kv"""
        path = _file(text, "/save")
        if path.exists() and not self.confirm(f"{text} exists: overwrite it?"):
            self._say("not saved")
            return
        try:
            self._talk.session.save(path)
        except OSError as error:  # of a file beside it, or of none
            raise ConfigError(f"{text}: {error.strerror or error}") from None
        self._say(f"saved {len(self._talk.session.messages)} messages to {path}")
        kv_path = _kv_path(path)
        if num_tokens := self._talk.save_kv_cache(kv_path):
            size = format_bytes(kv_path.stat().st_size)
            self._say(f"saved the KV cache of {num_tokens} tokens to {kv_path.name}, {size}")

    def _do_load(self, text: str) -> None:
        """/load FILE        load a conversation that /save wrote"""
        path = _file(text, "/load")
        loaded = Session.load(path)
        self._check_params(loaded.params)
        session = self._talk.session
        session.system, session.messages = loaded.system, loaded.messages
        before, session.params = session.params, loaded.params
        self._load_thinking(loaded.thinking)
        self._say(f"loaded {len(loaded.messages)} messages from {path}")
        if session.params != before:
            self._say(f"sampling: {shown_params(session.params)}")
        if loaded.model != session.model:
            self._say(f"(from another model: {loaded.model:.80})")
        kv_path = _kv_path(path)
        if kv_path.exists():
            try:
                self._say(f"loaded the KV cache of {self._talk.load_kv_cache(kv_path)} tokens")
            except (ConfigError, OSError) as error:
                self._say(f"(KV cache not loaded: {error})")
        self._talk.recall()

    def _load_thinking(self, thinking: ThinkingOptions) -> None:
        try:
            self._talk.set_thinking(thinking)
        except ConfigError as error:
            self._talk.session.thinking = ThinkingOptions()
            self._say(f"({error})")

    def _do_exit(self, _: str) -> None:
        """/exit             end the program; as Ctrl-D"""
        self.is_done = True


_OWN = [name.removeprefix("_do_") for name in vars(Commands) if name.startswith("_do_")]
_ALSO = [alias for aliases in _ALIASES.values() for alias in aliases if alias != "?"]
COMMAND_NAMES = [f"/{name}" for name in (*_OWN, *_ALSO)]  # with their slash, for completion


def unquoted(text: str) -> str:
    """Remove quotes around a text."""
    for quotes in ('"""', '"', "'"):
        if len(text) >= 2 * len(quotes) and text.startswith(quotes) and text.endswith(quotes):
            return text.removeprefix(quotes).removesuffix(quotes).strip("\n")
    return text


def shown_value(value: object) -> str:
    """Write the value of a parameter for people."""
    if value is None:
        return "none"
    return str(list(value) if isinstance(value, tuple) else value)


def shown_params(params: dict[str, Any]) -> str:
    """Write the parameters that a conversation sets."""
    shown = [f"{name} = {shown_value(value)}" for name, value in params.items()]
    return ", ".join(shown) or "the model's"


def _file(text: str, command: str) -> Path:
    if not text:
        raise ConfigError(f"{command} needs a file name")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of an unknown user, or no home folder
        raise ConfigError(f"{text}: no such home folder") from None


def _kv_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.kv")
