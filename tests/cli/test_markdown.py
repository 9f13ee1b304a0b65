"""Markdown and thoughts on a terminal: what its screen shows, however the text is cut."""

import random
import re

import pytest
from hostile_markdown import HOSTILE
from terminal_screen import TerminalScreen

from hybridmoe.cli.live_rows import LiveRows, Row
from hybridmoe.cli.render import Screen
from hybridmoe.cli.word_wrap import wrapped

ANSWER = r"""
# Sorting

Use **`sorted`**, or *sort in place*; see [the docs](https://docs.python.org/3/) or <https://x.org>.
A second line. ![plot](plot.png) 2 * 3 * 4 = 24, \(a_1 + b_1\), <b>HTML</b>.

1. first
2. second, which is a good deal longer than sixty columns, so that it is broken
   - inner **bold
     text**
3. third

   ```
   code in a list
   ```

```python
def f(x: int) -> str:
    # a comment that is a good deal longer than sixty columns of a terminal, and stays in one line

    return f"{x}"
```

| name | value |
|------|------:|
| one  |     1 |
| a longer name | 22222 |

> quoted
> text

---

好好好好好好好好好好好好好好好好好好好好好好好好好好好好好好好好好好 end
[1]: https://reference.org
"""

SHOWN = """\
Sorting

Use sorted, or sort in place; see the docs
(https://docs.python.org/3/) or https://x.org.
A second line. plot (plot.png) 2 * 3 * 4 = 24, \\(a_1 + b_1\\),
<b>HTML</b>.
"""


@pytest.fixture(autouse=True)
def every_piece_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridmoe.cli.markdown_view._CREDIT_S", 1e9)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def played(
    text: str, columns: int, lines: int, *, most: int | None = None, seed: int = 0
) -> TerminalScreen:
    """Show a text in pieces of at most `most` characters; None: at once."""
    terminal = TerminalScreen(columns, lines)
    screen = Screen(terminal, is_plain=False, size=lambda: terminal.size)
    rng, at = random.Random(seed), 0
    while at < len(text):
        end = len(text) if most is None else at + rng.randint(1, most)
        screen.write(text[at:end])
        at = end
    screen.note("after")
    assert terminal.text[-2:] == ["after", ""]
    return terminal


def test_markdown_is_rendered() -> None:
    shown = "\n".join(played(ANSWER.replace("    # a", "\t# a"), 62, 24).text)
    assert shown.startswith(SHOWN)
    for part in (
        "\n2. second, which is a good deal longer than sixty columns, so\n   that it is broken\n"
        "   • inner bold\n     text\n3. third\n   code in a list\n",
        "\n```python\ndef f(x: int) -> str:\n    # a comment that",
        "\n > quoted",
        "\n[1]: https://reference.org\n",
    ):
        assert part.replace(" > ", "▌ ") in shown
    assert re.search(r"\n +name +value *\n ─+\n +one +1\n +a longer name +22222\n", shown)


@pytest.mark.parametrize("most", [1, 3, 40])
@pytest.mark.parametrize("size", [(62, 24), (40, 60), (21, 12)])
def test_what_is_left_is_the_same_for_all_pieces(size: tuple[int, int], most: int) -> None:
    assert played(ANSWER, *size, most=most).text == played(ANSWER, *size).text


def test_a_table_taller_than_the_screen_has_the_widths_of_its_last_row() -> None:
    rows = [f"| {i} | {'x' * i} |" for i in range(20)]
    table = "\n".join(["| a | b |", "|---|---|", *rows, "", "end"])
    assert played(table, 60, 10, most=9).text == played(table, 60, 10).text


def test_text_is_shown_as_it_comes() -> None:
    terminal = TerminalScreen()
    screen = Screen(terminal, is_plain=False, size=lambda: terminal.size)
    for text in ("One", " **two", " three"):
        screen.write(text)
    assert terminal.text == ["One two three"]
    assert "\x1b[1mtwo three\x1b[0m" in terminal.getvalue()
    screen.write("**\n\n```py\nx = 1\n")
    assert terminal.text == ["One two three", "", "```py", "x = 1"]


def test_growing_text_erases_nothing() -> None:
    terminal = TerminalScreen(62, 24)
    screen = Screen(terminal, is_plain=False, size=lambda: terminal.size)
    for word in ["word "] * 200 + ["\n\n", "- one", "\n", "- two\n\n", "```\n", "code\n```\n"]:
        screen.write(word)
    screen.end_line()
    assert terminal.num_erased == 0


def test_rows_above_the_screen_are_left_alone() -> None:
    terminal = TerminalScreen(20, 5)
    live = LiveRows(terminal, lambda: terminal.size)
    rows = [Row(f"row {i}", 5) for i in range(8)]
    live.show(rows)
    live.show([Row("new", 3)] * 8)
    assert terminal.text == ["row 0", "row 1", "row 2", *["new"] * 5]
    live.erase()
    assert terminal.text == ["row 0", "row 1", "row 2", ""]


def test_a_narrower_terminal_breaks_rows_itself() -> None:
    terminal = TerminalScreen(20, 9)
    live = LiveRows(terminal, lambda: terminal.size)
    live.show([Row("x" * 15, 15), Row("y" * 10, 10)])
    narrow = TerminalScreen(10, 9)
    narrow.write("before\n" + "x" * 15 + "\n" + "y" * 10)  # as the terminal shows them now
    live._out, live.size = narrow, lambda: narrow.size
    live.show([Row("z" * 15, 15), Row("y" * 10, 10)])
    assert narrow.text == ["before", "z" * 10, "z" * 5, "y" * 10]


def test_a_stopped_program_goes_on_below_what_others_wrote() -> None:
    terminal = TerminalScreen()
    screen = Screen(terminal, is_plain=False, size=lambda: terminal.size)
    screen.write("one two")
    terminal.write("\n[1]+ Stopped\n")
    screen.forget_position()
    screen.write(" three")
    screen.end_line()
    assert terminal.text == ["one two", "[1]+ Stopped", "one two three", ""]


def test_no_text_fails_or_is_lost() -> None:
    rng = random.Random(1)
    parts = [*"*_`~[]()<>#-+|\\ \n\n\t1.&$!好:", " word ", "\n- ", "\n```", "\n> ", "\n| a |"]
    mixtures = ["".join(rng.choices(parts, k=40)) for _ in range(60)]
    deep = [f"{mark * 40}deep word" for mark in ("> ", "- ", "1. ", "**", "[", "`")]
    for case in (*HOSTILE[::3], *mixtures, *deep):
        shown = " ".join(played(case, 40, 10).text)
        assert "\x1b" not in shown
        if case not in HOSTILE:
            assert shown.count("word") == case.count("word"), (case, shown)


def test_narrow_and_dumb_terminals_get_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert played("**bold**", 12, 4).text == ["**bold**", "after", ""]
    monkeypatch.setenv("TERM", "dumb")
    assert played("**bold**", 60, 4).text == ["**bold**", "after", ""]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = played("**bold** `code`\n\n```py\nimport x\n```\n", 60, 9)
    assert terminal.text[:3] == ["bold code", "", "```py"]
    assert not re.search(r"\x1b\[[0-9;]*[39]\dm", terminal.getvalue())


# Thoughts


def thinking(terminal: TerminalScreen, *, folds: bool = True) -> Screen:
    screen = Screen(terminal, is_plain=False, folds_thoughts=folds, size=lambda: terminal.size)
    screen.fold_hint = "; /thoughts shows them"
    for i in range(30):
        screen.write(f"thought {i}\n" if i % 3 == 2 else f"thought {i} ", is_reasoning=True)
    return screen


def test_thoughts_stream_dim_and_then_become_one_line() -> None:
    terminal = TerminalScreen(62, 12)
    screen = thinking(terminal)
    assert terminal.text[-2] == "thought 27 thought 28 thought 29"
    assert len(terminal.text) <= 8
    assert "\x1b[2mthought 27 thought 28 \x1b[0m" in terminal.getvalue()
    screen.write("The *answer*.")
    screen.end_line()
    assert terminal.text[0] == "thought for 0.0 s, 30 tokens; /thoughts shows them"
    assert terminal.text[1:] == ["The answer.", ""]


def test_open_thoughts_stay_and_stopped_ones_are_folded() -> None:
    terminal = TerminalScreen(62, 40)
    screen = thinking(terminal, folds=False)
    screen.write("The answer.")
    assert terminal.text[0] == "thought 0 thought 1 thought 2"
    assert terminal.text[9:] == ["thought 27 thought 28 thought 29", "", "The answer."]
    terminal = TerminalScreen(62, 40)
    thinking(terminal).note("(stopped)")
    assert [line[:11] for line in terminal.text] == ["thought for", "(stopped)", ""]


@pytest.mark.parametrize("folds", [True, False])
def test_one_long_line_of_thoughts_is_wrapped_as_it_comes(folds: bool) -> None:
    terminal = TerminalScreen(40, 12)
    screen = Screen(terminal, is_plain=False, folds_thoughts=folds, size=lambda: terminal.size)
    words = ["-", *(f"word{i}" for i in range(400))]
    for word in words:
        screen.write(f"{word} ", is_reasoning=True)
    shown = terminal.text
    assert " ".join(shown).split() == (words[-len(" ".join(shown).split()) :])
    assert len(shown) == 6 if folds else len(shown) > 60
    assert all(line.startswith("  word") for line in shown[1:])


# Words


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("the quick brown fox jumps", ["the quick brown fox", "jumps"]),
        ("- the quick brown fox jumps", ["- the quick brown", "  fox jumps"]),
        ("/help  list the commands", ["/help  list the", "       commands"]),
        ("see " + "x" * 30 + " and", ["see", "x" * 20, "xxxxxxxxxx and"]),
        ("the quick 好好好好好好好 x", ["the quick 好好好好好", "好好 x"]),
        ("", [""]),
    ],
)
def test_words_are_not_broken(line: str, rows: list[str]) -> None:
    assert wrapped(line, 20) == rows
