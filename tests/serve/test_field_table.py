"""Table of request fields: equal to the schemas, complete for the clients."""

import logging
from typing import Any, get_args

import anthropic.types as messages
import anthropic.types.beta as messages_beta
import httpx2
import openai.types as completions
import openai.types.chat as chat
import openai.types.responses as responses
import pytest
from endpoint_requests import user

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.field_check import UnknownFields, unknown_fields
from hybridmoe.serve.field_row import Api
from hybridmoe.serve.field_table import ROWS, TABLE
from hybridmoe.serve.schemas.anthropic import MessagesRequest
from hybridmoe.serve.schemas.chat import ChatCompletionRequest
from hybridmoe.serve.schemas.common import Request
from hybridmoe.serve.schemas.completions import CompletionRequest
from hybridmoe.serve.schemas.responses import ResponsesRequest

SCHEMAS: dict[Api, type[Request]] = {
    "chat": ChatCompletionRequest, "completions": CompletionRequest,
    "responses": ResponsesRequest, "messages": MessagesRequest,
}  # fmt: skip
CLIENT_TYPES: dict[Api, tuple[Any, ...]] = {
    "chat": (chat.completion_create_params.CompletionCreateParamsNonStreaming,),
    "completions": (completions.completion_create_params.CompletionCreateParamsNonStreaming,),
    "responses": (
        responses.response_create_params.ResponseCreateParamsNonStreaming,
        responses.input_token_count_params.InputTokenCountParams,
    ),
    "messages": (
        messages.message_create_params.MessageCreateParamsNonStreaming,
        messages.message_count_tokens_params.MessageCountTokensParams,
        messages_beta.message_create_params.MessageCreateParamsNonStreaming,
        messages_beta.message_count_tokens_params.MessageCountTokensParams,
    ),
}
BODIES: dict[Api, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": user("say Hi")}),
    "completions": ("/v1/completions", {"prompt": "Hi"}),
    "responses": ("/v1/responses", {"input": "say Hi"}),
    "messages": ("/v1/messages", {"model": "test", "max_tokens": 9, "messages": user("say Hi")}),
}


def post(http: httpx2.Client, api: Api, **fields: Any) -> httpx2.Response:
    path, body = BODIES[api]
    return http.post(path, json={**body, **fields})


@pytest.mark.parametrize("api", SCHEMAS)
def test_done_are_the_declared_fields_and_no_others(api: Api) -> None:
    declared = {field.alias or name for name, field in SCHEMAS[api].model_fields.items()}
    done = {name for name, row in TABLE[api].items() if row.fate == "done"}
    assert done == declared


@pytest.mark.parametrize("api", SCHEMAS)
def test_every_field_of_the_official_clients_has_a_row(api: Api) -> None:
    for client_type in CLIENT_TYPES[api]:
        fields = client_type.__required_keys__ | client_type.__optional_keys__
        assert fields - TABLE[api].keys() == set()


def test_every_api_has_schemas_rows_and_reasons() -> None:
    assert set(get_args(Api)) == set(SCHEMAS) == set(TABLE)
    assert all(row.why for row in ROWS)


@pytest.mark.parametrize("api", SCHEMAS)
def test_a_refused_field_is_named_and_its_neutral_values_pass(api: Api) -> None:
    def check(**fields: Any) -> list[str]:
        return unknown_fields(SCHEMAS[api].model_validate({**BODIES[api][1], **fields}))

    rows = [(name, row) for name, row in TABLE[api].items() if row.fate == "refused"]
    for name, row in rows:
        if "[]" not in name:
            with pytest.raises(ApiError, match=rf"^{name} is not supported here \(") as caught:
                check(**{name: {"asks": "for much"}})
            assert caught.value.param == name
            assert not any(check(**{name: value}) for value in (None, *row.neutral))


@pytest.mark.parametrize("api", SCHEMAS)
def test_a_refused_field_gets_400(http: httpx2.Client, api: Api) -> None:
    answer = post(http, api, mirostat=2)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("mirostat is not supported here (")


@pytest.mark.parametrize("api", SCHEMAS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_in_no_table_is_named_in_a_header(
    http: httpx2.Client, api: Api, stream: bool
) -> None:
    odd = {"a\nb: é": 1, "": 1}  # a header must not end in ", "
    answer = post(http, api, max_tokens_typo=3, stream=stream, user="u", **odd)
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "max_tokens_typo, a?b???, ?"


def test_fields_inside_others_are_named_with_their_place(http: httpx2.Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "colour": 1}}
    asked = {"role": "user", "content": [{"type": "text", "text": "say Hi", "size": 1}], "mood": 1}
    answer = post(http, "chat", messages=[asked, asked], tools=[tool], stream_options={"speed": 1})
    named = set(answer.headers["x-ignored-fields"].split(", "))
    assert named == {
        "messages[].mood", "messages[].content[].size", "tools[].function.colour",
        "stream_options.speed",
    }  # fmt: skip
    audio = {"role": "assistant", "content": "x", "audio": {"id": "a"}}
    answer = post(http, "chat", messages=[audio, *user("say Hi")])
    assert answer.json()["error"]["param"] == "messages[].audio"


def test_items_of_responses_may_have_any_fields(http: httpx2.Client) -> None:
    item = {"type": "message", "role": "user", "content": "say Hi", "status": "completed", "x": 1}
    assert "x-ignored-fields" not in post(http, "responses", input=[item]).headers


def test_each_name_is_logged_once_and_many_names_fill_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unknown = UnknownFields()
    with caplog.at_level(logging.WARNING):
        for i in range(2000):
            unknown.report([f"f{i % 1000}"])
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == len(set(logged)) == 256
    assert "f0" in logged[0]
