"""What a closed breaker remembers: the outcomes of the last calls, or of the last seconds.

Both keep running totals, so that a look at them costs the same however many calls there were. The window of seconds
keeps ten parts and forgets a tenth at a time: it covers between nine tenths and all of its length, in bounded memory.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

__all__ = ["CountWindow", "Outcomes", "TimeWindow", "Window"]

PARTS = 10


class Outcomes(NamedTuple):
    """How many calls a window holds, and how many of them failed or were slow."""

    calls: int = 0
    failures: int = 0
    slow: int = 0


class Window(Protocol):
    """What a breaker asks of its memory. Not locked: the breaker holds its own lock while it writes."""

    def add(self, *, failed: bool, slow: bool, now: float) -> None:
        """Take in an outcome at ``now``, in the clock's seconds."""

    def totals(self, now: float) -> Outcomes:
        """Return what counts at ``now``; changes nothing."""

    def clear(self) -> None:
        """Forget everything."""


class CountWindow:
    """The outcomes of the last ``size`` calls."""

    needs_clock = False

    def __init__(self, size: int) -> None:
        self._outcomes: deque[tuple[bool, bool]] = deque(maxlen=size)
        self._totals = Outcomes()

    def add(self, *, failed: bool, slow: bool, now: float) -> None:
        """Take in an outcome; the oldest makes room."""
        del now
        calls, failures, slowness = self._totals
        if len(self._outcomes) == self._outcomes.maxlen:
            old_failed, old_slow = self._outcomes[0]
            calls, failures, slowness = calls - 1, failures - old_failed, slowness - old_slow
        self._outcomes.append((failed, slow))
        self._totals = Outcomes(calls + 1, failures + failed, slowness + slow)

    def totals(self, now: float) -> Outcomes:
        """Return the totals of the calls in the window."""
        del now
        return self._totals

    def clear(self) -> None:
        """Forget everything."""
        self._outcomes.clear()
        self._totals = Outcomes()


class TimeWindow:
    """The outcomes of the last ``seconds``."""

    needs_clock = True

    def __init__(self, seconds: float) -> None:
        self._part_s = seconds / PARTS
        self._parts: tuple[tuple[int, Outcomes], ...] = ()

    def add(self, *, failed: bool, slow: bool, now: float) -> None:
        """Take in an outcome, and forget what is too old."""
        number = int(now // self._part_s)
        kept = [part for part in self._parts if part[0] > number - PARTS]
        calls, failures, slowness = kept.pop()[1] if kept and kept[-1][0] == number else Outcomes()
        self._parts = (*kept, (number, Outcomes(calls + 1, failures + failed, slowness + slow)))

    def totals(self, now: float) -> Outcomes:
        """Return the totals of the parts that are not too old."""
        oldest = int(now // self._part_s) - PARTS
        current = [outcomes for number, outcomes in self._parts if number > oldest]
        return Outcomes(*map(sum, zip(*current, strict=True))) if current else Outcomes()

    def clear(self) -> None:
        """Forget everything."""
        self._parts = ()
