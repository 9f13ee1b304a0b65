"""Word wrap of one line of text, in the columns that its characters take on a terminal."""

import re

__all__ = ["wrapped"]

_WIDE = (
    "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60"
    "\U0001f300-\U0001faff\U00020000-\U0003fffd"
)  # a line may break at each of them
_WORD = re.compile(rf"\s+|[{_WIDE}]|[^\s{_WIDE}]+")
_MARKER = re.compile(r"\s*(?:(?:[-*+•>]|\d{1,3}[.)])\s+)*(?:\S(?:\S| (?! ))* {2,}(?=\S))?")


def wrapped(line: str, width: int) -> list[str]:
    """Break a line between words, below the text of its list item or its second column.

    Rows of a longer text begin with the rows of a shorter one, but for the last of those.
    """
    from rich.cells import cell_len, chop_cells

    marker = _MARKER.match(line)
    indent = cell_len(marker.group()) if marker else 0
    indent = indent if indent <= width // 2 else 0
    rows, row, cells = [], "", 0
    for word in _WORD.findall(line.expandtabs()):
        size = cell_len(word)
        if cells + size > width and cells > indent:
            rows.append(row.rstrip())
            row, cells = " " * indent, indent
            if word.isspace():
                continue
        while cells + size > width:  # longer than a row
            head = chop_cells(word, width - cells)[0]
            rows.append(row + head)
            word, row, cells = word.removeprefix(head), " " * indent, indent
            size = cell_len(word)
        row += word
        cells += size
    return [*rows, row]
