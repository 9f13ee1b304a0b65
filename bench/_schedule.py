"""Simulated threads: what a traced step would take on machines with more cores.

A trace has the CPU time of every chunk, run alone, as the kernels divide work for so many threads,
and of the caller between the jobs. The simulation lets threads draw chunks as the pool does: in
order, from one counter a node, helping other nodes unless the job reads weights.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridmoe import _C

__all__ = ["Job", "Machine", "Step", "least", "trace"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Threads by node, and what starting and ending a job costs.

    lanes: threads of a node that its memory feeds at the full rate of one, for steps that are bound
    by memory. Costs of the pool are guesses of a server's: a line of cache from core to core, and a
    thread's wake-up by the system.
    """

    threads: tuple[int, ...]
    lanes: float = math.inf
    start_s: float = 2e-6
    wake_s: float = 30e-6
    draw_s: float = 0.1e-6
    end_s: float = 1e-6
    spin_s: float = 80e-6  # after which waiting workers sleep

    @property
    def num_threads(self) -> int:
        return sum(self.threads)

    @property
    def plan(self) -> list[list[list[int]]]:
        """Plan of the pool, of threads that may run anywhere."""
        return [[[]] * n for n in self.threads]


@dataclass(frozen=True, slots=True)
class Job:
    """Chunks, which nodes 0..n draw up to ends[n], and the caller's time before them."""

    before_s: float
    is_local: bool
    ends: tuple[int, ...]
    seconds: NDArray[np.float64]

    @property
    def work_s(self) -> float:
        return float(self.seconds.sum())

    def makespan(self, machine: Machine) -> float:
        """Seconds from its start until its last chunk is done, on a machine of as many nodes."""
        if len(self.seconds) <= 1 or machine.num_threads == 1:
            return self.work_s
        if len(machine.threads) == 1 and math.isinf(machine.lanes):
            return self._listed(machine)
        return self._fluid(machine)

    def start(self, machine: Machine) -> float:
        """Seconds until the workers take part, and until the caller knows that they are done."""
        if len(self.seconds) <= 1 or machine.num_threads == 1:
            return 0.0
        asleep = machine.wake_s if self.before_s > machine.spin_s else 0.0
        return machine.start_s + asleep + machine.end_s

    def _listed(self, machine: Machine) -> float:
        free = [0.0] * machine.num_threads
        for seconds in self.seconds.tolist():
            heapq.heapreplace(free, free[0] + seconds + machine.draw_s)
        return max(free)

    def _fluid(self, machine: Machine) -> float:
        """Threads of a node share its lanes: all slow down where more are at work."""
        nodes = len(machine.threads)
        next_chunk, ends = [0, *self.ends[:-1]], self.ends
        left = [list[float]() for _ in range(nodes)]  # of each node's threads, seconds at full rate
        idle, now = list(machine.threads), 0.0

        def draw(node: int) -> float | None:
            for i in range(1 if self.is_local else nodes):
                of = (node + i) % nodes
                if next_chunk[of] < ends[of]:
                    next_chunk[of] += 1
                    return float(self.seconds[next_chunk[of] - 1]) + machine.draw_s
            return None

        while True:
            for node in range(nodes):
                while idle[node] and (chunk := draw(node)) is not None:
                    idle[node] -= 1
                    left[node].append(chunk)
            if not any(left):
                return now
            rates = [min(1.0, machine.lanes / len(at)) if at else 1.0 for at in left]
            passed = min(min(at) / rate for at, rate in zip(left, rates, strict=True) if at)
            now += passed
            for node, (at, rate) in enumerate(zip(left, rates, strict=True)):
                after = [s - passed * rate for s in at]
                left[node] = [s for s in after if s > 1e-12]
                idle[node] += len(at) - len(left[node])


@dataclass(frozen=True, slots=True)
class Step:
    """Jobs of a step, and the caller's time behind the last."""

    jobs: tuple[Job, ...]
    after_s: float

    @property
    def serial_s(self) -> float:
        """The caller's time outside of jobs, and in jobs of one chunk."""
        alone = sum(job.work_s for job in self.jobs if len(job.seconds) == 1)
        return sum(job.before_s for job in self.jobs) + self.after_s + alone

    @property
    def work_s(self) -> float:
        return sum(job.work_s for job in self.jobs)

    def seconds(self, machine: Machine) -> float:
        """Predict the step's time on a machine."""
        outside = sum(job.before_s for job in self.jobs) + self.after_s
        return outside + sum(job.start(machine) + job.makespan(machine) for job in self.jobs)

    def losses(self, machine: Machine) -> dict[str, float]:
        """Predict the seconds beyond the even share of the work, by their cause."""
        lanes = machine.lanes * len(machine.threads)
        share = min(machine.num_threads, lanes)
        many = [job for job in self.jobs if len(job.seconds) > 1]
        return {
            "serial": self.serial_s * (1 - 1 / machine.num_threads),
            "pool": sum(job.start(machine) for job in many),
            "uneven": sum(job.makespan(machine) - job.work_s / share for job in many),
        }


def trace(step: Callable[[], object]) -> Step:
    """Run a step on the caller alone, divided for the threads that are set."""
    _C.begin_job_trace()
    try:
        step()
    finally:
        jobs, after_s = _C.end_job_trace()
    return Step(
        tuple(
            Job(before, is_local, tuple(ends), np.array(seconds))
            for before, is_local, ends, seconds in jobs
        ),
        after_s,
    )


def least(steps: Sequence[Step]) -> Step:
    """Merge traces of the same step: the least time of every chunk and gap, as noise only adds."""
    if len({tuple(job.ends for job in step.jobs) for step in steps}) != 1:
        raise ValueError("these are not traces of one step: their jobs differ")

    def merged(jobs: Sequence[Job]) -> Job:
        seconds = np.min([job.seconds for job in jobs], axis=0)
        before_s = min(job.before_s for job in jobs)
        return Job(before_s, jobs[0].is_local, jobs[0].ends, seconds)

    jobs = zip(*(step.jobs for step in steps), strict=True)
    return Step(tuple(map(merged, jobs)), min(step.after_s for step in steps))
