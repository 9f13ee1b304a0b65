"""Content parts of messages, and results of tools, as text: models here read text only.

Parts are those of OpenAI's APIs, Anthropic's, and the Model Context Protocol.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["part_text", "result_text"]

_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA = {
    "image", "image_url", "input_image", "computer_screenshot", "audio", "audio_url", "input_audio",
    "video", "video_url", "document", "file", "input_file", "container_upload",
}  # fmt: skip

_log = logging.getLogger(__name__)
_warned: set[str] = set()  # kinds of media; bounded by _MEDIA


def part_text(part: Any) -> str | None:
    """Get the text of a part: text, a text document, or a search result; None for other parts."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    text: Any = None
    if kind in _TEXT_PARTS:
        text = part.get("text")
    elif kind == "refusal":
        text = part.get("refusal")
    elif kind == "document":
        text = _document_text(part)
    elif kind == "search_result":
        text = _joined(part.get("title"), part.get("source"), _parts_text(part.get("content")))
    elif kind == "resource" and isinstance(part.get("resource"), Mapping):
        text = part["resource"].get("text")
    return text if isinstance(text, str) else None


def result_text(content: Any, joiner: str = "") -> str:
    """Convert a tool's result to text: a string, a list of content parts, or other JSON data.

    An image or document becomes a note, with a warning in the log, so that the conversation can
    go on.
    """
    if content in (None, []) or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [_text_or_note(part) for part in parts]
    if all(text is None for text in texts):
        return _to_json(content)
    return joiner.join(
        _to_json(part) if text is None else text for part, text in zip(parts, texts, strict=True)
    )


def _text_or_note(part: Any) -> str | None:
    text = part_text(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if text is not None or not isinstance(kind, str) or kind not in _MEDIA:
        return text
    if kind not in _warned:
        _warned.add(kind)
        _log.warning("a tool's result has a part of type %s: the model is told so instead", kind)
    return f"[{kind}: this model reads text only]"


def _document_text(part: Mapping[str, Any]) -> str | None:
    source = part.get("source")
    if not isinstance(source, Mapping):
        return None
    text = source.get("data") if source.get("type") == "text" else None
    if source.get("type") == "content":
        text = _parts_text(source.get("content"))
    return _joined(part.get("title"), part.get("context"), text) if text is not None else None


def _parts_text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    texts = [part_text(part) for part in content] if isinstance(content, list) else [None]
    return None if None in texts else "\n".join(filter(None, texts))


def _joined(*texts: Any) -> str | None:
    """Join the given texts in lines; None if the last one is missing."""
    if not isinstance(texts[-1], str):
        return None
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
