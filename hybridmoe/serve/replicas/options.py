"""Options of replicas: those of `hybridmoe.load`, their number, and the checks of access."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from hybridmoe.errors import ConfigError, short
from hybridmoe.library.find import find_model
from hybridmoe.library.stored_model import model_name
from hybridmoe.option import Count, File, Flag, Number, Texts, options_of
from hybridmoe.placement.options import LoadOptions
from hybridmoe.serve.api_keys import read_api_keys
from hybridmoe.serve.config import ServeConfig

__all__ = ["ReplicaOptions", "parse_options"]

_DEMO_NAME = "hybridmoe-demo"
_SLOTS_PER_RUNNING = 2  # requests at a replica: the next batch is there when this one ends


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions(LoadOptions):
    """Options of one model's replicas. Raises ConfigError."""

    model: Annotated[
        Path | None, File("Model file, at the same path on each host", unset="the embedded model")
    ] = None
    model_names: Annotated[
        tuple[str, ...], Texts("Model names in the API, the first one listed")
    ] = ()
    api_key_file: Annotated[Path | None, File("Require one of the API keys in FILE")] = None
    cors_origins: Annotated[
        tuple[str, ...], Texts("Allow requests from pages of these origins")
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...], Texts("Accept these Host headers without an API key, or '*'")
    ] = ()
    min_replicas: Annotated[int, Count("Replicas that always run; 0: none while idle")] = 1
    max_replicas: Annotated[
        int | None, Count("Replicas, at most", unset="as min_replicas", least=1)
    ] = None
    max_ongoing: Annotated[
        int | None, Count("Requests at one replica", unset="twice max_running", least=1)
    ] = None
    max_queued: Annotated[
        int, Count("Requests that wait for a replica; further ones are refused (HTTP 429)", least=1)
    ] = 256
    hold_s: Annotated[
        float, Number("Longest wait for a replica, in seconds", above=0.0, most=86400.0)
    ] = 600.0
    idle_s: Annotated[
        float, Number("Idle seconds after which a replica ends", above=0.0, most=2592000.0)
    ] = 600.0
    gpus: Annotated[int, Count("GPUs of each replica, as Ray counts them", most=64)] = 0

    def __post_init__(self) -> None:
        LoadOptions.__post_init__(self)  # with slots, super() means another class
        if self.expert_parallel:
            raise ConfigError("expert_parallel: a replica is one process, on one host")
        if self.trace is not None:
            raise ConfigError("trace: replicas of one host would write the same file")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"max_replicas={self.max_replicas}: expected min_replicas={self.min_replicas}"
                " or more"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Model names in the API."""
        if self.model_names:
            return self.model_names
        return (_DEMO_NAME if self.model is None else model_name(self.model),)

    @property
    def most_replicas(self) -> int:
        """Largest number of replicas."""
        return self.max_replicas or max(1, self.min_replicas)

    @property
    def most_ongoing(self) -> int:
        """Largest number of requests at one replica."""
        return self.max_ongoing or _SLOTS_PER_RUNNING * self.max_running

    def front_config(self) -> ServeConfig:
        """Configure the front, which checks every request. Errors: ConfigError."""
        path = self.api_key_file
        keys = () if path is None else read_api_keys(path, "api_key_file")
        hosts = ("localhost", socket.gethostname().lower(), *map(str.lower, self.allowed_hosts))
        return ServeConfig(
            model_name=self.names[0],
            model_aliases=self.names[1:],
            api_keys=keys,
            cors_origins=self.cors_origins,
            allowed_hosts=() if keys else hosts,
        )

    def replica_config(self) -> ServeConfig:
        """Configure a replica, which only the front calls."""
        return ServeConfig(model_name=self.names[0], model_aliases=self.names[1:])


def parse_options(arguments: Mapping[str, Any]) -> ReplicaOptions:
    """Read arguments as YAML has them, or text such as "2" and "a,b". Errors: ConfigError."""
    known = options_of(ReplicaOptions)
    values = {
        name: _of_text(name, known.get(name), value) if isinstance(value, str) else value
        for name, value in arguments.items()
    }
    options = ReplicaOptions.of(None, values)
    assert isinstance(options, ReplicaOptions)
    if options.model is None:
        return options
    path = find_model(str(options.model))
    if not path.exists():
        raise ConfigError(f"model={path}: no such file; expected on every host, and on this one")
    return replace(options, model=path)


def _of_text(name: str, option: object, text: str) -> Any:
    """Convert a text to what the option reads."""
    try:
        if isinstance(option, Count):
            return int(text)
        if isinstance(option, Number):
            return float(text)
    except ValueError:
        raise ConfigError(f"{name}={short(text)}: expected a number") from None
    if isinstance(option, Flag):
        return {"true": True, "false": False}.get(text.lower(), text)
    return text.split(",") if isinstance(option, Texts) else text
