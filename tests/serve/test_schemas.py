"""Request schemas: a body of any length makes a few errors at most, not one per entry."""

from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from hybridmoe.serve.schemas.anthropic import CountTokensRequest, MessagesRequest
from hybridmoe.serve.schemas.chat import ChatCompletionRequest
from hybridmoe.serve.schemas.common import Request
from hybridmoe.serve.schemas.completions import CompletionRequest
from hybridmoe.serve.schemas.responses import ResponsesRequest
from hybridmoe.serve.schemas.server import DetokenizeRequest, TokenizeRequest

USER: dict[str, Any] = {"role": "user", "content": "a"}
ANTHROPIC: dict[str, Any] = {"model": "m", "max_tokens": 1}
BAD: list[Any] = [None] * 20_000
CALL = {"role": "assistant", "content": "", "tool_calls": BAD}
REQUESTS = (
    ChatCompletionRequest, CompletionRequest, CountTokensRequest, DetokenizeRequest,
    MessagesRequest, ResponsesRequest, TokenizeRequest,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatCompletionRequest, {"messages": BAD}),
        (ChatCompletionRequest, {"messages": [{**USER, "content": BAD}]}),
        (ChatCompletionRequest, {"messages": [CALL]}),
        (ChatCompletionRequest, {"messages": [CALL] * 1000}),
        (ChatCompletionRequest, {"messages": [USER], "tools": BAD}),
        (ChatCompletionRequest, {"messages": [USER], "stop": BAD}),
        (
            ChatCompletionRequest,
            {"messages": [USER], "logit_bias": {str(i): "x" for i in range(20_000)}},
        ),
        (CompletionRequest, {"prompt": BAD}),
        (CompletionRequest, {"prompt": [-1] * 20_000}),
        (DetokenizeRequest, {"tokens": BAD}),
        (MessagesRequest, {**ANTHROPIC, "messages": BAD}),
        (MessagesRequest, {**ANTHROPIC, "messages": [{**USER, "content": BAD}]}),
        (MessagesRequest, {**ANTHROPIC, "messages": [USER], "system": BAD}),
        (MessagesRequest, {**ANTHROPIC, "messages": [USER], "stop_sequences": BAD}),
        (ResponsesRequest, {"input": BAD}),
        (ResponsesRequest, {"input": [{"content": BAD}]}),
        (ResponsesRequest, {"input": [{"output": BAD}]}),
        (ResponsesRequest, {"input": "a", "include": BAD}),
    ],
)
def test_a_long_list_of_what_is_not_valid_makes_few_errors(
    model: type[Request], body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= 4


@pytest.mark.parametrize("model", REQUESTS)
def test_every_list_of_a_request_is_bounded_and_ends_at_its_first_bad_entry(
    model: type[BaseModel],
) -> None:
    schema = model.__pydantic_core_schema__
    lists = [part for part in _parts(schema) if part.get("type") == "list"]
    for part in lists:
        assert part.get("max_length") and part.get("fail_fast"), part
    names = [name for name, field in model.model_fields.items() if _has_list(field.annotation)]
    assert len(lists) >= len(names)


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from _parts(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _parts(value)


def _has_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(map(_has_list, get_args(annotation)))
    return get_origin(annotation) is list
