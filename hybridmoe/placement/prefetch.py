"""Decision on prefetch hints at load, by the rates of disk and memory that are measured then."""

from typing import NamedTuple

from hybridmoe.experts.disk.disk_rate import measure_disk
from hybridmoe.experts.measured_rates import measured_rates
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.planning.cost_model import hits_of
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prefetch_gain import can_read_ahead, read_ahead_of

__all__ = ["Prefetch", "decide_prefetch"]

_DISK_S = 0.3  # of reads


class Prefetch(NamedTuple):
    """Number of experts to read ahead, with a line on why."""

    num_ahead: int = 0
    note: str | None = None


def decide_prefetch(file: GGUFFile, plan: Plan) -> Prefetch:
    """Measure for about a second where experts can be read ahead, and decide.

    Routing is taken to be uniform, as nothing is known of it yet.
    """
    if not can_read_ahead(plan):
        return Prefetch()
    disk = measure_disk(file.parts, seconds=_DISK_S)
    if disk is None:
        return Prefetch()
    rates = measured_rates(disk=disk)
    found = read_ahead_of(plan, rates, hits_of(plan))
    return Prefetch(found.num_ahead, found.line(rates))
