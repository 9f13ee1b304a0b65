"""Every error that hybridmoe raises on purpose.

    HybridMoeError
      GGUFError                 the file is malformed, truncated or inconsistent
        UnsupportedModelError   the file is sound, but this program cannot run it
      ConfigError               an option, environment variable or sampling parameter is unusable
      ShapeError                an array handed to a kernel has the wrong shape, type or layout
      TemplateError             a chat template failed, or tried what it may not do

Messages are one line: what got which value, what was expected, what to do about it.
"""

__all__ = [
    "ConfigError",
    "GGUFError",
    "HybridMoeError",
    "ShapeError",
    "TemplateError",
    "UnsupportedModelError",
]


class HybridMoeError(Exception):
    """Root of the tree; a face prints its message as one line."""


class GGUFError(HybridMoeError):
    """A GGUF file is malformed, truncated or contradicts itself."""


class UnsupportedModelError(GGUFError):
    """A sound GGUF file holds a model, or a feature of one, that cannot be run here."""


class ConfigError(HybridMoeError):
    """An option, environment variable or sampling parameter has an unusable value."""


class ShapeError(HybridMoeError):
    """An array has a shape, element type or memory layout that a kernel does not take."""


class TemplateError(HybridMoeError):
    """A chat template does not compile, fails on these messages, or left its sandbox."""
