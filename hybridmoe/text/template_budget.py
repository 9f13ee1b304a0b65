"""Budget of one template render: time, and the size of all values and output that it makes.

The cost of a value is the number of characters it would print, at least. Values that hold one
another many times over ([a, a] of [b, b] ...) cost as much as they would print.
"""

import time
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

__all__ = ["DEADLINE_S", "RenderBudget"]

DEADLINE_S = 5.0
_BASE_COST = 1 << 25  # characters, for an empty input
_COST_PER_INPUT = 16
_ITEM_COST = 64  # memory and time of a container's item
_CONTAINERS = (list, tuple, set, frozenset, ItemsView, KeysView, ValuesView)


def _do_nothing() -> None:
    pass


class RenderBudget:
    """Raises SecurityError once a render takes too long or makes too much."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, input_cost: int, check: Callable[[], None] = _do_nothing) -> None:
        """Start a render; a larger input gets a larger budget.

        check: called repeatedly; may raise to cancel the render.
        """
        self._check = check
        self._limit = _BASE_COST + _COST_PER_INPUT * input_cost
        self._left = self._limit
        self._deadline = time.monotonic() + DEADLINE_S

    def cost_of(self, value: Any) -> int:
        """Count the characters that a value would print, at least. Raises beyond the budget."""
        total, stack = 0, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, Mapping):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, _CONTAINERS):
                stack.extend(item)
            elif isinstance(item, Namespace):
                # A namespace looks up its own entries, even for `__dict__`.
                stack.append(object.__getattribute__(item, "_Namespace__attrs"))
            total += _ITEM_COST
            if total > self._limit:
                raise SecurityError("a value grows too large")
        return total

    def checked(self, value: Any) -> Any:
        """Pass a value on; raises if it is larger than the budget."""
        self.cost_of(value)
        return value

    def charged(self, value: Any) -> Any:
        """Pass a new value on, and spend its cost."""
        if isinstance(value, str | list | tuple | dict | Mapping):
            self.spend(self.cost_of(value))
        return value

    def spend(self, cost: int) -> None:
        """Take a cost off the budget."""
        self._left -= cost
        if self._left < 0:
            raise SecurityError("its values or its output grow too large")

    def tick(self, cost: int) -> None:
        """Spend the cost of a call or a loop turn; check the deadline."""
        self.spend(cost)
        self._check()
        if time.monotonic() > self._deadline:
            raise SecurityError(f"takes longer than {DEADLINE_S:g} s")
