"""A bad handler hurts only itself: failures are counted, reported once, and repeated ones put it in quarantine.

A healthy inline handler is called without any bookkeeping. Its first failure puts it under watch (its routes are
compiled anew with a guarded sink); ``WATCH_SUCCESSES`` good calls in a row end the watch. A queued handler's worker
consults the breaker once per batch anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eventcore.breaker import Breaker, BreakerState

if TYPE_CHECKING:
    from eventcore.envelope import Envelope
    from eventcore.handler import Sink
    from eventcore.ledger import Ledger

__all__ = ["Quarantine"]

WATCH_SUCCESSES = 100

Report = Callable[[str, BaseException | None, str], None]
"""Called with the handler's name, the error (if any) and what happened: ``failed``, ``quarantined``, ``recovered``,
``set_aside``."""


class Quarantine:
    """One handler's breaker and whether it is under watch."""

    def __init__(
        self, name: str, ledger: Ledger, clock: Callable[[], float], recompile: Callable[[], None], report: Report
    ) -> None:
        self.name = name
        self.is_watching = False
        self._ledger = ledger
        self._recompile = recompile
        self._report = report
        self._good = 0
        self.breaker = Breaker(
            f"handler {name}",
            window=20,
            minimum_calls=5,
            failure_rate=0.5,
            open_s=1.0,
            max_open_s=60.0,
            half_open_permits=1,
            clock=clock,
            on_transition=self._moved,
        )

    def failed(self, error: BaseException, permit: int | None = None) -> None:
        """Take note of a failure: report the first of a series, and watch the handler from now on.

        ``permit`` is the breaker's where it was asked; a handler that is not watched yet is called without.
        """
        self._good = 0
        if not self.is_watching:
            self.is_watching = True
            self._report(self.name, error, "failed")
            self._recompile()
        self.breaker.failure(permit or self.breaker.try_acquire())

    def succeeded(self, permit: int) -> None:
        """Take note of a success; enough of them end the watch."""
        self.breaker.success(permit)
        if not self.is_watching:
            return
        self._good += 1
        if self._good >= WATCH_SUCCESSES and self.breaker.state is BreakerState.CLOSED:
            self._good = 0
            self.is_watching = False
            self._recompile()

    def set_aside(self, error: BaseException) -> None:
        """Report that an envelope was given up because the handler always fails on it."""
        self._report(self.name, error, "set_aside")

    def watch(self, sink: Sink) -> Sink:
        """Return ``sink`` behind the breaker; it counts every outcome itself."""
        count, name = self._ledger.count, self.name

        def watched(envelope: Envelope) -> None:
            permit = self.breaker.try_acquire()
            if not permit:
                count(name, envelope.name, envelope.phase, "quarantined")
                return
            try:
                sink(envelope)
            except Exception as error:  # noqa: BLE001 - isolation is the point; it is counted and reported
                count(name, envelope.name, envelope.phase, "failed")
                self.failed(error, permit)
            else:
                count(name, envelope.name, envelope.phase, "delivered")
                self.succeeded(permit)

        return watched

    def _moved(self, _: Breaker, before: BreakerState, after: BreakerState) -> None:
        if after is BreakerState.OPEN and before is BreakerState.CLOSED:
            self._report(self.name, None, "quarantined")
        elif after is BreakerState.CLOSED:
            self._report(self.name, None, "recovered")
