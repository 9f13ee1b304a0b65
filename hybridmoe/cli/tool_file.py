"""Functions of a Python file as tools: declared to a model, and called with its arguments.

A function's signature becomes the JSON schema of its arguments, by pydantic, which also checks
them; its docstring is the description. The file is trusted: it runs as part of this program.
"""

import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from hybridmoe.cli.signals import Terminated
from hybridmoe.errors import ConfigError

__all__ = ["ToolFile"]

_MODULE = "hybridmoe_tools"  # name of the file's module


class ToolFile:
    """The tools of one file."""

    def __init__(self, path: Path) -> None:
        """Import the file. Errors: ConfigError, one line."""
        functions = _functions(_imported(path), path.name)
        self._adapters = {name: _adapter(f, path.name) for name, f in functions.items()}
        self.declarations = [
            _declaration(name, function, self._adapters[name])
            for name, function in functions.items()
        ]

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    def call(self, name: str, arguments: str) -> str:
        """Call a function with arguments in JSON. Returns its result, or its error, as text."""
        adapter = self._adapters.get(name)
        if adapter is None:
            return f"error: no function {name!r:.80}; there are: {', '.join(self.names)}"
        try:
            return _text(adapter.validate_json(arguments))
        except ValidationError as error:
            reasons = [
                f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()
            ]
            return f"error: {'; '.join(reasons)}"
        except (Terminated, KeyboardInterrupt):
            raise
        except BaseException as error:  # a CancelledError is no Exception
            return f"error: {_line(error)}"


def _imported(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: expected a Python file, such as tools.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # where type hints are looked up
    try:
        spec.loader.exec_module(module)
    except Terminated:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else str(path)  # a SyntaxError tells its line
        raise ConfigError(f"{where}: {_line(error)}") from None
    return module


def _functions(module: ModuleType, name: str) -> dict[str, Callable[..., Any]]:
    """Find the public functions that the file defines, or those of its `__all__`."""
    functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
    listed = getattr(module, "__all__", None)
    if listed is not None and not isinstance(listed, list | tuple):
        raise ConfigError(f"{name}: __all__: expected a list of names")
    if listed is None:
        own = (key for key, value in functions.items() if value.__module__ == _MODULE)
        listed = [key for key in own if not key.startswith("_")]
    found: dict[str, Callable[..., Any]] = {k: f for k, f in functions.items() if k in listed}
    if not found:
        raise ConfigError(f"{name}: defines no public function")
    return found


def _adapter(function: Callable[..., Any], file: str) -> TypeAdapter[Any]:
    """Check that a function can be declared. Errors: ConfigError."""
    where = f"{file}: {function.__name__}"
    if not inspect.getdoc(function):
        raise ConfigError(f"{where}: has no docstring; begin its name with _ if it is no tool")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where}: async functions are not called; define it without async")
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"{where}: parameter {name} has no name in a call")
        if parameter.annotation is parameter.empty:
            raise ConfigError(f"{where}: parameter {name} has no type hint, such as {name}: str")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, function))
        adapter.json_schema()
    except Exception as error:  # of pydantic, or of a hint in quotes, which is evaluated here
        raise ConfigError(f"{where}: {_line(error)}") from None
    return adapter


def _declaration(
    name: str, function: Callable[..., Any], adapter: TypeAdapter[Any]
) -> dict[str, Any]:
    """Declare a function in OpenAI's format."""
    schema = adapter.json_schema()
    del schema["additionalProperties"]
    for about in schema["properties"].values():
        about.pop("title", None)
    about = {"name": name, "description": inspect.getdoc(function), "parameters": schema}
    return {"type": "function", "function": about}


def _text(value: object) -> str:
    """Write a result: text as it is, else JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple | bool | int | float | None):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _line(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # the function's own kind of error
        text = ""
    return f"{type(error).__name__}: {text:.500}" if text else type(error).__name__
