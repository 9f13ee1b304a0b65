"""Training of a layer for multi-token prediction behind the embedded model, whose weights stay.

    python -m hybridmoe.demo.train_mtp --minutes 4 OUT.gguf

OUT.gguf is the embedded model with that layer, as DeepSeek-V3's files have it: a real acceptance of
drafts, where the embedded model itself is kept small. One process, one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gguf
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType as Type
from torch import Tensor, nn

from hybridmoe.demo import demo_path
from hybridmoe.demo.batches import Batch, Packer
from hybridmoe.demo.export import add_tensors, tensors
from hybridmoe.demo.network import Block, DemoNetwork, Norm
from hybridmoe.demo.restore import restore

__all__ = ["MtpNetwork"]

RATE, WEIGHT_DECAY, ROWS, LENGTH = 1.5e-3, 0.05, 3, 320


class MtpNetwork(nn.Module):
    """A layer over the network's states and the tokens behind them; predicts the next tokens."""

    def __init__(self, network: DemoNetwork) -> None:
        super().__init__()
        c = network.c
        self.frequency = network.frequency
        self.block = Block(c, c.layers)
        self.block.load_state_dict(network.blocks[-1].state_dict())  # it knows most already
        self.token_norm, self.state_norm = Norm(c.hidden, c.norm_eps), Norm(c.hidden, c.norm_eps)
        self.norm = Norm(c.hidden, c.norm_eps)
        self.norm.load_state_dict(network.norm.state_dict())
        self.join = nn.Linear(2 * c.hidden, c.hidden, bias=False)
        with torch.no_grad():
            self.join.weight.copy_(torch.eye(c.hidden).repeat(1, 2))

    def forward(self, tokens: Tensor, states: Tensor, batch: Batch) -> Tensor:
        """Compute states (B, L, H) that predict the token behind each.

        tokens: embeddings (B, L, H). states: (B, L, H), normed, of the tokens before.
        """
        angles = batch.positions.unsqueeze(-1) * self.frequency
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (batch.documents.unsqueeze(2) == batch.documents.unsqueeze(1)) & causal
        x = self.join(torch.cat((self.token_norm(tokens), self.state_norm(states)), -1))
        x = self.block(x, angles.cos(), angles.sin(), mask.unsqueeze(1))
        return cast(Tensor, self.norm(x))


def _logits_and_targets(
    network: DemoNetwork, mtp: MtpNetwork, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the replies' tokens by the layer, the tokens, and the network's own logits."""
    with torch.no_grad():
        states = network(batch.ids, batch.positions, batch.documents)
        tokens = F.embedding(batch.ids, network.embedding)
    before = states.roll(1, 1) * (batch.positions > 0).unsqueeze(-1)
    chosen = batch.is_reply.roll(-1, 1)
    chosen[:, -1] = False
    hidden = mtp(tokens, before, batch)[chosen]
    own = network.logits(states[chosen])
    return network.logits(hidden), batch.ids[:, 1:][batch.is_reply[:, 1:]], own


def train(minutes: float, out: Path) -> None:
    """Train for a time, print how often its drafts are the network's choice, and export."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    network, vocabulary = restore(demo_path())
    network.requires_grad_(False)
    mtp = MtpNetwork(network)
    optimizer = torch.optim.AdamW(
        mtp.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    packer, held = Packer(vocabulary, 1, LENGTH), Packer(vocabulary, 77, LENGTH, "held")
    started, steps = time.process_time(), 0
    while (share := (time.process_time() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - share), (steps + 1) / 20)
        logits, targets, _ = _logits_and_targets(network, mtp, packer.batch(ROWS))
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits, targets))
        torch.nn.utils.clip_grad_norm_(mtp.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % 100 == 0:
            print(f"step {steps}: {_agreement(network, mtp, held):.3f} agree", flush=True)
    print(f"step {steps}: {_agreement(network, mtp, held, 12):.3f} agree", flush=True)
    _export(network, mtp, out)


@torch.no_grad()
def _agreement(network: DemoNetwork, mtp: MtpNetwork, packer: Packer, count: int = 3) -> float:
    """Share of a held-out reply's tokens that the layer predicts as the network does."""
    hits: list[Tensor] = []
    for _ in range(count):
        logits, _, own = _logits_and_targets(network, mtp, packer.batch(ROWS))
        hits.append(logits.argmax(-1) == own.argmax(-1))
    return float(torch.cat(hits).float().mean())


def _export(network: DemoNetwork, mtp: MtpNetwork, out: Path) -> None:
    """Write the embedded model's own tensors, and the layer's, atomically."""
    c, reader = network.c, gguf.GGUFReader(demo_path())
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, "deepseek2")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture", "deepseek2.block_count")):
            is_list = field.types[0] == gguf.GGUFValueType.ARRAY
            sub_type = field.types[-1] if is_list else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    writer.add_block_count(c.layers + 1)
    writer.add_nextn_predict_layers(1)
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        raw = None if kind in (Type.F32, Type.F16) else kind
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=raw)
    state: dict[str, Any] = dict(network.state_dict())
    state |= {f"blocks.{c.layers}.{name}": t for name, t in mtp.block.state_dict().items()}
    block = f"blk.{c.layers}."
    own = [t for t in tensors(state, replace(c, layers=c.layers + 1)) if t[0].startswith(block)]
    for name, values, kind in (
        ("eh_proj", mtp.join.weight, Type.Q8_0),
        ("enorm", mtp.token_norm.weight, Type.F32),
        ("hnorm", mtp.state_norm.weight, Type.F32),
        ("shared_head_norm", mtp.norm.weight, Type.F32),
    ):
        own.append((f"{block}nextn.{name}.weight", values.detach().numpy(), kind))
    add_tensors(writer, own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4, help="of CPU time")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    train(args.minutes, args.out)


if __name__ == "__main__":
    main()
