"""Errors that hybridmoe raises on purpose.

    HybridMoeError
      ClusterError              another host of a pooled model is away, or does not fit this one
      GGUFError                 the file is malformed, truncated or inconsistent
        UnsupportedModelError   the file is sound, but this program cannot run it
      ConfigError               an option, environment variable or sampling parameter is unusable
        ContextLengthError      a prompt is longer than the context
      DeviceError               the GPU has no memory left, or failed
        KernelError             a GPU kernel gives wrong results here
      DownloadError             the model hub refuses, cannot be reached, or sent something else
      DiskError                 reading weights from their file failed during a run
        StalledReadError        the disk hangs, and the step that waits for it is wanted no more
      NonFiniteError            the model's results are not finite numbers: damaged weights
      QueueFullError            the request queue is full; try again later
      ShapeError                an array handed to a kernel has the wrong shape, type or layout
      TemplateError             a chat template failed, or left its sandbox

Messages are one line: what got which value, what was expected, what to do about it.
"""

__all__ = [
    "ClusterError",
    "ConfigError",
    "ContextLengthError",
    "DeviceError",
    "DiskError",
    "DownloadError",
    "GGUFError",
    "HybridMoeError",
    "KernelError",
    "NonFiniteError",
    "QueueFullError",
    "ShapeError",
    "StalledReadError",
    "TemplateError",
    "UnsupportedModelError",
    "short",
]


class HybridMoeError(Exception):
    """Root of the tree; the command line and the server print its message as one line."""


class ClusterError(HybridMoeError):
    """Host of a pooled model that is away, or whose file, key or version is another."""


class GGUFError(HybridMoeError):
    """Malformed, truncated or inconsistent GGUF file."""


class UnsupportedModelError(GGUFError):
    """Sound GGUF file with a model, or a feature of one, that this program does not run."""


class ConfigError(HybridMoeError):
    """Unusable value of an option, environment variable or sampling parameter."""


class ContextLengthError(ConfigError):
    """Prompt longer than the context."""

    def __init__(self, num_prompt_tokens: int, context_tokens: int, *, is_all: bool = True) -> None:
        """is_all: the prompt has no more tokens than these; else counting stopped here."""
        self.has = f"has {'' if is_all else 'more than '}{num_prompt_tokens} tokens"
        super().__init__(f"the prompt {self.has}, the context holds {context_tokens}: shorten it")
        self.num_prompt_tokens = num_prompt_tokens
        self.context_tokens = context_tokens


class DeviceError(HybridMoeError):
    """GPU out of memory in a step, or failed."""


class KernelError(DeviceError):
    """GPU kernel whose results differ from the CPU's by more than rounding."""


class DiskError(HybridMoeError):
    """Failed read of weights from their file: truncated, removed, or a disk error."""


class StalledReadError(DiskError):
    """Disk that returns no read for seconds, while a request of the step is to end."""


class DownloadError(HybridMoeError):
    """Failed download: no network, no such repository, no permission, or a wrong checksum."""


class NonFiniteError(HybridMoeError):
    """NaN or infinity in a step's results: damaged weights, or overflow."""


class QueueFullError(HybridMoeError):
    """Full request queue of the engine."""


class ShapeError(HybridMoeError):
    """Array whose shape, element type or memory layout a kernel does not take."""


class TemplateError(HybridMoeError):
    """Chat template that does not compile, fails on these messages, or left its sandbox."""


def short(value: object) -> str:
    """Shorten a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
