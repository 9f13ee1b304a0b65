"""Tags of replicas, and those of the replicas that run, as this process knows them.

Not in ray_router.py: Ray copies a router's module by value, with globals of its own.
"""

import hashlib
from collections.abc import Iterable

from hybridmoe.serve.stored_id import TAG_CHARS

__all__ = ["live_replicas", "replica_tag", "set_live_replicas"]

_live: frozenset[str] = frozenset()


def replica_tag(unique_id: str) -> str:
    """Make a replica's tag, which ids of what it stores begin with."""
    return hashlib.blake2b(unique_id.encode(), digest_size=TAG_CHARS // 2).hexdigest()


def live_replicas() -> frozenset[str]:
    """Get the tags of the replicas that run."""
    return _live


def set_live_replicas(unique_ids: Iterable[str]) -> None:
    """Take in the replicas that run, from any thread."""
    global _live
    _live = frozenset(map(replica_tag, unique_ids))
