"""Record of the self-check: how far the GPU's kernels were from the CPU, and what was done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["KernelCheck", "KernelChecks"]


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """Comparison of one kernel's result on the GPU with the CPU's."""

    kernel: str  # such as "products of 1 token"
    given: str  # such as "Q4_K, 2048 x 7168"
    error: float  # the largest difference, as a share of what rounding explains
    problem: str = ""  # first line of the kernel's own error, if it raised one

    @property
    def is_right(self) -> bool:
        return self.error <= 1.0  # NaN is wrong

    def __str__(self) -> str:
        why = self.problem or f"{self.error:.3g} times the error that rounding explains"
        return f"{self.kernel} ({self.given}): {why}"


class KernelChecks:
    """Checks of one load, and a line on each kernel that was wrong."""

    def __init__(self) -> None:
        self.checks: list[KernelCheck] = []
        self.notes: list[str] = []  # on what else does not work, a line each
        self._left_to_cpu: dict[str, tuple[KernelCheck, list[str]]] = {}

    def add(self, checks: Sequence[KernelCheck]) -> KernelCheck | None:
        """Record checks; return the first wrong one, if any."""
        self.checks += checks
        return next((check for check in checks if not check.is_right), None)

    def leave_to_cpu(self, wrong: KernelCheck, kind: str, what: str) -> None:
        """Note that the CPU does the work of a wrong kernel.

        kind: of weights, one line for each. what: a tensor or a layer.
        """
        self._left_to_cpu.setdefault(kind, (wrong, []))[1].append(what)

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each kind of weights that is left to the CPU, and notes, for people."""
        return (*self._kinds(), *self.notes)

    def _kinds(self) -> Iterator[str]:
        return (
            f"self-check: the GPU is wrong in {wrong}; the CPU computes {kind} instead"
            f" ({_few(what)})"
            for kind, (wrong, what) in self._left_to_cpu.items()
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 3 else ""
    return ", ".join(names[:2] if more else names) + more
