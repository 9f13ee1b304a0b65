"""Parts of pages that a program writes, each between two comments, of which the first names it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Block", "rewrite", "table", "with_block"]

END = "<!-- end -->\n"


class Block(NamedTuple):
    """Part of a page, and what writes it."""

    page: Path
    source: str
    write: Callable[[], str]


def with_block(text: str, block: Block) -> str:
    """Put a block into the text of its page."""
    begin = f"<!-- from {block.source} -->\n"
    before, _, rest = text.partition(begin)
    assert rest, f"no {begin!r}"
    return f"{before}{begin}\n{block.write()}\n{END}{rest.partition(END)[2]}"


def rewrite(blocks: Iterable[Block]) -> None:
    """Write blocks into their pages."""
    for block in blocks:
        text = block.page.read_text(encoding="utf-8")
        block.page.write_text(with_block(text, block), encoding="utf-8")


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Write a table of Markdown."""
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in (heads, *rows))
    return "".join([first, f"|{'---|' * len(heads)}\n", *rest])
