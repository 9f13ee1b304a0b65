"""Output formats of requests, under the names of every dialect. A request may give one."""

import json
from typing import Annotated, Literal

from pydantic import Field

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.schemas.common import JsonObject, Request

__all__ = ["OutputFields", "ResponseFormat"]

Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=8192)]],
    Field(min_length=1, max_length=1024, fail_fast=True),
]
Pattern = Annotated[str, Field(max_length=8192)]
Grammar = Annotated[str, Field(max_length=1 << 18)]
Schema = JsonObject | bool | Annotated[str, Field(max_length=1 << 20)]  # text: JSON in it


class ResponseFormat(Request):
    """Format of the text, enforced by constrained decoding unless the text is cut off."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar", "choice"] = "text"
    json_schema: JsonObject | None = Field(
        default=None, description='For type "json_schema": `{"name", "schema", "strict"}`.'
    )
    pattern: Pattern | None = Field(
        default=None, description='For type "regex": a regular expression.'
    )
    grammar: Grammar | None = Field(
        default=None, description='For type "grammar": a Lark or GBNF grammar.'
    )
    choices: Choices | None = Field(default=None, description='For type "choice": the texts.')
    schema_: JsonObject | None = Field(
        default=None, alias="schema", description="JSON schema without a wrapper, as in llama.cpp."
    )


class StructuredOutputs(Request):
    """vLLM's `structured_outputs`: one of these."""

    json_: Schema | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None

    def format(self, place: str) -> ResponseFormat | None:
        """Convert to a format; None if nothing is asked for. Raises ApiError for several."""
        return _only_one(
            {
                f"{place}.json": _schema_format(self.json_, f"{place}.json"),
                f"{place}.json_object": ResponseFormat(type="json_object")
                if self.json_object
                else None,
                f"{place}.regex": _regex_format(self.regex),
                f"{place}.choice": _choice_format(self.choice),
                f"{place}.grammar": _grammar_format(self.grammar),
            }
        )


class OutputFields(Request):
    """Output format: OpenAI's `response_format`, or that of another dialect."""

    response_format: ResponseFormat | None = None
    json_schema: Schema | None = Field(default=None, description="llama.cpp's and SGLang's.")
    grammar: Grammar | None = Field(default=None, description="llama.cpp's: GBNF, or Lark.")
    regex: Pattern | None = Field(default=None, description="SGLang's.")
    ebnf: Grammar | None = Field(default=None, description="SGLang's; same as `grammar`.")
    structured_outputs: StructuredOutputs | bool | None = Field(
        default=None, description="vLLM's. A boolean has no effect."
    )
    guided_json: Schema | None = Field(default=None, description="vLLM's, as the next three.")
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None
    format: Literal["json", ""] | JsonObject | None = Field(
        default=None, description='ollama\'s: "json" or a JSON schema.'
    )

    def structured_format(self, **others: ResponseFormat | None) -> ResponseFormat | None:
        """Find the format that is asked for, here or in `others`. Raises ApiError for several."""
        outputs = self.structured_outputs
        given = self.response_format
        return _only_one(
            {
                "response_format": given if given is not None and given.type != "text" else None,
                "json_schema": _schema_format(self.json_schema, "json_schema"),
                "grammar": _grammar_format(self.grammar),
                "regex": _regex_format(self.regex),
                "ebnf": _grammar_format(self.ebnf),
                "structured_outputs": outputs.format("structured_outputs")
                if isinstance(outputs, StructuredOutputs)
                else None,
                "guided_json": _schema_format(self.guided_json, "guided_json"),
                "guided_regex": _regex_format(self.guided_regex),
                "guided_choice": _choice_format(self.guided_choice),
                "guided_grammar": _grammar_format(self.guided_grammar),
                "format": ResponseFormat(type="json_object")
                if self.format == "json"
                else _schema_format(self.format or None, "format"),
                **others,
            }
        )


def _only_one(formats: dict[str, ResponseFormat | None]) -> ResponseFormat | None:
    given = {name: one for name, one in formats.items() if one is not None}
    if len(given) > 1:
        names = ", ".join(given)
        raise ApiError(400, f"{names}: expected one output format", param=[*given][1])
    return next(iter(given.values()), None)


def _schema_format(schema: JsonObject | bool | str | None, param: str) -> ResponseFormat | None:
    if schema is None or schema == "":
        return None
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise ApiError(400, f"{param}: the text is not JSON", param=param) from None
    if isinstance(schema, bool):
        if not schema:
            raise ApiError(400, f"{param}: false allows no text", param=param)
        schema = {}
    if not isinstance(schema, dict):
        raise ApiError(400, f"{param}: expected a JSON schema, an object", param=param)
    return ResponseFormat(type="json_schema", json_schema={"schema": schema})


def _regex_format(pattern: str | None) -> ResponseFormat | None:
    return ResponseFormat(type="regex", pattern=pattern) if pattern else None


def _grammar_format(grammar: str | None) -> ResponseFormat | None:
    return ResponseFormat(type="grammar", grammar=grammar) if grammar else None


def _choice_format(choices: list[str] | None) -> ResponseFormat | None:
    return ResponseFormat(type="choice", choices=choices) if choices else None
