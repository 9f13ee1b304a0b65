"""Slash commands of the chat: each is a method, its docstring the help text.

A command changes the session only after all of its input is checked; an error is one line.
"""

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

__all__ = ["Commands"]


class Commands:
    """Slash commands over one conversation."""

    def __init__(self, talk: Talk, check_params: Callable[[dict[str, Any]], object]) -> None:
        """check_params: raises ConfigError for parameters that the model would refuse."""
        self._talk = talk
        self._check_params = check_params
        self._table: dict[str, Callable[[str], None]] = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in vars(Commands)
            if name.startswith("_do_")
        }
        self._table["quit"] = self._do_exit
        self.names = [f"/{name}" for name in self._table]
        self.is_done = False

    def run(self, line: str) -> None:
        """Run `/name argument`."""
        name, _, argument = line[1:].partition(" ")
        command = self._table.get(name.strip().lower())
        if command is None:
            self._say(f"unknown command /{name:.40}; /help lists them")
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
        for name, command in self._table.items():
            if name != "quit":
                self._say(str(command.__doc__))
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
            session.system = None if text == '""' else text
        self._say(f"system: {session.system}" if session.system else "no system message")

    def _do_params(self, text: str) -> None:
        """/params [N [V]]   show or set sampling parameter N; V = default resets it"""
        params = self._talk.session.params
        name, _, value = text.partition(" ")
        name = name.replace("-", "_")
        if name and name not in SAMPLING_NAMES:
            raise ConfigError(f"no parameter {name!r:.40}; known: {', '.join(SAMPLING_NAMES)}")
        if value:
            changed = {key: old for key, old in params.items() if key != name}
            if value.strip() != "default":
                changed[name] = parse_sampling_value(name, value.strip())
            self._check_params(changed)
            params.clear()
            params.update(changed)
        for key in (name,) if name else SAMPLING_NAMES:
            self._say(f"{key} = {params.get(key, 'default')}")

    def _do_think(self, text: str) -> None:
        """/think [MODE N]  think: on, off, LEVEL or default; at most N tokens; or show it"""
        if text:
            self._talk.set_thinking(parse_thinking(text, self._talk.session.thinking))
        self._say(shown_thinking(self._talk.session.thinking))

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
        if (experts := self._talk.expert_stats()) is not None:
            self._say(str(experts))

    def _do_save(self, text: str) -> None:
        """/save FILE        save the conversation to FILE as JSON, and its KV cache to FILE.kv"""
        path = _file(text, "/save")
        self._talk.session.save(path)
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
        session.params = loaded.params
        self._load_thinking(loaded.thinking)
        self._say(f"loaded {len(loaded.messages)} messages from {path}")
        if loaded.model != session.model:
            self._say(f"(from another model: {loaded.model:.80})")
        kv_path = _kv_path(path)
        if kv_path.exists():
            try:
                self._say(f"loaded the KV cache of {self._talk.load_kv_cache(kv_path)} tokens")
            except (ConfigError, OSError) as error:
                self._say(f"(KV cache not loaded: {error})")

    def _load_thinking(self, thinking: ThinkingOptions) -> None:
        try:
            self._talk.set_thinking(thinking)
        except ConfigError as error:
            self._talk.session.thinking = ThinkingOptions()
            self._say(f"({error})")

    def _do_exit(self, _: str) -> None:
        """/exit             end the program; as /quit and Ctrl-D"""
        self.is_done = True


def _file(text: str, command: str) -> Path:
    if not text:
        raise ConfigError(f"{command} needs a file name")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of an unknown user, or no home folder
        raise ConfigError(f"{text}: no such home folder") from None


def _kv_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.kv")
