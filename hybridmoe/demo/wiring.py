"""Initial weights with induction heads, so that a short training need not discover copying.

Induction heads copy from the context (a name, a tool's argument) and emerge late in training
(Olsson et al. 2022): here, after more tokens than two cores can train on in an hour. The residual
stream is divided:

    0          the same large number in every embedding: a source of fixed vectors
    1..64      a random code of the token
    65..128    code of the previous token, written by layer 0, head 0
    129..192   code of the token to copy, written by the induction heads, read by the output head
    193..255   free: random in the embedding

Heads 0, 1, 2 of layer 0 attend one, two and three tokens back: q and k take fixed rope vectors, a
rotation apart, from component 0. Head 0 of layers 1 and 2 attends to the position whose previous
token equals the current one. All weights are trained.
"""

from __future__ import annotations

import torch

from hybridmoe.demo.network import Attention, DemoNetwork

__all__ = ["wire"]

CODE = slice(1, 65)
PREVIOUS = slice(65, 129)
COPY = slice(129, 193)
WIDTH = 64
LOOK_BACK_PAIRS = 8  # the fastest rope pairs; slow ones hardly separate neighbours


@torch.no_grad()
def wire(network: DemoNetwork) -> None:
    """Overwrite part of the fresh random weights."""
    c = network.c
    assert c.nope == c.value == WIDTH and c.hidden == 256, c
    network.embedding[:, 0] = 4.0
    network.embedding[:, PREVIOUS] = 0.0
    network.embedding[:, COPY] = 0.0
    network.head.mul_(0.5)
    network.head[:, 0] = 0.0
    network.head[:, COPY] = 0.3 * network.embedding[:, CODE]
    first = network.blocks[0].attention
    assert isinstance(first, Attention)
    for head in range(3):
        _look_back(first, head, head + 1, network.frequency)
    _carry(first, 0, PREVIOUS, gain=0.6)
    for layer in (1, 2):
        attention = network.blocks[layer].attention
        assert isinstance(attention, Attention)
        _match(attention, gain=2.6)
        _carry(attention, 0, COPY, gain=0.5)


def _head_rows(attention: Attention, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of q_b and of kv_b of a head."""
    c = attention.c
    q = attention.q_b.weight[head * (c.nope + c.rope) : (head + 1) * (c.nope + c.rope)]
    kv = attention.kv_b.weight[head * (c.nope + c.value) : (head + 1) * (c.nope + c.value)]
    return q, kv


def _look_back(attention: Attention, head: int, distance: int, frequency: torch.Tensor) -> None:
    """Make a head attend `distance` tokens back."""
    c = attention.c
    pairs = 2 * LOOK_BACK_PAIRS
    attention.q_a.weight[WIDTH] = 0.0
    attention.q_a.weight[WIDTH, 0] = 1.0
    k_rope = attention.kv_a.weight[c.kv_lora :]
    k_rope.mul_(0.1)
    k_rope[0:pairs:2, 0] = 0.9
    q, _ = _head_rows(attention, head)
    q.mul_(0.1)
    angle = -distance * frequency[:LOOK_BACK_PAIRS]
    q[c.nope : c.nope + pairs : 2, WIDTH] = angle.cos()
    q[c.nope + 1 : c.nope + pairs : 2, WIDTH] = angle.sin()


def _carry(attention: Attention, head: int, target: slice, gain: float) -> None:
    """Make a head write the code of the token it attends to into `target`."""
    c = attention.c
    eye = torch.eye(WIDTH)
    attention.kv_a.weight[:WIDTH] = 0.0
    attention.kv_a.weight[:WIDTH, CODE] = eye
    _, kv = _head_rows(attention, head)
    kv[c.nope :] = 0.0
    kv[c.nope :, :WIDTH] = eye
    attention.out.weight[:, head * c.value : (head + 1) * c.value].mul_(0.2)
    attention.out.weight[target, head * c.value : (head + 1) * c.value] = gain * eye


def _match(attention: Attention, gain: float) -> None:
    """Make head 0 attend where the previous token's code is the current token's code."""
    c = attention.c
    eye = torch.eye(WIDTH)
    attention.q_a.weight[:WIDTH] = 0.0
    attention.q_a.weight[:WIDTH, CODE] = eye
    attention.kv_a.weight[WIDTH : 2 * WIDTH] = 0.0
    attention.kv_a.weight[WIDTH : 2 * WIDTH, PREVIOUS] = eye
    q, kv = _head_rows(attention, 0)
    q.mul_(0.1)
    q[: c.nope] = 0.0
    q[: c.nope, :WIDTH] = gain * eye
    kv[: c.nope] = 0.0
    kv[: c.nope, WIDTH : 2 * WIDTH] = gain * eye
