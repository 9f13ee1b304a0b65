"""Training of the embedded model: `python -m hybridmoe.demo.train --minutes 90 --out DIR`.

The schedule is a function of the time spent, without pauses of the processes: warm-up, a constant
phase, a linear decay to zero at the last minute. `--resume` continues from the checkpoint in DIR,
`--start FILE.gguf` from the weights and the vocabulary of an exported file. In the last phase the
forward pass rounds experts to 4 bits, as Q4_K will. Every few minutes it writes a checkpoint and a
held-out table.

Data-parallel over single-threaded processes, which share the weights and each own the optimizer of
a part of them. A few barriers per step, instead of one per matrix product, keep the speed while
other programs use the cores, too: OpenMP's barriers then cost a factor of ten.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.multiprocessing as mp

from hybridmoe.demo.batches import Packer
from hybridmoe.demo.network import DemoConfig, DemoNetwork
from hybridmoe.demo.progress import held_out_line, loss_of, router_line
from hybridmoe.demo.restore import restore
from hybridmoe.demo.vocabulary import Vocabulary
from hybridmoe.demo.wiring import wire

WARM_UP = 0.015
DECAY_FROM = 0.55
ROUND_FROM = 0.85
BALANCE_WEIGHT = 2e-3
BIAS_RATE = 4e-3
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.05
# A longer step was paused: only this much of it counts as time spent.
LONGEST_STEP_S = 5.0


def rate_at(fraction: float, peak: float) -> float:
    """Return the learning rate at a fraction of the time."""
    if fraction < WARM_UP:
        return peak * (fraction / WARM_UP + 0.02)
    if fraction < DECAY_FROM:
        return peak
    return peak * max(0.0, (1 - fraction) / (1 - DECAY_FROM)) + 1e-6


def _shared(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Allocate zeros in memory that forked processes share."""
    tensor = torch.zeros(shape, dtype=dtype)
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor


class Shared:
    """State shared by the processes: weights, gradients, loads, clock and barrier."""

    def __init__(self, network: DemoNetwork, num_ranks: int) -> None:
        self.network = network.share_memory()
        self.parameters = list(network.parameters())
        sizes = [p.numel() for p in self.parameters]
        self.gradients = _shared(num_ranks, sum(sizes))
        self.offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        # Largest first to the rank with the fewest: all update about the same number of weights.
        self.owner = [0] * len(sizes)
        weight = [0] * num_ranks
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            self.owner[i] = weight.index(min(weight))
            weight[self.owner[i]] += sizes[i]
        self.loads = _shared(num_ranks, len(network.moes()), network.c.experts)
        self.sums = _shared(num_ranks, 3, dtype=torch.float64)
        self.fraction = _shared(dtype=torch.float64)
        self.num_ranks = num_ranks
        self.barrier = mp.get_context("fork").Barrier(num_ranks)

    def view(self, rank: int, i: int) -> torch.Tensor:
        """Return a rank's gradient of parameter i."""
        flat = self.gradients[rank, self.offsets[i] : self.offsets[i] + self.parameters[i].numel()]
        return flat.view_as(self.parameters[i])


class Rank:
    """Process with its data, and the optimizer of the parameters that it owns."""

    def __init__(self, shared: Shared, rank: int, packer: Packer, args: argparse.Namespace) -> None:
        self.shared, self.rank, self.packer, self.args = shared, rank, packer, args
        self.own = [i for i, owner in enumerate(shared.owner) if owner == rank]
        network = shared.network
        apart = {id(network.embedding), id(network.head), *(id(m.router) for m in network.moes())}
        decayed: list[torch.Tensor] = []
        plain: list[torch.Tensor] = []
        for i in self.own:
            parameter = shared.parameters[i]
            is_matrix = parameter.dim() >= 2 and id(parameter) not in apart
            (decayed if is_matrix else plain).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": WEIGHT_DECAY},
             {"params": plain, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip

    def step(self, fraction: float) -> None:
        """Run a training step: gradients, barrier, sum and clip, barrier, update, barrier."""
        shared, rank = self.shared, self.rank
        network = shared.network
        rate = rate_at(fraction, self.args.rate)
        shared.gradients[rank].zero_()
        for i, parameter in enumerate(shared.parameters):
            parameter.grad = shared.view(rank, i)
        batch = self.packer.batch(self.args.rows)
        for moe in network.moes():
            moe.is_rounded = fraction >= ROUND_FROM
        loss = loss_of(network, batch)
        balance = torch.stack([moe.balance for moe in network.moes()]).sum()
        torch.autograd.backward((loss + BALANCE_WEIGHT * balance) / shared.num_ranks)
        for i, moe in enumerate(network.moes()):
            shared.loads[rank, i] = moe.load
        shared.barrier.wait()
        square = 0.0
        for i in self.own:
            mine = shared.view(rank, i)
            for other in range(shared.num_ranks):
                if other != rank:
                    mine.add_(shared.view(other, i))
            square += float(mine.square().sum())
        shared.sums[rank] = torch.tensor([square, loss.item(), batch.num_tokens])
        if rank == 0:
            for moe, load in zip(network.moes(), shared.loads.mean(0), strict=True):
                push = BIAS_RATE * rate / self.args.rate
                moe.bias += push * torch.sign(1 / len(load) - load)
        shared.barrier.wait()
        norm = float(shared.sums[:, 0].sum()) ** 0.5
        for i in self.own:
            shared.view(rank, i).mul_(min(1.0, CLIP_NORM / (norm + 1e-6)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


def follow(rank: Rank, checkpoint: Path) -> None:
    """Run every rank but the first, by the shared clock."""
    # Linux shares the cores between sessions (autogroup): a rank in the leader's session would
    # get half a share.
    os.setsid()
    torch.set_num_threads(1)
    shared = rank.shared
    shared.barrier.wait()
    saved = 0.0
    while (fraction := float(shared.fraction)) < 1:
        rank.step(fraction)
        if time.monotonic() - saved > 300:
            save(checkpoint.with_suffix(f".{rank.rank}.pt"), rank.optimizer.state_dict())
            saved = time.monotonic()
        shared.barrier.wait()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    os.replace(part, path)


def log_line(log: TextIO, text: str) -> None:
    """Write a line to the log and the terminal."""
    print(text, flush=True)
    log.write(text + "\n")
    log.flush()


def lead(rank: Rank, out: Path, done: dict[str, float], log: TextIO) -> None:
    """Run the first rank, which keeps the clock, the log and the checkpoints."""
    shared, args = rank.shared, rank.args
    held_packer = Packer(rank.packer.vocabulary, 77, args.length, "held")
    held = [held_packer.batch(args.rows) for _ in range(args.held_batches)]
    steps, tokens = int(done["steps"]), int(done["tokens"])
    spent = done["spent_s"]
    last_step = last_log = last_save = time.monotonic()
    count, seen, loss = 0, 0, 0.0
    loads = torch.zeros_like(shared.loads[0])

    def keep() -> None:
        log_line(log, f"{spent:7.0f} s {held_out_line(shared.network, held)}")
        state = {"network": shared.network.state_dict(), "steps": steps, "tokens": tokens}
        save(out / "checkpoint.pt", {**state, "spent_s": spent})
        save(out / "checkpoint.0.pt", rank.optimizer.state_dict())

    shared.fraction.fill_(done["spent_s"] / (60 * args.minutes))
    shared.barrier.wait()
    while (fraction := float(shared.fraction)) < 1:
        rank.step(fraction)
        steps, count = steps + 1, count + 1
        tokens, seen = tokens + int(shared.sums[:, 2].sum()), seen + int(shared.sums[:, 2].sum())
        loss += float(shared.sums[:, 1].mean())
        loads += shared.loads.mean(0)
        now = time.monotonic()
        spent += min(now - last_step, LONGEST_STEP_S)
        last_step = now
        if now - last_log > 30:
            norm = float(shared.sums[:, 0].sum()) ** 0.5
            log_line(log, f"{spent:7.0f} s step {steps} tokens {tokens} "
                          f"loss {loss / count:.4f} lr {rate_at(fraction, args.rate):.2e} "
                          f"norm {norm:.2f} {seen / (now - last_log):.0f} tok/s "
                          f"load {router_line(loads)}")  # fmt: skip
            count, seen, loss, last_log = 0, 0, 0.0, now
            loads.zero_()
        if now - last_save > 60 * args.held_minutes:
            # Other ranks may still be updating: a checkpoint may mix two adjacent steps, which
            # does no harm.
            keep()
            last_save = time.monotonic()
        shared.fraction.fill_(spent / (60 * args.minutes))
        shared.barrier.wait()
    keep()
    log_line(log, f"# done at {time.strftime('%H:%M:%S')}: {steps} steps, {tokens} tokens")


def train(args: argparse.Namespace) -> None:
    """Run until the minutes are spent."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.start:
        network, vocabulary = restore(args.start)
    else:
        known = out / "vocabulary.json"
        vocabulary = Vocabulary.load(known) if args.resume else Vocabulary.train()
        network = DemoNetwork(DemoConfig(vocab=vocabulary.size))
        wire(network)
    vocabulary.save(out / "vocabulary.json")
    done: dict[str, float] = {"steps": 0, "tokens": 0, "spent_s": 0.0}
    if args.resume:
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        network.load_state_dict(state.pop("network"))
        done = state
    shared = Shared(network, args.ranks)
    ranks = []
    for i in range(args.ranks):
        packer = Packer(vocabulary, args.seed + 1000 * int(done["steps"]) + i, args.length)
        ranks.append(Rank(shared, i, packer, args))
        if args.resume:
            saved = torch.load(out / f"checkpoint.{i}.pt", weights_only=True)
            ranks[i].optimizer.load_state_dict(saved)
    others = [
        mp.get_context("fork").Process(
            target=follow, args=(rank, out / "checkpoint.pt"), daemon=True
        )
        for rank in ranks[1:]
    ]
    with (out / "train.log").open("a") as log:
        size = sum(p.numel() for p in network.parameters())
        log_line(log, f"# {vars(args)}\n# {size} parameters, vocabulary {vocabulary.size}, "
                      f"{time.strftime('%H:%M:%S')}, from step {int(done['steps'])}")  # fmt: skip
        for process in others:
            process.start()
        lead(ranks[0], out, done, log)
    for process in others:
        process.join()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--out", required=True)
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--resume", action="store_true", help="continue from DIR's checkpoint")
    origin.add_argument("--start", type=Path, help="continue from the weights of this GGUF file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--rows", type=int, default=3, help="rows of a batch, per process")
    parser.add_argument("--length", type=int, default=320)
    parser.add_argument("--ranks", type=int, default=2, help="single-threaded processes")
    parser.add_argument("--held-batches", type=int, default=14)
    parser.add_argument("--held-minutes", type=float, default=5)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
