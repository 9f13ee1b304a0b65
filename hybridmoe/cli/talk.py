"""Conversation with a model: messages, streamed responses, interrupts, statistics.

Knows neither prompts nor commands (cli/chat.py, cli/commands.py).
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hybridmoe.cli.compactor import Compactor
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.render import Screen, timing_line
from hybridmoe.cli.session import Session
from hybridmoe.cli.signals import Terminated, handled
from hybridmoe.cli.tool_runner import ToolRunner, shown_call
from hybridmoe.errors import HybridMoeError
from hybridmoe.text.thinking_options import ThinkingOptions

if TYPE_CHECKING:
    from hybridmoe import LLM, Progress, Result, ResultStream, SamplingParams
    from hybridmoe.experts.stats import ExpertStats

__all__ = ["Talk", "Totals"]

_MAX_SUMMARIES = 3  # before one message
_MAX_ROUNDS = 20  # of tool calls after one message
_RECALLED = 400  # characters of a message that are shown again


class Totals:
    """Totals of a conversation, for `/stats`."""

    def __init__(self) -> None:
        self.turns = self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.draft_tokens = self.accepted_tokens = 0
        self.seconds = 0.0
        self.last: Result | None = None
        self.last_experts: ExpertStats | None = None

    @property
    def last_line(self) -> str | None:
        """Statistics line of the last response; None before the first."""
        return None if self.last is None else timing_line(self.last.timing, self.last_experts)

    def add(self, result: "Result", seconds: float, experts: "ExpertStats | None") -> None:
        """Add one response. experts: counts of this response; None without an expert cache."""
        self.turns += 1
        self.prompt_tokens += result.timing.prompt_tokens
        self.cached_tokens += result.timing.cached_tokens
        self.generated_tokens += result.timing.generated_tokens
        self.draft_tokens += result.timing.draft_tokens
        self.accepted_tokens += result.timing.accepted_tokens
        self.seconds += seconds
        self.last, self.last_experts = result, experts


class Talk:
    """Sends messages to the model, and keeps the session up to date."""

    def __init__(
        self,
        model: "LLM",
        session: Session,
        screen: Screen,
        *,
        hold_keyboard: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_response: Callable[[], None] = lambda: None,
        tools: ToolRunner | None = None,
        is_quiet: bool = False,
    ) -> None:
        """hold_keyboard: entered while the model works. on_response: the session has grown.

        tools: functions that the model may call. is_quiet: only responses are shown.
        """
        self._hold_keyboard, self._on_response = hold_keyboard, on_response
        self._tools, self._is_quiet = tools, is_quiet
        self.session = session
        self.screen = screen
        self.totals = Totals()
        self._model = model
        self._end: Terminated | None = None  # came during a response
        self._compactor = Compactor(model, session, self._respond_unseen, screen.note)

    def ask(self, text: str) -> None:
        """As `respond`, but errors are shown."""
        try:
            self.respond(text)
        except HybridMoeError as error:
            self.screen.note(f"error: {error}")

    def respond(self, text: str) -> bool:
        """Stream the response to the screen, and append both messages to the session.

        If the context nears its end, the oldest turns become a summary first. Ctrl-C ends the
        response, and its text so far is kept; so does Terminated, which is raised then. An error,
        or an interrupt before the first word, leaves the session as it was, but for that summary.
        Returns False if interrupted.
        """
        messages = self.session.messages
        messages.append({"role": "user", "content": text})
        is_done = False
        try:
            if self._compactor.is_needed() and not self._compact():
                return False
            is_done, is_stopped = self._respond_with_tools()
            return not is_stopped
        finally:
            if not is_done:
                self.session.drop_last_turn()
            if self._end is not None:
                raise self._end

    def _respond_with_tools(self) -> tuple[bool, bool]:
        """Stream responses, as long as they call tools.

        Returns whether the session has a response now, and whether Ctrl-C came.
        """
        for num_rounds in range(_MAX_ROUNDS):
            result, is_stopped = self._stream()
            calls = result.tool_calls if result and not is_stopped else []
            has_response = bool(result and (result.text or calls))
            if result and has_response:
                self._append(result, calls)
            if self._end is not None:
                with suppress(OSError):  # the terminal may be gone
                    self.screen.end_line()
                return has_response or num_rounds > 0, True
            self._comment(result, calls, is_stopped=is_stopped)
            if not calls or self._tools is None:
                return has_response or num_rounds > 0, is_stopped
            answers, is_complete = self._tools.run(calls, self._model.context_tokens)
            self.session.messages += answers
            if not is_complete:
                self.screen.note("(stopped)")
                return True, True
        self.screen.note(f"(stopped: tools were called in {_MAX_ROUNDS} responses)")
        return True, False

    def _append(self, result: "Result", calls: list[dict[str, Any]]) -> None:
        response: dict[str, Any] = {"role": "assistant", "content": result.text}
        if result.reasoning:
            response["reasoning_content"] = result.reasoning
        if calls:
            response["tool_calls"] = calls
        self.session.messages.append(response)
        self._on_response()

    def recall(self) -> None:
        """Show the last message and its response again."""
        messages = self.session.messages
        for role in ("user", "assistant"):
            text = next((m["content"] for m in reversed(messages) if m["role"] == role), None)
            if text and role == "user":
                self.screen.note(f"> {text:.{_RECALLED}}{' ...' * (len(text) > _RECALLED)}")
            elif text:
                self.screen.write(text)
                self.screen.end_line()

    def compact(self) -> None:
        """Put a summary in place of all but the last turn. Errors are shown."""
        try:
            if not self._compactor.compact(keeps_last=True):
                self.screen.note("(stopped)")
        except HybridMoeError as error:
            self.screen.note(f"error: {error}")

    def effective_params(self) -> "SamplingParams":
        """Sampling parameters of the next response."""
        return self._model.sampling_params(self.session.params)

    def source_of(self, name: str) -> str:
        """Name where a sampling parameter is from: the user, the model's file, or neither."""
        if name in self.session.params:
            return "set here"
        return "the model's" if name in self._model.sampling_defaults else "default"

    @property
    def model_line(self) -> str:
        """Name of the model, and its context."""
        return f"{self.session.model} · context {self._model.context_tokens} tokens"

    def set_thinking(self, thinking: ThinkingOptions) -> None:
        """Set how the model thinks. Raises ConfigError for a switch that it does not know."""
        self._model.check_thinking(thinking)
        self.session.thinking = thinking

    def save_kv_cache(self, path: Path) -> int:
        """Write the KV cache of the conversation. Returns its tokens; 0 = no file."""
        return self._model.save_sequence(path)

    def load_kv_cache(self, path: Path) -> int:
        """Restore a KV cache from `save_kv_cache`. Errors: ConfigError, OSError."""
        return self._model.restore_sequence(path)

    def expert_stats(self) -> "ExpertStats | None":
        """Counters of the expert cache; None without one."""
        return self._model.expert_stats()

    def _compact(self) -> bool:
        """Summarize before a message. Returns False if interrupted; an error is shown."""
        try:
            for _ in range(_MAX_SUMMARIES):  # several where not all old turns can be read at once
                if not self._compactor.compact(num_pending=1):
                    self.screen.note("(stopped)")
                    return False
                if not self._compactor.is_needed():
                    break
        except HybridMoeError as error:
            self.screen.note(f"(not summarized: {error})")
        return True

    def _respond_unseen(
        self, messages: list[dict[str, Any]], thinking: ThinkingOptions, params: dict[str, Any]
    ) -> "Result | None":
        """Get a response that is not shown; None if interrupted."""
        result, is_stopped = self._run(messages, thinking, params, lambda *_: None)
        if self._end is not None:
            raise self._end
        return None if is_stopped else result

    def _stream(self) -> tuple["Result | None", bool]:
        """Show the response to the session's messages."""
        session, params = self.session, self.session.params
        if self._tools is not None:
            params = {**params, "tools": self._tools.declarations}
        return self._run(session.prompt(), session.thinking, params, self._show)

    def _show(self, text: str, is_reasoning: bool) -> None:
        self.screen.write(text, is_reasoning=is_reasoning)

    def _run(
        self,
        messages: list[dict[str, Any]],
        thinking: ThinkingOptions,
        params: dict[str, Any],
        show: Callable[[str, bool], None],
    ) -> tuple["Result | None", bool]:
        started, before = time.monotonic(), self.expert_stats()
        stream: ResultStream | None = None
        with (
            self._hold_keyboard(),
            self._progress_bar() as bar,
            _interrupts() as interrupts,
            handled((signal.SIGCONT,), lambda _: self.screen.forget_position()),
        ):

            def on_progress(progress: "Progress") -> None:
                if interrupts.is_set():
                    raise KeyboardInterrupt  # safe here, between two chunks of the prompt
                bar(progress)

            try:
                stream = self._model.chat(
                    messages, thinking=thinking, stream=True, progress=on_progress, **params
                )
                for text, is_reasoning in stream.pieces():
                    bar.close()
                    show(text, is_reasoning)
                    if interrupts.is_set():
                        stream.close()
                        break
            except KeyboardInterrupt:
                interrupts.set()
            except Terminated as end:
                interrupts.set()
                self._end = end
            finally:
                if stream is not None:
                    stream.close()
        if stream is None:
            return None, True
        result = stream.result
        experts = self.expert_stats()
        self.totals.add(result, time.monotonic() - started, experts and experts.since(before))
        return result, interrupts.is_set()

    def _progress_bar(self) -> ProgressBar:
        """A bar that estimates by the last response, which is in the KV cache perhaps."""
        if self.totals.last is None:
            return ProgressBar()
        timing = self.totals.last.timing
        return ProgressBar(
            tokens_per_s=timing.prompt_tokens_per_s,
            known_tokens=timing.prompt_tokens + timing.generated_tokens,
        )

    def _comment(
        self, result: "Result | None", calls: list[dict[str, Any]], *, is_stopped: bool
    ) -> None:
        screen = self.screen
        screen.end_line()
        if self._is_quiet:
            return
        for call in calls if self._tools is None else ():
            screen.note(f"tool call: {shown_call(call['function'])}")
        if is_stopped:
            screen.note("(stopped)")
        elif result and result.finish_reason == "length":
            screen.note("(cut off: --max-tokens, or the end of the context)")
        if result and result.timing.prompt_tokens:
            screen.note(str(self.totals.last_line))


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets; a second Ctrl-C interrupts at once."""
    event = threading.Event()

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
