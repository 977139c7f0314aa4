"""Clock and ids: the two seams that tests replace.

An event's id is a UUIDv7 that is a pure function of its time, its sequence number and a random salt of this process:
emitting takes a number from a counter, and the text is made only if somebody reads it. The salt is renewed in a forked
child, so parent and child never make the same id.
"""

from __future__ import annotations

import itertools
import os
import random
import time
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "Ids", "SystemClock", "format_uuid7"]


class Clock(Protocol):
    """Wall and monotonic time in nanoseconds."""

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""

    def monotonic_ns(self) -> int:
        """Return nanoseconds of a clock that never goes back."""


class SystemClock:
    """The operating system's clocks."""

    time_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.perf_counter_ns)


class Ids:
    """Sequence numbers, the salt of event ids, and random trace and span ids.

    ``seed`` makes them deterministic, for tests only.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self.renew()
        _ALL.add(self)

    def renew(self) -> None:
        """Start anew with fresh randomness (after a fork)."""
        source = random.Random(self._seed if self._seed is not None else os.urandom(32))  # noqa: S311 - ids, no secrets
        self.random_bits: Callable[[int], int] = source.getrandbits
        self.salt = source.getrandbits(73)
        self._low = self.salt & _LOW
        self._beginning = (-1, "")  # of the ids of the latest millisecond: replaced whole, as many threads read it
        self.next_sequence: Callable[[], int] = itertools.count(1).__next__

    def uuid7(self, time_ns: int, sequence: int) -> str:
        """Return ``format_uuid7`` of this salt: what ids of one millisecond have in common is made once."""
        millisecond, low = time_ns // 1_000_000, self._low + sequence
        known, beginning = self._beginning
        if millisecond != known or low > _LOW:
            text = format_uuid7(time_ns, sequence, self.salt)
            if low <= _LOW:
                self._beginning = (millisecond, text[:-12])
            return text
        return beginning + low.to_bytes(6, "big").hex()


_LOW = (1 << 48) - 1
"""The bits of the last twelve digits of an id."""

_ALL: weakref.WeakSet[Ids] = weakref.WeakSet()


def _renew_all() -> None:
    for ids in list(_ALL):
        ids.renew()


os.register_at_fork(after_in_child=_renew_all)


def format_uuid7(time_ns: int, sequence: int, salt: int) -> str:
    """Return the UUIDv7 (RFC 9562) of an event.

    The 48-bit timestamp is in milliseconds; the 74 free bits are ``salt + sequence``, so ids of one process never
    repeat and sort by emission within a millisecond.
    """
    free = salt + sequence
    value = (
        (time_ns // 1_000_000 & ((1 << 48) - 1)) << 80
        | 7 << 76
        | (free & (0xFFF << 62)) << 2
        | 2 << 62
        | free & ((1 << 62) - 1)
    )
    text = value.to_bytes(16, "big").hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
