"""Stop strings in streamed text: ends it before the first, and never shows a part of one."""

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    """Passes text through, except a suffix that may yet become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the text

    @property
    def has_stopped(self) -> bool:
        return self.matched is not None

    def push(self, text: str) -> str:
        """Add text; returns what can be shown. Empty once a stop string was found."""
        if self.has_stopped:
            return ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.matched = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        num_held = max(map(self._overlap, self._stops), default=0)
        cut = len(self._held) - num_held
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return the held text at the end of the stream."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest suffix of the held text that is a prefix of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
