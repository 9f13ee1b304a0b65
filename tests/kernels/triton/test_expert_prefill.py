"""Groups of experts of a prompt, against exact arithmetic."""

import closeness
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix

pytest.importorskip("triton", reason="needs triton")

from kernel_device import on_device
from triton_bounds import U, expert_of_rows

from hybridmoe.errors import ShapeError
from hybridmoe.experts.gpu.routed_pairs import RoutedPairs, places_of, table_size
from hybridmoe.experts.gpu.weight_stream import HostExperts
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.kernels.expert_groups import FEW_ROWS, MANY_ROWS, ExpertGroup, LayerStates
from hybridmoe.kernels.triton.expert_prefill import add_experts, layout_of

EXPERTS, TOP_K = 3, 2


class Case:
    """A layer's experts, all in slots in reverse, and a step's routing."""

    def __init__(self, kinds: tuple[T, T, T], hidden: int, inter: int, tokens: int) -> None:
        gate, up, down = kinds
        self.weights = ExpertWeights(
            random_matrix(gate, EXPERTS, inter, hidden, seed=1),
            random_matrix(up, EXPERTS, inter, hidden, seed=2),
            random_matrix(down, EXPERTS, hidden, inter, seed=3),
        )
        layout = layout_of(*self.weights)
        assert layout is not None
        self.layout = layout
        self.data = torch.zeros((EXPERTS + 1, layout.slot_bytes + 256), dtype=torch.uint8)
        for expert in range(EXPERTS):
            for offset, part in HostExperts(self.weights, layout).parts(expert):
                self.data[EXPERTS - expert, offset : offset + part.nbytes] = part
        generator = torch.Generator().manual_seed(tokens)
        self.x = 0.02 * torch.randn((tokens, hidden), generator=generator)
        chance = torch.tensor([0.7, 0.2, 0.1]).repeat(tokens, 1)
        self.ids = torch.multinomial(chance, TOP_K, generator=generator).int()
        self.ids[::5, 1] = -1
        self.factors = torch.rand((tokens, TOP_K), generator=generator)
        self.factors[self.ids < 0] = float("nan")

    def run(self, groups: list[list[int]]) -> torch.Tensor:
        """Add groups of experts to zeros."""
        pairs = RoutedPairs(self.ids.numpy(), EXPERTS)
        memory = torch.empty(table_size(len(self.x), TOP_K, EXPERTS), dtype=torch.int32)
        placed = [(group, [EXPERTS - expert for expert in group]) for group in groups]
        tables = pairs.tables(placed, memory, lambda t: t.clone())
        places = places_of(tables.pairs, (len(self.x), TOP_K))
        out = torch.zeros_like(self.x)

        @on_device
        def add(
            x: torch.Tensor,
            factors: torch.Tensor,
            pairs: torch.Tensor,
            places: torch.Tensor,
            out: torch.Tensor,
            slots: torch.Tensor,
            tiles: torch.Tensor,
            data: torch.Tensor,
            group: ExpertGroup,
        ) -> None:
            states = LayerStates(x, factors, pairs, places, out)
            on_gpu = ExpertGroup(slots, tiles, group.first, group.num_pairs)
            add_experts(states, on_gpu, data, self.layout, tables.tile_rows)

        for group in tables.groups:
            add(
                self.x.bfloat16(), self.factors, tables.pairs, places, out, group.slots.clone(),
                group.tiles.clone(), self.data, group,
            )  # fmt: skip
        return out

    def check(self, got: torch.Tensor) -> None:
        want, bound, size = (np.zeros(self.x.shape) for _ in range(3))
        for expert in range(EXPERTS):
            rows, rank = np.nonzero(self.ids.numpy() == expert)
            if len(rows):
                factor = self.factors.double().numpy()[rows, rank][:, None]
                y, error = expert_of_rows(self.weights, expert, self.x.numpy()[rows])
                want[rows] += factor * y
                bound[rows] += factor * error
                size[rows] += factor * (np.abs(y) + error)
        closeness.assert_close(got, want, bound + (EXPERTS + 2) * U * size, str(self.layout))


@pytest.mark.parametrize(
    ("kinds", "hidden", "inter", "tokens"),
    [
        ((T.Q4_K, T.Q4_K, T.Q6_K), 256, 256, 5),
        ((T.Q5_K, T.Q6_K, T.IQ4_XS), 256, 256, 3),
        ((T.Q8_0, T.Q8_0, T.MXFP4), 96, 160, 90),  # sizes that tiles do not divide
        ((T.BF16, T.F16, T.Q4_0), 72, 32, 9),
    ],
    ids=str,
)
def test_within_the_bound(kinds: tuple[T, T, T], hidden: int, inter: int, tokens: int) -> None:
    case = Case(kinds, hidden, inter, tokens)
    got = case.run([[1, 0], [2]])
    case.check(got)
    with pytest.raises(AssertionError, match="out of bounds"):
        case.check(1.03 * got)


def test_groups_do_not_change_a_bit() -> None:
    case = Case((T.Q4_0, T.Q4_0, T.Q4_0), 64, 32, 70)
    is_swapped = (case.ids[:, 0] > case.ids[:, 1]) & (case.ids[:, 1] >= 0)
    case.ids[is_swapped] = case.ids[is_swapped].flip(1)  # a token's ranks are in the groups' order
    want = case.run([[0], [1], [2]])
    assert torch.equal(want, case.run([[0, 1, 2]]))


@pytest.mark.parametrize("tokens", [FEW_ROWS, MANY_ROWS + 70])
def test_tiles_of_both_sizes(tokens: int) -> None:
    case = Case((T.Q4_0, T.Q4_0, T.Q4_0), 64, 32, tokens)
    case.check(case.run([[0, 1, 2]]))


def test_what_does_not_fit_is_refused() -> None:
    case = Case((T.Q4_0, T.Q4_0, T.Q4_0), 64, 32, 4)
    case.data = case.data[:, :-512].contiguous()
    with pytest.raises(ShapeError, match="bytes, expected at least"):
        case.run([[0]])
