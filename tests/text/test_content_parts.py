"""Content parts and tool results as text."""

import logging
from typing import Any

import pytest

from hybridmoe.text import content_parts
from hybridmoe.text.content_parts import part_text, result_text

TEXT = {"type": "text", "text": "a"}
PICTURE = {"type": "image", "source": {"type": "base64", "data": "AA=="}}
PDF = {"type": "document", "source": {"type": "base64", "data": "AA=="}}


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (TEXT, "a"),
        ({"type": "input_text", "text": ""}, ""),
        ({"type": "refusal", "refusal": "no"}, "no"),
        ({"type": "document", "source": {"type": "text", "data": "a"}, "title": "T"}, "T\na"),
        ({"type": "document", "source": {"type": "content", "content": [TEXT, TEXT]}}, "a\na"),
        ({"type": "document", "source": {"type": "content", "content": [PICTURE]}}, None),
        ({"type": "search_result", "title": "T", "source": "u", "content": [TEXT]}, "T\nu\na"),
        ({"type": "resource", "resource": {"uri": "u", "text": "a"}}, "a"),
        ({"type": "resource", "resource": {"uri": "u", "blob": "AA=="}}, None),
        ({"type": "text", "text": 1}, None),
        ({"type": ["text"]}, None),
        (PICTURE, None),
        (PDF, None),
        ("a", None),
    ],
)
def test_text_of_a_part(part: Any, text: str | None) -> None:
    assert part_text(part) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("a", "a"),
        ([], ""),
        ([TEXT, TEXT], "a, a"),
        ([TEXT, PICTURE], "a, [image: this model reads text only]"),
        ([PDF], "[document: this model reads text only]"),
        (
            {"type": "computer_screenshot", "image_url": "AA=="},
            "[computer_screenshot: this model reads text only]",
        ),
        ({"type": "sunny", "degrees": 20}, '{"type":"sunny","degrees":20}'),
        ([{"type": "issue", "id": 1}], '[{"type":"issue","id":1}]'),
        ([TEXT, {"type": "issue", "id": 1}], 'a, {"type":"issue","id":1}'),
        ([1, "é"], '[1,"é"]'),
        (20, "20"),
    ],
)
def test_text_of_a_result(content: Any, text: str) -> None:
    assert result_text(content, ", ") == text


def test_a_kind_that_is_not_shown_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_parts, "_warned", set())
    with caplog.at_level(logging.WARNING):
        result_text([PICTURE, PICTURE, PDF])
        result_text(PICTURE)
    logged = [record.getMessage().split(":")[0] for record in caplog.records]
    assert logged == [
        "a tool's result has a part of type image", "a tool's result has a part of type document",
    ]  # fmt: skip
