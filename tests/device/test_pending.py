"""Pending results: the sum is put off, and takes each part once."""

import torch
from torch import Tensor

from hybridmoe.device.pending import Pending, Ready


class Counted(Pending):
    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.num_taken = tensor, 0

    def result(self) -> Tensor:
        self.num_taken += 1
        return self.tensor


def test_a_sum_is_in_flight_until_it_is_taken_and_changes_no_part() -> None:
    first, second = Counted(torch.tensor([1.0, 2.0])), Counted(torch.tensor([10.0, 20.0]))
    total = first + second + Ready(torch.tensor([100.0, 100.0]))
    assert (first.num_taken, second.num_taken) == (0, 0)
    assert total.result().tolist() == [111.0, 122.0]
    assert (first.num_taken, second.num_taken) == (1, 1)
    assert first.tensor.tolist() == [1.0, 2.0]
