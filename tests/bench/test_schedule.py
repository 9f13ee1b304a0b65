"""Simulated threads: their times against ones computed otherwise, and traces of real steps."""

import random
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import random_matrix

from bench._modelled_tiles import ModelledTiles, TileCosts
from bench._schedule import Job, Machine, Step, least, trace
from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.hardware import topology
from hybridmoe.kernels import ops

INF = float("inf")
FREE = {"start_s": 0.0, "wake_s": 0.0, "draw_s": 0.0, "end_s": 0.0}


def job(*seconds: float, ends: tuple[int, ...] = (), is_local: bool = True) -> Job:
    return Job(0.0, is_local, ends or (len(seconds),), np.array(seconds))


def machine(*threads: int, lanes: float = INF) -> Machine:
    return Machine(threads, lanes, **FREE)


def stepped(job: Job, threads: tuple[int, ...], lanes: float, tick: float) -> float:
    """Simulate in small ticks, with integers of work: slow, and with nothing to get wrong."""
    starts = [0, *job.ends[:-1]]
    at_work: list[list[float]] = [[] for _ in threads]
    time = 0.0
    while True:
        for node, count in enumerate(threads):
            order = [node] if job.is_local else [(node + i) % len(threads) for i in range(9)]
            for of in order[: len(threads)]:
                while len(at_work[node]) < count and starts[of] < job.ends[of]:
                    at_work[node].append(job.seconds[starts[of]])
                    starts[of] += 1
        if not any(at_work):
            return time
        for node, chunks in enumerate(at_work):
            rate = min(1.0, lanes / max(1, len(chunks)))
            at_work[node] = [s - tick * rate for s in chunks if s - tick * rate > 1e-9]
        time += tick


def test_small_jobs_by_hand() -> None:
    assert job(3, 2, 2).makespan(machine(2)) == 4
    assert job(2, 2, 3).makespan(machine(2)) == 5  # the longest last
    assert job(4, 4, 4, 4).makespan(machine(4, lanes=2)) == 8  # memory feeds two
    assert job(4, 4, 4).makespan(machine(4, lanes=2)) == 6
    assert job(6, 1, 1, ends=(1, 3)).makespan(machine(1, 1)) == 6  # each node its own
    assert job(3, 3, 1, 1, ends=(3, 4)).makespan(machine(1, 1)) == 7
    assert job(3, 3, 1, 1, ends=(3, 4), is_local=False).makespan(machine(1, 1)) == 4  # helps
    assert job(5).makespan(machine(8, lanes=2)) == 5
    assert job(5, 5).makespan(machine(1)) == 10


def test_random_jobs_against_small_ticks() -> None:
    rng = random.Random(1)
    for _ in range(60):
        threads = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
        chunks = [rng.randint(0, 9) for _ in threads]
        ends = tuple(np.cumsum(chunks).tolist())
        seconds = [rng.randint(1, 20) * 0.125 for _ in range(sum(chunks))]
        lanes = rng.choice([INF, 1.0, 2.0, 4.0])
        drawn = job(*seconds, ends=ends, is_local=rng.random() < 0.5)
        want = stepped(drawn, threads, lanes, 2.0**-10)
        assert drawn.makespan(machine(*threads, lanes=lanes)) == pytest.approx(want, abs=0.05)


def test_a_step_adds_up() -> None:
    jobs = (Job(1.0, False, (4,), np.array([1.0] * 4)), Job(2.0, True, (1,), np.array([5.0])))
    step = Step(jobs, 3.0)
    assert (step.work_s, step.serial_s) == (9.0, 11.0)
    assert step.seconds(machine(1)) == 15 and step.seconds(machine(2)) == 13
    assert step.losses(machine(2)) == {"serial": 5.5, "pool": 0.0, "uneven": 0.0}
    with_costs = Machine((2,), start_s=0.25, wake_s=0.5, draw_s=0.0, end_s=0.125)
    assert step.seconds(with_costs) == 13.875  # its workers slept: the gap before is long
    assert with_costs.plan == [[[], []]]


def test_merged_traces_have_the_least_times() -> None:
    a, b = Step((job(3, 1),), 2.0), Step((job(2, 4),), 1.0)
    merged = least([a, b])
    assert merged.jobs[0].seconds.tolist() == [2, 1] and merged.after_s == 1.0
    with pytest.raises(ValueError, match="their jobs differ"):
        least([a, Step((job(3, 1, 1),), 2.0)])


def test_a_traced_product_has_its_bits_and_the_chunks_of_the_threads() -> None:
    w = random_matrix(GGMLQuantizationType.Q8_0, 1, 999, 512)
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(0))
    before, want = _C.threads(), ops.linear(x, w)
    try:
        with topology.simulated(2):
            ops.set_num_threads(7)
            found: list[torch.Tensor] = []
            step = trace(lambda: found.append(ops.linear(x, w)))
        assert torch.equal(found[0], want)
        assert torch.equal(ops.linear(x, w), want)  # threads work again
        product = step.jobs[-1]
        assert product.is_local and len(product.ends) == 2
        assert len(product.seconds) == product.ends[-1] >= 7
        assert all(job.before_s > 0 and (job.seconds > 0).all() for job in step.jobs)
    finally:
        _C.set_threads(before)
    with pytest.raises(ShapeError, match="no jobs are being traced"):
        _C.end_job_trace()


def test_modelled_tiles_take_the_time_of_their_products(tmp_path: Path) -> None:
    """One thread against the formulas by hand; several have the same products to do."""
    compiler = sysconfig.get_config_var("CXX").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    costs = TileCosts(1.0, 7.0, 3.0, 0.0, 0.5, 0.25, 0.125, 0.0)
    tiles, one = ModelledTiles(tmp_path, costs), machine(1)
    # 96 rows of 2 groups of 256; 40 tokens are 3 tiles
    linear = tiles.linear(one, 40, 2, 96, 512)
    want = 2 * (96 * 2 * (7 + 3 * 3) + 0.5 * 40 * 512 + 0.125 * 96 * 40)
    assert linear.work_s == pytest.approx(want)
    # Experts of 32 and 16 tokens: gate, up and down of 256 rows.
    ids = np.array([[0, 1 if i % 2 else -1] for i in range(32)], np.int32)
    tile_rows = {32: 2, 16: 1}
    want = sum(
        3 * 256 * (7 + 3 * n) + 0.25 * 256 * 16 * n
        + 0.5 * tokens * 256 + 0.125 * 256 * tokens
        for tokens, n in tile_rows.items()
    )  # fmt: skip
    assert tiles.experts(one, ids, 2, 256, 256).work_s == pytest.approx(want)
    for n in (2, 5, 16):
        assert tiles.experts(machine(n), ids, 2, 256, 256).work_s == pytest.approx(want)
        many = tiles.linear(machine(n), 40, 2, 96, 512)
        assert linear.work_s <= many.work_s <= linear.work_s + 2 * 96 * 2 * 7  # unpacked twice
        assert many.seconds(machine(n)) < linear.work_s
    with pytest.raises(ValueError, match="as many on each"):
        tiles.dense(machine(1, 2), 16, 256, 256)
