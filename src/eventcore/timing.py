"""How long the bus itself takes: small histograms, cheap to write, for whoever exports them.

``Times`` has one writer, a queue's worker. ``EmitTimes`` is written by every emitting thread, so it keeps its numbers
among the thread's own counts in the ledger, which folds them; only one emit in ``TIMED_MASK + 1`` is timed, and none
before a handler that shows the result asks for it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from eventcore.ledger import Ledger

__all__ = ["BATCH_BOUNDS_S", "EMIT_BOUNDS_S", "NOT_TIMED", "TIMED_MASK", "WAIT_BOUNDS_S", "EmitTimes", "Times"]

EMIT_BOUNDS_S = (1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0)
BATCH_BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
WAIT_BOUNDS_S = (1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)

TIMED_MASK = 1023
"""Emits whose sequence number has none of these bits are timed: one of 1,024."""

NOT_TIMED = -1
"""The mask with which no emit is timed."""


class Times:
    """Durations in buckets: ``counts`` has one more than ``bounds_s`` (not cumulative); ``sum_s`` is their sum."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, duration_ns: int) -> None:
        """Add one duration; one below zero (the wall clock was set back) counts as zero."""
        seconds = duration_ns / 1e9 if duration_ns > 0 else 0.0
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def __repr__(self) -> str:
        return f"<Times {sum(self.counts)} in {self.sum_s:.6f} s>"


class EmitTimes:
    """How long the callers of one emitter were held, by the sample that was timed."""

    __slots__ = ("_buckets", "_ledger", "_sum")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._buckets: list[Hashable] = [object() for _ in range(len(EMIT_BOUNDS_S) + 1)]
        self._sum: Hashable = object()

    def add(self, duration_ns: int) -> None:
        """Add one duration, in the calling thread's counts."""
        counts = self._ledger.cells.counts
        counts[self._buckets[bisect_left(EMIT_BOUNDS_S, duration_ns / 1e9)]] += 1
        counts[self._sum] += duration_ns

    def read(self) -> Times:
        """Return the sum over all threads."""
        totals = self._ledger.totals()
        times = Times(EMIT_BOUNDS_S)
        times.counts = [totals[key] for key in self._buckets]
        times.sum_s = totals[self._sum] / 1e9
        return times
