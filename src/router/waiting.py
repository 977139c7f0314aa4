"""Requests that wait for feedback, on their way into the history's file.

Feedback may come to another process than the one that routed, or to the same one started anew, so the requests that
wait are rows of the history. But a commit costs more than routing does: `Pending.add` puts the request into a
dictionary, and a thread writes what has gathered in the last `LINGER_S`, in one transaction. Until it is written, a
request is known to its own process alone, and a crash loses it. What cannot be written is tried again; the newest
`MOST` are kept meanwhile.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from router.errors import HistoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["LINGER_S", "Open", "Pending"]

LINGER_S = 0.05
AFTER_FAILURE_S = 1.0
MOST = 10_000


class Open(NamedTuple):
    """A request that may get feedback."""

    ids: Sequence[str]
    expected: Array
    """The quality that was expected of each candidate, (candidates,)."""
    chosen: int
    """The place of the one that was chosen."""
    need: float | None
    """Of the dear one of two candidates, where the policy is a guarantee."""
    cheap: int | None
    """The place of the cheap one, likewise."""


class Pending:
    """What gathers until ``write`` has written it; safe to share between threads, empty in a forked child.

    ``write`` takes requests by id and raises HistoryError when it cannot; ``settled`` is called after each attempt. The
    thread starts with the first request and ends with `close`; at the end of the process what is left is written.
    """

    def __init__(self, write: Callable[[Mapping[str, Open]], None], settled: Callable[[], None]) -> None:
        self._write = write
        self._settled = settled
        self.lost = 0
        """Requests that made room for newer ones, or whose id was used again, before they were written."""
        self._reset()
        _ALL.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closing = threading.Lock()
        self._gathered: dict[str, Open] = {}
        self._taken: dict[str, Open] = {}
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.trouble: HistoryError | None = None

    def add(self, request_id: str, request: Open) -> None:
        """Take a request in; one of the same id, or of too many the oldest, is lost."""
        with self._lock:
            if self._gathered.pop(request_id, None) is not None:
                self.lost += 1
            self._gathered[request_id] = request
            if len(self._gathered) > MOST:
                del self._gathered[next(iter(self._gathered))]
                self.lost += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="router-history", daemon=True)
                self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def get(self, request_id: str) -> Open | None:
        """Return a request that is not written yet."""
        with self._lock:
            return self._gathered.get(request_id) or self._taken.get(request_id)

    def drop(self, request_id: str) -> None:
        """Forget a request that had its feedback."""
        with self._lock:
            self._gathered.pop(request_id, None)

    def flush(self) -> None:
        """Write what has gathered, now; HistoryError when that cannot be done, and then it stays."""
        try:
            self._flush()
        finally:
            self._settled()

    def _flush(self) -> None:
        with self._writing:
            with self._lock:
                self._taken, self._gathered = self._gathered, {}
            if not self._taken:
                return
            try:
                self._write(self._taken)
                self.trouble = None
            except Exception as error:
                self.trouble = error if isinstance(error, HistoryError) else HistoryError(f"a fault of ours: {error!r}")
                if not isinstance(error.__cause__, sqlite3.OperationalError):  # no second attempt would go better
                    self.lost += len(self._taken)
                    raise self.trouble from error.__cause__ or error
                with self._lock:
                    both = {**self._taken, **self._gathered}
                    self.lost += len(self._taken) + len(self._gathered) - min(len(both), MOST)
                    self._gathered = dict(list(both.items())[-MOST:])
                raise
            finally:
                self._taken = {}

    def close(self) -> None:
        """Write what is left and end the thread; HistoryError when that cannot be done."""
        with self._closing:
            thread = self._thread
            if thread is not None:
                self._closed.set()
                self._wake.set()
                thread.join()
                with self._lock:  # what comes from now on starts another
                    self._thread = None
                    self._closed.clear()
        self.flush()

    def __len__(self) -> int:
        """Return how many are not written yet."""
        return len(self._gathered) + len(self._taken)

    def __repr__(self) -> str:
        """Show how many there are, and why they are not written."""
        return f"Pending({len(self)} to be written{f', trouble: {self.trouble}' if self.trouble else ''})"

    def _work(self) -> None:
        while not self._closed.is_set():
            self._wake.wait()
            self._closed.wait(LINGER_S if self.trouble is None else AFTER_FAILURE_S)
            self._wake.clear()
            try:
                self.flush()
            except HistoryError:  # it is kept as the trouble, which the health check shows
                self._wake.set()


_ALL: weakref.WeakSet[Pending] = weakref.WeakSet()


def _after_fork() -> None:
    for pending in list(_ALL):
        pending._reset()  # noqa: SLF001 - the thread is the parent's, and it writes what has gathered there


def _at_exit() -> None:
    for pending in list(_ALL):
        with suppress(HistoryError):
            pending.flush()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
