"""Prompt of the chat: keys, completion, history and long pastes, by prompt_toolkit."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hybridmoe.cli.pastes import Pastes
from hybridmoe.cli.sampling_options import SAMPLING_NAMES
from hybridmoe.cli.thinking import MODES
from hybridmoe.state_folder import state_folder

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

    from hybridmoe.cli.opening import Opening

__all__ = ["Prompt", "choose", "is_unfinished", "joined"]

_QUOTES = '"""'
_REFRESH_S = 0.5


def is_unfinished(text: str) -> bool:
    """Return True if Enter continues the message rather than sending it."""
    return text.endswith("\\") or text.count(_QUOTES) % 2 == 1


def joined(text: str) -> str:
    """Remove the marks that continued the message."""
    text = text.strip()
    if text.startswith(_QUOTES) and text.endswith(_QUOTES) and len(text) >= 2 * len(_QUOTES):
        return text.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return text.replace("\\\n", "\n")


class Prompt:
    """Reads messages and commands from the terminal."""

    def __init__(
        self, commands: Sequence[str], *, keeps_history: bool, use_color: bool = True
    ) -> None:
        """commands: names with their slash, for completion. keeps_history: in a file."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import ColorDepth, create_output

        self._pastes = Pastes()
        self._session: PromptSession[str] = PromptSession(
            history=_history(self._pastes, state_folder() if keeps_history else None),
            completer=_completer(commands),
            complete_while_typing=False,
            key_bindings=_key_bindings(self._pastes),
            multiline=True,
            enable_suspend=True,  # Ctrl-Z
            prompt_continuation="  ",
            output=create_output(always_prefer_tty=True),  # also if standard output is a file
            color_depth=None if use_color else ColorDepth.DEPTH_1_BIT,
        )

    def read(self, draft: str = "", opening: "Opening | None" = None) -> str:
        """Read one message or command.

        draft: text to begin with. opening: a model that is opened meanwhile, once the prompt is
        shown; its status is at the right, its notes go above, and its errors end the prompt.
        Errors: as of `input`, and of `opening`.
        """
        if opening is not None:
            self._session.rprompt = lambda: opening.status
        typed = self._session.prompt(
            "> ",
            default=self._pastes.fold(draft),
            pre_run=None if opening is None else lambda: self._watch(opening),
            refresh_interval=0 if opening is None else _REFRESH_S,
        )
        return self._pastes.unfold(joined(typed))

    def _watch(self, opening: "Opening") -> None:
        import asyncio

        from prompt_toolkit.application import run_in_terminal

        app = self._session.app

        async def watch() -> None:
            try:
                await asyncio.shield(asyncio.wrap_future(opening.begin()))
            except Exception as error:
                if not app.is_done:
                    app.exit(exception=error)
            else:
                if opening.has_notes:
                    await run_in_terminal(opening.print_notes)

        app.create_background_task(watch())

    def confirm(self, question: str) -> bool:
        """Ask; anything but y and yes is a no."""
        try:
            return choose(f"{question} [y/N]") == "y"
        except KeyboardInterrupt:
            return False


def choose(question: str) -> str:
    """Ask. Returns the first letter of the answer, small; n for none. Errors: KeyboardInterrupt."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(output=create_output(always_prefer_tty=True))
    try:
        return (session.prompt(f"{question} ").strip().lower() or "n")[0]
    except EOFError:
        return "n"


def _key_bindings(pastes: Pastes) -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.keys import Keys

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_unfinished(buffer.document.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(pastes.fold(event.data))

    return bindings


def _completer(commands: Sequence[str]) -> "Completer":
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class SlashCompleter(Completer):
        """Completes names of commands, parameters and files."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            name, space, argument = document.text_before_cursor.partition(" ")
            if not space:
                yield from _beginning_with(name, commands if name.startswith("/") else ())
            elif name in ("/params", "/set"):
                yield from _beginning_with(argument, SAMPLING_NAMES)
            elif name == "/think":
                yield from _beginning_with(argument, (*MODES, "default"))
            elif name in ("/save", "/load"):
                files = PathCompleter(expanduser=True)
                yield from files.get_completions(Document(argument), event)

    def _beginning_with(text: str, words: Iterable[str]) -> Iterable[Completion]:
        return (Completion(word, -len(text)) for word in words if word.startswith(text))

    return SlashCompleter()


def _history(pastes: Pastes, folder: Path | None) -> "History":
    """History in a file of the folder; in memory if that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class LastingHistory(FileHistory):
        """History of what can be sent again in the next chat: a placeholder cannot."""

        def store_string(self, string: str) -> None:
            if not pastes.has_placeholder(string):
                with suppress(OSError):  # a full disk: prompt_toolkit would show a traceback
                    super().store_string(string)

    if folder is None:
        return InMemoryHistory()
    path = folder / "history"
    try:
        path.open("a").close()
    except OSError:
        return InMemoryHistory()
    return LastingHistory(str(path))
