"""The embedded model: a small Kimi-K2-architecture GGUF that ships inside the package.

This module only says where the file is; training, export and evaluation import torch and others.
"""

from pathlib import Path

__all__ = ["demo_path"]


def demo_path() -> Path:
    """Return the path of the embedded GGUF."""
    return Path(__file__).with_name("demo.gguf")
