"""Packing of dialogues into rows of token ids, with loss masks and spans of replies."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybridmoe.demo import corpus
from hybridmoe.demo.corpus import Dialogue, Split
from hybridmoe.demo.vocabulary import Vocabulary

__all__ = ["Batch", "Encoded", "Packer", "encode"]


@dataclass(slots=True)
class Encoded:
    """Token ids of a dialogue; `is_reply[i]`: the assistant wrote token i."""

    ids: list[int] = field(default_factory=list)
    is_reply: list[bool] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # family, first, past last


def encode(dialogue: Dialogue, vocabulary: Vocabulary) -> Encoded:
    """Render and tokenize a dialogue."""
    out = Encoded()
    for segment in corpus.segments(dialogue):
        if segment.is_special:
            ids = [vocabulary.special[segment.text]]
        else:
            ids = vocabulary.encode(segment.text)
        start = len(out.ids)
        out.ids += ids
        out.is_reply += [segment.is_reply] * len(ids)
        if segment.is_reply:
            if out.spans and out.spans[-1][2] == start and out.spans[-1][0] == segment.family:
                out.spans[-1] = (segment.family, out.spans[-1][1], len(out.ids))
            else:
                out.spans.append((segment.family, start, len(out.ids)))
    return out


@dataclass(slots=True)
class Batch:
    """Packed rows: ids, positions, documents (B, L), and the spans of replies in them."""

    ids: Tensor
    positions: Tensor
    documents: Tensor
    is_reply: Tensor
    spans: list[tuple[str, int, int, int]]  # family, row, first, past last

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents > 0).sum())


class Packer:
    """Source of batches: draws dialogues and packs them into rows, largest first."""

    def __init__(
        self, vocabulary: Vocabulary, seed: int, length: int, split: Split = "train"
    ) -> None:
        self.vocabulary = vocabulary
        self.rng = random.Random(seed)
        self.length = length
        self.split: Split = split
        self.pool: list[Encoded] = []

    def _draw(self) -> Encoded:
        while True:
            encoded = encode(corpus.dialogue(self.rng, self.split), self.vocabulary)
            if len(encoded.ids) <= self.length:
                return encoded

    def batch(self, rows: int) -> Batch:
        """Pack a batch."""
        shape = (rows, self.length)
        ids = torch.full(shape, self.vocabulary.pad)
        positions = torch.zeros(shape, dtype=torch.long)
        documents = torch.zeros(shape, dtype=torch.long)
        is_reply = torch.zeros(shape, dtype=torch.bool)
        spans = []
        for row in range(rows):
            start, document = 0, 1
            while True:
                while len(self.pool) < 48:
                    self.pool.append(self._draw())
                left = self.length - start
                # The oldest that fits starts a row; after that the longest that fits.
                fits = [e for e in self.pool if len(e.ids) <= left]
                if not fits:
                    break
                best = fits[0] if start == 0 else max(fits, key=lambda e: len(e.ids))
                self.pool = [e for e in self.pool if e is not best]
                end = start + len(best.ids)
                ids[row, start:end] = torch.tensor(best.ids)
                positions[row, start:end] = torch.arange(len(best.ids))
                documents[row, start:end] = document
                is_reply[row, start:end] = torch.tensor(best.is_reply)
                spans += [(f, row, start + a, start + b) for f, a, b in best.spans]
                start, document = end, document + 1
        return Batch(ids, positions, documents, is_reply, spans)
