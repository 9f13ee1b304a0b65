"""Every environment variable that hybridmoe reads: name, type, default, meaning.

| variable            | type | default        | meaning                                            |
|---------------------|------|----------------|----------------------------------------------------|
| `HYBRIDMOE_ISA`     | name | best supported | force `scalar`, `avx2`, `avx512` or `amx` kernels  |
| `HYBRIDMOE_THREADS` | int  | physical cores | threads of the CPU kernels, unless an option says  |

A value that cannot be used raises `ConfigError`; nothing is silently replaced by its default.
"""

import os

from hybridmoe.errors import ConfigError

__all__ = ["ISA_NAMES", "MAX_THREADS", "forced_isa", "num_threads"]

ISA_NAMES = ("scalar", "avx2", "avx512", "amx")
MAX_THREADS = 1024


def forced_isa() -> str | None:
    """The instruction set named by `HYBRIDMOE_ISA`, or None. Raises `ConfigError`."""
    name = os.environ.get("HYBRIDMOE_ISA", "")
    if name and name not in ISA_NAMES:
        raise ConfigError(f"HYBRIDMOE_ISA={name!r}: expected one of {', '.join(ISA_NAMES)}")
    return name or None


def num_threads() -> int | None:
    """The thread count in `HYBRIDMOE_THREADS`, or None. Raises `ConfigError`."""
    text = os.environ.get("HYBRIDMOE_THREADS", "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_THREADS:
        raise ConfigError(f"HYBRIDMOE_THREADS={text!r}: expected a number from 1 to {MAX_THREADS}")
    return int(text)
