"""Handlers come and go: what an emitter does when one is attached, flushed, removed or closed.

The tuple of attachments is replaced whole, under a lock that no emit ever takes; whoever reads it has all or nothing of
a change. Everything that waits for a handler waits for a bounded time.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from eventcore.bounded_call import call_bounded
from eventcore.delivery import Queue
from eventcore.dispatch import Attachment
from eventcore.errors import ConfigurationError, EventCoreError
from eventcore.handler import Handler
from eventcore.isolation import Quarantine
from eventcore.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.emitter import Emitter
    from eventcore.isolation import Report
    from eventcore.ledger import Ledger

__all__ = ["Attachments"]

LEAST_S = 0.05
"""What a handler gets to end in, even when others have used up the time."""


class Attachments:
    """The handlers of one emitter, in the order in which they get an event."""

    def __init__(self, emitter: Emitter, ledger: Ledger, changed: Callable[[], None], report: Report) -> None:
        self.all: tuple[Attachment, ...] = ()
        self.changing = threading.RLock()
        self._flushed = 0
        self._emitter = emitter
        self._ledger = ledger
        self._changed = changed
        self._report = report

    def named(self, name: str) -> Attachment:
        """Return the attachment called ``name``; KeyError names those there are."""
        return self._found(name, next((a for a in self.all if a.name == name), None))

    def _found(self, wanted: Handler | str, found: Attachment | None) -> Attachment:
        if found is None:
            raise KeyError(f"no handler {wanted!r}; there are: {', '.join(a.name for a in self.all) or 'none'}")
        return found

    # -- coming ------------------------------------------------------------------------------------------------------

    def add(self, handler: Handler, name: str | None) -> None:
        """Attach a handler: events emitted from now on reach it."""
        if isinstance(handler, type) or not isinstance(handler, Handler):
            raise TypeError(f"add_handler takes an instance of ec.Handler, not {handler!r}")
        if not hasattr(handler, "config"):
            raise TypeError(f"{type(handler).__name__}.__init__ must call super().__init__()")
        with self.changing:
            handler.name = self._free_name(handler, name)
            attachment = self._attachment(handler)
            if attachment.queue is not None:
                attachment.queue.attach(attachment)
            handler.attached(self._emitter)
            self.all = (*self.all, attachment)
            self._changed()
            if attachment.queue is not None:
                attachment.queue.begin()

    def _free_name(self, handler: Handler, name: str | None) -> str:
        taken = {attachment.name for attachment in self.all}
        if name and name in taken:
            raise ConfigurationError(f"a handler named {name!r} is attached already; remove it first")
        free = wanted = name or handler.name or handler.kind or type(handler).__name__
        number = 2
        while free in taken:
            free, number = f"{wanted}_{number}", number + 1
        return free

    def _attachment(self, handler: Handler) -> Attachment:
        emitter = self._emitter
        quarantine = Quarantine(
            handler.name, self._ledger, lambda: emitter.clock.monotonic_ns() / 1e9, self._changed, self._report
        )
        delivery = handler.config.delivery or handler.delivery
        queue: Queue | None = None
        if delivery == "durable":
            queue = emitter.durability.queue(emitter.time_ns)
        elif delivery == "queued":
            queue = Queue(self._ledger, emitter.time_ns)
        sampler = Sampler(handler.config, emitter.ids, emitter.monotonic_ns)
        return Attachment(handler.name, handler, queue, quarantine, sampler)

    # -- going -------------------------------------------------------------------------------------------------------

    def remove(self, handler: Handler | str, timeout_s: float) -> int:
        """Detach a handler, deliver what it had accepted, close it; return how many envelopes were abandoned."""
        with self.changing:
            found = self._found(handler, next((a for a in self.all if handler in (a.handler, a.name)), None))
            self.all = tuple(a for a in self.all if a is not found)
            self._changed()
        lost, problem = self.close(found, time.monotonic() + timeout_s)
        if problem:
            raise EventCoreError(f"handler {found.name!r} was removed, but closing it went wrong: {problem}")
        return lost

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was accepted before is handed over; False if that took longer than ``timeout_s``.

        That includes what handlers, and the bus about them, emit meanwhile: it may come behind the barrier of a queue
        that was passed already. So there is another round if the bus's threads have emitted since the one before began
        (what was counted then is in its queue when this round is over), as often as there are handlers to pass it on.
        """
        deadline = time.monotonic() + timeout_s
        before = begun = self._flushed
        for _ in range(len(self.all) + 2):
            begun = self._ledger.emitted_by_workers()
            if not self._flush_once(deadline):
                return False
            if self._ledger.emitted_by_workers() == before:
                break
            before = begun
        self._flushed = begun
        return True

    def _flush_once(self, deadline: float) -> bool:
        waits = [a.queue.request_flush() for a in self.all if a.queue is not None]
        done = [wait(max(0.0, deadline - time.monotonic())) for wait in waits]
        for attachment in self.all:
            if attachment.queue is None:
                problem = call_bounded(attachment.handler.flush, max(LEAST_S, deadline - time.monotonic()))
                if problem:
                    attachment.quarantine.failed(EventCoreError(f"flush: {problem}"))
                    done.append(False)
        return all(done)

    def close(self, attachment: Attachment, deadline: float) -> tuple[int, str]:
        """Close one handler by ``deadline``; return how many envelopes were abandoned, and what went wrong."""
        attachment.is_closed = True
        self._changed()
        self.hurry(attachment)
        lost = attachment.queue.close(max(LEAST_S, deadline - time.monotonic())) if attachment.queue is not None else 0
        return lost, call_bounded(attachment.handler.close, max(LEAST_S, deadline - time.monotonic()))

    @staticmethod
    def hurry(attachment: Attachment) -> None:
        """Tell a handler that the end is near."""
        try:
            attachment.handler.closing()
        except Exception as error:  # noqa: BLE001 - isolation is the point; it is reported
            attachment.quarantine.failed(error)

    def after_fork(self) -> None:
        """Start anew in a forked child: a fresh lock, empty queues."""
        self.changing = threading.RLock()
        for attachment in self.all:
            if attachment.queue is not None:
                attachment.queue.after_fork()
