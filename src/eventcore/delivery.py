"""Queued delivery: a bounded queue and a worker per handler.

``put`` runs in the emitting thread: a length check, an append, and a wake-up only if the worker is idle. It takes no
lock, since emits may come from finalizers and signal handlers, so the capacity may be exceeded by as many envelopes as
threads emit at that instant. The worker lingers a little after it is woken, so that a stream of events costs few
wake-ups, then hands over small chunks and gives way between them. Its stop signal does not pass through the queue.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Union

from eventcore.envelope import Envelope
from eventcore.errors import PartialFailure
from eventcore.handler import Handler
from eventcore.operation import LiveOperation
from eventcore.timing import BATCH_BOUNDS_S, WAIT_BOUNDS_S, Times

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from eventcore.dispatch import Attachment
    from eventcore.ledger import Ledger
    from eventcore.recording import Bundle

__all__ = ["Barrier", "Queue"]

_event_type, _phase = attrgetter("event_type"), attrgetter("phase")
"""Of an envelope; counted without a line of Python per envelope."""

SLICE_S = 0.001
"""How long a worker goes on before it lets other threads run; a longer slice is felt as a pause by the callers."""


Item = Union["Envelope", "LiveOperation[Any]", "Bundle"]
"""What waits in a queue."""


class Barrier:
    """Stands in the queue behind what was accepted before a flush."""

    __slots__ = ("passed",)

    def __init__(self) -> None:
        self.passed = threading.Event()

    def keys_for(self, _handler: str) -> Sequence[tuple[str, str]]:
        """Return nothing: it is no envelope."""
        return ()


class Queue:
    """The queue and the worker of one handler."""

    is_durable: ClassVar[bool] = False
    backlog = 0
    """Envelopes that wait elsewhere: in the journal, for a durable handler."""

    def __init__(
        self,
        ledger: Ledger,
        time_ns: Callable[[], int] = time.time_ns,
        now_s: Callable[[], float] = time.perf_counter,
        give_way: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger = ledger
        self._time_ns = time_ns
        self._now_s = now_s
        self._give_way = give_way
        self._items: deque[Item | Barrier] = deque()
        self._ripe: list[Barrier] = []
        self._renew()
        self._closed = False
        self._stopping = False
        self._abandoned = False
        self._worker: threading.Thread | None = None

    def _renew(self) -> None:
        self._signal = threading.Lock()  # released = there is something to look at; see _wake
        self._signal.acquire()
        self._settling = threading.Lock()
        self._starting = threading.Lock()
        self._idle = True
        self._urgent = False
        self._in_flight: Sequence[Envelope] = ()
        self.waits = Times(WAIT_BOUNDS_S)
        self.batch_times = Times(BATCH_BOUNDS_S)

    def attach(self, attachment: Attachment) -> None:
        """Take the handler's limits; the worker starts with the first envelope."""
        config = attachment.handler.config
        self._attachment = attachment
        self._handler: Handler = attachment.handler
        self._name = attachment.name
        self._capacity = config.queue_size
        self._overflow = config.overflow
        self._block_timeout_s = config.block_timeout_s
        self._batch_size = config.batch_size
        self._linger_s = config.linger_s
        self._one_by_one = type(attachment.handler).handle_batch is Handler.handle_batch

    def begin(self) -> None:
        """Start with what waits from before, if anything does (the handler is attached now)."""

    # -- the emitting thread -----------------------------------------------------------------------------------------

    def put(self, envelope: Item) -> None:
        """Queue an envelope, an operation that has ended, or all of a recorded one, which takes one place."""
        if len(self._items) >= self._capacity:
            self._full(envelope)
            return
        self._items.append(envelope)
        if self._idle:
            self._wake()

    def put_urgent(self, envelope: Item) -> None:
        """Queue an envelope and have it handled at once."""
        self._urgent = True
        self.put(envelope)
        self._wake()

    def _wake(self) -> None:
        if self._worker is None and not self._start():
            return
        self._idle = False
        try:  # noqa: SIM105 - suppress() takes a microsecond, and callers wait for it
            self._signal.release()
        except RuntimeError:  # it was released already: the worker is about to look
            pass

    def _start(self) -> bool:
        if not self._starting.acquire(blocking=False):
            return True
        try:
            if self._worker is None and not self._closed:
                # Known before it runs: what its handler does may ask who the worker is.
                self._worker = threading.Thread(target=self._work, name=f"eventcore-{self._name}", daemon=True)
                self._worker.start()
        except RuntimeError:  # the interpreter is shutting down, or there are no threads to be had
            self._worker = None
            return False
        finally:
            self._starting.release()
        return True

    def _full(self, envelope: Item) -> None:
        self._wake()  # first: a drop is the last thing done, so that an interruption finds it counted or not begun
        if self._closed:
            self._drop(envelope, "shutdown")
        elif self._overflow == "drop_oldest":
            self._make_room()
            self._items.append(envelope)
        elif self._overflow == "block" and threading.current_thread() is not self._worker and self._wait_for_room():
            self._items.append(envelope)
        else:
            self._drop(envelope, "full")

    def _make_room(self) -> None:
        while len(self._items) >= self._capacity:
            try:
                oldest = self._items.popleft()
            except IndexError:
                return
            if isinstance(oldest, Barrier):
                self._ripe.append(oldest)
            else:
                self._drop(oldest, "full")

    def _wait_for_room(self) -> bool:
        deadline = time.monotonic() + self._block_timeout_s
        pause = 0.0005
        self._wake()
        while len(self._items) >= self._capacity and not self._closed:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        return not self._closed

    def _drop(self, item: Item, reason: str) -> None:
        *others, (event, phase) = item.keys_for(self._name)
        for other in others:
            self._ledger.count(self._name, *other, reason)
        # The last thing, and after no loop: its end is where an interruption would find it counted, and not done.
        self._ledger.count(self._name, event, phase, reason)

    # -- the worker --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        signal = self._signal
        while self._signal is signal:  # another one in a child that the handler has forked
            if not self._items and not self._ripe:
                if self._stopping:
                    return
                self._idle = True
                if not self._items and not self._stopping:
                    signal.acquire()
                self._idle = False
                if not self._items:
                    continue  # a second wake-up for what has been handled already
            if self._linger_s and not self._urgent and not self._stopping:
                signal.acquire(timeout=self._linger_s)
            self._urgent = False
            self._drain(signal)

    def _drain(self, signal: threading.Lock) -> None:
        while (self._items or self._ripe) and self._signal is signal:
            until = self._now_s() + SLICE_S
            while self._now_s() < until and (self._items or self._ripe):
                batch, barrier = self._take()
                if batch:
                    self._handle(batch)
                if barrier or self._ripe:
                    self._pass(barrier)
            self._give_way(0)

    def _take(self) -> tuple[list[Envelope], Barrier | None]:
        batch: list[Envelope] = []
        self._in_flight = batch
        append, popleft = batch.append, self._items.popleft
        with suppress(IndexError):
            for _ in range(self._batch_size):
                item = popleft()
                if item.__class__ is LiveOperation:
                    item = item.envelope()
                elif item.__class__ is not Envelope and not isinstance(item, Envelope):  # a replayed one is one, too
                    if isinstance(item, Barrier):
                        return batch, item
                    self._part(item, batch)  # type: ignore[arg-type]  # it is a bundle
                    if len(batch) >= self._batch_size:
                        break
                    continue
                append(item)
        return batch, None

    def _part(self, bundle: Bundle, batch: list[Envelope]) -> None:
        """Add what a recorded operation comes to; what is too much waits."""
        try:
            envelopes = bundle.envelopes_for(self._name)
        except BaseException:  # noqa: BLE001 - as in _prepare
            self._drop(bundle, "invalid")
        else:
            room = self._batch_size - len(batch)
            batch += envelopes[:room]
            self._items.extendleft(reversed(envelopes[room:]))

    def _handle(self, batch: list[Envelope]) -> None:
        self.waits.add(self._time_ns() - batch[0].time_ns)
        quarantine = self._attachment.quarantine
        permit = quarantine.breaker.try_acquire()
        if not permit:
            self._settle((), (), quarantined=batch)
            return
        invalid = self._prepare(batch)
        ready = [envelope for envelope in batch if envelope not in invalid] if invalid else batch
        if not ready:
            quarantine.breaker.release(permit)
            self._settle((), (), invalid=invalid)
            return
        cells = self._ledger.cells
        cells.handling = self._attachment  # so that it does not get what it emits; what finalizers emit besides it gets
        began = time.perf_counter_ns()
        failed, error = self._each(ready) if self._one_by_one else self._whole(ready)
        cells.handling = None
        self.batch_times.add(time.perf_counter_ns() - began)
        self._settle(ready, failed, invalid=invalid)
        if error is not None:
            quarantine.failed(error, permit)
        else:
            quarantine.succeeded(permit)

    def _prepare(self, batch: list[Envelope]) -> list[Envelope]:
        """Validate and redact; return the envelopes for which that is impossible."""
        invalid = []
        for envelope in batch:
            if envelope.is_redacted:
                continue
            try:
                envelope.redact()
            except BaseException:  # noqa: BLE001 - it is our thread: nobody else could use it; counted as invalid
                invalid.append(envelope)
        return invalid

    def _each(self, batch: list[Envelope]) -> tuple[frozenset[int], BaseException | None]:
        failed, first, handle = [], None, self._handler.handle
        for index, envelope in enumerate(batch):
            try:
                handle(envelope)
            except BaseException as error:  # noqa: BLE001 - it is our thread: nobody else could use it; counted, reported
                failed.append(index)
                first = first or error
        return frozenset(failed), first

    def _whole(self, batch: list[Envelope]) -> tuple[frozenset[int], BaseException | None]:
        try:
            self._handler.handle_batch(batch)
        except PartialFailure as error:
            return error.failed, error.cause
        except BaseException as error:  # noqa: BLE001 - it is our thread: nobody else could use it; counted, reported
            return frozenset(range(len(batch))), error
        return frozenset(), None

    def _settle(self, handled: Sequence[Envelope], failed: Collection[int], **others: Sequence[Envelope]) -> None:
        """Count what became of a batch: of those handled the indices that ``failed``, and others by their fate."""
        counts: Counter[tuple[str, str, str]] = Counter()
        for phase in (phases := set(map(_phase, handled))):  # one, as a rule
            of_phase = handled if len(phases) == 1 else [e for e in handled if e.phase == phase]
            for event_type, number in Counter[Any](map(_event_type, of_phase)).items():
                counts[event_type.__event__.name, phase, "delivered"] += number
        for index, envelope in enumerate(handled) if failed else ():
            if index not in failed:
                continue
            counts[envelope.name, envelope.phase, "delivered"] -= 1
            counts[envelope.name, envelope.phase, "failed"] += 1
        for fate, envelopes in others.items():
            counts.update((envelope.name, envelope.phase, fate) for envelope in envelopes)
        self._conclude(counts)

    def _conclude(self, counts: Counter[tuple[str, str, str]]) -> None:
        with self._settling:
            is_ours, self._in_flight = bool(self._in_flight), ()
            if self._abandoned or not is_ours:  # close() has counted it; or this is a child that its handler forked
                return
            for (event, phase, what), number in counts.items():
                self._ledger.count(self._name, event, phase, what, number)

    def _pass(self, barrier: Barrier | None) -> None:
        ripe, self._ripe = self._ripe, []
        self._ledger.cells.handling = self._attachment
        try:
            self._handler.flush()
        except BaseException as error:  # noqa: BLE001 - it is our thread: nobody else could use it; reported
            self._attachment.quarantine.failed(error)
        self._ledger.cells.handling = None
        for passed in (*ripe, *((barrier,) if barrier else ())):
            passed.passed.set()

    # -- control -----------------------------------------------------------------------------------------------------

    def holds(self, item: Item) -> bool:
        """Whether it waits here or is being handled."""
        return any(each is item for each in (*tuple(self._items), *self._in_flight))

    @property
    def depth(self) -> int:
        """Envelopes waiting or being handled."""
        return sum(len(item.keys_for(self._name)) for item in tuple(self._items)) + len(self._in_flight)

    @property
    def size(self) -> int:
        """Places taken, of ``capacity``: one by each envelope, or by all of a recorded operation."""
        return sum(not isinstance(item, Barrier) for item in tuple(self._items)) + len(self._in_flight)

    @property
    def capacity(self) -> int:
        """Places that there are."""
        return self._attachment.handler.config.queue_size

    def request_flush(self) -> Callable[[float], bool]:
        """Ask the worker to hand over all that waits; the result waits for it, up to the given seconds."""
        worker = self._worker
        if not self._items and (worker is None or not worker.is_alive()):
            return lambda _timeout_s: True
        if threading.current_thread() is worker:
            return lambda _timeout_s: False  # a handler that flushes itself must not wait for itself
        barrier = Barrier()
        self._items.append(barrier)
        self._urgent = True
        self._wake()
        return barrier.passed.wait

    def close(self, timeout_s: float) -> int:
        """Refuse new envelopes and hand over what waits; return how many envelopes were abandoned."""
        self._closed = True
        self._capacity = -1  # sends every put to _full
        self._stopping = True
        self._wake()
        # Another thread may be about to start it; or this one, if a signal handler closes: that cannot be waited for.
        if self._starting.acquire(timeout=max(0.05, timeout_s)):
            self._starting.release()
        worker = self._worker
        if worker is not None and worker.ident is not None and worker is not threading.current_thread():
            worker.join(timeout_s)
        return self._abandon()

    def _abandon(self) -> int:
        with self._settling:
            self._abandoned = True
            lost: list[Item] = list(self._in_flight)
            self._in_flight = ()
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                break
            if isinstance(item, Barrier):
                item.passed.set()
            else:
                lost.append(item)
        for item in lost:
            self._drop(item, "shutdown")
        return sum(len(item.keys_for(self._name)) for item in lost)

    def after_fork(self) -> None:
        """In a forked child: what waited here is the parent's to deliver; start empty, with a worker on demand."""
        self._items.clear()
        self._ripe.clear()
        self._worker = None
        self._renew()
