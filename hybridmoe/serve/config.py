"""Configuration of an endpoint: names, access, and limits on what one request can cost."""

from dataclasses import dataclass, field

from hybridmoe.errors import ConfigError
from hybridmoe.text.thinking_options import ThinkingOptions

__all__ = ["ServeConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Settings of one endpoint. Raises ConfigError for a value outside its range."""

    model_name: str  # as /v1/models lists it
    model_aliases: tuple[str, ...] = ()  # further names that requests may use
    api_keys: tuple[str, ...] = ()  # empty: no key needed
    cors_origins: tuple[str, ...] = ()  # empty: other sites' pages may not read responses
    allowed_hosts: tuple[str, ...] = ()  # names in the Host header; empty, or "*": any
    thinking: ThinkingOptions = field(default_factory=ThinkingOptions)  # of requests without any
    max_body_bytes: int = 16 << 20
    max_messages: int = 4096
    max_json_depth: int = 64
    max_json_values: int = 1 << 19  # strings, commas and brackets of one body
    max_body_memory_bytes: int = 128 << 20  # bodies above 64 KB together, until their responses
    body_idle_timeout_s: float = 20.0  # between two pieces of a body
    body_timeout_s: float = 300.0  # for the whole body
    max_preparing: int = 64  # requests waiting for template, tokenization or grammar
    prepare_timeout_s: float = 60.0  # for these three together
    max_choices: int = 8  # `n` of one request
    max_sequences: int = 64  # prompts x `n` of one completion
    max_prompt_logprobs: int = 1 << 18  # prompt tokens x (1 + alternatives) of one request
    max_stored_responses: int = 256  # that later requests may continue; 0: none
    max_stored_bytes: int = 64 << 20
    keep_alive_s: float = 10.0  # between comments in a stream that has nothing else to send
    retry_after_s: int = 5  # sent to clients when the queue is full

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes", "max_messages", "max_json_depth", "max_json_values",
            "max_body_memory_bytes", "max_preparing", "max_choices", "max_sequences",
            "max_prompt_logprobs",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 1 or more")
        for name in ("max_stored_responses", "max_stored_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        for name in (
            "body_idle_timeout_s", "body_timeout_s", "prepare_timeout_s", "keep_alive_s",
        ):  # fmt: skip
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected more than 0")
        bad = next((key for key in self.api_keys if not key.isascii() or not key.strip()), None)
        if bad is not None:
            raise ConfigError("an API key is empty or not ASCII; expected printable characters")
