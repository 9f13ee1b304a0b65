"""Options of opening a model, declared once for the Python API and the command line.

Declared in placement, the lowest room that needs them whole; those of the engine are inherited.
Values are checked before a file is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from hybridmoe.config import DEVICES, EngineConfig, EngineOptions, ModelConfig
from hybridmoe.env import MAX_THREADS
from hybridmoe.errors import ConfigError, short
from hybridmoe.option import (
    Address,
    Count,
    Devices,
    File,
    Flag,
    Number,
    Option,
    Size,
    Sizes,
    Texts,
    Weights,
    check_options,
    options_of,
)
from hybridmoe.planning.placement_rules import PlacementRules

__all__ = ["LoadOptions"]

_OF_CLUSTERS = ("cluster_address", "cluster_key_file", "expert_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions(EngineOptions):
    """Options of `hybridmoe.load` and of the commands that open a model. Raises ConfigError.

    Sizes are bytes; text such as "12GiB" is converted.
    """

    num_threads: Annotated[
        int | None,
        Count(
            "CPU threads",
            flags=("-t", "--threads"),
            unset="physical cores",
            least=1,
            most=MAX_THREADS,
        ),
    ] = None
    context_tokens: Annotated[
        int | None,
        Count(
            "Context length: tokens of a prompt and its response",
            flags=("-c", "--ctx"),
            unset="the model's",
            least=1,
        ),
    ] = None
    device: Annotated[
        str,
        Devices(
            "Device of all weights but routed experts; auto: a GPU if one is usable; several GPUs"
            " share the layers",
            metavar="auto|cpu|cuda|cuda:N[,cuda:M...]",
            words=DEVICES,
        ),
    ] = DEVICES[0]
    vram: Annotated[
        int | tuple[int, ...] | None,
        Sizes("VRAM budget, e.g. 20GiB; one for each GPU: 20GiB,10GiB", unset="all that is free"),
    ] = None
    place: Annotated[
        tuple[str, ...],
        Texts(
            "Keep matching tensors on a device (llama.cpp's -ot); the first match counts;"
            " repeatable",
            metavar="REGEX=cpu|cuda",
        ),
    ] = ()
    expert_ram: Annotated[
        int | None,
        Size(
            "RAM budget of routed experts, e.g. 12GiB; the others are read from disk",
            unset="all that is free",
        ),
    ] = None
    expert_prefetch: Annotated[
        int | None,
        Count(
            "Prefetch N predicted experts of the next layer from disk",
            unset="as many as are predicted to save time, or none",
            most=64,
        ),
    ] = None
    expert_profile: Annotated[
        Path | None,
        File(
            "Load the hot experts that FILE names first; updated at the end; `off`: none",
            unset="of VRAM expert slots, kept for each model",
        ),
    ] = None
    trace: Annotated[Path | None, File("Record the experts of each token to FILE")] = None
    expert_parallel: Annotated[
        bool, Flag("Pool the experts of several hosts, each started by torchrun (docs/cluster.md)")
    ] = False
    cluster_address: Annotated[
        str | None,
        Address(
            "Address of rank 0 where hosts meet; all their data go through its interface",
            metavar="HOST:PORT",
            unset="the port above torchrun's",
        ),
    ] = None
    cluster_key_file: Annotated[
        Path | None,
        File("Secret that all hosts have in FILE", unset="none, within one machine"),
    ] = None
    expert_share: Annotated[
        tuple[float, ...] | None,
        Weights(
            "Experts of each host, in proportion, e.g. 3,1",
            metavar="N,N[,N...]",
            unset="by measured speed, within RAM",
        ),
    ] = None
    yarn_beta_fast: Annotated[
        float | None, Number("YaRN beta_fast", unset="the file's", above=0.0, most=1e6)
    ] = None
    yarn_beta_slow: Annotated[
        float | None, Number("YaRN beta_slow", unset="the file's", above=0.0, most=1e6)
    ] = None

    def __post_init__(self) -> None:
        check_options(self)
        PlacementRules(self.place)  # raises for what is no pattern
        for name in _OF_CLUSTERS if not self.expert_parallel else ():
            if getattr(self, name) is not None:
                raise ConfigError(f"{name}: has no effect without expert_parallel")

    @classmethod
    def of(cls, base: "LoadOptions | None", changes: Mapping[str, Any]) -> "LoadOptions":
        """Change some options of `base`, or of the defaults. Errors: ConfigError."""
        if not isinstance(base, LoadOptions | None):
            raise ConfigError(f"options={short(base)}: expected LoadOptions")
        known = options_of(cls)
        for name in changes:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}: {_hint(name, known)}")
        return replace(base or cls(), **changes)

    def engine_config(self, model: ModelConfig) -> EngineConfig:
        """Configure the engine for a model. Errors: ConfigError beyond its context."""
        context = model.context_tokens if self.context_tokens is None else self.context_tokens
        if context > model.context_tokens:
            raise ConfigError(
                f"context_tokens={context}: expected 1 to {model.context_tokens},"
                " the model's own context"
            )
        chosen = {f.name: getattr(self, f.name) for f in fields(EngineOptions)}
        return EngineConfig(context_tokens=context, **chosen)

    @property
    def needs_gpu(self) -> bool:
        """True if an option was given that needs a GPU: doing without one is an error then."""
        return self.device.startswith("cuda") or self.vram is not None or bool(self.place)


def _hint(name: str, known: Mapping[str, Option]) -> str:
    """Name the option that was meant, by its flag or a similar name; else all options."""
    flags = {flag.strip("-").replace("-", "_"): n for n, o in known.items() for flag in o.flags}
    close = [flags[name]] if name in flags else get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
