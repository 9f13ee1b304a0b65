"""Tool calls of a response: the user is asked before each, and the model gets their results."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridmoe.cli.tool_file import ToolFile

__all__ = ["ToolRunner", "shown_call"]

_SHOWN = 200  # characters


class ToolRunner:
    """Runs the calls that the user allows."""

    def __init__(
        self, tools: "ToolFile", choose: Callable[[str], str], say: Callable[[str], None]
    ) -> None:
        """choose: ask for the letter of an answer: y(es), n(o), a(lways)."""
        self.declarations = tools.declarations
        self._tools = tools
        self._choose = choose
        self._say = say
        self._always: set[str] = set()

    def run(self, calls: list[dict[str, Any]], max_characters: int) -> tuple[list[Any], bool]:
        """Answer every call. Returns the messages, and False if Ctrl-C came.

        max_characters: of a result; the rest is cut off.
        """
        messages: list[Any] = []
        is_stopped = False
        for call in calls:
            result = "error: the user has stopped the calls"
            if not is_stopped:
                try:
                    result = self._result(call["function"], max_characters)
                except KeyboardInterrupt:
                    is_stopped = True
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return messages, not is_stopped

    def _result(self, function: Mapping[str, Any], max_characters: int) -> str:
        name, arguments = function["name"], function["arguments"]
        shown = shown_call(function)
        if name in self._always:
            self._say(f"calls {shown}")
        else:
            choice = self._choose(f"call {shown}? [y]es, [n]o, [a]lways")
            if choice == "a":
                self._always.add(name)
            elif choice != "y":
                return "error: the user has not allowed this call"
        result = self._tools.call(name, arguments)
        self._say(f"= {_short(result)}")
        if len(result) > max_characters:
            note = f"... (cut off: {max_characters} of {len(result)} characters)"
            result = result[:max_characters] + note
        return result


def shown_call(function: Mapping[str, Any]) -> str:
    """Write a call as in Python."""
    try:
        arguments = json.loads(function["arguments"])
        shown = [f"{key}={json.dumps(arguments[key], ensure_ascii=False)}" for key in arguments]
        text = ", ".join(shown)
    except (ValueError, TypeError):
        text = function["arguments"]
    return f"{function['name']}({text})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
