"""Launches of Triton kernels, recorded instead of run.

Within `record_launches`, functions of this package take tensors of torch's meta device, which have
no memory, in place of a GPU's: kernels are not launched but listed. So the list of what a model
needs comes from the code that launches it.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from hybridmoe.kernels.triton.runtime import planned_multiprocessors

__all__ = ["Launch", "ShapesOnly", "record_launches"]

_patching = threading.Lock()


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: the kernel, its arguments in order, and Triton's options."""

    kernel: Any  # a JITFunction; of the interpreter, an InterpretedFunction
    args: tuple[Any, ...]
    options: dict[str, Any]  # arguments by name, num_warps, num_stages

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    @property
    def constants(self) -> dict[str, Any]:
        """Arguments that are compiled in, by name, without those that specialisation adds."""
        parameters = inspect.signature(self.kernel.fn).parameters
        return {
            name: value
            for name, value in self._arguments().items()
            if "constexpr" in str(parameters[name].annotation)
        }

    @property
    def key(self) -> str:
        """Text equal for launches of one binary: types, constants, divisibility by 16, options.

        Triton compiles an integer argument of 1 in, and knows whether numbers and addresses are
        multiples of 16, unless the kernel says `do_not_specialize`.
        """
        constants = self.constants
        unspecialized = _names(self.kernel, "do_not_specialize")
        unaligned = _names(self.kernel, "do_not_specialize_on_alignment")
        parts = []
        for name, value in self._arguments().items():
            if name in constants or value is None:
                parts.append(f"{name}={getattr(value, 'name', value)}")
            else:
                kind = _kind(value, name not in unspecialized, name not in unaligned)
                parts.append(f"{name}:{kind}")
        names = self.kernel.arg_names
        options = {k: v for k, v in self.options.items() if k not in names}
        return f"{self.name}({', '.join(parts)}) {options}"

    def compile(self) -> None:
        """Compile for the thread's current GPU, or load from Triton's cache, as a launch would."""
        compiled = self.kernel.run(*self.args, grid=None, warmup=True, **self.options)
        compiled._init_handles()  # the launcher's C code, and the code's way onto the GPU

    def _arguments(self) -> dict[str, Any]:
        names = self.kernel.arg_names
        by_name = dict(zip(names, self.args, strict=False))
        return by_name | {k: v for k, v in self.options.items() if k in names}


@contextmanager
def record_launches(num_multiprocessors: int) -> Iterator[dict[str, Launch]]:
    """List this thread's launches, one of each binary, by key; none is run.

    num_multiprocessors: of the GPU that they are planned for.
    """
    found: dict[str, Launch] = {}
    thread = threading.get_ident()

    def replacing(real: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def getitem(kernel: Any, grid: Any) -> Any:
            if threading.get_ident() != thread:
                return real(kernel, grid)

            def record(*args: Any, **options: Any) -> None:
                launch = Launch(kernel, args, options)
                found.setdefault(launch.key, launch)

            return record

        return getitem

    with _patching:
        before = [(kind, kind.__getitem__) for kind in (JITFunction, InterpretedFunction)]
        for kind, real in before:
            kind.__getitem__ = replacing(real)
        token = planned_multiprocessors.set(num_multiprocessors)
        try:
            with ShapesOnly():
                yield found
        finally:
            planned_multiprocessors.reset(token)
            for kind, real in before:
                kind.__getitem__ = real


class ShapesOnly(TorchFunctionMode):
    """Answers operations on the meta device for which torch would load its compiler: a second."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            t: Tensor = args[0]
            if name in ("add_", "copy_", "index_add_", "mul_"):
                return t
            if name in ("clone", "contiguous", "empty_like", "zeros_like"):
                return t if name == "contiguous" and t.is_contiguous() else t.new_empty(t.shape)
            if name in ("matmul", "bmm") and t.ndim == args[1].ndim:
                return t.new_empty((*t.shape[:-1], args[1].shape[-1]))
            if name == "sum" and (args[1:] == (0,) or kwargs.get("dim") == 0):
                out: Tensor | None = kwargs.get("out")
                return t.new_empty(t.shape[1:]) if out is None else out
        return func(*args, **kwargs)


def _kind(value: Any, is_specialized: bool, is_aligned: bool) -> str:
    """Name a run-time argument's type and what is known of its value."""
    if isinstance(value, Tensor):
        known = is_specialized and is_aligned and value.data_ptr() % 16 == 0
        return f"*{value.dtype}{'D' if known else ''}"
    if isinstance(value, bool | float):
        return type(value).__name__
    if is_specialized and value == 1:
        return "1"
    known = is_specialized and is_aligned and value % 16 == 0
    bits = 32 if -(2**31) <= value < 2**31 else 64
    return f"i{bits}{'D' if known else ''}"


def _names(kernel: Any, option: str) -> Sequence[Any]:
    """Read an option of `triton.jit` that lists arguments."""
    listed = getattr(kernel, option, None)
    if listed is None:
        listed = getattr(kernel, "kwargs", {}).get(option)  # the interpreter's
    return listed or ()
