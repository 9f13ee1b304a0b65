"""Report on expert use by the router: `python -m hybridmoe.demo.specialisation CHECKPOINT`.

By MoE layer: the load of the experts over the replies' tokens, and the mutual information between
the family of the reply and the chosen expert, also with the families shuffled (chance alone); then
the most used expert of each family.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from hybridmoe.demo.batches import Packer
from hybridmoe.demo.network import DemoConfig, DemoNetwork
from hybridmoe.demo.vocabulary import Vocabulary

__all__ = ["mutual_information", "report"]


def mutual_information(counts: Tensor) -> float:
    """Compute the mutual information in bits of a (families, experts) table of counts."""
    joint = counts / counts.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((joint * ((joint + 1e-12) / (apart + 1e-12)).log2()).sum())


@torch.no_grad()
def choices(
    network: DemoNetwork, packer: Packer, num_batches: int
) -> tuple[list[str], Tensor, list[Tensor]]:
    """Collect families, each reply token's family (T,), and by layer the chosen experts (T, K)."""
    names: dict[str, int] = {}
    labels: list[Tensor] = []
    chosen: dict[int, list[Tensor]] = defaultdict(list)
    for _ in range(num_batches):
        batch = packer.batch(8)
        network(batch.ids, batch.positions, batch.documents)
        label = torch.full(batch.ids.shape, -1)
        for family, row, start, end in batch.spans:
            # Position i - 1 predicts token i.
            label[row, start - 1 : end - 1] = names.setdefault(family, len(names))
        kept = label.flatten() >= 0
        labels.append(label.flatten()[kept])
        for i, moe in enumerate(network.moes()):
            chosen[i].append(moe.ids[kept])
    return list(names), torch.cat(labels), [torch.cat(parts) for parts in chosen.values()]


def report(network: DemoNetwork, vocabulary: Vocabulary, num_batches: int = 12) -> str:
    """Format the report as Markdown."""
    packer = Packer(vocabulary, 4242, 320)
    families, labels, layers = choices(network, packer, num_batches)
    experts, top_k = network.c.experts, network.c.top_k
    lines = [f"{len(labels)} reply tokens, load 1.0 = an even share of the choices.", "",
             "| MoE layer | least load | greatest load | entropy (5 = even) | families-experts "
             "mutual information | shuffled |", "|---|---|---|---|---|---|"]  # fmt: skip
    tables = []
    generator = torch.Generator().manual_seed(0)
    for i, ids in enumerate(layers):
        table = _table(labels, ids, len(families), experts)
        shuffled = labels[torch.randperm(len(labels), generator=generator)]
        chance = mutual_information(_table(shuffled, ids, len(families), experts))
        load = table.sum(0) / table.sum()
        entropy = float(-(load * (load + 1e-12).log2()).sum())
        lines.append(f"| {i + network.c.dense_layers} | {load.min() * experts:.2f} | "
                     f"{load.max() * experts:.2f} | {entropy:.2f} | "
                     f"{mutual_information(table):.3f} bits | {chance:.3f} bits |")  # fmt: skip
        tables.append(table)
    lines += ["", "Most used expert of each family (share of its tokens that choose it; an expert "
              f"chosen blindly gets {top_k / experts:.3f}):", "",
              "| family | " + " | ".join(f"layer {i + 1}" for i in range(len(tables))) + " |",
              "|---" * (len(tables) + 1) + "|"]  # fmt: skip
    for f, family in sorted(enumerate(families), key=lambda pair: pair[1]):
        cells = []
        for table in tables:
            share = table[f] / table[f].sum() * top_k
            cells.append(f"{int(share.argmax())} ({float(share.max()):.2f})")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table(labels: Tensor, ids: Tensor, num_families: int, experts: int) -> Tensor:
    """Count the choices (families, experts)."""
    index = labels.unsqueeze(1) * experts + ids
    counts = torch.bincount(index.flatten(), minlength=num_families * experts)
    return counts.view(num_families, experts).double()


def main() -> None:
    """Read the command line and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = Vocabulary.load(args.checkpoint.with_name("vocabulary.json"))
    network = DemoNetwork(DemoConfig(vocab=vocabulary.size))
    network.load_state_dict(torch.load(args.checkpoint, weights_only=True)["network"])
    print(report(network, vocabulary))


if __name__ == "__main__":
    main()
