"""Routed experts of the GPU, against float64."""

import closeness
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix

from hybridmoe.errors import ShapeError

pytest.importorskip("triton", reason="needs triton")

from kernel_device import on_device
from triton_bounds import one_expert

from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton import expert_ffn as module
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, plan_down_splits, plan_lanes
from hybridmoe.kernels.triton.packing import has_planes, pack, packed_row_bytes

expert_ffn = on_device(module.expert_ffn)

SLOTS = 4
LAYOUTS = [
    SlotLayout(*kinds, hidden, inter, is_packed=True)
    for *kinds, hidden, inter in (
        (T.Q4_0, T.Q4_0, T.Q4_0, 288, 32),
        (T.BF16, T.F16, T.BF16, 33, 19),
        (T.Q5_K, T.Q8_0, T.Q4_0, 256, 32),
        (T.Q8_0, T.Q4_0, T.Q6_K, 64, 256),
        (T.Q4_K, T.Q4_K, T.Q5_K, 256, 256),
        (T.Q6_K, T.Q6_K, T.Q8_0, 2048, 32),  # 64 lanes
        (T.Q8_0, T.Q5_1, T.Q5_0, 288, 32),  # tiles of a packed type
        (T.Q2_K, T.Q3_K, T.MXFP4, 256, 32),
        (T.IQ1_S, T.IQ1_M, T.TQ1_0, 256, 256),
        (T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, 256, 256),
        (T.IQ3_XXS, T.TQ2_0, T.IQ3_S, 256, 256),
    )
]


def slot_rows(w: QuantMatrix) -> torch.Tensor:
    """Rows of a stack as they are in slots: (n, bytes of a row)."""
    rows = torch.from_numpy(w.data.reshape(w.batch * w.rows, -1))
    if not has_planes(w.type):
        return rows
    out = torch.empty((len(rows), packed_row_bytes(w.type, w.cols)), dtype=torch.uint8)
    pack(rows, w.type, out)
    return out


class Experts:
    """Random experts, as matrices and in slots; bytes between the parts are poison."""

    def __init__(self, layout: SlotLayout) -> None:
        self.layout = layout
        kinds = (layout.gate, layout.up, layout.down)
        sizes = ((layout.inter, layout.hidden),) * 2 + ((layout.hidden, layout.inter),)
        self.matrices = [
            random_matrix(kind, SLOTS, *size, seed=i)
            for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
        ]
        self.gate_scale = float(closeness.weights(self.matrices[0]).std() * layout.hidden**0.5)
        self.data = torch.full((SLOTS, layout.slot_bytes), 0xFF, dtype=torch.uint8)
        offsets = (0, layout.up_offset, layout.down_offset)
        for w, offset in zip(self.matrices, offsets, strict=True):
            parts = slot_rows(w).view(SLOTS, -1)
            self.data[:, offset : offset + parts.shape[1]] = parts

    def __call__(self, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return expert_ffn(x, slots, weights, self.data, self.layout)


def inputs(
    experts: Experts, tokens: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn((tokens, experts.layout.hidden), generator=generator)
    x /= experts.gate_scale  # gates near one, where silu is curved
    slots = torch.randint(-1, SLOTS, (tokens, top_k), generator=generator, dtype=torch.int32)
    weights = torch.rand((tokens, top_k), generator=generator)
    return x, slots, weights.masked_fill(slots < 0, float("nan"))


def check(
    experts: Experts,
    x: torch.Tensor,
    slots: torch.Tensor,
    weights: torch.Tensor,
    got: torch.Tensor,
) -> None:
    top_k, layout = slots.shape[1], experts.layout
    exact, want = x.double().numpy(), np.zeros(x.shape)
    bound = np.full(x.shape, 2.0**-140)

    for t, j in np.argwhere(slots.numpy() >= 0):
        y, y_bound = one_expert(experts.matrices, int(slots[t, j]), exact[t], top_k)
        want[t] += float(weights[t, j]) * y
        bound[t] += float(weights[t, j]) * y_bound
    closeness.assert_close(got, want, bound, f"{layout} {tuple(slots.shape)}")


@pytest.fixture(params=LAYOUTS, ids=lambda s: f"{s.gate.name}-{s.up.name}-{s.down.name}")
def experts(request: pytest.FixtureRequest) -> Experts:
    return Experts(request.param)


@pytest.mark.parametrize(("tokens", "top_k", "num_sms"), [(1, 4, 64), (2, 2, 1)])
def test_result_is_within_the_bound(
    experts: Experts, tokens: int, top_k: int, num_sms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "num_multiprocessors", lambda device: num_sms)
    x, slots, weights = inputs(experts, tokens, top_k)
    check(experts, x, slots, weights, experts(x, slots, weights))


def test_programs_of_a_gpu_are_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows; the last one has fewer."""
    monkeypatch.setattr(module, "VECTOR_ROWS", 4)
    experts = Experts(SlotLayout(T.Q8_0, T.Q4_K, T.Q5_0, 256, 32, is_packed=True))
    x, slots, weights = inputs(experts, 1, 2)
    check(experts, x, slots, weights, experts(x, slots, weights))


def test_sixteen_tokens_are_within_the_bound() -> None:
    experts = Experts(LAYOUTS[0])
    x, slots, weights = inputs(experts, 16, 2)
    check(experts, x, slots, weights, experts(x, slots, weights))


def test_extreme_gates_stay_finite() -> None:
    experts = Experts(LAYOUTS[1])
    x, slots, weights = inputs(experts, 2, 2)
    assert torch.isfinite(experts(1e15 * x, slots.clamp(min=0), weights.nan_to_num())).all()


def test_a_wrong_weight_or_activation_is_seen(experts: Experts) -> None:
    x, slots, weights = inputs(experts, 1, 2)
    slots.clamp_(min=0)
    weights = weights.nan_to_num(0.5)
    wrong = x.clone()
    wrong[:, 16:] *= 1.01
    for got in (experts(x, slots, weights * 1.001), experts(wrong, slots, weights)):
        with pytest.raises(AssertionError, match="out of bounds"):
            check(experts, x, slots, weights, got)


def test_pairs_without_a_slot_add_nothing() -> None:
    experts = Experts(LAYOUTS[0])
    x, slots, weights = inputs(experts, 3, 3)
    slots[:, 1], slots[2] = -1, -1
    weights[:, 1] = float("nan")
    got = experts(x, slots, weights)
    kept = [0, 2]
    want = experts(x, slots[:, kept].contiguous(), weights[:, kept].contiguous())
    assert torch.equal(got, want) and not got[2].any()


def test_nothing_chosen_gives_zeros() -> None:
    experts = Experts(LAYOUTS[1])
    for tokens, top_k in ((0, 2), (3, 0)):
        slots = torch.zeros((tokens, top_k), dtype=torch.int32)
        got = experts(torch.ones(tokens, 33), slots, torch.ones(tokens, top_k))
        assert torch.equal(got, torch.zeros(tokens, 33))


def test_a_layout_has_room_for_its_parts() -> None:
    layout = SlotLayout(T.Q4_K, T.Q4_K, T.Q6_K, 7168, 2048)  # Kimi K2 in Q4_K_M
    assert layout.up_offset == 2048 * 7168 * 9 // 16
    assert layout.slot_bytes == 2 * layout.up_offset + 7168 * 2048 * 105 // 128
    assert layout.packed.slot_bytes == layout.slot_bytes
    assert LAYOUTS[0].down_offset % 256 == 0
    odd = SlotLayout(T.Q8_0, T.Q8_0, T.Q8_0, 64, 32)  # rows of 68 and 34 bytes, packed 80 and 48
    assert odd.packed.up_offset == 32 * 80 and odd.packed.down_row_bytes == 48
    with pytest.raises(ShapeError, match="multiple of 256"):
        SlotLayout(T.Q4_K, T.Q4_K, T.Q4_K, 512, 300)


@pytest.mark.parametrize(("tokens", "want"), [(1, 2), (16, 1)])
def test_experts_are_shared_out_where_rows_are_few(tokens: int, want: int) -> None:
    assert plan_down_splits(tokens, 8, 448, 128) == want
    assert plan_down_splits(tokens, 8, 4, 128) >= want


@pytest.mark.parametrize(("cols", "lanes"), [(7168, 32), (2048, 64), (1408, 32), (32, 32)])
def test_lanes_divide_a_row_where_they_can(cols: int, lanes: int) -> None:
    plan = plan_lanes(cols)
    assert plan.lanes == lanes == 32 * plan.warps


def test_wrong_arguments_are_refused() -> None:
    experts = Experts(LAYOUTS[1])
    x, slots, weights = inputs(experts, 2, 2)
    for bad in (
        (x[:, :-1].contiguous(), slots, weights),
        (x, slots.long(), weights),
        (x, slots, weights[:, :1].contiguous()),
    ):
        with pytest.raises(ShapeError, match=r"expert_ffn: .* expected"):
            experts(*bad)
    with pytest.raises(ShapeError, match="17 tokens, expected at most 16"):
        experts(*inputs(experts, 17, 2))
    for cut in (1, 256):
        with pytest.raises(ShapeError, match=r"slots of \d+ bytes, expected a multiple of 256"):
            expert_ffn(x, slots, weights, experts.data[:, :-cut].contiguous(), experts.layout)


def test_slots_may_have_room_for_larger_experts() -> None:
    experts = Experts(LAYOUTS[0])
    x, slots, weights = inputs(experts, 2, 2)
    want = experts(x, slots, weights)
    experts.data = torch.nn.functional.pad(experts.data, (0, 512), value=0xFF)
    assert torch.equal(experts(x, slots, weights), want)
