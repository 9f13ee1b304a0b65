"""Routed experts in pieces: the bits of `expert_ffn`, at any address and in any order."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from random_weights import random_matrix

from hybridmoe.errors import ShapeError
from hybridmoe.kernels.incremental_expert_ffn import IncrementalExpertFfn
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import expert_ffn

EXPERTS, TOP_K = 6, 3
Matrices = tuple[QuantMatrix, QuantMatrix, QuantMatrix]


def make(outer: Type, inner: Type) -> Matrices:
    hidden, inter = 512, 256
    return (
        random_matrix(outer, EXPERTS, inter, hidden, seed=1),
        random_matrix(outer, EXPERTS, inter, hidden, seed=2),
        random_matrix(inner, EXPERTS, hidden, inter, seed=3),
    )


@pytest.fixture(params=[(Type.Q4_K, Type.Q6_K), (Type.Q8_0, Type.Q4_0), (Type.BF16, Type.F16)])
def matrices(request: pytest.FixtureRequest) -> Matrices:
    return make(*request.param)


def inputs(tokens: int, hidden: int = 512) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = 0.02 * torch.randn((tokens, hidden), generator=generator)
    # Skewed, so that a long prompt has experts with many tokens, with few, and with none.
    ids = torch.randint(-1, EXPERTS - 1, (tokens, TOP_K), generator=generator, dtype=torch.int32)
    ids[(ids == 2) & (torch.rand(ids.shape, generator=generator) < 0.95)] = 4
    return x, ids, torch.rand((tokens, TOP_K), generator=generator)


def scattered(matrices: Matrices) -> tuple[np.ndarray, list[np.ndarray]]:
    """Copy every expert to memory of its own; returns the table of addresses."""
    copies, addresses = [], np.zeros((3, EXPERTS), np.int64)
    for i, matrix in enumerate(matrices):
        for e in range(EXPERTS):
            copies.append(matrix.slice(e, e + 1).data.copy())
            addresses[i, e] = copies[-1].ctypes.data
    return addresses, copies


@pytest.mark.parametrize("tokens", [1, 5, 17, 200])
def test_pieces_give_the_same_bits(each_isa: str, matrices: Matrices, tokens: int) -> None:
    x, ids, weights = inputs(tokens)
    whole = expert_ffn(x, ids, weights, *matrices)
    addresses, _copies = scattered(matrices)
    one = IncrementalExpertFfn()
    for reverse in (False, True):
        experts, num_free = one.begin(x, ids, weights, matrices, addresses)
        assert sorted(experts) == sorted(set(ids.flatten().tolist()) - {-1})
        free = experts[:num_free]
        for e in reversed(free) if reverse else free:
            one.compute([e])
        one.compute(experts[num_free:])
        assert torch.equal(one.finish(), whole)
    experts, num_free = one.begin(x, ids, weights, matrices, addresses)
    one.compute(experts[: num_free + 1])
    for e in experts[num_free + 1 :]:
        one.compute([e])
    assert torch.equal(one.finish(), whole)


def test_memory_is_needed_for_an_experts_own_turn_only(each_isa: str) -> None:
    matrices = make(Type.Q4_0, Type.Q4_0)
    x, ids, weights = inputs(100)
    whole = expert_ffn(x, ids, weights, *matrices)
    addresses, _copies = scattered(matrices)
    there = np.zeros_like(addresses)
    one = IncrementalExpertFfn()
    experts, _ = one.begin(x, ids, weights, matrices, there)
    for e in experts:
        there[:, e] = addresses[:, e]
        one.compute([e])
        there[:, e] = 0
    assert torch.equal(one.finish(), whole)


def test_what_is_out_of_turn_is_refused(each_isa: str) -> None:
    matrices = make(Type.Q4_0, Type.Q4_0)
    addresses, _copies = scattered(matrices)
    one = IncrementalExpertFfn()
    with pytest.raises(ShapeError, match="no pass has begun"):
        one.compute([0])
    x, ids, weights = inputs(100)

    def begin() -> tuple[list[int], int]:
        return one.begin(x, ids, weights, matrices, addresses)

    experts, num_free = begin()
    unused = next(e for e in range(EXPERTS) if e not in experts)
    for wrong in ([unused], [EXPERTS], [-1], [experts[0], experts[0]]):
        begin()
        with pytest.raises(ShapeError):
            one.compute(wrong)
    begin()
    one.compute(experts[:1])
    with pytest.raises(ShapeError, match="not been computed"):
        one.finish()
    if len(experts) - num_free > 1:
        begin()
        with pytest.raises(ShapeError, match="not the turn"):
            one.compute([*experts[:num_free], *experts[num_free + 1 :]])
    begin()
    addresses[1, experts[0]] = 0
    with pytest.raises(ShapeError, match="expected an address"):
        one.compute(experts[:1])


def test_shapes_are_checked() -> None:
    matrices = make(Type.Q4_0, Type.Q4_0)
    addresses, _copies = scattered(matrices)
    x, ids, weights = inputs(3)
    one = IncrementalExpertFfn()
    with pytest.raises(ShapeError, match="addresses"):
        one.begin(x, ids, weights, matrices, addresses[:2])
    with pytest.raises(ShapeError, match="addresses"):
        one.begin(x, ids, weights, matrices, addresses.T.copy().T)
    with pytest.raises(ShapeError, match="expert id"):
        one.begin(x, ids + EXPERTS, weights, matrices, addresses)
