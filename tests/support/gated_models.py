"""Models of a pool that a test loads when it likes: fake ones, behind gates."""

import threading
from typing import Any

from fake_engine import FakeLLM
from waiting import eventually

from hybridmoe.llm.progress import Progress, ProgressCallback
from hybridmoe.serve import ModelPool, ModelSource, ScheduleRules

__all__ = ["GatedModels"]


def _keep(_: object) -> None:
    """Leave memory alone: a collection of all garbage takes as long as a test."""


class GatedModels:
    """Sources of fake models, and a list of what is loaded and closed."""

    def __init__(self, *names: str) -> None:
        self.events: list[str] = []
        self.gates = {name: threading.Event() for name in names}
        self.failures: dict[str, Exception] = {}  # of loads to come, by name
        self.open(*names)

    def open(self, *names: str) -> None:
        """Let loads go through."""
        for name in names:
            self.gates[name].set()

    def shut(self, *names: str) -> None:
        """Hold loads up half-way."""
        for name in names:
            self.gates[name].clear()

    def pool(
        self, rules: ScheduleRules | None = None, *, starts: bool = True, **settings: Any
    ) -> ModelPool:
        """Make a pool of the models; the first is loaded by the time that it is returned."""
        rules = rules or ScheduleRules(quiet_s=0.0)
        sources = [self._source(name) for name in self.gates]
        pool = ModelPool(sources, rules, report=self.events.append, give_back=_keep, **settings)
        if starts:
            pool.start()
            eventually(lambda: pool.has_started)
        return pool

    def _source(self, name: str) -> ModelSource:
        return ModelSource(name=name, load=lambda progress: self._load(name, progress))

    def _load(self, name: str, progress: ProgressCallback) -> FakeLLM:
        self.events.append(f"load {name}")
        progress(Progress("load", 1, 2, "bytes"))
        while not self.gates[name].wait(0.005):
            progress(Progress("load", 1, 2, "bytes"))  # raises once the pool is closing
        if name in self.failures:
            raise self.failures.pop(name)
        llm = FakeLLM()
        close = llm.close

        def noted_close() -> None:
            self.events.append(f"close {name}")
            close()

        llm.close = noted_close
        return llm
