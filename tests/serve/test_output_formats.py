"""Output formats under the names of llama.cpp, vLLM, SGLang, ollama and Anthropic."""

from typing import Any

import httpx2
import pytest
from endpoint_requests import REQUESTS, ask
from fake_engine import FakeLLM

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.schemas.output import OutputFields, ResponseFormat

SCHEMA = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]}


def asked(**fields: Any) -> ResponseFormat | None:
    return OutputFields.model_validate(fields).structured_format()


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", None),
        ({"json_schema": SCHEMA}, "json_schema", SCHEMA),
        ({"json_schema": '{"const": 1}'}, "json_schema", {"const": 1}),
        ({"json_schema": {}}, "json_schema", {}),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_json": True}, "json_schema", {}),
        ({"format": "json"}, "json_object", None),
        ({"format": SCHEMA}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json_object": True}}, "json_object", None),
        ({"grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"ebnf": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"'),
        ({"regex": "[ab]"}, "regex", "[ab]"),
        ({"guided_regex": "[ab]"}, "regex", "[ab]"),
        ({"structured_outputs": {"regex": "[ab]"}}, "regex", "[ab]"),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"]),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ["a", "b"]),
    ],
)
def test_names_of_output_formats(given: dict[str, Any], kind: str, value: Any) -> None:
    form = asked(**given)
    assert form is not None and form.type == kind
    schema = form.json_schema["schema"] if form.json_schema else None
    found = {"json_object": None, "json_schema": schema, "grammar": form.grammar,
             "regex": form.pattern, "choice": form.choices}  # fmt: skip
    assert found[kind] == value


@pytest.mark.parametrize(
    "given",
    [
        {}, {"grammar": ""}, {"format": ""}, {"json_schema": ""}, {"structured_outputs": True},
        {"structured_outputs": {}}, {"response_format": {"type": "text"}}, {"regex": None},
    ],
)  # fmt: skip
def test_fields_that_ask_for_no_format(given: dict[str, Any]) -> None:
    assert asked(**given) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "json_schema, grammar: expected one"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format, regex: "),
        (
            {"structured_outputs": {"json": {}, "regex": "a"}},
            "structured_outputs.json, structured_outputs.regex: ",
        ),
        ({"json_schema": "{"}, "json_schema: the text is not JSON"),
        ({"guided_json": "[1]"}, "guided_json: expected a JSON schema"),
        ({"guided_json": False}, "guided_json: false allows no text"),
    ],
)
def test_formats_that_contradict_each_other(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=f"^{words}"):
        asked(**given)


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": SCHEMA}, {"grammar": 'root ::= "a"'}, {"regex": "a"},
        {"ebnf": 'root ::= "a"'}, {"structured_outputs": {"choice": ["a"]}},
        {"guided_choice": ["a"]}, {"format": "json"},
        {"response_format": {"type": "json_object"}},
    ],
)  # fmt: skip
def test_every_api_enforces_them(
    http: httpx2.Client, llm: FakeLLM, path: str, given: dict[str, Any]
) -> None:
    ask(http, path, **given)
    assert llm.engine.requests[-1].constraint is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    ],
)
def test_anthropics_output_format(
    http: httpx2.Client, llm: FakeLLM, fields: dict[str, Any]
) -> None:
    ask(http, "/v1/messages", **fields)
    assert llm.engine.requests[-1].constraint is not None
    both = {**REQUESTS["/v1/messages"], **fields, "regex": "a"}
    answer = http.post("/v1/messages", json=both)
    assert answer.status_code == 400
    assert "expected one output format" in answer.json()["error"]["message"]


def test_a_format_of_responses_and_another(http: httpx2.Client) -> None:
    text = {"format": {"type": "json_object"}}
    answer = http.post("/v1/responses", json={"input": "a", "text": text, "regex": "a"})
    assert answer.status_code == 400
    assert "regex, text.format: expected one" in answer.json()["error"]["message"]
