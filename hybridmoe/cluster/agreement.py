"""Agreement of ranks before any work: what must be equal, what each offers, and the terms.

JSON behind a message authentication code (HMAC-SHA256), over both ends' random numbers: without the
secret it can be neither made nor replayed. It is not encrypted.
"""

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from hybridmoe.cluster.message import PROTOCOL
from hybridmoe.errors import ClusterError

__all__ = ["Hello", "Identity", "Secret", "Session", "Terms"]

_MAC_BYTES = 32


class Secret:
    """Secret of the cluster's ranks; empty without a key file, within one machine."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def mac(self, *parts: bytes) -> bytes:
        """Authenticate a list of byte strings."""
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Session:
    """One attempt of a worker to join, named by random numbers of both ends."""

    secret: Secret
    rank: int  # of the worker
    theirs: bytes  # the worker's number
    ours: bytes  # rank 0's

    def seal(self, purpose: str, body: bytes) -> bytes:
        """Put a code before a body."""
        return self._mac(purpose, body) + body

    def open(self, purpose: str, sealed: bytes) -> bytes | None:
        """Return the body; None if its code is wrong."""
        code, body = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        return body if hmac.compare_digest(code, self._mac(purpose, body)) else None

    def _mac(self, purpose: str, body: bytes) -> bytes:
        numbers = self.rank.to_bytes(4, "little"), self.theirs, self.ours
        return self.secret.mac(purpose.encode(), *numbers, body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Version, file and configuration, which all ranks must have in common."""

    version: str
    num_ranks: int
    file: str
    model: str
    protocol: int = PROTOCOL

    def difference(self, theirs: "Identity", name: str) -> str | None:
        """Describe in one line what another rank has otherwise; None if nothing."""
        for field, (what, remedy) in _EQUAL.items():
            own, other = getattr(self, field), getattr(theirs, field)
            if own != other:
                return f"{name} has {what} {_short(other)}, rank 0 has {_short(own)}: {remedy}"
        return None


_EQUAL = {
    "protocol": ("protocol", "install the same version of hybridmoe"),
    "version": ("hybridmoe", "install the same version of hybridmoe"),
    "num_ranks": ("WORLD_SIZE", "start all ranks with the same"),
    "file": ("a model file with fingerprint", "give all ranks copies of one file"),
    "model": ("a model configuration with fingerprint", "give all ranks the same model options"),
}


class _Json:
    """Dataclass that travels as JSON."""

    __slots__ = ()

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()  # type: ignore[call-overload]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Read what `encode` wrote. Errors: ClusterError naming the field."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise ClusterError("malformed handshake: expected JSON") from None
        names = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(found, dict) or found.keys() != names.keys():
            raise ClusterError(f"malformed handshake: expected fields {', '.join(names)}")
        for name, value in found.items():
            if not _CHECKS[name](value):
                raise ClusterError(f"malformed handshake: {name} is {_short(value)}")
        return cls(**{name: _frozen(value) for name, value in found.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(_Json):
    """First message of a worker: what it has."""

    protocol: int
    version: str
    num_ranks: int
    file: str
    model: str
    host: str
    ram_bytes: int  # for experts
    read_gbs: float

    @property
    def identity(self) -> Identity:
        return Identity(**{field.name: getattr(self, field.name) for field in fields(Identity)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(_Json):
    """Answer of rank 0: the shares that all ranks work by, or a refusal."""

    shares: tuple[tuple[int, int], ...] = ()  # first expert and end, by rank
    max_tokens: int = 0  # of one message
    runs_mtp: bool = False
    refusal: str = ""

    @property
    def ranges(self) -> tuple[range, ...]:
        """Experts of each layer, by rank."""
        return tuple(range(*share) for share in self.shares)


def _is_count(value: Any, most: int = 1 << 62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096 and value.isprintable()


def _are_shares(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_count(n, 1 << 20) for n in pair)
        for pair in value
    )


_CHECKS = {
    "protocol": _is_count,
    "version": _is_text,
    "num_ranks": _is_count,
    "file": _is_text,
    "model": _is_text,
    "host": _is_text,
    "ram_bytes": _is_count,
    "read_gbs": lambda value: isinstance(value, float) and 0 < value < 1e6,
    "shares": _are_shares,
    "max_tokens": lambda value: _is_count(value, 1 << 24),
    "runs_mtp": lambda value: isinstance(value, bool),
    "refusal": _is_text,
}


def _frozen(value: Any) -> Any:
    return tuple(map(tuple, value)) if isinstance(value, list) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:16]}..."
