"""Stop strings in streamed text: cut at the first, and never show a part of one."""

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    """Passes text through, holding back what may yet become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the text

    @property
    def has_stopped(self) -> bool:
        return self.matched is not None

    def push(self, text: str) -> str:
        """The text that may be shown now; after a stop string was found, always empty."""
        if self.has_stopped:
            return ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.matched = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        num_kept = max(map(self._overlap, self._stops), default=0)
        cut = len(self._held) - num_kept
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
