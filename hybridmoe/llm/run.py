"""Run of one request of the Python API: its events, turned into pieces."""

from queue import SimpleQueue

from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import (
    Event,
    Finished,
    PromptLogprobs,
    PromptProgress,
    Request,
    TokenEvent,
    Usage,
)
from hybridmoe.errors import ConfigError, HybridMoeError
from hybridmoe.llm.progress import Progress, ProgressCallback
from hybridmoe.llm.result import Piece, PieceStream, Result, pieces_of
from hybridmoe.text.response import Response

__all__ = ["Run"]


class Run:
    """One request under way: its events, brought from the engine's thread to the caller's."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        response: Response,
        progress: ProgressCallback | None,
    ) -> None:
        self.token_ids = list(request.prompt_ids)  # of the prompt, and of the response so far
        self._num_prompt_tokens = len(self.token_ids)
        self._response = response
        self._progress = progress
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._usage = Usage(prompt_tokens=len(request.prompt_ids))
        self.cancel = engine.submit(request, self._events.put).cancel

    def pieces(self) -> PieceStream:
        try:
            self._tell(0, self._num_prompt_tokens)  # the first chunk may take long
            while self._response.finish_reason is None:
                yield from self._take(self._events.get())
        finally:
            self.cancel()

    def result(self) -> Result:
        token_ids = self.token_ids[self._num_prompt_tokens :]
        return Result.of_response(self._response, token_ids, self._usage)

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(Progress("prompt", done, total, "tokens"))

    def _take(self, event: Event) -> list[Piece]:
        """Handle an event. Returns the pieces that it completes."""
        match event:
            case PromptProgress():
                self._tell(event.done_tokens, event.total_tokens)
                return []
            case PromptLogprobs():
                return []
            case TokenEvent():
                self._usage = event.usage
                self.token_ids.append(event.token_id)
                return pieces_of(self._response.push(event.token_id))
            case Finished():
                self._usage = event.usage
                if event.reason == "error":
                    kind = ConfigError if event.is_refusal else HybridMoeError
                    raise kind(event.error)
                return pieces_of(self._response.finish(event.reason))
