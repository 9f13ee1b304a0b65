"""Embedded model: a small GGUF of Kimi K2's architecture that ships with the package.

This module only locates the file; training, export and evaluation import torch and others.
"""

from pathlib import Path

__all__ = ["demo_path"]


def demo_path() -> Path:
    """Return the path of the embedded GGUF."""
    return Path(__file__).with_name("demo.gguf")
