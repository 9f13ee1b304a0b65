"""Tool calls in responses: split from the text, also where the model strays from its format."""

import pytest
from kimi_chat import TOKENIZER
from parsed_response import parse_response

from hybridmoe.text.tool_names import ToolNames


def parsed(text: str) -> tuple[str, list[tuple[str, str]]]:
    response = parse_response(TOKENIZER.encode(text, parse_special=True), TOKENIZER)
    return response.text, [(call.name, call.arguments) for call in response.tool_calls]


CALL = (
    '<|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>'
)
SECTION = f"<|tool_calls_section_begin|>{CALL}<|tool_calls_section_end|>"


def test_calls_are_split_from_the_text() -> None:
    assert parsed(f"Look: {SECTION} done") == ("Look:  done", [("get_time", '{"a": 1}')])
    ids = TOKENIZER.encode(SECTION, parse_special=True)
    (call,) = parse_response(ids, TOKENIZER).tool_calls
    assert call.to_openai() == {
        "id": "functions.get_time:0",
        "type": "function",
        "function": {"name": "get_time", "arguments": '{"a": 1}'},
    }


@pytest.mark.parametrize(
    ("text", "visible", "calls"),
    [
        ("no calls", "no calls", []),
        (f"<|tool_calls_section_begin|>{CALL}{CALL}", "", [("get_time", '{"a": 1}')] * 2),
        (f"a{CALL}b", "ab", [("get_time", '{"a": 1}')]),
        (SECTION.replace("functions.", "").replace(":0", ""), "", [("get_time", '{"a": 1}')]),
        (SECTION.replace("get_time", "get-time"), "", [("get-time", '{"a": 1}')]),
        (SECTION.replace('{"a": 1}', ""), "", [("get_time", "{}")]),
        (SECTION.replace("<|tool_call_end|>", ""), "", [("get_time", '{"a": 1}')]),
        ("a" + SECTION[: SECTION.index("1}")], "a", [("get_time", '{"a":')]),
        ("<|tool_calls_section_begin|>junk<|tool_calls_section_end|>b", "junkb", []),
        ("<|tool_call_end|>x<|tool_call_argument_begin|>y", "xy", []),
    ],
)
def test_strays_that_the_model_is_known_for(
    text: str, visible: str, calls: list[tuple[str, str]]
) -> None:
    assert parsed(text) == (visible, calls)


def test_names_written_as_text_are_no_calls() -> None:
    ids = TOKENIZER.encode(SECTION)
    response = parse_response(ids, TOKENIZER)
    assert (response.text, response.tool_calls) == (SECTION, [])


@pytest.mark.parametrize("required", [5, True, "city", {"city": 1}, [5, ["city"]]])
def test_a_schema_that_is_none_does_not_keep_a_call_from_its_tool(required: object) -> None:
    schema = {"type": "object", "properties": {"city": {}}, "required": required}
    tools = [{"function": {"name": name, "parameters": schema}} for name in ("look_up", "find")]
    tools.append({"function": {"name": "now"}})
    names = ToolNames(tools)
    assert names.resolve_call("0", '{"city":1}') is None  # two tools fit
    tools.pop(0)
    assert ToolNames(tools).resolve_call("0", '{"city":1}') == ("find", '{"city":1}')
