"""Functions of a file as tools: declared, asked about, called; errors go back to the model."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM
from terminal_chat import Terminal

import hybridmoe
from hybridmoe.cli import app
from hybridmoe.cli.render import Screen
from hybridmoe.cli.session import Session
from hybridmoe.cli.talk import Talk
from hybridmoe.cli.tool_file import ToolFile
from hybridmoe.cli.tool_runner import ToolRunner
from hybridmoe.errors import ConfigError

SOURCE = '''
import asyncio
from pathlib import Path
from typing import Literal

def calculator(expression: str) -> int:
    """Calculate an expression"""
    left, right = expression.split("*")
    return int(left) * int(right)

def get_weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict:
    """Get the weather in a city.

    days: from today on
    """
    return {"city": city, "days": days, "unit": unit}

class MuteError(Exception):
    def __str__(self):
        raise ValueError

def fails(how: str) -> str:
    """Fail"""
    if how == "exit":
        raise SystemExit(3)
    if how == "cancel":
        raise asyncio.CancelledError
    if how == "mute":
        raise MuteError
    if how == "stop":
        raise KeyboardInterrupt
    return {}[how]

def _helper(x):
    return x
'''


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tools.py"
    path.write_text(SOURCE)
    return path


class Chat:
    """A conversation with tools, whose questions are answered by the letters of `choices`."""

    def __init__(self, path: Path, llm: Any, choices: str, **params: Any) -> None:
        self.out = Terminal()
        self.llm = llm
        self.session = Session("fake", params=params)
        self.asked: list[str] = []
        screen = Screen(self.out, use_color=False)
        letters = iter(choices)

        def choose(question: str) -> str:
            self.asked.append(question)
            return next(letters)

        tools = ToolRunner(ToolFile(path), choose, screen.note)
        self.talk = Talk(llm, self.session, screen, tools=tools)

    def ask(self, *texts: str) -> list[str]:
        """Returns what the functions returned."""
        for text in texts:
            self.talk.ask(text)
        return [m["content"] for m in self.session.messages if m["role"] == "tool"]


def test_signatures_become_declarations(path: Path) -> None:
    tools = ToolFile(path)
    assert tools.names == ["calculator", "get_weather", "fails"]
    by_name = {one["function"]["name"]: one["function"] for one in tools.declarations}
    assert by_name["calculator"] == {
        "name": "calculator",
        "description": "Calculate an expression",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    }
    weather = by_name["get_weather"]
    assert weather["description"] == "Get the weather in a city.\n\ndays: from today on"
    assert weather["parameters"]["required"] == ["city"]
    assert weather["parameters"]["properties"]["days"] == {"type": "integer", "default": 1}
    assert weather["parameters"]["properties"]["unit"]["enum"] == ["C", "F"]


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("calculator", '{"expression": "6*7"}', "42"),
        ("get_weather", '{"city": "Köln"}', '{"city": "Köln", "days": 1, "unit": "C"}'),
        ("get_weather", '{"city": "x", "days": "many"}', "error: days: Input should be a valid"),
        ("get_weather", "{}", "error: city: Missing"),
        ("get_weather", '{"city": "x", "town": 1}', "error: town: Unexpected"),
        ("get_weather", "{", "error: arguments: Invalid JSON"),
        ("fails", '{"how": "x"}', "error: KeyError: 'x'"),
        ("fails", '{"how": "exit"}', "error: SystemExit: 3"),
        ("fails", '{"how": "cancel"}', "error: CancelledError"),
        ("fails", '{"how": "mute"}', "error: MuteError"),
        ("nope", "{}", "error: no function 'nope'; there are: calculator"),
    ],
)
def test_results_and_errors_are_text(path: Path, name: str, arguments: str, result: str) -> None:
    assert ToolFile(path).call(name, arguments).startswith(result)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(x: int): return x", "f: has no docstring"),
        ("def f(x): 'F'", "f: parameter x has no type hint"),
        ("def f(*x: int): 'F'", "f: parameter x has no name"),
        ("async def f(x: int): 'F'", "f: async functions"),
        ("class C: pass\ndef f(x: C): 'F'", "f: PydanticSchemaGenerationError"),
        ("def f(x: 'Nope'): 'F'", "f: "),
        ("def f(x: 'no hint'): 'F'", "f: SyntaxError"),
        ("import typing\ndef f(x: 'typing.Nope'): 'F'", "f: AttributeError"),
        ("def f(x: 'list[f]'): 'F'", "f: RecursionError"),
        ("__all__ = 5\ndef f(x: int): 'F'", "__all__: expected a list"),
        ("x = 1", "defines no public function"),
        ("x = 1\n1 / 0", ":2: ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_file_that_is_no_use_is_one_line(path: Path, source: str, reason: str) -> None:
    path.write_text(source)
    with pytest.raises(ConfigError) as caught:
        ToolFile(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such file"):
        ToolFile(path.with_name("none.py"))


def test_each_call_is_asked_about_until_always(path: Path) -> None:
    llm = FakeLLM()
    chat = Chat(path, llm, "nya")
    call = 'call calculator {"expression": "6*7"}'
    results = chat.ask(call, call, call, call)
    assert results == ["error: the user has not allowed this call", "42", "42", "42"]
    assert chat.asked == ['call calculator(expression="6*7")? [y]es, [n]o, [a]lways'] * 3
    assert 'calls calculator(expression="6*7")\n= 42\nyou said 42' in chat.out.getvalue()
    assert llm.tools is not None and len(llm.tools) == 3
    roles = [message["role"] for message in chat.session.messages]
    assert roles == ["user", "assistant", "tool", "assistant"] * 4
    assert chat.session.messages[2]["tool_call_id"] == "functions.calculator:0"


def test_control_c_in_a_function_ends_the_turn_with_all_calls_answered(path: Path) -> None:
    chat = Chat(path, FakeLLM(), "y")
    assert chat.ask('call fails {"how": "stop"}') == ["error: the user has stopped the calls"]
    assert chat.out.getvalue().endswith("(stopped)\n")
    assert [message["role"] for message in chat.session.messages] == ["user", "assistant", "tool"]


def test_long_results_are_cut_and_endless_calls_end(path: Path) -> None:
    again = 'call again {"text": "x"}'
    path.write_text(f"def again(text: str) -> str:\n    'Call again'\n    return {again!r}\n")
    chat = Chat(path, FakeLLM(), "a")
    assert len(chat.ask(again)) == 20
    assert chat.out.getvalue().endswith("(stopped: tools were called in 20 responses)\n")
    path.write_text("def long(n: int) -> str:\n    'Long'\n    return 'x' * n\n")
    (result,) = Chat(path, FakeLLM(), "y").ask('call long {"n": 99999}')
    assert result == "x" * 4096 + "... (cut off: 4096 of 99999 characters)"


def test_the_embedded_model_calls_a_function(path: Path) -> None:
    path.write_text(SOURCE[: SOURCE.index("def fails")])
    with hybridmoe.load() as llm:
        chat = Chat(path, llm, "y", temperature=0.0)
        (result,) = chat.ask("What is 123*45?")
    assert chat.asked[0].startswith("call calculator(expression=")
    assert result == "5535"
    assert "5535" in chat.session.messages[-1]["content"]
    call = chat.session.messages[1]["tool_calls"][0]["function"]
    assert json.loads(call["arguments"]) == {"expression": "123*45"}


def test_a_pipe_has_nobody_to_ask(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert app.main(["chat", "hello?", "--tools", str(path)]) == 1
    assert "--tools asks before each call: expected a terminal" in capsys.readouterr().err
