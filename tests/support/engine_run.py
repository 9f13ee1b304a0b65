"""Run requests through an engine, and collect their events."""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from gguf import GGMLQuantizationType
from tiny_gguf import write_tiny
from waiting import HANG_S

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import (
    Event,
    Finished,
    PromptLogprobs,
    PromptProgress,
    Request,
    TokenEvent,
)
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights

MakeEngine = Callable[..., Engine]


@contextmanager
def tiny_decoder(folder: Path, variant: str = "k2", **options: Any) -> Iterator[Decoder]:
    """Load a small random model in Q8_0.

    options: of `write_tiny`; with `mtp=True` that layer is loaded, to draft.
    """
    path = folder / "tiny.gguf"
    write_tiny(path, variant=variant, type=GGMLQuantizationType.Q8_0, **options)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        yield Decoder(Weights(file), config.with_mtp() if options.get("mtp") else config)


@contextmanager
def engine_maker(model: Decoder) -> Iterator[MakeEngine]:
    """Factory of engines of the model, by `eos_ids` and options of `EngineConfig`; closes them."""
    engines = []

    def make_engine(*, eos_ids: Set[int] = frozenset(), **options: Any) -> Engine:
        config = EngineConfig(**{"context_tokens": 512, "kv_tokens": 8192, **options})
        engines.append(Engine(model, eos_ids, config))
        return engines[-1]

    yield make_engine
    for engine in engines:
        engine.close()


@dataclass
class EngineResponse:
    """All events of one request."""

    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[TokenEvent]:
        return [e for e in self.events if isinstance(e, TokenEvent)]

    @property
    def ids(self) -> list[int]:
        return [e.token_id for e in self.tokens]

    @property
    def progress(self) -> list[PromptProgress]:
        return [e for e in self.events if isinstance(e, PromptProgress)]

    @property
    def prompt_logprobs(self) -> list[PromptLogprobs]:
        return [e for e in self.events if isinstance(e, PromptLogprobs)]

    @property
    def end(self) -> Finished:
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]


class Running:
    """A submitted request."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.response = EngineResponse()
        self.handle = engine.submit(request, self.queue.put)

    def next(self) -> Event:
        event = self.queue.get(timeout=HANG_S)
        self.response.events.append(event)
        return event

    def token(self) -> TokenEvent:
        """Wait for the next token."""
        while not isinstance(event := self.next(), TokenEvent):
            assert not isinstance(event, Finished), event
        return event

    def wait(self) -> EngineResponse:
        """Wait for the end."""
        while not isinstance(self.next(), Finished):
            pass
        return self.response


def request(prompt_ids: Sequence[int], num_tokens: int | None = 16, **options: Any) -> Request:
    """Make a greedy request for `num_tokens`; keywords of Request, or of SamplingParams."""
    names = ("constraint", "top_logprobs", "prompt_logprobs", "expert_trace", "dry_breakers")
    own = {name: options.pop(name) for name in names if name in options}
    defaults = {"temperature": 0.0, "ignore_eos": "constraint" not in own}
    params = SamplingParams(max_tokens=num_tokens, **{**defaults, **options})
    return Request(prompt_ids=prompt_ids, params=params, **own)


def run(engine: Engine, *requests: Request) -> list[EngineResponse]:
    """Run requests in one batch."""
    return [running.wait() for running in [Running(engine, r) for r in requests]]
