"""Every error that hybridmoe raises on purpose.

    HybridMoeError
      GGUFError                 the file is malformed, truncated or inconsistent
        UnsupportedModelError   the file is sound, but this program cannot run it
      ConfigError               an option, environment variable or sampling parameter is unusable
        ContextLengthError      a prompt is longer than the context
      DeviceError               the card has no memory left, or failed
      DiskError                 weights could not be read from their file in mid-run
      NonFiniteError            the model's results are not finite numbers: damaged weights
      QueueFullError            the request queue is full; try again later
      ShapeError                an array handed to a kernel has the wrong shape, type or layout
      TemplateError             a chat template failed, or tried what it may not do

Messages are one line: what got which value, what was expected, what to do about it.
"""

__all__ = [
    "ConfigError",
    "ContextLengthError",
    "DeviceError",
    "DiskError",
    "GGUFError",
    "HybridMoeError",
    "NonFiniteError",
    "QueueFullError",
    "ShapeError",
    "TemplateError",
    "UnsupportedModelError",
    "short",
]


class HybridMoeError(Exception):
    """Root of the tree; a face prints its message as one line."""


class GGUFError(HybridMoeError):
    """A GGUF file is malformed, truncated or contradicts itself."""


class UnsupportedModelError(GGUFError):
    """A sound GGUF file holds a model, or a feature of one, that cannot be run here."""


class ConfigError(HybridMoeError):
    """An option, environment variable or sampling parameter has an unusable value."""


class ContextLengthError(ConfigError):
    """A prompt does not fit the context, whatever else the engine does."""

    def __init__(self, num_prompt_tokens: int, context_tokens: int, *, is_all: bool = True) -> None:
        """is_all: these are all of the prompt's tokens, not only those that were counted."""
        self.has = f"has {'' if is_all else 'more than '}{num_prompt_tokens} tokens"
        super().__init__(f"the prompt {self.has}, the context holds {context_tokens}: shorten it")
        self.num_prompt_tokens = num_prompt_tokens
        self.context_tokens = context_tokens


class DeviceError(HybridMoeError):
    """A card ran out of memory in a step, or failed."""


class DiskError(HybridMoeError):
    """Weights could not be read from their file: it is shorter now, gone, or the disk failed."""


class NonFiniteError(HybridMoeError):
    """A step's results hold NaN or infinity: weights are damaged, or values overflow."""


class QueueFullError(HybridMoeError):
    """The engine's queue holds as many requests as it may."""


class ShapeError(HybridMoeError):
    """An array has a shape, element type or memory layout that a kernel does not take."""


class TemplateError(HybridMoeError):
    """A chat template does not compile, fails on these messages, or left its sandbox."""


def short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
