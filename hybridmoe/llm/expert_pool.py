"""Expert parallelism for `load`: rank 0 gathers workers, and shares the experts out."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Self

from hybridmoe.cluster.agreement import Identity, Terms
from hybridmoe.cluster.hosts import Hosts
from hybridmoe.cluster.pooled_experts import PooledExperts
from hybridmoe.cluster.rendezvous import MeetingPlace, find_meeting_place
from hybridmoe.cluster.seat import shape_of
from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError, HybridMoeError
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.gguf.fingerprint import fingerprint
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.gpu import Gpus
from hybridmoe.hardware.limits import measure_read
from hybridmoe.llm.progress import ProgressCallback, reporter
from hybridmoe.placement.budgets import plan_for
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.expert_shares import (
    ExpertShare,
    HostRate,
    held_by,
    split_by_weight,
    split_experts,
)
from hybridmoe.planning.model_sizes import sizes_of
from hybridmoe.planning.plan import Plan

__all__ = ["ExpertPool", "identity_of", "meeting_place_of", "own_read_gbs", "plan_share"]

_GATHER_S = 600.0
_PLACE_S = 3600.0  # for workers that read their experts from a slow disk


class ExpertPool:
    """Cluster of one load: `share`, then `offer`, then `join`."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        options: LoadOptions,
        progress: ProgressCallback | None,
    ) -> None:
        """Start to listen. Errors: ConfigError for options and environment; ClusterError."""
        place = meeting_place_of(config, options)
        if place.rank:
            raise ConfigError(
                f"expert_parallel: RANK is {place.rank}, a worker's: call hybridmoe.serve_experts"
            )
        weights = options.expert_share
        if weights is not None and len(weights) != place.num_ranks:
            raise ConfigError(
                f"expert_share: {len(weights)} numbers, expected {place.num_ranks}, one for each"
                " host"
            )
        self._file, self._config, self._options = file, config, options
        self._report = reporter(progress, "cluster", "hosts")
        self._hosts = Hosts(
            place, identity_of(file, config, place), shape_of(config.top_k, config.hidden)
        )
        self.shares: Sequence[range] = ()  # by rank

    def share(self, gpus: Gpus) -> ExpertShare:
        """Wait for all workers, and choose this host's share. Errors: ClusterError, ConfigError."""
        workers = self._hosts.gather(_GATHER_S, self._report)
        num_experts, weights = self._config.num_experts, self._options.expert_share
        if weights is None:
            own = self._own_rate(gpus)
            sizes = sizes_of(self._file.tensors.values(), self._config)
            self.shares = split_experts(num_experts, sizes.all_expert_bytes, (own, *workers))
        else:
            self.shares = split_by_weight(num_experts, weights)
        return ExpertShare(self._config, self.shares[0])

    def offer(self, plan: Plan) -> None:
        """Let workers place their shares. plan: of this host."""
        self._hosts.offer(
            Terms(
                shares=tuple((share.start, share.stop) for share in self.shares),
                max_tokens=plan.max_step_tokens,
                runs_mtp=plan.problem.sizes.config.runs_mtp,
            )
        )

    def join(self, own: ExpertBackend) -> PooledExperts:
        """Wait until workers are ready; add their experts to this host's. Errors: ClusterError."""
        self._hosts.connect(_PLACE_S, self._report)
        return PooledExperts(own, self.shares[0], self._hosts)

    @property
    def note(self) -> str:
        """Line on the hosts and their experts."""
        names = ("rank 0", *(seat.name for seat in self._hosts.seats))
        parts = (
            f"{name} {share.start}-{share.stop - 1}"
            for name, share in zip(names, self.shares, strict=True)
        )
        return f"experts of each layer: {', '.join(parts)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the workers end; after a load that failed, let them wait for the next one."""
        self._hosts.close(str(error) if isinstance(error, HybridMoeError) else None)

    def _own_rate(self, gpus: Gpus) -> HostRate:
        """Rate of this host, and its memory beside all other weights and the KV cache."""
        least = ExpertShare(self._config, range(1))
        plan = plan_share(self._file, self._config, self._options, gpus, least)
        tiers = (plan.ram, *([plan.vram] if plan.vram else []))
        free = sum(tier.free_bytes + tier.expert_bytes for tier in tiers)
        return HostRate("rank 0", max(0, free), own_read_gbs(self._options))


def meeting_place_of(config: ModelConfig, options: LoadOptions) -> MeetingPlace:
    """Read options and environment. Errors: ConfigError."""
    if not config.num_experts:
        raise ConfigError("expert_parallel: this model has no experts")
    return find_meeting_place(options.cluster_address, options.cluster_key_file)


def identity_of(file: GGUFFile, config: ModelConfig, place: MeetingPlace) -> Identity:
    """Describe what all ranks must have in common."""
    return Identity(
        version=version("hybridmoe"),
        num_ranks=place.num_ranks,
        file=fingerprint(file),
        model=hashlib.sha256(repr(config).encode()).hexdigest(),
    )


def own_read_gbs(options: LoadOptions) -> float:
    """Measure this host's read rate, unless shares are given."""
    return 1.0 if options.expert_share is not None else measure_read() / 1e9


def plan_share(
    file: GGUFFile,
    config: ModelConfig,
    options: LoadOptions,
    gpus: Gpus,
    share: ExpertShare | None,
) -> Plan:
    """Plan memory for this host's share of the experts; None = all."""
    tensors = list(file.tensors.values())
    if share is None:
        return plan_for(config, tensors, options, gpus)
    return plan_for(*held_by(config, tensors, share.experts), options, gpus)
