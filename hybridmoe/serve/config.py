"""What an endpoint allows and promises; the limits that bound what one request can cost."""

from dataclasses import dataclass

from hybridmoe.errors import ConfigError

__all__ = ["ServeConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Raises ConfigError for a value outside its range."""

    model_name: str  # as /v1/models lists it
    model_aliases: tuple[str, ...] = ()  # further names that requests may use
    api_keys: tuple[str, ...] = ()  # none: no key is asked for
    cors_origins: tuple[str, ...] = ()  # none: no other site's page may read answers
    allowed_hosts: tuple[str, ...] = ()  # names in the Host header; none, or "*": any
    max_body_bytes: int = 16 << 20
    max_messages: int = 4096
    max_json_depth: int = 64
    max_json_values: int = 1 << 19  # strings, commas and brackets of one body
    max_held_bytes: int = 128 << 20  # of all bodies above 64 KB, until they are answered
    body_pause_s: float = 20.0  # from one piece of a body to the next
    body_s: float = 300.0  # for the whole of it
    max_preparing: int = 64  # requests that wait for their template, tokens or grammar
    prepare_s: float = 60.0  # for these three together
    max_choices: int = 8  # `n` of one request
    max_sequences: int = 64  # prompts x `n` of one completion
    max_stored: int = 256  # responses that later requests may go on from; 0: none
    max_stored_bytes: int = 64 << 20
    keep_alive_s: float = 10.0  # between comments in a stream that has nothing else to say
    retry_after_s: int = 5  # told to those who find the queue full

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes", "max_messages", "max_json_depth", "max_json_values",
            "max_held_bytes", "max_preparing", "max_choices", "max_sequences",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 1 or more")
        for name in ("max_stored", "max_stored_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        for name in ("body_pause_s", "body_s", "prepare_s", "keep_alive_s"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected more than 0")
        bad = next((key for key in self.api_keys if not key.isascii() or not key.strip()), None)
        if bad is not None:
            raise ConfigError("an API key is empty or not ASCII; expected printable characters")
