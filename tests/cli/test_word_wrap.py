"""Word wrap of streamed text: what a terminal shows, however the text is cut into pieces."""

import random
import re

import pytest
from terminal_chat import Terminal

from hybridmoe.cli.render import Screen
from hybridmoe.cli.word_wrap import WordWrap


def shown(output: str, width: int = 20) -> list[str]:
    """Rows that a terminal shows of the output; narrow characters, and wide ones as two cells."""
    rows: list[list[str]] = [[]]
    for token in re.findall(r"\x1b\[(?:\d*)[A-Za-z]|.|\n", output):
        row = rows[-1]
        if token == "\n":
            rows.append([])
        elif token.startswith("\x1b"):
            if token.endswith("D"):
                del row[len(row) - int(token[2:-1]) :]  # K follows
            continue
        else:
            cells = [token, ""] if ord(token) > 0x2E80 else [token]
            if len(row) + len(cells) > width:
                rows.append([])
            rows[-1].extend(cells)
    return ["".join(row).rstrip() for row in rows]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("the quick brown fox jumps over", ["the quick brown fox", "jumps over"]),
        ("the quick brown foxes run", ["the quick brown", "foxes run"]),
        ("the quick brown fox\n\njumps", ["the quick brown fox", "", "jumps"]),
        ("- the quick brown fox jumps", ["- the quick brown", "  fox jumps"]),
        ("10. the quick brown fox\n1. a", ["10. the quick brown", "    fox", "1. a"]),
        ("see " + "x" * 30 + " and", ["see", "x" * 20, "xxxxxxxxxx and"]),
        ("```\nthe quick brown fox jumps\n```\nthe quick brown foxes",
         ["```", "the quick brown fox", "jumps", "```", "the quick brown", "foxes"]),
        ("the quick brown\tfoxes", ["the quick brown", "foxes"]),
        ("| the quick | brown fox |", ["| the quick | brown", "fox |"]),
        ("the quick 好好好好好好好 x", ["the quick 好好好好", "好好好 x"]),
    ],
)  # fmt: skip
def test_rows_are_the_same_for_all_pieces(text: str, rows: list[str]) -> None:
    rng = random.Random(0)
    for most in (1, 3, 100):
        wrap, output, at = WordWrap(lambda: 20), "", 0
        while at < len(text):
            end = at + rng.randint(1, most)
            output += wrap.feed(text[at:end])
            at = end
        assert shown(output) == rows
    assert "\x1b" not in WordWrap(lambda: 200).feed(text)


def test_only_terminals_with_colors_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = "the quick brown foxes run"

    def rows(*, use_color: bool = True, wraps: bool = True) -> int:
        out = Terminal()
        Screen(out, use_color=use_color, wraps=wraps).write(text)
        return out.getvalue().count("\n")

    assert rows() == 1
    assert rows(use_color=False) == rows(wraps=False) == 0
    monkeypatch.setenv("TERM", "dumb")
    assert rows() == 0
