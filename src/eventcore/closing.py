"""Shutdown: once, in bounded time, with a report; whoever else asks waits for that report."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from eventcore.attaching import LEAST_S
from eventcore.last_resort import say_plainly
from eventcore.shutdown_report import ShutdownReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.attaching import Attachments
    from eventcore.emitter import Emitter

__all__ = ["Closing"]


class Closing:
    """The end of one emitter."""

    def __init__(self, emitter: Emitter, attachments: Attachments) -> None:
        self._emitter = emitter
        self._attachments = attachments
        self._has_begun = False
        self._thread = 0
        self._done = threading.Event()
        self._report: ShutdownReport | None = None
        self.before: list[Callable[[], None]] = []
        self._stopped: list[Callable[[], None]] = []

    def shutdown(self, timeout_s: float) -> ShutdownReport:
        """Shut down, or wait for the thread that does."""
        with self._attachments.changing:
            is_first, self._has_begun = not self._has_begun, True
        if not is_first and self._thread == threading.get_ident() and self._report is None:
            return ShutdownReport({}, 0, ("called by a signal handler during shutdown, which goes on",))
        if is_first:
            self._thread = threading.get_ident()
            try:
                self._report = self._shut_down(time.monotonic() + timeout_s)
            except BaseException:  # Ctrl-C, most likely: whoever asks next, atexit perhaps, goes on with the rest
                self._has_begun = False
                raise
            self._done.set()
        else:
            self._done.wait(timeout_s)
        return self._report or ShutdownReport({}, 0, ("another thread is still shutting down",))

    def _shut_down(self, deadline: float) -> ShutdownReport:
        emitter, attachments = self._emitter, self._attachments
        operations = sum(operation.abandon(is_misuse=False) for operation in emitter.open_operations())
        errors = []
        for stop in reversed([stop for stop in self.before if stop not in self._stopped]):
            try:
                stop()
            except Exception as error:  # noqa: BLE001 - the others must still be stopped
                errors.append(repr(error))
            self._stopped.append(stop)
        lost = {}
        for attachment in attachments.all:
            attachments.hurry(attachment)
        for attachment in attachments.all:
            lost[attachment.name], problem = attachments.close(attachment, deadline)
            if problem:
                errors.append(f"{attachment.name}: {problem}")
        problem = emitter.durability.close(max(LEAST_S, deadline - time.monotonic()))
        if problem:
            errors.append(problem)
        kept = {a.name: a.queue.backlog for a in attachments.all if a.queue is not None and a.queue.backlog}
        report = ShutdownReport(lost, operations, tuple(errors), kept)
        if report.loss:
            say_plainly("ERROR", "eventcore.stopped", f"shutdown did not finish: {report.loss}")
        return report

    def after_fork(self) -> None:
        """Start anew in a forked child: a thread of the parent's may have been waiting, or at it, and goes on there."""
        self._done = threading.Event()
        if self._report is None and self._thread != threading.get_ident():
            self._has_begun = False
