"""The native RAM tier: equal bits wherever experts are, no buffer lost, errors of one line."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from ram_tier import DECODE_TOKENS, EXPERTS, HIDDEN, TOP_K, RamTier, inputs
from waiting import eventually

from hybridmoe import _C
from hybridmoe.errors import DiskError, ShapeError, StalledReadError
from hybridmoe.hardware import topology
from hybridmoe.kernels import ops

LAYERS = 4
SAME = [Type.Q8_0] * LAYERS
MIXED = [Type.Q4_K, Type.Q6_K, Type.Q4_K, Type.Q8_0]

Make = Callable[..., RamTier]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    tiers: list[RamTier] = []

    def make(types: list[Type], slots: list[int], **options: Any) -> RamTier:
        tiers.append(RamTier(tmp_path / f"{len(tiers)}", types, slots, **options))
        return tiers[-1]

    yield make
    for tier in tiers:
        tier.close()


class Vram:
    """Experts that VRAM has, decided at random; some of them have arrived."""

    def __init__(self, tier: RamTier, rng: np.random.Generator) -> None:
        self._tier, self._rng = tier, rng
        self.kept: set[int] = set()
        self.slot_of = np.full((LAYERS, EXPERTS), -1, np.int32)

    def step(self) -> None:
        """Promote, give back, and let some copies arrive, as the cache of a GPU does."""
        native, rng = self._tier.native, self._rng
        native.poll()
        for key in rng.integers(0, LAYERS * EXPERTS, 3).tolist():
            row = self.slot_of.reshape(-1)
            if key not in self.kept:
                resident = key in native.resident()
                assert native.discard(key) == resident
                self.kept.add(key)
            elif rng.random() < 0.5:
                self.kept.remove(key)
                row[key] = -1
                is_taken, evicted = native.offer(key)
                assert is_taken == (key in native.resident())
                assert evicted == -1 or (is_taken and evicted not in native.resident())
                if is_taken and rng.random() < 0.5:
                    self._copy_back(key)
                elif is_taken:
                    native.fetch(key)
            native.check()
        for key in sorted(self.kept):
            is_there = self.slot_of.reshape(-1)[key] >= 0 or not native.fetch(key)
            if not is_there and rng.random() < 0.5 and native.addresses(key) is not None:
                self.slot_of.reshape(-1)[key] = 0
                native.uploaded(key)
        native.check()

    def _copy_back(self, key: int) -> None:
        found = self._tier.native.receive(key)
        if found is None:
            return
        buffer, addresses = found
        assert self._tier.native.receive(key) is None
        is_good = self._rng.random() < 0.8
        if is_good:
            layer, expert = divmod(key, EXPERTS)
            for w, address in zip(self._tier.layers[layer], addresses, strict=True):
                data = w.slice(expert, expert + 1).data
                _C.copy_memory(address, data.ctypes.data, data.nbytes)
        self._tier.native.received(buffer, is_good)
        assert (self._tier.native.addresses(key) is not None) == is_good


@pytest.mark.parametrize("seed", range(24))
def test_any_split_over_the_tiers_has_the_bits_of_memory(make: Make, seed: int) -> None:
    rng = np.random.default_rng(seed)
    types = MIXED if seed % 3 == 0 else SAME
    slots = rng.integers(0, 20, len(set(types))).tolist()
    tier = make(
        types,
        slots,
        num_staging=int(rng.integers(1, TOP_K + 2)),
        num_ahead=int(rng.integers(0, 3)),
        num_leaving=int(rng.integers(0, 4)),
    )
    vram = Vram(tier, rng)
    out = torch.empty(DECODE_TOKENS, HIDDEN)
    for _ in range(25):
        tokens = int(rng.choice([1, 1, 2, 5, 16]))
        tier.native.begin_step()
        for layer in range(LAYERS):
            x, ids, weights = inputs(rng, tokens)
            next_key = (layer + 1) % LAYERS * EXPERTS
            ahead = set((next_key + rng.permutation(EXPERTS)[:3]).tolist())
            tier.native.hint((layer + 1) % LAYERS, list(ahead))
            slot_of = np.ascontiguousarray(vram.slot_of[layer])
            call = _C.RamExpertCall(
                tier.native, layer, x.data_ptr(), ids.data_ptr(), weights.data_ptr(),
                out.data_ptr(), tokens, TOP_K, slot_of.ctypes.data,
            )  # fmt: skip
            call.run()
            assert call.take_error() is None
            mine = torch.where(torch.from_numpy(slot_of)[ids] >= 0, -1, ids)
            mine = torch.where(ids < 0, ids, mine)
            assert torch.equal(out[:tokens], tier.want(layer, x, mine, weights))
            tier.native.check()
            kept = set(tier.native.resident()) | vram.kept | ahead
            assert {key for key in range(LAYERS * EXPERTS) if tier.native.is_loaded(key)} <= kept
        vram.step()
    counters = tier.native.counters()
    assert counters["misses"] > 0
    moved = counters["uploads"] + counters["returned"] - counters["promoted"]
    assert tier.native.num_resident == moved - counters["evictions"]


@pytest.mark.parametrize("num_staging", [1, 2, 7])
def test_prompts_go_through_few_buffers(make: Make, each_isa: str, num_staging: int) -> None:
    rng = np.random.default_rng(0)
    tier = make(SAME, [2], num_staging=num_staging)
    for tokens in (DECODE_TOKENS + 1, 70):
        x, ids, weights = inputs(rng, tokens)
        assert torch.equal(tier.compute(1, x, ids, weights), tier.want(1, x, ids, weights))
    assert tier.native.num_resident == 2
    assert tier.native.num_free_buffers == num_staging
    counters = tier.native.counters()
    assert (counters["uploads"], counters["evictions"]) == (2, 0)


@pytest.mark.parametrize("nodes", [2, 3])
def test_buffers_near_the_nodes_that_use_them_lose_no_byte(
    make: Make, nodes: int, restore_threads: None
) -> None:
    rng = np.random.default_rng(nodes)
    with topology.simulated(nodes):
        ops.set_num_threads(nodes)
        tier = make(MIXED, [3, 3, 3])
        for step in range(8):
            for layer in range(LAYERS):
                x, ids, weights = inputs(rng, 1 + step % 3)
                got = tier.compute(layer, x, ids, weights)
                assert torch.equal(got, tier.want(layer, x, ids, weights))


def test_what_goes_to_vram_stays_in_memory_until_it_has_arrived(make: Make) -> None:
    tier = make(SAME, [3], num_leaving=1)
    native = tier.native
    assert native.warm([0, 1, 2], lambda num_bytes: None) == 3
    read = native.counters()["bytes_read"]
    assert native.discard(0) and native.discard(1)
    assert native.addresses(0) is not None
    assert native.addresses(1) is None  # one buffer is for such, and has the first
    assert native.resident() == [2]
    assert not native.fetch(1)
    native.uploaded(0)
    assert native.addresses(0) is None
    assert native.fetch(1)
    tier.wait_for(1)
    assert native.addresses(1) is not None
    assert native.counters()["bytes_read"] > read
    assert native.offer(1) == (True, -1)  # it never arrived: its bytes are the slot's again
    assert native.addresses(1) is not None
    assert native.num_leaving_free(0) == 1
    native.check()
    with pytest.raises(ShapeError, match="key 1 is not VRAM's"):
        native.offer(1)
    with pytest.raises(ShapeError, match="key 0 is VRAM's"):
        native.warm([0], lambda num_bytes: None)


def test_what_has_arrived_in_vram_is_not_kept_after_a_prompt_has_read_it(make: Make) -> None:
    tier = make(SAME, [2], num_leaving=1)
    native = tier.native
    native.discard(0)
    assert native.fetch(0)
    tier.wait_for(0)
    native.uploaded(0)
    assert native.request(0, True)
    tier.wait_for(0)
    assert not native.release(0)
    assert native.addresses(0) is None and native.num_leaving_free(0) == 1
    assert not native.fetch(0)  # it is there
    native.check()
    assert native.offer(0) == (True, -1)
    native.discard(0)
    assert native.fetch(0)  # on its way once more


def test_late_experts_are_computed_but_are_no_access(make: Make) -> None:
    rng = np.random.default_rng(1)
    tier = make(SAME, [4], num_leaving=1)
    for expert in (5, 6):
        tier.native.discard(expert)
    x, _, weights = inputs(rng, 1)
    ids = torch.tensor([[5, 6, 7]], dtype=torch.int32)
    for _ in range(2):
        assert torch.equal(tier.compute(0, x, ids, weights), tier.want(0, x, ids, weights))
    counters = tier.native.counters()
    assert (counters["hits"], counters["misses"]) == (1, 1)
    assert tier.native.resident() == [7]
    assert tier.uses[:EXPERTS].tolist() == [0] * 5 + [2, 2, 2] + [0] * 4
    # One stays for its upload, so that it is read once; the other is read for each use.
    kept = [key for key in (5, 6) if tier.native.addresses(key) is not None]
    assert len(kept) == 1
    size = tier.layers[0].expert_bytes
    assert counters["bytes_read"] == 4 * size


def test_a_call_that_fails_keeps_one_line_and_ends_the_step(make: Make) -> None:
    rng = np.random.default_rng(2)
    tier = make(SAME, [4])
    content = tier.path.read_bytes()
    written = tier.path.stat()
    x, ids, weights = inputs(rng, 2)
    out = torch.empty_like(x)
    calls = [
        _C.RamExpertCall(
            tier.native, layer, x.data_ptr(), ids.data_ptr(), weights.data_ptr(), out.data_ptr(),
            2, TOP_K, 0,
        )
        for layer in range(LAYERS)
    ]  # fmt: skip
    os.truncate(tier.path, 100)
    for call in calls:
        out.fill_(1.0)
        call.run()
        assert not out.any()
        tier.native.check()
    first, *others = [call.take_error() for call in calls]
    assert first is not None
    assert first.startswith("file: tensor 0.") and "\n" not in first
    assert " bytes at offset " in first and "the file ends at " in first
    assert others == [None] * (LAYERS - 1)
    assert [tier.native.take_failure() for _ in range(2)] == ["read", None]
    with pytest.raises(DiskError, match=r"^file: tensor 1\.\d: cannot read "):
        tier.compute(1, x, ids, weights)
    tier.native.check()
    with open(tier.path, "r+b") as file:
        file.write(content)
    os.utime(tier.path, ns=(written.st_atime_ns, written.st_mtime_ns))
    tier.native.begin_step()
    for layer, call in enumerate(calls):
        call.run()
        assert call.take_error() is None
        assert torch.equal(out, tier.want(layer, x, ids, weights))


def test_a_step_that_nobody_wants_ends_while_the_disk_hangs(make: Make) -> None:
    rng = np.random.default_rng(3)
    faults = _C.ReadFaults()
    tier = make(SAME, [4], faults=faults)
    asked = 0

    def is_unwanted() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    tier.native.abandon_when(is_unwanted, 0.01)
    x, ids, weights = inputs(rng, 2)
    faults.hang()
    with pytest.raises(StalledReadError, match=r"^no read has returned for 0\.01 s$"):
        tier.compute(0, x, ids, weights)
    assert asked == 3
    tier.native.check()
    assert tier.native.num_free_buffers < 4 + TOP_K  # the kernel may write to them
    faults.resume()
    tier.native.abandon_when(lambda: False, 0.01)
    for layer in (0, 1):
        got = tier.compute(layer, x, ids, weights)
        assert torch.equal(got, tier.want(layer, x, ids, weights))
    tier.native.drain()
    assert tier.native.num_free_buffers == TOP_K


def test_an_expert_given_up_and_wanted_again_while_it_is_read(make: Make) -> None:
    faults = _C.ReadFaults()
    tier = make(SAME, [0], num_staging=1, faults=faults)
    native = tier.native
    faults.hang()
    assert native.request(3, True)
    eventually(lambda: faults.num_hung > 0)
    assert not native.release(3)  # its read has begun
    assert not native.is_in_flight(3)
    assert not native.request(4, True)  # its buffer is not free yet
    assert native.request(3, True)
    faults.resume()
    tier.wait_for(3)
    native.check()
    assert native.addresses(3) is not None
    assert native.counters()["bytes_read"] == tier.layers[0].expert_bytes
    assert not native.release(3)
    assert native.addresses(3) is None and native.num_free_buffers == 1


def test_a_step_of_no_experts_counts_the_visit_and_writes_zeros(make: Make) -> None:
    tier = make(SAME, [2])
    x, _, weights = inputs(np.random.default_rng(4), 2)
    none = torch.full((2, TOP_K), -1, dtype=torch.int32)
    assert not tier.compute(0, x, none, weights).any()
    with pytest.raises(ShapeError, match="expert id 12"):
        tier.compute(0, x, torch.full_like(none, EXPERTS), weights)
    with pytest.raises(ShapeError, match="layer 4"):
        tier.compute(LAYERS, x, none, weights)
    tier.native.check()
