"""Constraints in tests: walks a text through one."""

from collections.abc import Sequence

from hybridmoe.engine.constraint import Constraint
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["accepts", "accepts_ids"]


def accepts(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    """Test whether a constraint allows this output, special tokens included, as a whole."""
    return accepts_ids(constraint, tokenizer, tokenizer.encode(text, parse_special=True))


def accepts_ids(constraint: Constraint, tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Test whether a constraint allows these tokens and an end behind them."""

    def allows(token_id: int) -> bool:
        if constraint.is_inactive():
            return True
        return bool(constraint.mask()[token_id // 32] >> (token_id % 32) & 1)

    for token_id in ids:
        if constraint.is_done() or not allows(token_id):
            return False
        constraint.accept(token_id)
    return constraint.is_done() or any(map(allows, tokenizer.eos_ids))
