"""Blocks of Markdown as rows of a terminal, by rich.

Shown as written is what a renderer would lose: HTML, formulas, addresses of links and images.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListElement, Markdown
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from hybridmoe.cli.live_rows import Row

__all__ = ["Block", "MarkdownRows"]

_MAX_LEVEL = 12  # of nesting; deeper blocks have no room for text
_TAB = 4
_FORMULA = re.compile(r"\\\((?:.+?)\\\)|\\\[(?:.+?)\\\]|\$\$(?:.+?)\$\$", re.DOTALL)
_THEME = Theme(
    {
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold",
        "markdown.code": "cyan",
        "markdown.code_block": "none",
        "markdown.block_quote": "none",
        "markdown.hr": "none",
        "markdown.table.header": "bold",
        "markdown.table.border": "none",
        "markdown.item.bullet": "none",
        "markdown.item.number": "none",
    }
)


class Block(NamedTuple):
    """One block of a text's top level: its tokens and its first line."""

    tokens: list[Token]
    line: int
    source: str

    @property
    def is_code(self) -> bool:
        return self.tokens[0].type == "fence"

    @property
    def is_table(self) -> bool:
        return self.tokens[0].type == "table_open"


class MarkdownRows:
    """Parses Markdown into blocks, and renders these."""

    def __init__(self, *, use_color: bool) -> None:
        self._use_color = use_color
        self._console = Console(file=io.StringIO(), theme=_THEME)
        self._parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self._parser.disable("reference")  # definitions would not be shown
        self._parser.inline.ruler.before("escape", "formula", _formula)
        self._parser.normalizeLink = lambda url: url  # type: ignore[method-assign]

    def blocks(self, source: str) -> list[Block]:
        """Split a text into the blocks of its top level."""
        lines = source.split("\n")
        tokens = self._parser.parse(source)
        starts = [i for i, t in enumerate(tokens) if t.level == 0 and t.nesting >= 0]
        blocks = []
        for start, end in pairwise([*starts, len(tokens)]):
            first, last = tokens[start].map or (0, len(lines))
            text = "\n".join(lines[first:last]).rstrip()
            blocks.append(Block(tokens[start:end], first, text))
        return blocks

    def rows(self, block: Block, columns: int) -> list[Row]:
        """Render one block for a terminal."""
        width = columns - 1  # some terminals break a full line too early
        if block.is_code:
            return self._code_rows(block)
        if max(token.level for token in block.tokens) > _MAX_LEVEL:
            lines = block.source.expandtabs(_TAB).split("\n")
            return [Row(line, cell_len(line)) for line in lines]
        options = self._console.options.update(width=width)
        rendered = self._console.render_lines(_Markdown(block.tokens), options, pad=False)
        rows = [self._row(segments) for segments in rendered]
        texts = [i for i, row in enumerate(rows) if row.text]
        return rows[texts[0] : texts[-1] + 1] if texts else []

    def _code_rows(self, block: Block) -> list[Row]:
        """Render a block of code between its fences; its lines are not broken."""
        token = block.tokens[0]
        code = token.content.removesuffix("\n").expandtabs(_TAB)
        text = _syntax(token).highlight(code)
        text.rstrip()
        texts = [Text(f"{token.markup}{token.info}", "dim" if self._use_color else "")]
        texts += text.split("\n", allow_blank=True) if code else []
        if block.source.count("\n") > code.count("\n") + bool(code):
            texts.append(Text(token.markup, texts[0].style))
        return [self._row([*line.render(self._console)]) for line in texts]

    def _row(self, segments: Iterable[Segment]) -> Row:
        """Join segments; spaces at the end, which rich fills lines with, are left out."""
        parts = [s for s in segments if s.text and not s.control]
        while parts and not (text := parts[-1].text.rstrip()):
            parts.pop()
        if parts:
            parts[-1] = Segment(text, parts[-1].style)
        text = "".join(self._styled(part.text, part.style) for part in parts)
        return Row(text, sum(cell_len(part.text) for part in parts))

    def _styled(self, text: str, style: Style | None) -> str:
        text = text.replace("\n", "")
        if style is None or not text:
            return text
        shown = style if self._use_color else style.without_color
        return shown.render(text, color_system=ColorSystem.STANDARD)  # the terminal's own palette


def _formula(state: StateInline, silent: bool) -> bool:
    """Take a formula as text: a renderer would remove its backslashes."""
    match = _FORMULA.match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        state.pending += match.group()
    state.pos = match.end()
    return True


def _syntax(token: Token) -> Syntax:
    is_light = os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
    language = token.info.partition(" ")[0]
    theme = "ansi_light" if is_light else "ansi_dark"
    return Syntax("", language or "text", theme=theme)


class _Code(CodeBlock):
    """Code within a list or a quote."""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Code":
        return cls(token)

    def __init__(self, token: Token) -> None:
        self._token = token

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = _syntax(self._token).highlight(self._token.content.expandtabs(_TAB))
        text.rstrip()
        text.overflow = "fold"
        yield text


class _Heading(Heading):
    """A heading at the left."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _List(ListElement):
    """A list whose items do not move when others follow."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_ordered = self.list_type == "ordered_list_open"
        for number, item in enumerate(self.items, self.list_start or 0):
            marker = f"{number}. " if is_ordered else "• "
            inner = options.update(width=options.max_width - len(marker))
            lines = console.render_lines(item.elements, inner, style=item.style, pad=False)
            for i, line in enumerate(lines):
                yield Segment(" " * len(marker) if i else marker)
                yield from line
                yield Segment.line()


class _Markdown(Markdown):
    """Parsed tokens, rendered."""

    elements = {  # noqa: RUF012
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "bullet_list_open": _List,
        "ordered_list_open": _List,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("")
        self.parsed = [_shown_inline(token) for token in tokens]


def _shown_inline(token: Token) -> Token:
    return token.copy(children=[*_shown(token.children)]) if token.children else token


def _shown(tokens: list[Token]) -> Iterator[Token]:
    """Keep line breaks; write addresses of links and images as text."""
    text = href = ""
    for token in tokens:
        text += token.content
        match token.type:
            case "softbreak":
                yield Token("hardbreak", "br", 0)
            case "link_open":
                text, href = "", str(token.attrs.get("href", ""))
            case "link_close":
                if href.removeprefix("mailto:") != text:
                    yield _text(f" ({href})")
            case "image":
                yield _text(f"{token.content} ({token.attrs.get('src', '')})")
            case _:
                yield token


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)
