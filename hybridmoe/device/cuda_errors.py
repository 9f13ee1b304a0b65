"""Translation of CUDA errors to one line that says what to do.

A step that runs out of memory fails alone. After any other CUDA error nothing in VRAM can be
trusted, and torch answers every call with the same error: the GPU is lost to this process.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hybridmoe.errors import ConfigError, DeviceError
from hybridmoe.units import at_least, at_most, parse_bytes

__all__ = ["CudaErrorGuard", "is_gpu_error", "loading_onto_gpu"]

# Also the words of CUDA's libraries, and of the driver about pinned memory.
_OUT_OF_MEMORY = re.compile(r"\bout of memory\b|_ALLOC_FAILED\b")
_CUDA_ERROR = re.compile(
    r"\bCUDA (driver )?error\b|\bCUDA_ERROR_|\bCU(BLAS|DNN)_STATUS|Error \[CUDA\]"
)
_AMOUNT = r"([0-9.]+ (?:bytes|KiB|MiB|GiB))"
_REQUESTED = re.compile(rf"Tried to allocate {_AMOUNT}")
_FREE = re.compile(rf"of which {_AMOUNT} is free")
_MARGIN_BYTES = 64 << 20  # in advice: torch allocates larger blocks than it needs


class CudaErrorGuard:
    """Memory of a lost GPU. Thread-safe, except `watch`."""

    def __init__(self, vram_bytes: int | None = None) -> None:
        """vram_bytes: the planned budget, from which messages derive a lower one."""
        self._vram_bytes = vram_bytes
        self.loss: str | None = None  # one line

    def check(self) -> None:
        """Raise DeviceError if the GPU is lost."""
        if self.loss is not None:
            raise DeviceError(self.loss)

    @contextmanager
    def watch(self, num_tokens: int | None = None) -> Iterator[None]:
        """Translate errors of work on the GPU, such as a step of `num_tokens`.

        Errors: DeviceError instead of torch's, or at once if the GPU is lost.
        """
        self.check()
        try:
            yield
        except RuntimeError as error:  # torch.AcceleratorError is one
            if _is_out_of_memory(error):
                step = "" if num_tokens is None else f" for a step of {num_tokens} tokens"
                raise DeviceError(
                    f"the GPU is out of memory{step}{_requested(error)}:"
                    f" {_remedy(error, self._vram_bytes)}, so that experts take less of it"
                ) from None
            if not _is_cuda_error(error):
                raise
            self.loss = f"the GPU failed: {_line(error)}; restart to use it again"
            raise DeviceError(self.loss) from None


@contextmanager
def loading_onto_gpu(what: str, vram_bytes: int | None = None) -> Iterator[None]:
    """Translate errors of filling VRAM.

    Errors: ConfigError if it is too small, DeviceError if the GPU fails.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise ConfigError(
                f"the GPU is out of memory for {what}{_requested(error)}: other programs may use it"
                f" too; {_remedy(error, vram_bytes)}"
            ) from None
        if not _is_cuda_error(error):
            raise
        raise DeviceError(f"the GPU failed: {_line(error)}") from None


def is_gpu_error(error: BaseException) -> bool:
    """Return True for an error of the GPU or its memory, not of one kernel or the program."""
    if not isinstance(error, RuntimeError):
        return False
    return _is_out_of_memory(error) or _is_cuda_error(error)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def _is_cuda_error(error: RuntimeError) -> bool:
    return isinstance(error, torch.AcceleratorError) or bool(_CUDA_ERROR.search(str(error)))


def _line(error: RuntimeError) -> str:
    """Take the first line; torch adds a paragraph of advice."""
    return str(error).strip().split("\n")[0][:200].rstrip(".")


def _requested(error: RuntimeError) -> str:
    """Quote the requested and the free size from torch's text."""
    requested, free = _REQUESTED.search(str(error)), _FREE.search(str(error))
    if requested is None:
        return ""
    return f" ({requested[1]} requested{f', {free[1]} free' if free else ''})"


def _remedy(error: RuntimeError, vram_bytes: int | None) -> str:
    """Advise a budget that is lower by the missing bytes and a margin."""
    requested, free = (_bytes(pattern, str(error)) for pattern in (_REQUESTED, _FREE))
    if not requested:
        return "lower --vram"
    # If enough is free, it is fragmented.
    missing = (requested - free if requested > free else requested) + _MARGIN_BYTES
    if vram_bytes is None or missing >= vram_bytes:
        return f"lower --vram by {at_least(missing)}"
    return f"lower --vram to {at_most(vram_bytes - missing)}"


def _bytes(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    return 0 if match is None else parse_bytes(match[1].removesuffix(" bytes"))
