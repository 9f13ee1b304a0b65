"""Placement rules: patterns that keep tensors on a device.

A pattern `REGEX=cpu` or `REGEX=cuda` is searched for in a tensor's name, as llama.cpp's
`--override-tensor` has it; the first that matches decides.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hybridmoe.errors import ConfigError

__all__ = ["ExpertLayers", "PlacementRules"]

_TARGETS = ("cpu", "cuda")
_EXPERTS = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps\.weight$")


class PlacementRules:
    """Patterns in order; the first that matches a name decides."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Errors: ConfigError for a pattern that cannot be understood."""
        self.patterns = tuple(patterns)
        self._rules: list[tuple[str, re.Pattern[str], str]] = []
        for text in patterns:
            regex, is_there, target = text.rpartition("=")
            target = target.lower()
            if not is_there or not regex or target not in _TARGETS:
                raise ConfigError(
                    f"place={text!r:.60}: expected REGEX=cpu or REGEX=cuda,"
                    r" such as 'blk\.[0-9]\.attn.*=cpu'"
                )
            try:
                self._rules.append((text, re.compile(regex), target))
            except re.error as error:
                raise ConfigError(f"place={text!r:.60}: {error}") from None

    def __repr__(self) -> str:
        return f"PlacementRules({self.patterns!r})"

    def target(self, name: str) -> str | None:
        """Device of a tensor, "cpu" or "cuda"; None if no pattern matches."""
        return next((target for _, regex, target in self._rules if regex.search(name)), None)

    def is_on_cpu(self, name: str) -> bool:
        """Return True for a tensor that is pinned to the CPU."""
        return self.target(name) == "cpu"

    def unused(self, names: Iterable[str]) -> list[str]:
        """List the patterns that decide about none of these tensors."""
        names = list(names)
        used = set()
        for name in names:
            used.add(next((i for i, rule in enumerate(self._rules) if rule[1].search(name)), None))
        return [rule[0] for i, rule in enumerate(self._rules) if i not in used]

    def expert_layers(self, names: Iterable[str], num_layers: int) -> "ExpertLayers":
        """Find layers, of the first `num_layers`, whose routed experts a pattern places.

        Errors: ConfigError for a layer of which it places some tensors only.
        """
        wanted: dict[int, dict[str, str | None]] = {}
        for name in names:
            if (match := _EXPERTS.match(name)) and int(match[1]) < num_layers:
                wanted.setdefault(int(match[1]), {})[match[2]] = self.target(name)
        for layer, targets in wanted.items():
            if len(set(targets.values())) > 1:
                parts = ", ".join(f"ffn_{part}_exps on {t}" for part, t in targets.items() if t)
                raise ConfigError(
                    f"place: of blk.{layer}, only {parts}: an expert's gate, up and down"
                    " go together"
                )
        on_gpu, on_cpu = (
            frozenset(i for i, targets in wanted.items() if target in targets.values())
            for target in ("cuda", "cpu")
        )
        return ExpertLayers(on_gpu, on_cpu)


class ExpertLayers(NamedTuple):
    """Numbers of layers whose routed experts are pinned."""

    gpu: frozenset[int] = frozenset()  # in VRAM for good
    cpu: frozenset[int] = frozenset()  # never in VRAM
