"""Drafts by multi-token prediction: the model's own extra layer, run token by token."""

from collections.abc import Sequence as Items

import torch

from hybridmoe.device.interface import Pages
from hybridmoe.engine.sequence import Sequence
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder

__all__ = ["MtpDrafter"]


class MtpDrafter:
    """Drafter that runs the MTP layer on a sequence's last token, then on its own drafts.

    The layer's rows of the KV cache that belong to drafts are overwritten once the tokens are
    known, as the network's are.
    """

    def __init__(self, model: Decoder, pages: Items[Pages]) -> None:
        """pages: of all layers."""
        self._model, self._pages = model, pages[-1]

    def draft(self, sequences: Items[Sequence], counts: Items[int]) -> list[list[int]]:
        """Draft the likeliest tokens; see `Drafter`."""
        drafts: list[list[int]] = [[] for _ in sequences]
        known = [(i, s.last_state) for i, s in enumerate(sequences) if s.last_state is not None]
        if not known:  # all behind tokens from the prefix cache
            return drafts
        rows = [i for i, _ in known]
        states = self._model.head_states(torch.stack([state for _, state in known]))
        while rows:
            ids, spans = [], []
            for i in rows:
                tokens, pages = sequences[i].ids, sequences[i].block_table.pages
                ids.append(drafts[i][-1] if drafts[i] else tokens[-1])
                spans.append(Span(1, len(tokens) - 1 + len(drafts[i]), pages))
            states, logits = self._model.draft(ids, states, spans, self._pages)
            for i, token_id in zip(rows, logits.argmax(1).tolist(), strict=True):
                drafts[i].append(token_id)
            going = [k for k, i in enumerate(rows) if len(drafts[i]) < counts[i]]
            rows = [rows[k] for k in going]
            states = states[going]
        return drafts
