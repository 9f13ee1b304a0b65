"""Run requests on `HashModel`, step by step, with a KV cache on disk."""

import time
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

from hash_model import EOS, MODEL, VOCAB, HashModel, expected

from hybridmoe.config import EngineConfig
from hybridmoe.device.interface import Device
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_disk import KvDisk
from hybridmoe.engine.request import Event, Finished, Request, TokenEvent, Usage
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.scheduler import Scheduler
from hybridmoe.engine.sequence import Sequence
from hybridmoe.engine.stats import KvDiskStats
from hybridmoe.engine.step_runner import StepRunner
from hybridmoe.option import FolderLimit
from hybridmoe.planning.kv_plan import plan_kv

__all__ = ["IDS", "PAGE_BYTES", "HashRun", "computed", "files", "patient"]

IDS = [i * 7 % 3 for i in range(300)]  # for HashModel; four pages and a part of a fifth
PAGE_BYTES = 48 + 64 * (4 + 2 * 576 * 4)


class HashRun:
    """An engine in the caller's thread, one request at a time. Close it to have all written."""

    def __init__(
        self,
        folder: Path,
        limit_bytes: int = 1 << 30,
        *,
        num_tokens: int = 1024,
        devices: Items[Device] | None = None,
        kv_type: str = "f32",
        model: str = "hash",
        make_model: type[HashModel] = HashModel,
    ) -> None:
        config = EngineConfig(context_tokens=num_tokens, kv_tokens=num_tokens, kv_type=kv_type)
        self.cache = KvCache(MODEL, plan_kv(MODEL, config, 0), devices)
        self.disk = KvDisk(FolderLimit(folder, limit_bytes), self.cache, model, lambda: None)
        self.scheduler = Scheduler(self.cache, config, self.disk)
        hash_model: Any = make_model(self.cache)
        self._context_tokens = num_tokens
        self._runner = StepRunner(hash_model, {EOS}, self.cache, self.scheduler, disk=self.disk)

    def respond(self, prompt: list[int], num_tokens: int = 4) -> Usage:
        """Run a request. Fails if its response is wrong."""
        tokens, ends = list[int](), list[Finished]()

        def listen(event: Event) -> None:
            if isinstance(event, TokenEvent):
                tokens.append(event.token_id)
            elif isinstance(event, Finished):
                ends.append(event)

        params = SamplingParams(temperature=0.0, max_tokens=num_tokens)
        request = Request(prompt_ids=prompt, params=params)
        self.scheduler.add(Sequence(request, listen, VOCAB + 1, self._context_tokens))
        while not ends:
            chunks = self.scheduler.schedule()
            if chunks:
                self._runner.run(chunks)
            else:
                time.sleep(0.0005)
        assert ends[0].reason == "length", ends[0]
        assert tokens == expected(prompt, num_tokens), "wrong tokens"
        return ends[0].usage

    def close(self) -> KvDiskStats:
        """Write what is queued; end the threads."""
        self._runner.close()
        self.disk.close()
        return self.disk.stats()


def patient(disk: KvDisk) -> KvDisk:
    """Let `start` of a KV cache on disk return when all has been read."""
    start = disk.start

    def start_and_wait(sequence: Sequence, *, may_read: bool) -> None:
        start(sequence, may_read=may_read)
        while sequence.is_loading:
            disk.receive(sequence)

    disk.start = start_and_wait  # type: ignore[method-assign]
    return disk


def computed(folder: Path, ids: Items[int] = IDS, **options: Any) -> None:
    """Compute a prompt, and write its pages."""
    run = HashRun(folder, **options)
    run.respond(list(ids), 1)
    assert run.close().errors == 0


def files(folder: Path) -> list[Path]:
    """List all files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
