"""Worker of a cluster: maps the file, computes its share of the experts, and joins again."""

import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridmoe.cluster.agreement import Hello, Terms
from hybridmoe.cluster.join import FarewellError, join, meet
from hybridmoe.cluster.message import FrameShape
from hybridmoe.cluster.rendezvous import MeetingPlace
from hybridmoe.cluster.worker import answer_requests
from hybridmoe.config import ModelConfig
from hybridmoe.env import check_environment
from hybridmoe.errors import ClusterError, ConfigError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.topology import set_num_threads
from hybridmoe.llm.expert_pool import identity_of, meeting_place_of, own_read_gbs
from hybridmoe.llm.model_config import naming, read_model_config
from hybridmoe.llm.model_file import open_model
from hybridmoe.llm.progress import ProgressCallback, reporter
from hybridmoe.placement.expert_share import PlacedShare, place_share, ram_for_experts
from hybridmoe.placement.options import LoadOptions

__all__ = ["Worker", "serve_experts"]

_log = logging.getLogger(__name__)
_PATIENCE_S = 600.0  # without rank 0
_PAUSE_S = 1.0  # between two attempts
_CLOSED = "this end has closed the connection"


def serve_experts(
    path: str | Path | None = None,
    options: LoadOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
    report: Callable[[str], None] = _log.info,
    **keywords: Any,
) -> None:
    """Compute this worker's share of the experts, until rank 0 ends.

    Arguments as of `hybridmoe.load`, which rank 0 calls; `expert_parallel` is implied. report: gets
    lines for people. A lost connection is made again.
    Errors: those of `load`; ConfigError if rank 0 refuses; ClusterError if it is away for minutes.
    """
    options = LoadOptions.of(options, {**keywords, "expert_parallel": True})
    check_environment()
    if options.num_threads is not None:
        set_num_threads(options.num_threads)
    with open_model(path) as file:
        config = read_model_config(file, options)
        place = meeting_place_of(config, options)
        if not place.rank:
            raise ConfigError("serve_experts: RANK is 0, which hybridmoe.load runs")
        Worker(file, config, place, options, progress, report).run()


class Worker:
    """Process of one worker: its share, placed once for the same terms."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        place: MeetingPlace,
        options: LoadOptions,
        progress: ProgressCallback | None,
        report: Callable[[str], None],
    ) -> None:
        self._file, self._config, self._place = file, config, place
        self._on_bytes, self._report = reporter(progress, "load", "bytes"), report
        self._ram_bytes = ram_for_experts(options.expert_ram)
        self._hello = Hello(
            **asdict(identity_of(file, config, place)),
            host=socket.gethostname(),
            ram_bytes=self._ram_bytes,
            read_gbs=own_read_gbs(options),
        )
        self._placed: PlacedShare | None = None
        self._placed_by: tuple[range, bool] | None = None

    def run(self) -> None:
        """Serve until rank 0 says farewell."""
        try:
            while not self._has_served():
                time.sleep(_PAUSE_S)
        finally:
            self._drop()

    def _has_served(self) -> bool:
        """Join and serve. Returns False if the connection was lost."""
        channel = meet(self._place, self._hello, _PATIENCE_S, self._report)
        try:
            link = join(channel, self._place, self._prepare, self._report)
            placed = self._placed
            assert placed is not None, "the terms come before the connection"
            # Beats are this thread's: Ctrl-C is heard between two, but not in a wait for requests.
            with ThreadPoolExecutor(1, "hybridmoe-answers") as thread:
                answers = thread.submit(answer_requests, link, placed.backend, placed.experts)
                answers.add_done_callback(lambda _: link.fail(_CLOSED))
                try:
                    link.beat(is_first=False)
                finally:
                    link.fail(_CLOSED)
            answers.result()
            return True
        except FarewellError:
            return True
        except ClusterError as error:
            self._report(f"{error}; joining again")
            return False

    def _prepare(self, terms: Terms) -> FrameShape:
        """Place the share of the terms, unless it is placed. Returns the sizes of messages."""
        share = terms.ranges[self._place.rank]
        if not share or share.stop > self._config.num_experts or not terms.max_tokens:
            raise ClusterError(f"rank 0: malformed handshake: {terms}")
        key = (share, terms.runs_mtp)
        if self._placed_by != key:
            self._drop()
            config = self._config.with_mtp() if terms.runs_mtp else self._config
            with naming(self._file):
                self._placed = place_share(
                    self._file, config, share, self._ram_bytes, self._on_bytes
                )
            self._placed_by = key
            self._report(f"rank {self._place.rank}: {self._description(share)}")
        return FrameShape(terms.max_tokens, self._config.top_k, self._config.hidden)

    def _description(self, share: range) -> str:
        assert self._placed is not None
        where = (
            f"experts {share.start} to {share.stop - 1} of each layer, for rank 0 at {self._place}"
        )
        stats = self._placed.backend.stats()
        slots = "" if stats is None else f"; RAM holds {stats.num_slots} of {stats.num_experts}"
        return where + slots

    def _drop(self) -> None:
        if self._placed is not None:
            self._placed.backend.close()
        self._placed = self._placed_by = None
