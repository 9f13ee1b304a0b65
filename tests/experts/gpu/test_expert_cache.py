"""Expert cache in VRAM: invariants of its table, and its counters."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fake_streams import FakeStream
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridmoe.cachebench.policies.registry import make_policy
from hybridmoe.cachebench.simulator import EVICTIONS, HITS, MISSES, UPLOADS, Requests, simulate
from hybridmoe.errors import DiskError
from hybridmoe.experts.gpu.expert_cache import GpuExpertCache
from hybridmoe.experts.gpu.pinned_policy import PinnedPolicy
from hybridmoe.experts.policy import CacheShape
from hybridmoe.planning.placement_rules import ExpertLayers

CPU = torch.device("cpu")


@dataclass(eq=False)
class FakeUpload:
    key: tuple[int, int]
    slot: int
    is_cancelled: bool = False
    is_over: bool = False
    error: Exception | None = None

    def is_done(self) -> bool:
        return self.is_over

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class FakeUploader:
    """Uploads that are done when the test says so."""

    slot_bytes: int = 1
    uploads: list[FakeUpload] = field(default_factory=list)

    def begin(self, layer_index: int, expert: int, slot: int) -> FakeUpload:
        upload = FakeUpload((layer_index, expert), slot)
        self.uploads.append(upload)
        return upload

    def advance(self, num_bytes: int) -> None:
        assert num_bytes >= 0

    @property
    def writing(self) -> list[FakeUpload]:
        return [upload for upload in self.uploads if not upload.is_over]

    def close(self) -> None:
        pass


class FakeRam:
    """Tier below, whose reads end when the test says so."""

    def __init__(self, shape: CacheShape, num_buffers: int) -> None:
        self.shape, self.num_buffers = shape, num_buffers
        self.above: set[int] = set()  # keys that are VRAM's
        self.buffers: dict[int, bool] = {}  # of those: the bytes have arrived
        self.resident: set[int] = set()
        self.error: Exception | None = None

    def discard(self, key: int) -> None:
        assert key not in self.above, "twice in VRAM"
        self.above.add(key)
        if key in self.resident and len(self.buffers) < self.num_buffers:
            self.buffers[key] = True
        self.resident.discard(key)

    def offer(self, key: int) -> None:
        self.above.remove(key)
        self.buffers.pop(key, None)
        if key % 2:
            self.resident.add(key)

    def returned(self, key: int, slot: int) -> None:
        assert key not in self.above

    def advance(self) -> Exception | None:
        error, self.error = self.error, None
        return error

    def is_ready(self, key: int) -> bool:
        assert key in self.above
        if key not in self.buffers and len(self.buffers) < self.num_buffers:
            self.buffers[key] = False
        return self.buffers.get(key, False)

    def uploaded(self, key: int) -> None:
        assert key in self.above
        self.buffers.pop(key, None)


class Run:
    """Steps of a small model, and the checks of its cache."""

    def __init__(
        self,
        shape: CacheShape,
        budget: int = 2,
        policy: str = "lru",
        below: FakeRam | None = None,
    ) -> None:
        self.shape, self.budget, self.below = shape, budget, below
        self.uploader = FakeUploader()
        self.main = FakeStream(is_lazy=False, is_current=True)
        self.cache = GpuExpertCache(
            shape,
            self.uploader,
            self.main,
            CPU,
            uploads_per_step=budget,
            policy=make_policy(policy, shape),
            below=below,
        )
        self.steps: list[tuple[list[list[int]], bool]] = []

    def step(self, chosen: list[list[int]], *, is_prefill: bool = False) -> None:
        """Run a step. chosen: distinct experts of each layer."""
        begun = len(self.uploader.uploads)
        self.cache.begin_step()
        assert len(self.uploader.uploads) - begun <= self.budget
        self.check_table()
        accesses = [(layer, np.array(e, np.int32)) for layer, e in enumerate(chosen)]
        self.cache.end_step(accesses, is_prefill=is_prefill)
        self.steps.append((chosen, is_prefill))

    def check_table(self) -> None:
        table = self.cache.table
        assert torch.equal(table, self.cache.device_table)
        assert (table[:, -1] == -1).all()
        used = table[table >= 0].tolist()
        writing = [upload.slot for upload in self.uploader.writing]
        assert len({*used, *writing}) == len(used) + len(writing), "two experts share a slot"
        assert all(0 <= slot < self.shape.num_slots for slot in (*used, *writing))
        arrived = {u.slot: u.key for u in self.uploader.uploads if u.is_over and not u.is_cancelled}
        for layer, expert in np.argwhere(table.numpy() >= 0).tolist():
            assert arrived[int(table[layer, expert])] == (layer, expert), "not its expert"

    def requests(self) -> Requests:
        """Convert the steps to the simulator's requests."""
        experts = [e for chosen, _ in self.steps for e in chosen]
        num_layers, num_steps = self.shape.num_layers, len(self.steps)
        return Requests(
            num_layers,
            self.shape.num_experts,
            self.shape.top_k,
            num_steps,
            num_steps,
            np.array([e for es in experts for e in es], np.int32),
            np.cumsum([0, *map(len, experts)]).astype(np.int64),
            np.tile(np.arange(num_layers, dtype=np.int32), num_steps),
            np.repeat(np.arange(num_steps, dtype=np.int32), num_layers),
            np.repeat(np.array([p for _, p in self.steps], np.bool_), num_layers),
        )

    def check_counters(self, policy: str) -> None:
        got = self.cache.stats().counters
        want = simulate(policy, self.requests(), self.shape.num_slots)
        for value, kind in (
            (got.hits, HITS),
            (got.misses, MISSES),
            (got.uploads, UPLOADS),
            (got.evictions, EVICTIONS),
        ):
            assert value == want.total(kind)


@settings(max_examples=60)
@given(
    data=st.data(),
    policy=st.sampled_from(["lru", "cost-aware", "lfu"]),
    num_buffers=st.none() | st.integers(1, 3),
)
def test_each_slot_holds_one_expert_and_the_table_names_arrived_ones(
    data: st.DataObject, policy: str, num_buffers: int | None
) -> None:
    """With buffers between the tiers, experts come from RAM or are read into it first."""
    num_layers, num_experts = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 8))
    num_slots = data.draw(st.integers(0, num_layers * num_experts))
    shape = CacheShape(num_layers, num_experts, num_slots, 2)
    ram = None if num_buffers is None else FakeRam(shape, num_buffers)
    run = Run(shape, data.draw(st.integers(0, 4)), policy, ram)
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    for _ in range(data.draw(st.integers(1, 40))):
        is_prefill = bool(random.random() < 0.1)
        count = num_experts if is_prefill else 2
        popular = random.zipf(1.5, (num_layers, 3 * count)) % num_experts
        chosen = [list(dict.fromkeys(row.tolist()))[:count] for row in popular]
        run.step(chosen, is_prefill=is_prefill)
        for upload in run.uploader.writing:
            upload.is_over = bool(random.random() < 0.4)
        if ram is not None:
            assert ram.above == set(run.cache.kept().tolist())
            ram.buffers = {
                key: at or bool(random.random() < 0.4) for key, at in ram.buffers.items()
            }
    run.check_counters(policy)
    for upload in run.uploader.uploads:
        upload.is_over = True
    # In the end all that the policy keeps is resident, and all other slots are free.
    for _ in range(2 * num_slots + 1 if run.budget else 0):
        run.cache.begin_step()
        run.check_table()
        for upload in run.uploader.uploads:
            upload.is_over = True
        if ram is not None:
            ram.buffers = dict.fromkeys(ram.buffers, True)
    if ram is not None and run.budget:
        assert not ram.buffers, "a buffer of an expert that has arrived"
    if run.budget:
        kept = run.cache.kept()
        assert run.cache.resident().tolist() == kept.tolist()
        assert run.cache.num_free == num_slots - len(kept)


def test_hits_that_have_not_arrived_are_late() -> None:
    run = Run(CacheShape(1, 4, 2, 1))
    for _ in range(3):
        run.step([[1]])
    assert [u.key for u in run.uploader.uploads] == [(0, 1)]
    assert run.cache.stats().counters.late == 2
    run.uploader.uploads[0].is_over = True
    run.step([[1]])
    assert run.cache.stats().counters.late == 2
    assert run.cache.stats().num_resident == 1 and run.cache.table[0, 1] == 0


def test_an_evicted_upload_is_cancelled_and_its_slot_reused_once_it_is_done() -> None:
    run = Run(CacheShape(1, 4, 1, 1))
    run.step([[1]])
    run.step([[2]])  # begins 1, then evicts it
    (first,) = run.uploader.uploads
    assert first.is_cancelled
    run.step([[2]])
    run.step([[2]])
    assert run.uploader.uploads == [first], "the slot may still be written"
    first.is_over = True
    run.step([[2]])
    assert [u.key for u in run.uploader.uploads] == [(0, 1), (0, 2)]
    assert run.uploader.uploads[1].slot == first.slot
    assert run.cache.stats().counters.cancelled == 1


def test_an_upload_evicted_while_queued_is_not_started() -> None:
    run = Run(CacheShape(1, 4, 1, 1))
    run.step([[1]])
    run.cache.end_step([(0, np.array([2], np.int32))], is_prefill=False)
    run.step([[2]])
    assert [u.key for u in run.uploader.uploads] == [(0, 2)]
    assert run.cache.stats().counters.cancelled == 1


def test_an_expert_admitted_again_in_the_same_step_keeps_its_slot() -> None:
    run = Run(CacheShape(1, 4, 1, 1))
    run.step([[1]])
    run.step([[1]])
    run.uploader.uploads[0].is_over = True
    run.step([[1]])
    for expert in (2, 1):  # two accesses of one step
        run.cache.end_step([(0, np.array([expert], np.int32))], is_prefill=False)
    run.step([[1]])
    assert len(run.uploader.uploads) == 1 and run.cache.table[0].tolist() == [-1, 0, -1, -1, -1]


def test_a_failed_upload_is_raised_once_and_retried() -> None:
    run = Run(CacheShape(1, 4, 2, 1))
    run.step([[1]])
    run.step([[1]])
    (upload,) = run.uploader.uploads
    upload.is_over, upload.error = True, OSError("the GPU is gone")
    with pytest.raises(OSError, match="the GPU is gone"):
        run.step([[1]])
    assert len(run.uploader.uploads) == 2
    run.uploader.uploads[1].is_over = True
    run.step([[1]])
    assert run.cache.resident().tolist() == [1]


def test_a_warm_cache_uploads_the_hottest_first() -> None:
    run = Run(CacheShape(2, 4, 3, 1), budget=1)
    assert run.cache.warm(np.array([6, 1, 3, 2])) == 3
    for _ in range(3):
        run.cache.begin_step()
        run.uploader.uploads[-1].is_over = True
    assert [u.key for u in run.uploader.uploads] == [(1, 2), (0, 1), (0, 3)]


def test_stats_count_late_hits_and_cancelled_uploads() -> None:
    run = Run(CacheShape(1, 4, 2, 1))
    run.step([[1]])
    assert str(run.cache.stats()).endswith(
        "0 hits were late, 0 uploads cancelled; 0 of 2 slots in use"
    )


@pytest.mark.parametrize("pinned", [frozenset(), frozenset({1})])
def test_uploads_that_never_pay_are_not_made(pinned: frozenset[int]) -> None:
    """The price reaches the policy, also beside layers that are pinned."""
    shape = CacheShape(3, 8, 12, 2)
    uploads = []
    for price in (0.0, float("inf")):
        policy = PinnedPolicy(shape, ExpertLayers(gpu=pinned), "cost-aware")
        cache = GpuExpertCache(
            shape,
            FakeUploader(),
            FakeStream(is_lazy=False, is_current=True),
            CPU,
            uploads_per_step=4,
            policy=policy,
        )
        cache.price_uploads(price)
        cache.warm(policy.pinned)
        cache.fill_up()
        random = np.random.default_rng(0)
        for _ in range(400):
            accesses = [(i, random.choice(3, 2, replace=False) + 5) for i in range(3)]
            cache.end_step([(i, e.astype(np.int32)) for i, e in accesses], is_prefill=False)
        uploads.append(cache.stats().counters.uploads)
    assert uploads[0] > 0 and uploads[1] == 0


def test_what_cannot_be_read_is_late_in_steps_and_an_error_of_the_first_filling() -> None:
    shape = CacheShape(1, 4, 2, 1)
    ram = FakeRam(shape, 1)
    run = Run(shape, below=ram)
    run.cache.warm(np.array([1, 2], np.int64))
    ram.error = DiskError("blk.1: bad sector")
    with pytest.raises(DiskError, match="bad sector"):
        run.cache.fill()
    ram.error = DiskError("blk.1: bad sector")
    run.step([[1]])
    assert run.cache.stats().counters.late == 1 and not run.uploader.uploads
    ram.buffers[1] = True
    run.step([[1]])
    assert [u.key for u in run.uploader.uploads] == [(0, 1)]
