"""The experts of a response's tokens, as a request with `return_experts` gets them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybridmoe.engine.request import TokenExperts
from hybridmoe.experts.stats import TIERS

__all__ = ["ExpertLists"]

_LETTERS = np.array([ord(tier[0].upper()) for tier in TIERS], np.uint8)


@dataclass(slots=True)
class ExpertLists:
    """Chosen experts by token, each with a list for every MoE layer."""

    ids: list[list[list[int]]] = field(default_factory=list)
    tiers: list[list[str]] = field(default_factory=list)  # a letter of `_LETTERS` for each id

    def append(self, token: TokenExperts) -> None:
        """Add a token's."""
        self.ids.append(token.ids.tolist())
        text, top_k = _LETTERS[token.tiers].tobytes().decode(), token.tiers.shape[1]
        self.tiers.append([text[at : at + top_k] for at in range(0, len(text), top_k)])

    def extend(self, later: "ExpertLists") -> None:
        """Add those of later tokens."""
        self.ids += later.ids
        self.tiers += later.tiers

    def __bool__(self) -> bool:
        return bool(self.ids)

    def fields(self) -> dict[str, Any]:
        """Make the fields of a response or a chunk."""
        return {"experts": self.ids, "expert_tiers": self.tiers}
