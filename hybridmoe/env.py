"""Environment variables of hybridmoe: name, type, default, meaning.

| variable               | type | default        | meaning                                         |
|------------------------|------|----------------|-------------------------------------------------|
| `HYBRIDMOE_ISA`        | name | best supported | instruction set of the kernels: `ISA_NAMES`     |
| `HYBRIDMOE_THREADS`    | int  | physical cores | threads of the CPU kernels, unless `--threads`  |
| `HYBRIDMOE_PIN`        | 0, 1 | 1              | bind these threads to their cores               |
| `HYBRIDMOE_NUMA_NODES` | int  | the machine's  | number of NUMA nodes to split the cores into    |
| `HYBRIDMOE_IO`         | name | `auto`         | reader of experts: `threads` or `uring`         |
| `HYBRIDMOE_HOST_CALLS` | 0, 1 | 0              | 1: host functions instead of counters in graphs |
| `HYBRIDMOE_EXPAND`     | 0, 1 | 1              | 0: long prompts keep their bits, but are slower |
| `HYBRIDMOE_MODELS`     | path | user's data    | folder of models that are called by name        |

An unusable value raises `ConfigError`; no value is silently replaced by its default.
"""

import os
from pathlib import Path

from hybridmoe.errors import ConfigError

__all__ = [
    "IO_NAMES",
    "ISA_NAMES",
    "MAX_NODES",
    "MAX_THREADS",
    "check_environment",
    "expands_prompts",
    "forced_isa",
    "io_engine",
    "models_folder",
    "num_nodes",
    "num_threads",
    "pins_threads",
    "uses_host_functions",
]

ISA_NAMES = ("scalar", "avx2", "avx_vnni", "avx512", "amx")
IO_NAMES = ("auto", "threads", "uring")
MAX_NODES = 64
MAX_THREADS = 1024


def check_environment() -> None:
    """Check every variable, also those that a machine does not need. Errors: ConfigError."""
    for read in (
        expands_prompts,
        forced_isa,
        io_engine,
        num_threads,
        num_nodes,
        pins_threads,
        uses_host_functions,
    ):
        read()


def forced_isa() -> str | None:
    """Read `HYBRIDMOE_ISA`; None if unset. Errors: ConfigError."""
    name = os.environ.get("HYBRIDMOE_ISA", "")
    if name and name not in ISA_NAMES:
        raise ConfigError(f"HYBRIDMOE_ISA={name!r}: expected one of {', '.join(ISA_NAMES)}")
    return name or None


def io_engine() -> str:
    """Read `HYBRIDMOE_IO`; `auto` if unset. Errors: ConfigError."""
    name = os.environ.get("HYBRIDMOE_IO", "") or "auto"
    if name not in IO_NAMES:
        raise ConfigError(f"HYBRIDMOE_IO={name!r}: expected one of {', '.join(IO_NAMES)}")
    return name


def models_folder() -> Path | None:
    """Read `HYBRIDMOE_MODELS`; unset, `$XDG_DATA_HOME/hybridmoe/models`. None without a home."""
    try:
        if chosen := os.environ.get("HYBRIDMOE_MODELS"):
            return Path(chosen).expanduser()
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None
    return data / "hybridmoe" / "models"


def num_threads() -> int | None:
    """Read `HYBRIDMOE_THREADS`; None if unset. Errors: ConfigError."""
    return _number("HYBRIDMOE_THREADS", 1, MAX_THREADS)


def num_nodes() -> int | None:
    """Read `HYBRIDMOE_NUMA_NODES`; None if unset. Errors: ConfigError."""
    return _number("HYBRIDMOE_NUMA_NODES", 1, MAX_NODES)


def pins_threads() -> bool:
    """Read `HYBRIDMOE_PIN`: may threads be bound to cores? Errors: ConfigError."""
    return _number("HYBRIDMOE_PIN", 0, 1) != 0


def expands_prompts() -> bool:
    """Read `HYBRIDMOE_EXPAND`: do CPUs expand keys and values of long prompts?"""
    return _number("HYBRIDMOE_EXPAND", 0, 1) != 0


def uses_host_functions() -> bool:
    """Read `HYBRIDMOE_HOST_CALLS`: does the GPU's driver call the CPU in CUDA graphs?"""
    return _number("HYBRIDMOE_HOST_CALLS", 0, 1) == 1


def _number(name: str, low: int, high: int) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not low <= int(text[:9]) <= high:
        raise ConfigError(f"{name}={text!r}: expected a number from {low} to {high}")
    return int(text)
