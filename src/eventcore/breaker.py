"""One circuit breaker: a state machine with an injected clock.

Closed counts outcomes in a window; when the failure rate reaches its limit it opens and refuses calls; after
``open_s`` it hands out a limited number of probe permits (half-open); enough successful probes close it, one failed
probe opens it again for longer. Reading its state changes nothing, the lock is never held during a call, and every
transition is reported once through ``on_transition``.
"""

from __future__ import annotations

import enum
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eventcore.errors import BreakerOpen

__all__ = ["Breaker", "BreakerState"]

Transition = Callable[["Breaker", "BreakerState", "BreakerState"], None]


class BreakerState(enum.StrEnum):
    """State of a breaker."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Breaker:
    """A circuit breaker; safe to share between threads and asyncio tasks.

    Opens when at least ``minimum_calls`` of the last ``window`` outcomes are known and the share of failures reaches
    ``failure_rate`` (the default, 5 / 5 / 1.0, is "five failures in a row"). Stays open ``open_s`` seconds, doubled
    with every failed probe up to ``max_open_s``; then ``half_open_permits`` probes may pass at a time, and as many
    successes close it.
    """

    def __init__(
        self,
        name: str,
        *,
        window: int = 5,
        minimum_calls: int = 5,
        failure_rate: float = 1.0,
        open_s: float = 60.0,
        max_open_s: float = 3840.0,
        half_open_permits: int = 3,
        clock: Callable[[], float] = time.monotonic,
        on_transition: Transition | None = None,
    ) -> None:
        if not 0 < failure_rate <= 1:
            raise ValueError(f"breaker {name!r}: failure_rate is a share in (0, 1], not {failure_rate}")
        if not 1 <= minimum_calls <= window:
            raise ValueError(f"breaker {name!r}: 1 <= minimum_calls <= window must hold, got {minimum_calls}, {window}")
        if half_open_permits < 1 or open_s <= 0:
            raise ValueError(f"breaker {name!r}: half_open_permits and open_s must be positive")
        self.name = name
        self.minimum_calls = minimum_calls
        self.failure_rate = failure_rate
        self.open_s = open_s
        self.max_open_s = max(max_open_s, open_s)
        self.half_open_permits = half_open_permits
        self._clock = clock
        self._on_transition = on_transition
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._outcomes: deque[bool] = deque(maxlen=window)
        self._opened_at = 0.0
        self._times_opened = 0
        self._permits = 0
        self._probe_successes = 0
        self._period = 1
        _BREAKERS.add(self)

    @property
    def state(self) -> BreakerState:
        """The state; an open breaker whose time is up stays ``open`` until somebody asks to call."""
        return self._state

    @property
    def failures(self) -> int:
        """Failures in the window."""
        return sum(not ok for ok in tuple(self._outcomes))

    @property
    def retry_after_s(self) -> float:
        """Seconds until an open breaker probes again, else 0."""
        if self._state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._open_time() - self._clock())

    def try_acquire(self) -> int:
        """Ask for a call: 0 when refused, else a permit to hand to exactly one of success, failure or release.

        A permit of a period that is over (the breaker has moved since) is accepted and changes nothing.
        """
        period = self._period  # read first: a permit must not belong to a period that began while it was given
        if self._state is BreakerState.CLOSED:
            return period
        changed = None
        with self._lock:
            if self._state is BreakerState.OPEN and self._clock() >= self._opened_at + self._open_time():
                changed = self._enter(BreakerState.HALF_OPEN)
            allowed = 0
            if self._permits > 0:
                self._permits -= 1
                allowed = self._period
        self._report(changed)
        return allowed

    def success(self, permit: int) -> None:
        """Record that a call went well."""
        changed = None
        with self._lock:
            if permit != self._period:
                return
            if self._state is BreakerState.CLOSED:
                self._outcomes.append(True)
            else:
                self._probe_successes += 1
                self._permits += 1
                if self._probe_successes >= self.half_open_permits:
                    changed = self._enter(BreakerState.CLOSED)
        self._report(changed)

    def failure(self, permit: int) -> None:
        """Record that a call failed (an error, a timeout or a cancellation)."""
        changed = None
        with self._lock:
            if permit != self._period:
                return
            if self._state is BreakerState.HALF_OPEN:
                changed = self._enter(BreakerState.OPEN)
            else:
                self._outcomes.append(False)
                known = len(self._outcomes)
                if known >= self.minimum_calls and self.failures >= self.failure_rate * known:
                    changed = self._enter(BreakerState.OPEN)
        self._report(changed)

    def release(self, permit: int) -> None:
        """Give a permit back without an outcome (the call was never made)."""
        with self._lock:
            if permit == self._period and self._state is BreakerState.HALF_OPEN:
                self._permits += 1

    @contextmanager
    def call(self) -> Iterator[None]:
        """Guard a block: record its outcome (any exception is a failure), or refuse it with BreakerOpen."""
        permit = self.try_acquire()
        if not permit:
            raise BreakerOpen(self.name, self.retry_after_s)
        try:
            yield
        except BaseException:
            self.failure(permit)
            raise
        self.success(permit)

    def reset(self) -> None:
        """Close it and forget the past."""
        with self._lock:
            changed = self._enter(BreakerState.CLOSED) if self._state is not BreakerState.CLOSED else None
            self._outcomes.clear()
        self._report(changed)

    def _open_time(self) -> float:
        return float(min(self.open_s * 2 ** min(self._times_opened - 1, 30), self.max_open_s))

    def _enter(self, state: BreakerState) -> tuple[BreakerState, BreakerState]:
        before, self._state = self._state, state
        self._period += 1
        if state is BreakerState.OPEN:
            self._opened_at = self._clock()
            self._times_opened += 1
            self._permits = 0
        elif state is BreakerState.HALF_OPEN:
            self._permits = self.half_open_permits
            self._probe_successes = 0
        else:
            self._times_opened = 0
            self._outcomes.clear()
            self._permits = 0
        return before, state

    def _report(self, changed: tuple[BreakerState, BreakerState] | None) -> None:
        if changed and self._on_transition:
            self._on_transition(self, *changed)

    def __repr__(self) -> str:
        return f"<Breaker {self.name} {self._state}, {self.failures} failures in the last {len(self._outcomes)} calls>"


_BREAKERS: weakref.WeakSet[Breaker] = weakref.WeakSet()


def _after_fork() -> None:
    for breaker in list(_BREAKERS):
        breaker._lock = threading.Lock()  # noqa: SLF001 - another thread of the parent may have held the old one


os.register_at_fork(after_in_child=_after_fork)
