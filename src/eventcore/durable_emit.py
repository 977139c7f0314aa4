"""Audit-class emits: the caller waits, for a bounded time, until the journal has committed its event.

The event goes the way of every other event of its handlers, through their ordered queues; the emit only leaves a note
for itself (``Awaited``) that makes durable queues hand out a receipt.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from eventcore.errors import ConfigurationError, NotDurable
from eventcore.journal_config import JournalConfig
from eventcore.ledger import JournalState

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.catalog import Catalog
    from eventcore.dispatch import Route
    from eventcore.durable import DurableQueue
    from eventcore.envelope import Envelope
    from eventcore.journal import Journal
    from eventcore.journal_receipt import Receipt
    from eventcore.ledger import Cells, Ledger

    Careful = Callable[[Route, Envelope, Cells], None]

__all__ = ["Awaited", "Durability"]


class Awaited:
    """An emit of this thread that waits for the commit of its envelope."""

    __slots__ = ("envelope", "receipts")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.receipts: list[Receipt] = []


class Durability:
    """What an emitter has of durability: the journal, once a durable handler needs it, and the waiting for commits."""

    def __init__(
        self,
        ledger: Ledger,
        catalog: Catalog,
        config: JournalConfig | None,
        report: Callable[[str, BaseException | None, str], None],
    ) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self.config = JournalConfig.model_validate({}) if config is None else config
        self._report = report
        self.journal: Journal | None = None

    def uses(self, config: JournalConfig) -> bool:
        """Whether the journal that is open is the one of these settings."""
        return self.journal is not None and self.journal.path == config.path.absolute()

    def queue(self, time_ns: Callable[[], int]) -> DurableQueue:
        """Return a queue for a durable handler; opens the journal for the first one."""
        from eventcore.durable import DurableQueue  # SQLite is not for those who need no journal
        from eventcore.journal import Journal
        from eventcore.journal_record import Replay

        if self.journal is None:
            self.journal = Journal(self.config, self._changed)
            self._replay = Replay(self._catalog)
        return DurableQueue(self._ledger, time_ns, self.journal, self._replay)

    def _changed(self, problem: Exception | None) -> None:
        self._report("journal", problem, "recovered" if problem is None else "failed")

    def deliver(self, deliver: Careful, route: Route, envelope: Envelope, cells: Cells) -> None:
        """Deliver an audit-class envelope and wait until it is committed, at most ``commit_timeout_s``.

        An operation that was abandoned does not wait, and one that failed does not raise: its own error goes on.
        """
        awaited = cells.awaited
        if (awaited is not None and awaited.envelope is envelope) or envelope.outcome == "abandoned":
            deliver(route, envelope, cells)  # emit_durable waits by itself
            return
        receipts = self._noting(envelope, lambda: deliver(route, envelope, cells))
        deadline = time.monotonic() + self.config.commit_timeout_s
        try:
            for receipt in receipts:
                receipt.wait(max(0.0, deadline - time.monotonic()))
        except NotDurable as error:
            self._count_or_raise(error, raises=envelope.outcome in (None, "success"))

    async def emit(self, deliver: Callable[[Route, Envelope], None], route: Route, envelope: Envelope) -> None:
        """Deliver an envelope of any class and wait likewise, without blocking the event loop."""
        receipts = self._noting(envelope, lambda: deliver(route, envelope))
        deadline = time.monotonic() + self.config.commit_timeout_s
        try:
            for receipt in receipts:
                await receipt.committed(max(0.0, deadline - time.monotonic()))
        except NotDurable as error:
            self._count_or_raise(error, raises=True)

    def _noting(self, envelope: Envelope, deliver: Callable[[], None]) -> list[Receipt]:
        cells = self._ledger.cells
        awaited = Awaited(envelope)
        before, cells.awaited = cells.awaited, awaited
        try:
            deliver()
        finally:
            cells.awaited = before
        if not awaited.receipts:
            raise ConfigurationError(
                f"no durable handler takes {envelope.name!r} here: give one delivery = 'durable' and a filter that "
                "admits it (a handler does not take what it emits itself while it handles)"
            )
        return awaited.receipts

    def _count_or_raise(self, error: NotDurable, *, raises: bool) -> None:
        self._ledger.cells.counts[self._ledger.unconfirmed] += 1
        if raises and self.config.on_not_durable == "raise":
            raise error

    def state(self) -> JournalState | None:
        """Return how the journal is, without waiting for it; None where there is none."""
        journal = self.journal
        if journal is None:
            return None
        return JournalState(journal.rows, journal.bytes, journal.fill, journal.dead, journal.problem is None)

    def close(self, timeout_s: float) -> str:
        """Close the journal; return what went wrong."""
        if self.journal is None or self.journal.close(timeout_s):
            return ""
        return f"the journal did not finish within {timeout_s:.2f} s"
