"""Figures of the training log: held-out loss and accuracy by family, and router load."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F

from hybridmoe.demo.batches import Batch
from hybridmoe.demo.network import DemoNetwork

__all__ = ["held_out", "held_out_line", "loss_of", "router_line"]


def loss_of(network: DemoNetwork, batch: Batch) -> torch.Tensor:
    """Compute the mean cross entropy of the replies' tokens."""
    # The position before a token predicts it.
    chosen = batch.is_reply.roll(-1, 1)
    chosen[:, -1] = False
    hidden = network(batch.ids, batch.positions, batch.documents, chosen)[0]
    return F.cross_entropy(network.logits(hidden), batch.ids[:, 1:][batch.is_reply[:, 1:]])


@torch.no_grad()
def held_out(network: DemoNetwork, batches: list[Batch]) -> dict[str, tuple[float, float, int]]:
    """Measure by family: mean token loss, share of fully right replies, number of replies.

    Teacher-forced: greedy decoding writes a reply exactly if every argmax is right.
    """
    losses: dict[str, list[float]] = defaultdict(list)
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        logits = network.logits(network(batch.ids, batch.positions, batch.documents))[:, :-1]
        target = batch.ids[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        loss = loss.view_as(target)
        is_right = logits.argmax(-1) == target
        for family, row, start, end in batch.spans:
            losses[family].append(loss[row, start - 1 : end - 1].mean().item())
            right[family].append(bool(is_right[row, start - 1 : end - 1].all()))
    return {
        family: (sum(losses[family]) / len(losses[family]), sum(hits) / len(hits), len(hits))
        for family, hits in sorted(right.items())
    }


def held_out_line(network: DemoNetwork, batches: list[Batch]) -> str:
    """Format the held-out table in one line: family loss/exact(replies)."""
    table = held_out(network, batches)
    return "held-out loss/exact(n): " + ", ".join(
        f"{family} {loss:.3f}/{100 * right:.0f}%({count})"
        for family, (loss, right, count) in table.items()
    )


def router_line(loads: torch.Tensor) -> str:
    """Format by MoE layer: least and greatest load (1 = even), entropy in bits (5 = even)."""
    parts = []
    for load in loads:
        share = load / load.sum()
        entropy = -(share * (share + 1e-12).log2()).sum()
        scaled = share * len(share)
        parts.append(f"{scaled.min():.2f}..{scaled.max():.2f} H={entropy:.2f}")
    return " | ".join(parts)
