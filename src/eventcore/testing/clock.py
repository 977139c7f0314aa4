"""A clock that a test moves, and ids that are the same in every run."""

from __future__ import annotations

import threading

from eventcore.ids import Ids

__all__ = ["FakeClock", "deterministic_ids"]

START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z


class FakeClock:
    """Wall and monotonic time that stand still until ``advance`` is called; safe to use from many threads.

    ``time_ns`` is the wall time to begin with (nanoseconds since the Unix epoch; by default the first moment of 2026,
    UTC), ``monotonic_ns`` where the monotonic clock begins.
    """

    def __init__(self, time_ns: int = START_NS, monotonic_ns: int = 0) -> None:
        self._time_ns = time_ns
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        return self._time_ns

    def monotonic_ns(self) -> int:
        """Return nanoseconds of a clock that never goes back."""
        return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        """Let both clocks go on; ValueError for a negative time, since a monotonic clock cannot go back."""
        if seconds < 0:
            raise ValueError(f"a clock goes forward; advance({seconds!r}) would turn it back")
        step = round(seconds * 1e9)
        with self._lock:
            self._time_ns += step
            self._monotonic_ns += step

    def __repr__(self) -> str:
        return f"<FakeClock {self._time_ns / 1e9:.6f} s since the Unix epoch>"


def deterministic_ids(seed: int = 0) -> Ids:
    """Return ids that are the same in every run with the same ``seed``: sequence from 1, event, trace and span ids.

    A forked child begins with the same ids again, so its ids repeat the parent's.
    """
    return Ids(seed)
