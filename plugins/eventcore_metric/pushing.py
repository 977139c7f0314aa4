"""Pushing readings over OTLP: a thread that reads and sends at an interval, and once more at the end.

What fails is reported once, by an event, and again when it works; nothing is lost by it as long as the process lives,
since totals are cumulative (and deltas go back to the last export that arrived).
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from eventcore.errors import EventCoreError
from eventcore_metric.events import ExportChanged
from eventcore_metric.otlp import Encoder
from eventcore_otlp import Frame, resource_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from eventcore.emitter import Emitter
    from eventcore_metric.readings import Reading
    from eventcore_otlp import Transport

__all__ = ["Pusher"]

MAX_REQUEST = 2_000_000
"""Bytes of metrics per request; gRPC receivers take 4 MB by default."""


class Pusher:
    """Reads and sends; ``push`` may be called by anybody, beside its own thread."""

    def __init__(
        self,
        name: str,
        emitter: Emitter,
        read: Callable[[], list[Reading]],
        transport: Transport,
        *,
        interval_s: float,
        is_delta: bool,
    ) -> None:
        self.interval_s = interval_s
        self.exports = 0
        self.failures = 0
        self.rejected = 0
        self.problem = ""
        self._name = name
        self._emitter = emitter
        self._read = read
        self._transport = transport
        self._is_delta = is_delta
        self.start()

    def start(self) -> None:
        """Start, at first and in a forked child, where nothing has been counted yet."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._encoder = Encoder(is_delta=self._is_delta, start_ns=time.time_ns())
        resource = resource_attributes(self._emitter.resource, os.getpid())
        # Processes of one service are told apart by it: their totals are not one series.
        self._frame = Frame({"service.instance.id": str(uuid.uuid4()), **resource})
        self._thread = threading.Thread(target=self._work, name=f"eventcore-{self._name}-push", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stopping.wait(self.interval_s):
            self.push()

    def push(self) -> bool:
        """Read and send everything now; False if it did not arrive."""
        with self._lock:
            problem = self._push()
        if bool(problem) != bool(self.problem):
            if problem:
                self._emitter.announce(ExportChanged(handler=self._name, what="failed", reason=problem))
            else:
                self._emitter.emit(ExportChanged(handler=self._name, what="recovered", reason="-"), severity="info")
        self.problem = problem
        return not problem

    def _push(self) -> str:
        """Send everything, in requests of bounded size; return what went wrong."""
        try:
            items = self._encoder.encode(self._read(), time.time_ns())
            for batch in _batches(items):
                self.rejected += self._transport.send(self._frame.request(batch)).rejected
        except EventCoreError as error:
            self.failures += 1
            return str(error)
        self._encoder.sent()
        self.exports += 1
        return ""

    def hurry(self, grace_s: float) -> None:
        """Learn that the end is near: what is being sent gets ``grace_s`` more."""
        self._stopping.set()
        self._transport.hurry(grace_s)

    def close(self) -> None:
        """Send a last time, and stop."""
        self._stopping.set()
        self.push()
        self._transport.close()
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def describe(self) -> dict[str, Any]:
        """Return where it pushes to, how often, and how that goes."""
        return {
            **self._transport.describe(),
            "interval_s": self.interval_s,
            "temporality": "delta" if self._is_delta else "cumulative",
            "exports": self.exports,
            "failures": self.failures,
            **({"rejected": self.rejected} if self.rejected else {}),
            **({"problem": self.problem} if self.problem else {}),
        }


def _batches(items: Iterable[bytes]) -> Iterable[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for item in items:
        if batch and size + len(item) > MAX_REQUEST:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield batch
