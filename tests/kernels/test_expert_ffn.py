"""Routed experts: every awkward shape, error bounds, the same bits however the call is split."""

from dataclasses import dataclass

import closeness
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import random_matrix, rounds_activations

from hybridmoe.errors import ShapeError
from hybridmoe.kernels import ops, reference
from hybridmoe.kernels.matrix import QuantMatrix

T = GGMLQuantizationType
EXPERTS, HIDDEN, INTER = 5, 320, 160

# (gate and up, down): K types need 256 columns and so their own sizes, see `make_experts`.
TYPE_PAIRS = [
    (T.Q4_0, T.Q8_0),
    (T.Q4_K, T.Q6_K),
    (T.F32, T.F16),
    (T.Q5_1, T.BF16),
    (T.BF16, T.Q4_1),
]


@dataclass(frozen=True)
class Experts:
    gate: QuantMatrix
    up: QuantMatrix
    down: QuantMatrix

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return ops.expert_ffn(x, ids, weights, self.gate, self.up, self.down)


def small(w: QuantMatrix) -> QuantMatrix:
    """Scale a matrix so that gate values are near one, where silu is curved."""
    if w.type.name in ("F32", "F16", "BF16"):
        kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
        data = w.data.view(kinds[w.type.name]).copy()
        if w.type == T.BF16:
            data = ((data.astype(np.uint32) << 16).view(np.float32) * 0.0625).view(np.uint32) >> 16
            data = data.astype(np.uint16)
        else:
            data *= data.dtype.type(0.0625)
        return QuantMatrix(data.view(np.uint8), w.type, w.batch, w.rows, w.cols)
    return w


def make_experts(outer: T, inner: T) -> Experts:
    hidden, inter = (512, 256) if "K" in outer.name else (HIDDEN, INTER)
    return Experts(
        small(random_matrix(outer, EXPERTS, inter, hidden, seed=1)),
        small(random_matrix(outer, EXPERTS, inter, hidden, seed=2)),
        small(random_matrix(inner, EXPERTS, hidden, inter, seed=3)),
    )


def random_inputs(
    tokens: int, top_k: int, hidden: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * tokens + top_k + seed)
    x = 0.02 * torch.randn((tokens, hidden), generator=generator)
    ids = torch.randint(-1, EXPERTS, (tokens, top_k), generator=generator, dtype=torch.int32)
    return x, ids, torch.rand((tokens, top_k), generator=generator)


def check(
    experts: Experts, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, got: torch.Tensor
) -> None:
    want = np.zeros(x.shape)
    bound = np.full(x.shape, 2.0**-140)
    roundings = (ids.shape[1] + 2) * 2.0**-24  # of the weighted sum
    for e in range(EXPERTS):
        tokens, choices = np.nonzero(ids.numpy() == e)
        y, y_bound = closeness.one_expert(
            (experts.gate, experts.up, experts.down), e, x[tokens].double().numpy()
        )
        share = weights.double().numpy()[tokens, choices, None]
        np.add.at(want, tokens, share * y)
        np.add.at(bound, tokens, share * (y_bound + roundings * np.abs(y)))
    closeness.assert_close(got, want, bound, f"{experts.gate.type.name} {tuple(ids.shape)}")


@pytest.fixture(params=TYPE_PAIRS, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def experts(request: pytest.FixtureRequest) -> Experts:
    return make_experts(*request.param)


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_result_is_within_the_bound(each_exact_isa: str, experts: Experts, tokens: int) -> None:
    x, ids, weights = random_inputs(tokens, 3, experts.gate.cols)
    check(experts, x, ids, weights, experts(x, ids, weights))


def test_a_wrong_weight_is_seen(experts: Experts) -> None:
    x, ids, weights = random_inputs(4, 2, experts.gate.cols)
    ids.clamp_(min=0)
    got = experts(x, ids, weights * 1.01)
    with pytest.raises(AssertionError, match="out of bounds"):
        check(experts, x, ids, weights, got)


def test_reference_agrees_but_for_rounding(experts: Experts) -> None:
    x, ids, weights = random_inputs(5, 2, experts.gate.cols)
    parts = (experts.gate, experts.up, experts.down)
    want = reference.expert_ffn(x, ids, weights, *parts)
    error = (experts(x, ids, weights) - want).norm() / want.norm()
    rounds = any(rounds_activations(part.type) for part in parts)
    assert error < (0.03 if rounds else 1e-6)


@pytest.mark.parametrize("tokens", [1, 2, 5, 33, 130])
def test_a_token_is_the_same_alone_and_in_a_batch(
    each_exact_isa: str, experts: Experts, tokens: int
) -> None:
    x, ids, weights = random_inputs(tokens, 3, experts.gate.cols)
    alone = [experts(x[t : t + 1], ids[t : t + 1], weights[t : t + 1]) for t in range(tokens)]
    assert torch.equal(experts(x, ids, weights), torch.cat(alone))


def test_threads_do_not_change_a_bit(experts: Experts) -> None:
    before = ops.num_threads()
    x, ids, weights = random_inputs(21, 4, experts.gate.cols)
    try:
        results = []
        for threads in (1, 2, 3):
            ops.set_num_threads(threads)
            results.append(experts(x, ids, weights))
    finally:
        ops.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_all_tokens_on_one_expert(each_exact_isa: str) -> None:
    experts = make_experts(T.Q4_0, T.Q8_0)
    x, ids, weights = random_inputs(70, 1, HIDDEN)
    ids.fill_(3)
    got = experts(x, ids, weights)
    check(experts, x[:9], ids[:9], weights[:9], got[:9])
    alone = [experts(x[t : t + 1], ids[t : t + 1], weights[t : t + 1]) for t in range(70)]
    assert torch.equal(got, torch.cat(alone))


def test_an_expert_chosen_twice_counts_twice() -> None:
    experts = make_experts(T.Q4_0, T.Q8_0)
    x, _, _ = random_inputs(1, 1, HIDDEN)
    twice = experts(x, torch.tensor([[2, 2]], dtype=torch.int32), torch.tensor([[0.5, 0.25]]))
    once = experts(x, torch.tensor([[2]], dtype=torch.int32), torch.tensor([[1.0]]))
    torch.testing.assert_close(twice, 0.75 * once, rtol=1e-6, atol=0)


def test_skipped_choices_add_nothing(each_isa: str, experts: Experts) -> None:
    x, ids, weights = random_inputs(6, 3, experts.gate.cols)
    ids[2] = -1
    ids[:, 1] = -1
    weights[:, 1] = float("nan")
    got = experts(x, ids, weights)
    assert torch.equal(got[2], torch.zeros(experts.gate.cols))
    kept = [0, 2]
    assert torch.equal(got, experts(x, ids[:, kept].contiguous(), weights[:, kept].contiguous()))


def test_nothing_chosen_gives_zeros() -> None:
    experts = make_experts(T.Q4_0, T.Q8_0)
    for tokens, top_k in ((0, 2), (3, 0), (2, 2)):
        ids = torch.full((tokens, top_k), -1, dtype=torch.int32)
        got = experts(torch.ones(tokens, HIDDEN), ids, torch.ones(tokens, top_k))
        assert torch.equal(got, torch.zeros(tokens, HIDDEN))


def test_extreme_gates_stay_finite(each_isa: str) -> None:
    """x = (gate value, 1): silu(x0) times x1 / 2."""
    experts = Experts(
        QuantMatrix.from_array(np.array([[[1, 0]]], np.float32)),
        QuantMatrix.from_array(np.array([[[0, 0.5]]], np.float32)),
        QuantMatrix.from_array(np.ones((1, 2, 1), np.float32)),
    )
    gates = torch.tensor([-1e38, -200, -88, -87, -1, -1e-30, 0, 1e-30, 1, 87, 88, 200, 1e38])
    x = torch.stack([gates, torch.ones_like(gates)], 1)
    got = experts(x, torch.zeros(len(x), 1, dtype=torch.int32), torch.ones(len(x), 1))
    want = 0.5 * gates.double() * torch.sigmoid(gates.double())
    torch.testing.assert_close(got[:, 0].double(), want, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("bad", [-2, EXPERTS, 2**31 - 1, -(2**31)])
def test_an_id_outside_is_refused(bad: int) -> None:
    experts = make_experts(T.Q4_0, T.Q8_0)
    x, ids, weights = random_inputs(3, 2, HIDDEN)
    ids[1, 1] = bad
    with pytest.raises(ShapeError, match=f"id {bad} of token 1"):
        experts(x, ids, weights)


def test_wrong_arguments_are_refused() -> None:
    experts = make_experts(T.Q4_0, T.Q8_0)
    x, ids, weights = random_inputs(3, 2, HIDDEN)
    with pytest.raises(ShapeError, match=r"ids is torch\.int64"):
        experts(x, ids.long(), weights)
    with pytest.raises(ShapeError, match="weights is"):
        experts(x, ids, weights[:, :1].contiguous())
    with pytest.raises(ShapeError, match="x has 2 tokens"):
        experts(x[:2], ids, weights)
    with pytest.raises(ShapeError, match="65 experts a token"):
        experts(x, torch.zeros(3, 65, dtype=torch.int32), torch.zeros(3, 65))
    with pytest.raises(ShapeError, match="ids is"):
        experts(x, ids[0], weights)
    with pytest.raises(ShapeError, match=r"gate .* differ"):
        ops.expert_ffn(x, ids, weights, experts.gate, experts.up.slice(0, 2), experts.down)
    with pytest.raises(ShapeError, match="down"):
        ops.expert_ffn(x, ids, weights, experts.gate, experts.up, experts.down.slice(0, 2))
