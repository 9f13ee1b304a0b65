"""Sandbox for untrusted chat templates: no access to Python's internals, bounded time and memory.

jinja2's immutable sandbox denies access to internals, but lets a template take all memory or time.
Here filters, methods and globals are allow-listed, and every render has a budget
(text/template_budget.py): a deadline, checked in every loop turn and call, and the size of all
values made. Costs are spent before or right after an operation, so that no single one is long.
Values are measured before they are printed or compared.

Loops and literals are metered by rewriting the syntax tree (text/template_metering.py); operators,
calls and filters by overriding. Nothing is evaluated while compiling, without a budget.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import FunctionType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import loopcontrols
from jinja2.filters import FILTERS
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from hybridmoe.text.template_budget import RenderBudget
from hybridmoe.text.template_metering import BoundedGenerator, MeteringTransformer

__all__ = ["MAX_SOURCE_TOKENS", "BoundedEnvironment"]

_MAX_SOURCE_CHARS = 1 << 18  # the largest template in use has some 30 000
MAX_SOURCE_TOKENS = 1 << 14  # the same template has some 4000
_MAX_INT_BITS = 4096

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "format",
    "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map",
    "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_STR_METHODS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "isupper", "join",
    "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper",
))  # fmt: skip
_BACKWARD_METHODS = frozenset({"rfind", "rindex", "rpartition", "rsplit"})
_CONTAINER_METHODS = frozenset((
    "append", "copy", "count", "get", "index", "items", "keys", "pop", "values",
))  # fmt: skip
_COMPARING_FILTERS = frozenset({"dictsort", "groupby", "max", "min", "sort", "unique"})
_PRINTING_FILTERS = frozenset({"capitalize", "lower", "soft_str", "str", "title", "trim", "upper"})
_COMPARING_TESTS = ("eq", "equalto", "==", "ne", "!=", "in", "lt", "<", "gt", ">")
# Conversions with a width or precision of three digits or more, or from the arguments.
_WIDE_CONVERSION = re.compile(r"%(\([^)]*\))?[#0 +-]*([0-9]{3,}|\*|[0-9]*\.([0-9]{3,}|\*))")
_WIDE_FIELD = re.compile(r"\{[^{}]*:[^}]*([0-9]{3,}|\{)")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders one template at a time, within `budget`. Not thread-safe."""

    code_generator_class = BoundedGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%", "//"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            optimized=False,  # no constant folding: it would run filters while compiling
            finalize=self._finalize,
        )
        self.budget = RenderBudget()
        self.tick = self.budget.tick  # called by generated code
        self.filters = {name: self._bounded(FILTERS[name]) for name in _FILTERS}
        self.filters |= {
            "tojson": self._to_json,
            "_charged": self.budget.charged,
            "_checked": self.budget.checked,
            "_concat": self._concat,
            "safe": self._bounded(str),
        }
        comparing: dict[str, Any] = {name: self.tests[name] for name in _COMPARING_TESTS}
        self.tests |= {name: self._bounded_test(test) for name, test in comparing.items()}
        self.globals = {
            "namespace": Namespace,
            "dict": dict,
            "range": safe_range,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def read_names(self, source: str) -> frozenset[str]:
        """Names of all variables that a template reads, its own among them."""
        names = self.parse(source).find_all(nodes.Name)
        return frozenset(name.name for name in names if name.ctx == "load")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > _MAX_SOURCE_CHARS:
            raise SecurityError(f"{len(source)} characters; expected at most {_MAX_SOURCE_CHARS}")
        self.budget.restart(0)
        tree = MeteringTransformer().visit(super()._parse(source, name, filename))
        assert isinstance(tree, nodes.Template)
        return tree

    def _tokenize(
        self, source: str, name: str | None, filename: str | None = None, state: str | None = None
    ) -> TokenStream:
        stream = super()._tokenize(source, name, filename, state)
        return TokenStream(self._counted(stream), name, filename)

    def _counted(self, tokens: Iterable[Token]) -> Iterator[Token]:
        """Limit the tokens of a template: Python's compiler, which runs later, has no deadline."""
        for count, token in enumerate(tokens):
            if count > MAX_SOURCE_TOKENS:
                raise SecurityError(f"more than {MAX_SOURCE_TOKENS} names, marks and texts")
            self.tick(0)
            yield token

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, dict | list | tuple):
            return attr in _CONTAINER_METHODS
        if isinstance(obj, int | float | bytes | range | type | FunctionType):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        template: str = value.__self__
        if _WIDE_FIELD.search(template):
            raise SecurityError("a format with a width of three digits or more, or a nested one")

        def bounded(*args: Any, **kwargs: Any) -> str:
            self.budget.spend(
                (template.count("{") + 1) * self.budget.cost_of([args, kwargs]) + len(template)
            )
            return wrapped(*args, **kwargs)

        return bounded

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.tick(0)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, list | tuple):
            __self.budget.cost_of(owner)
        __self.budget.cost_of([args, kwargs])
        if isinstance(owner, str) and name == "join" and args:
            args = (__self._materialize(args[0]), *args[1:])
            __self.budget.spend(len(owner) * len(args[0]))
        elif isinstance(owner, str) and name == "replace":
            __self._check_replace(owner, *args, **kwargs)
        elif isinstance(owner, str) and name in _BACKWARD_METHODS and args:
            # Python searches backwards at every place: quadratic.
            __self.budget.spend(len(owner) * len(str(args[0])) >> 4)
        return __self.budget.charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.tick(0)
        if operator == "%" and isinstance(left, str):
            return self._format(left, right)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits *= max(0, right) if operator == "**" else 1
            if bits + right.bit_length() > _MAX_INT_BITS:
                raise SecurityError("a number grows too large")
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(value, str | list | tuple):
                    self.budget.spend(self.budget.cost_of(value) * max(0, times))
        elif operator == "+":
            self.budget.cost_of([left, right])
        return self.budget.charged(super().call_binop(context, operator, left, right))

    @pass_context
    def _finalize(self, _context: Context, value: Any) -> Any:
        """Charge for printed values. Taking the context prevents constant folding."""
        self.budget.spend(self.budget.cost_of(value))
        return value

    def _bounded_test(self, test: Callable[..., Any]) -> Callable[[Any, Any], bool]:
        """Wrap a test so that it compares values within the budget only."""

        def bounded(left: Any, right: Any) -> bool:
            self.budget.cost_of([left, right])
            return bool(test(left, right))

        return bounded

    def _materialize(self, value: Any) -> Any:
        """Make a list of an iterable, to know its length and cost."""
        if isinstance(value, str | Mapping | list | tuple):
            return value
        items = list(value)
        self.budget.spend(self.budget.cost_of(items))
        return items

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter: its arguments are checked, its result is charged."""
        name = function.__name__.removeprefix("do_").removeprefix("sync_do_")
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.tick(0)
            passed, values = args[:first], list(args[first:])
            if name == "format":
                return self._format(str(values[0]), kwargs or tuple(values[1:]))
            if name == "join":
                values[0] = self._materialize(values[0])
                separator = kwargs.get("d", values[1] if len(values) > 1 else "")
                self.budget.spend(len(values[0]) * self.budget.cost_of(separator))
            elif name == "replace":
                self._check_replace(str(values[0]), *map(str, values[1:3]))
            elif name == "indent":
                width = kwargs.get("width", values[1] if len(values) > 1 else 4)
                size = width if isinstance(width, int) else len(str(width))
                self.budget.spend((str(values[0]).count("\n") + 1) * max(0, size))
            elif name == "round" and abs(int(kwargs.get("precision", (*values, 0)[1]))) > 300:
                raise SecurityError("round to more than 300 digits")
            elif name in _COMPARING_FILTERS or name in _PRINTING_FILTERS:
                self.budget.cost_of(values)
            result = function(*passed, *values, **kwargs)
            if hasattr(result, "__next__"):
                result = list(result)
            return self.budget.charged(result)

        return bounded

    def _concat(self, parts: list[Any]) -> str:
        self.budget.spend(self.budget.cost_of(parts))
        return "".join(map(str, parts))

    def _format(self, template: str, values: Any) -> str:
        if _WIDE_CONVERSION.search(template):
            raise SecurityError("a format with a width of three digits or more")
        self.budget.spend((template.count("%") + 1) * self.budget.cost_of(values) + len(template))
        return str(template % values)

    def _check_replace(self, text: str, old: str = "", new: str = "", *_: Any, **__: Any) -> None:
        count = text.count(old) if old else len(text) + 1
        self.budget.spend(count * len(new))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON as transformers does: unlike jinja2's, neither ASCII nor HTML-escaped."""
        self.tick(0)
        cost = self.budget.cost_of(value)
        width = indent if isinstance(indent, int) else len(indent or "")
        if not 0 <= width <= 16 or (separators and len("".join(separators)) > 16):
            raise SecurityError("tojson with an indent or separators of unusual length")
        self.budget.spend(cost * (1 + width))
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
            default=_refuse_undefined,
        )


def _refuse_undefined(value: Any) -> Any:
    what = "an undefined value" if isinstance(value, Undefined) else type(value).__name__
    raise TypeError(f"{what} cannot be written as JSON")


def _raise_exception(message: object) -> None:
    raise TemplateRuntimeError(str(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"%[^A-Za-z%]", pattern):
        raise SecurityError(f"strftime_now({pattern!r:.60}): expected plain conversions")
    return datetime.now().strftime(pattern)
