"""One circuit breaker: a state machine with an injected clock.

Closed counts outcomes in a window, of calls or of seconds; when the share of failures, or of slow calls, reaches its
limit it opens and refuses calls; after ``open_s`` it hands out a limited number of probe permits (half-open); enough
successful probes close it, one failed probe opens it again for longer. Reading its state changes nothing, the lock is
never held during a call, and every transition is reported once through ``on_transition``.

Every call holds a *permit*, the number of the period in which it was given. An outcome that comes back with a permit of
an earlier period says nothing about the present one and is left out. That is what keeps probes exact under threads:
there is no way to count a call twice, or to take an old call for a probe.
"""

from __future__ import annotations

import enum
import functools
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from eventcore.breaker_window import CountWindow, TimeWindow
from eventcore.errors import BreakerOpen

if TYPE_CHECKING:
    from types import TracebackType

    from eventcore.breaker_window import Outcomes

__all__ = ["Breaker", "BreakerState", "GuardedCall"]

F = TypeVar("F", bound=Callable[..., Any])
Transition = Callable[["Breaker", "BreakerState", "BreakerState"], None]


class BreakerState(enum.StrEnum):
    """State of a breaker."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Breaker:
    """A circuit breaker; safe to share between threads and asyncio tasks.

    Opens when at least ``minimum_calls`` outcomes are known, of the last ``window`` calls or with ``window_s`` of the
    last seconds, and the share of failures reaches ``failure_rate`` (the default, 5 / 5 / 1.0, is "five failures in a
    row"), or the share of calls that took ``slow_call_s`` or longer reaches ``slow_rate``. Stays open ``open_s``
    seconds, doubled with every failed probe up to ``max_open_s``; then ``half_open_permits`` probes may pass at a time,
    and as many successes close it. A slow probe is a failed one. Probes that never come back are given up after the
    time it was open for, and new ones pass.
    """

    def __init__(
        self,
        name: str,
        *,
        window: int = 5,
        window_s: float | None = None,
        minimum_calls: int = 5,
        failure_rate: float = 1.0,
        slow_call_s: float | None = None,
        slow_rate: float = 1.0,
        open_s: float = 60.0,
        max_open_s: float = 3840.0,
        half_open_permits: int = 3,
        clock: Callable[[], float] = time.monotonic,
        on_transition: Transition | None = None,
    ) -> None:
        for what, share in (("failure_rate", failure_rate), ("slow_rate", slow_rate)):
            if not 0 < share <= 1:
                raise ValueError(f"breaker {name!r}: {what} is a share in (0, 1], not {share}")
        if minimum_calls < 1 or (window_s is None and minimum_calls > window):
            raise ValueError(f"breaker {name!r}: 1 <= minimum_calls <= window must hold, got {minimum_calls}, {window}")
        if half_open_permits < 1 or open_s <= 0:
            raise ValueError(f"breaker {name!r}: half_open_permits and open_s must be positive")
        if (window_s is not None and window_s <= 0) or (slow_call_s is not None and slow_call_s <= 0):
            raise ValueError(f"breaker {name!r}: window_s and slow_call_s must be positive, or None")
        self.name = name
        self.minimum_calls = minimum_calls
        self.failure_rate = failure_rate
        self.slow_call_s = slow_call_s
        self.slow_rate = slow_rate
        self.open_s = open_s
        self.max_open_s = max(max_open_s, open_s)
        self.half_open_permits = half_open_permits
        self._clock = clock
        self._on_transition = on_transition
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._is_forced = False
        self._window = CountWindow(window) if window_s is None else TimeWindow(window_s)
        self._since = 0.0
        self._times_opened = 0
        self._permits = 0
        self._probe_successes = 0
        self._period = 1
        _BREAKERS.add(self)

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> BreakerState:
        """The state; an open breaker whose time is up stays ``open`` until somebody asks to call."""
        return self._state

    @property
    def is_forced(self) -> bool:
        """Whether it was forced open or closed, and stays so whatever comes of calls."""
        return self._is_forced

    @property
    def outcomes(self) -> Outcomes:
        """Calls, failures and slow calls in the window."""
        return self._window.totals(self._clock() if self._window.needs_clock else 0.0)

    @property
    def failures(self) -> int:
        """Failures in the window."""
        return self.outcomes.failures

    @property
    def retry_after_s(self) -> float:
        """Seconds until an open breaker probes again, else 0; infinite while it is forced open."""
        if self._state is not BreakerState.OPEN:
            return 0.0
        return float("inf") if self._is_forced else max(0.0, self._since + self._open_time() - self._clock())

    # -- calls -------------------------------------------------------------------------------------------------------

    def try_acquire(self) -> int:
        """Ask for a call: 0 when refused, else a permit to hand to exactly one of success, failure or release.

        A permit of a period that is over (the breaker has moved since) is accepted and changes nothing.
        """
        period = self._period  # read first: a permit must not belong to a period that began while it was given
        if self._state is BreakerState.CLOSED:
            return period
        changed = None
        with self._lock:
            if self._may_probe():
                changed = self._enter(BreakerState.HALF_OPEN)
            allowed = 0
            if self._permits > 0:
                self._permits -= 1
                allowed = self._period
        self._report(changed)
        return allowed

    def success(self, permit: int, *, duration_s: float | None = None) -> None:
        """Record that a call went well, and, where slow calls count, how long it took."""
        self._settle(permit, duration_s, failed=False)

    def failure(self, permit: int, *, duration_s: float | None = None) -> None:
        """Record that a call failed (an error, a timeout or a cancellation)."""
        self._settle(permit, duration_s, failed=True)

    def release(self, permit: int) -> None:
        """Give a permit back without an outcome (the call was never made)."""
        with self._lock:
            if permit == self._period and self._state is BreakerState.HALF_OPEN:
                self._permits += 1

    def call(self) -> GuardedCall:
        """Guard a block, ``with`` or ``async with``: record its outcome, or refuse it with BreakerOpen.

        Any exception is a failure, KeyboardInterrupt and a cancelled task included.
        """
        return GuardedCall(self)

    def guard(self, function: F) -> F:
        """Return ``function``, plain or ``async``, with every call of it guarded as by `call`."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                with self.call():
                    return await function(*args, **kwargs)

            return cast("F", guarded_async)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self.call():
                return function(*args, **kwargs)

        return cast("F", guarded)

    # -- by hand -----------------------------------------------------------------------------------------------------

    def force_open(self) -> None:
        """Refuse every call until `reset`."""
        self._force(BreakerState.OPEN)

    def force_closed(self) -> None:
        """Let every call pass until `reset`, whatever comes of it."""
        self._force(BreakerState.CLOSED)

    def reset(self) -> None:
        """Close it, forget the past, and let outcomes move it again."""
        changed = None
        with self._lock:
            self._is_forced = False
            if self._state is BreakerState.CLOSED:
                self._window.clear()
            else:
                changed = self._enter(BreakerState.CLOSED)
        self._report(changed)

    # -- the state machine -------------------------------------------------------------------------------------------

    def _settle(self, permit: int, duration_s: float | None, *, failed: bool) -> None:
        slow = self.slow_call_s is not None and duration_s is not None and duration_s >= self.slow_call_s
        changed = None
        with self._lock:
            if permit != self._period:
                return
            if self._state is BreakerState.CLOSED:
                now = self._clock() if self._window.needs_clock else 0.0
                self._window.add(failed=failed, slow=slow, now=now)
                if not self._is_forced and self._is_too_much(self._window.totals(now)):
                    changed = self._enter(BreakerState.OPEN)
            elif failed or slow:
                changed = self._enter(BreakerState.OPEN)
            else:
                self._probe_successes += 1
                self._permits += 1
                if self._probe_successes >= self.half_open_permits:
                    changed = self._enter(BreakerState.CLOSED)
        self._report(changed)

    def _may_probe(self) -> bool:
        """Whether it is time for probes: the first after it opened, or new ones, all that were let pass being lost."""
        waits = self._state is not BreakerState.CLOSED and not self._permits and not self._is_forced
        return waits and self._clock() >= self._since + self._open_time()

    def _is_too_much(self, known: Outcomes) -> bool:
        return known.calls >= self.minimum_calls and (
            known.failures >= self.failure_rate * known.calls
            or (self.slow_call_s is not None and known.slow >= self.slow_rate * known.calls)
        )

    def _force(self, state: BreakerState) -> None:
        with self._lock:
            self._is_forced = True
            changed = self._enter(state)
        self._report(changed)

    def _open_time(self) -> float:
        return float(min(self.open_s * 2 ** min(self._times_opened - 1, 30), self.max_open_s))

    def _enter(self, state: BreakerState) -> tuple[BreakerState, BreakerState] | None:
        """Begin a period; return the transition, None where the state stays (probes that are given up, a reset)."""
        before, self._state = self._state, state
        self._period += 1
        self._permits = 0
        if state is BreakerState.CLOSED:
            self._times_opened = 0
            self._window.clear()
        else:
            self._since = self._clock()
            if state is BreakerState.HALF_OPEN:
                self._permits = self.half_open_permits
                self._probe_successes = 0
            else:
                self._times_opened += 1
        return None if before is state else (before, state)

    def _report(self, changed: tuple[BreakerState, BreakerState] | None) -> None:
        if changed and self._on_transition:
            self._on_transition(self, *changed)

    def __repr__(self) -> str:
        known, forced = self.outcomes, "forced " if self._is_forced else ""
        return f"<Breaker {self.name} {forced}{self._state}, {known.failures} failures in the last {known.calls} calls>"


class GuardedCall:
    """One guarded call, as a context manager of either kind; made by `Breaker.call`, entered once."""

    __slots__ = ("_began", "_breaker", "_permit")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._permit = 0
        self._began = 0.0

    def __enter__(self) -> Self:
        """Take a permit; BreakerOpen when there is none."""
        breaker = self._breaker
        self._permit = breaker.try_acquire()
        if not self._permit:
            raise BreakerOpen(breaker.name, breaker.retry_after_s)
        if breaker.slow_call_s is not None:
            self._began = breaker._clock()  # noqa: SLF001 - the other half of one class
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Record the outcome; an exception goes on."""
        breaker = self._breaker
        duration_s = None if breaker.slow_call_s is None else breaker._clock() - self._began  # noqa: SLF001 - as above
        if kind is None:
            breaker.success(self._permit, duration_s=duration_s)
        else:
            breaker.failure(self._permit, duration_s=duration_s)

    async def __aenter__(self) -> Self:
        """Do the same in a coroutine; nothing is waited for."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do the same in a coroutine; nothing is waited for."""
        self.__exit__(kind, error, traceback)


_BREAKERS: weakref.WeakSet[Breaker] = weakref.WeakSet()


def _after_fork() -> None:
    for breaker in list(_BREAKERS):
        breaker._lock = threading.Lock()  # noqa: SLF001 - another thread of the parent may have held the old one


os.register_at_fork(after_in_child=_after_fork)
