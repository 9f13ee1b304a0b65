"""Index of the replicas that have computed the beginning of a prompt."""

from collections import OrderedDict
from collections.abc import Sequence, Set

__all__ = ["PrefixIndex"]

_MOST_KEYS = 1 << 17  # some 30 MB


class PrefixIndex:
    """Replicas by keys of prompts; the least recently used keys are forgotten."""

    def __init__(self, most_keys: int = _MOST_KEYS) -> None:
        self._most_keys = most_keys
        self._holders: OrderedDict[bytes, frozenset[str]] = OrderedDict()

    def note(self, keys: Sequence[bytes], replica: str) -> None:
        """Remember that a replica computes this prompt."""
        for key in keys:
            self._holders[key] = self._holders.get(key, frozenset()) | {replica}
            self._holders.move_to_end(key)
        while len(self._holders) > self._most_keys:
            self._holders.popitem(last=False)

    def longest(self, keys: Sequence[bytes], replicas: Set[str]) -> dict[str, int]:
        """Count the leading keys that each of the replicas has; those with none are left out."""
        found: dict[str, int] = {}
        for length in range(len(keys), 0, -1):
            for replica in self._holders.get(keys[length - 1], frozenset()) & replicas:
                found.setdefault(replica, length)
            if len(found) == len(replicas):
                break
        return found
