"""Durable delivery: a handler's queue leads into the journal, and a second worker hands over from there.

``put`` and the bounded memory queue are those of queued delivery, so order and overflow are the same; the worker writes
its batches to the journal instead of calling the handler. The other worker reads from the handler's cursor, calls the
handler, and moves the cursor only after success: at least once, across restarts. A failed batch stays at the head and
is tried again, after growing pauses and while quarantine lasts not at all.

A handler that is down must lose nothing, and one envelope that it can never handle must not hold up all others. What
tells them apart is whether an envelope behind the failing one gets through. So a batch that goes on failing is handed
over one by one; a head that has failed ``max_attempts`` times is compared with its successor, and if that succeeds, the
head becomes a dead letter: kept in the journal, counted as ``dead_letter`` and reported. One that fails for longer than
``give_up_after_s`` becomes one in any case.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from eventcore.delivery import Barrier, Queue
from eventcore.errors import EventCoreError, NotDurable
from eventcore.journal_receipt import Receipt
from eventcore.journal_record import record
from eventcore.redaction import scrub_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventcore.dispatch import Attachment
    from eventcore.envelope import Envelope
    from eventcore.journal import Journal, JournalRow
    from eventcore.journal_record import Replay
    from eventcore.ledger import Ledger

__all__ = ["DurableQueue"]

RETRY_S = (0.05, 5.0)
"""Shortest and longest pause before a failed batch is tried again; doubled with each failure in a row."""

WHOLE_ATTEMPTS = 3
"""How often a batch is tried as a whole before its envelopes are tried one by one, to find the one that fails."""

POLL_S = 0.5
"""How long a pause lasts at most before the breaker (its clock may be injected) or a broken journal is asked again."""

Held = list[tuple["JournalRow", "Envelope"]]


class DurableQueue(Queue):
    """The queue, the way through the journal and the workers of one durable handler."""

    is_durable: ClassVar[bool] = True

    def __init__(self, ledger: Ledger, time_ns: Callable[[], int], journal: Journal, replay: Replay) -> None:
        super().__init__(ledger, time_ns)
        self._journal = journal
        self._replay = replay
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._receipts: dict[Envelope, Receipt] = {}
        self._news = threading.Event()
        self._flushes: list[tuple[int, Barrier]] = []
        self._deliverer: threading.Thread | None = None
        self._is_ending = False
        self._is_given_up = False
        self._stored = 0  # rows of this handler that came into the journal, and those that it has handled
        self._handled = 0
        self._last_stored = 0
        self._position = 0
        self._batch_end = 0
        self._failures = 0
        self._suspect = 0  # up to this position envelopes are handed over one by one
        self._trouble: dict[int, tuple[int, float]] = {}  # by position: how often it failed, and since when
        self._last_receipt: Receipt | None = None

    def attach(self, attachment: Attachment) -> None:
        """Take the handler's limits, and count what an earlier run left for it."""
        super().attach(attachment)
        self._max_attempts = self._journal.config.max_attempts
        self._give_up_after_s = self._journal.config.give_up_after_s
        self._position = self._journal.cursor(self._name)
        self._last_stored = max(self._position, self._journal.last(self._name))  # a flush waits for leftovers, too
        waiting = self._journal.waiting(self._name)
        self._stored = waiting.total()
        if self._journal.is_first_use(self._name):
            for (event, phase), number in waiting.items():
                self._ledger.count(self._name, event, phase, "recovered", number)

    def begin(self) -> None:
        """Start to hand over the leftovers of an earlier run, if there are any."""
        if self.backlog:
            self._start_delivering()

    @property
    def backlog(self) -> int:  # type: ignore[override]  # a constant there
        """Envelopes that are in the journal and not handled yet."""
        return self._stored - self._handled

    # -- the emitting thread -----------------------------------------------------------------------------------------

    def put(self, envelope: Envelope) -> None:  # type: ignore[override]  # it gets no bundles
        """Queue an envelope; if its emit awaits the commit, make a receipt and wake the worker at once."""
        awaited = self._ledger.cells.awaited
        if awaited is None or awaited.envelope is not envelope:
            super().put(envelope)
            return
        receipt = Receipt()
        awaited.receipts.append(receipt)
        if threading.current_thread() is self._worker:  # of a finalizer: nobody else could commit it meanwhile
            receipt.set_exception(NotDurable(f"{envelope.name}: emitted in the thread that would have to commit it"))
            super().put(envelope)
            return
        self._receipts[envelope] = receipt
        self._urgent = True
        super().put(envelope)
        self._wake()

    def _drop(self, envelope: Envelope, reason: str) -> None:  # type: ignore[override]  # as in put
        super()._drop(envelope, reason)
        self._refuse(envelope, f"it was dropped by handler {self._name!r} with reason {reason!r}")

    def _refuse(self, envelope: Envelope, why: str) -> None:
        receipt = self._receipts.pop(envelope, None)
        if receipt is not None:
            receipt.set_exception(NotDurable(f"{envelope.name}: {why}"))

    # -- into the journal --------------------------------------------------------------------------------------------

    def _handle(self, batch: list[Envelope]) -> None:
        invalid = set(self._prepare(batch))
        refused: list[tuple[Envelope, str, str]] = [(envelope, "invalid", "it is not valid") for envelope in invalid]
        kept, rows = [], []
        limit = self._journal.config.max_event_bytes
        self._ledger.cells.handling = self._attachment  # a serializer that emits would feed its own queue for ever
        for envelope in batch:
            if envelope in invalid:
                continue
            try:
                row = record(envelope)
            except Exception as error:  # noqa: BLE001 - a field's own serializer may raise anything; counted as invalid
                refused.append((envelope, "invalid", f"it cannot be written as JSON ({type(error).__name__})"))
                continue
            if len(row.envelope) > limit:
                refused.append((envelope, "too_large", f"{len(row.envelope)} bytes are more than {limit}"))
                continue
            kept.append(envelope)
            rows.append(row)
        self._ledger.cells.handling = None
        committed = self._store(kept, rows, refused)
        counts = Counter((envelope.name, envelope.phase, outcome) for envelope, outcome, _ in refused)
        self._conclude(counts)
        for envelope, _, why in refused:
            self._refuse(envelope, why)
        for envelope in committed:
            receipt = self._receipts.pop(envelope, None)
            if receipt is not None:
                receipt.set_result(self._last_stored)
        if committed:
            self._start_delivering()

    def _store(
        self, kept: list[Envelope], rows: list[JournalRow], refused: list[tuple[Envelope, str, str]]
    ) -> Sequence[Envelope]:
        if not rows:
            return ()
        receipt = self._journal.append(self._name, rows)
        room = receipt.accepted
        refused.extend(
            (envelope, "full", "the journal is full (journal.max_rows, max_bytes)") for envelope in kept[room:]
        )
        try:
            position = receipt.wait()
        except NotDurable as error:
            refused.extend((envelope, "failed", str(error)) for envelope in kept[:room])
            return ()
        if room:
            self._last_stored = position
            self._stored += room
        return kept[:room]

    def _pass(self, barrier: Barrier | None) -> None:
        """Let a flush wait for the handler too: for what is in the journal by now."""
        ripe, self._ripe = self._ripe, []
        self._flushes.extend((self._last_stored, passed) for passed in (*ripe, *((barrier,) if barrier else ())))
        self._start_delivering()

    # -- out of the journal ------------------------------------------------------------------------------------------

    def _start_delivering(self) -> None:
        self._news.set()
        with self._starting:
            if self._deliverer is None and not self._is_ending:
                name = f"eventcore-{self._name}-durable"
                self._deliverer = threading.Thread(target=self._deliver, args=(self._news,), name=name, daemon=True)
                self._deliverer.start()

    def _deliver(self, news: threading.Event) -> None:
        self._ledger.cells.handling = self._attachment
        held: Held = []
        while self._news is news:  # another one after a fork
            news.clear()
            held = held or self._next()
            if held:
                held = self._hand_over(held)
                if held and self._is_ending:
                    return  # it stays in the journal
            else:
                if self._is_ending:
                    return
                if not self._has_flushed():
                    news.wait(None if self._journal.problem is None else POLL_S)
                    self._journal.reopen(at_once=False)

    def _next(self) -> Held:
        held = self._read(self._position)
        if not held and self._batch_end > self._position:
            self._move_to(self._batch_end)
        return held

    def _read(self, after: int) -> Held:
        """Return the next rows behind a position that can be read as envelopes."""
        held: Held = []
        while not held and (rows := self._journal.read(self._name, after, self._batch_size)):
            for row in rows:
                try:
                    held.append((row, self._replay.envelope(row)))
                except Exception:  # noqa: BLE001 - written by another version, perhaps; it must not stop what follows
                    self._ledger.count(self._name, row.event, row.phase, "invalid")
                    self._handled += 1
            after = self._batch_end = rows[-1].position
        return held

    def _move_to(self, position: int) -> None:
        if position > self._position:
            self._position = position
            self._last_receipt = self._journal.acknowledge(self._name, position)
            if self._trouble:
                self._trouble = {at: what for at, what in self._trouble.items() if at > position}

    def _hand_over(self, held: Held) -> Held:
        """Have the handler handle a batch; return what is left to be handed over."""
        quarantine = self._attachment.quarantine
        permit = quarantine.breaker.try_acquire()
        if not permit:
            self._pause(min(max(quarantine.breaker.retry_after_s, RETRY_S[0]), POLL_S))
            return held
        if not self._failures:
            self.waits.add(self._time_ns() - held[0][1].time_ns)
        most = 1 if held[0][0].position <= self._suspect else len(held)
        now, later = held[:most], held[most:]
        left, error = self._handle_some(now)
        if left is None:  # close() left this batch to the next run
            return held
        left += later
        if error is not None and left and self._trouble.get(left[0][0].position, (0, 0.0))[0] >= self._max_attempts:
            left, error = self._look_past(left, error)
        self._move_to(left[0][0].position - 1 if left else self._batch_end)
        if error is None:
            self._failures = 0
            quarantine.succeeded(permit)
        else:
            self._failures += 1
            if self._failures == WHOLE_ATTEMPTS:
                self._suspect = now[-1][0].position
            quarantine.failed(error, permit)
            self._pause(min(RETRY_S[0] * 2 ** min(self._failures - 1, 10), RETRY_S[1]) if left else 0)
        if not left and self._flushes:
            self._has_flushed()
        return left

    def _handle_some(self, now: Held) -> tuple[Held | None, BaseException | None]:
        """Have these handled, and count; return those that failed (None: nobody asks any more) and why."""
        batch, news = [envelope for _, envelope in now], self._news
        began = time.perf_counter_ns()
        failed, error = self._each(batch) if self._one_by_one else self._whole(batch)
        self.batch_times.add(time.perf_counter_ns() - began)
        again = [pair for index, pair in enumerate(now) if index in failed]
        if again and (self._one_by_one or len(again) < len(now) or len(now) == 1):  # else nobody knows which it was
            number, since = self._trouble.get(again[0][0].position, (0, time.monotonic()))
            self._trouble[again[0][0].position] = (number + 1, since)
        with self._settling:
            if self._is_given_up or self._news is not news:  # or the handler has forked, and this is the child
                return None, error
            counts = Counter((e.name, e.phase) for index, e in enumerate(batch) if index not in failed)
            for (event, phase), number in counts.items():
                self._ledger.count(self._name, event, phase, "delivered", number)
            self._handled += counts.total()
        return again, error

    # -- what always fails -------------------------------------------------------------------------------------------

    def _look_past(self, held: Held, error: BaseException) -> tuple[Held, BaseException | None]:
        """Try what comes behind a head that failed too often; if that succeeds, what failed before it is set aside."""
        if len(held) == 1:
            held += self._read(self._batch_end)
        for index in range(1, len(held)):
            left, problem = self._handle_some(held[index : index + 1])
            if left is None:
                return held, error
            if not left:
                if self._set_aside(held[:index], error):
                    return held[index + 1 :], None
                return held[:index] + held[index + 1 :], error
            error = problem or error
            if self._trouble[held[index][0].position][0] < self._max_attempts:
                break
        if time.monotonic() - self._trouble[held[0][0].position][1] > self._give_up_after_s:
            held = held[1:] if self._set_aside(held[:1], error) else held
        return held, error

    def _set_aside(self, held: Held, error: BaseException) -> bool:
        """Make dead letters of envelopes; False where the journal cannot be written."""
        reason = scrub_text(f"{type(error).__name__}: {error}")
        try:
            self._journal.set_aside([row.position for row, _ in held], reason).wait()
        except NotDurable:
            return False
        for row, _ in held:
            self._ledger.count(self._name, row.event, row.phase, "dead_letter")
            self._handled += 1
            attempts, _ = self._trouble.get(row.position, (0, 0.0))
            what = f"{row.event} {row.id} was set aside as a dead letter after {attempts} failures ({reason})"
            self._attachment.quarantine.set_aside(EventCoreError(what))
        return True

    def _each(self, batch: list[Envelope]) -> tuple[frozenset[int], BaseException | None]:
        """Handle one by one, up to the first that fails: what follows it must not overtake it."""
        handle = self._handler.handle
        for index, envelope in enumerate(batch):
            try:
                handle(envelope)
            except BaseException as error:  # noqa: BLE001 - it is our thread: nobody else could use it; it is retried
                return frozenset(range(index, len(batch))), error
        return frozenset(), None

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_ending and (left := until - time.monotonic()) > 0:
            self._news.clear()
            if not self._is_ending:
                self._news.wait(left)

    def _has_flushed(self) -> bool:
        """Flush the handler for those who wait for a position that it has reached; return whether there were any."""
        due = [entry for entry in self._flushes.copy() if entry[0] <= self._position]
        if not due:
            return False
        try:
            self._handler.flush()
        except BaseException as error:  # noqa: BLE001 - it is our thread: nobody else could use it; reported
            self._attachment.quarantine.failed(error)
        for entry in due:
            self._flushes.remove(entry)
            entry[1].passed.set()
        return True

    # -- control -----------------------------------------------------------------------------------------------------

    def request_flush(self) -> Callable[[float], bool]:
        """Ask for all that waits, in memory and in the journal, to be handled; the result waits for it."""
        if threading.current_thread() in (self._worker, self._deliverer):
            return lambda _timeout_s: False  # a handler that flushes itself must not wait for itself
        if self._closed or (self._worker is None and self._deliverer is None):
            return lambda _timeout_s: not self.backlog
        barrier = Barrier()
        self._items.append(barrier)
        self._urgent = True
        self._wake()
        return barrier.passed.wait

    def close(self, timeout_s: float) -> int:
        """Refuse new envelopes, store what waits, hand over what time allows; return how many were abandoned.

        What stays in the journal is not abandoned: the next run of the handler begins with it.
        """
        deadline = time.monotonic() + timeout_s
        lost = super().close(timeout_s)
        with self._starting:
            self._is_ending = True
            deliverer = self._deliverer
        self._news.set()
        if deliverer is not None and deliverer is not threading.current_thread():
            deliverer.join(max(0.05, deadline - time.monotonic()))
        with self._settling:
            self._is_given_up = True
        receipt = self._last_receipt
        if receipt is not None:
            with suppress(NotDurable):  # handled, and not acknowledged: the next run hands it over again
                receipt.wait(max(0.05, deadline - time.monotonic()))
        for _, barrier in self._flushes:
            barrier.passed.set()
        return lost

    def after_fork(self) -> None:
        """In a forked child: what waits in memory and in the journal is the parent's to deliver; start empty."""
        self._receipts.clear()
        super().after_fork()
        self._begin_anew()
