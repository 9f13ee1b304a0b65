"""Number of draft tokens that pays, from measured times of steps and measured acceptance.

A draft token adds a row to a step: another one to verify, with experts of its own to read, and the
drafter's time. It adds a token where it is accepted. What a machine and a text make of that differs
too much to be predicted, so steps with other numbers of drafts are tried now and then. Reads no
clock.
"""

from collections import deque
from typing import NamedTuple

__all__ = ["DraftControl", "StepKind"]

# Times that are kept, of which one near the least counts: other load lengthens steps at random.
_NUM_KEPT, _LEAST_SHARE = 30, 6
_NUM_FIRST = 3  # steps of each kind before a decision
_TRY_STEPS = 5
_TRY_EVERY, _MOST_EVERY = 64, 512  # steps; twice as many after each try while drafts do not pay
_LEAST_GAIN = 1.03
_PRIOR = (0.75, 0.6)  # acceptance of the first draft, and of each further one
_PRIOR_WEIGHT = 4.0  # drafts
_MEMORY = 0.98  # of the drafts counted, at each further one


class StepKind(NamedTuple):
    """Sequences of a step that only decodes."""

    num_sequences: int
    num_drafting: int  # of these, may have drafts


class DraftControl:
    """Chooses how many tokens each sequence of a step drafts."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: dict[tuple[StepKind, int], deque[float]] = {}  # by drafts of each
        first, further = _PRIOR
        priors = [first, *[further] * (most - 1)]
        self._accepted = [_PRIOR_WEIGHT * prior for prior in priors]
        self._drafted = [_PRIOR_WEIGHT] * most
        self._num_steps, self._num_tries, self._wait = 0, 0, _TRY_EVERY
        self._num_left = 0  # steps of a try

    def count(self, kind: StepKind) -> int:
        """Choose the draft tokens of each sequence for the next step."""
        if not kind.num_drafting:
            return 0
        for tried in (0, 1):
            if len(self._times.get((kind, tried), ())) < _NUM_FIRST:
                return tried
        best = self._best(kind)
        self._num_steps += 1
        if self._num_left and not best:
            self._num_left -= 1
            return 1
        if self._num_steps < self._wait:
            return best
        self._num_steps, self._num_tries = 0, self._num_tries + 1
        if best:  # in turns: without drafts, or with one more
            self._wait = _TRY_EVERY
            return 0 if self._num_tries % 2 else min(best + 1, self._most)
        self._wait = min(2 * self._wait, _MOST_EVERY)
        if 1.0 + kind.num_drafting / kind.num_sequences > self._seconds(kind, 1) / self._seconds(
            kind, 0
        ):  # it would pay if all were accepted, as they may be by now
            self._num_left = _TRY_STEPS - 1
            self._forget()
        return 1

    def update(self, kind: StepKind, num_drafts: int, seconds: float) -> None:
        """Learn the time of a step that only decodes. num_drafts: of each sequence."""
        key = (kind, num_drafts)
        self._times.setdefault(key, deque(maxlen=_NUM_KEPT)).append(seconds)

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Learn what became of one sequence's drafts, the first of which were accepted."""
        for depth in range(min(num_drafted, num_accepted + 1, self._most)):
            self._drafted[depth] = self._drafted[depth] * _MEMORY + 1.0
            self._accepted[depth] *= _MEMORY
            self._accepted[depth] += depth < num_accepted

    def _forget(self) -> None:
        """Let what is learned next weigh as much as what is known."""
        for depth, drafted in enumerate(self._drafted):
            share = min(1.0, _TRY_STEPS / drafted)
            self._drafted[depth] *= share
            self._accepted[depth] *= share

    def _best(self, kind: StepKind) -> int:
        """Number of drafts with the most tokens per second; 0 unless it gains enough."""
        chance, tokens = 1.0, float(kind.num_sequences)
        best, highest = 0, _LEAST_GAIN * tokens / self._seconds(kind, 0)
        for depth in range(self._most):
            chance *= self._accepted[depth] / self._drafted[depth]
            tokens += chance * kind.num_drafting
            rate = tokens / self._seconds(kind, depth + 1)
            if rate > highest:
                best, highest = depth + 1, rate
        return best

    def _seconds(self, kind: StepKind, num_drafts: int) -> float:
        """Time of a step; where it is unknown, as if each further draft cost as much as known."""
        known = self._times.get((kind, num_drafts))
        if known is not None:
            return sorted(known)[len(known) // _LEAST_SHARE]
        before = self._seconds(kind, num_drafts - 1)
        return before + max(0.0, before - self._seconds(kind, num_drafts - 2))
