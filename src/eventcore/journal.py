"""The journal: the one durable store of the bus, a SQLite file in WAL mode with ``synchronous=FULL``.

A row is one envelope for one handler; a handler's cursor is the position it has acknowledged, and what it has
acknowledged is deleted with the same commit. One thread writes: whatever has come in while a commit was on its way to
the disk shares the next one (group commit), and acknowledgements alone wait a little for rows to go with. A receipt
resolves after the commit, never before.

A failed write poisons the journal: on Linux an fsync that failed may succeed when repeated although data is lost. So
the connection is given up, everything waiting is refused, and after a pause the file is opened afresh and verified.

The file belongs to one process, by a lock on ``<path>.lock``. SQLite connections must not cross a fork: the child
leaves its parent's alone (not even closing it) and opens ``<path>.fork-<pid>`` when it first needs a journal; the next
start of the parent's program takes over what such children left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import threading
import time
import weakref
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventcore import journal_dead
from eventcore.errors import ConfigurationError, NotDurable
from eventcore.journal_commit import COLUMNS, Acknowledge, Append, Committed, Entry, JournalRow, SetAside, transact
from eventcore.journal_file import OpenFile, connect, damaged, lock, lock_path, remove
from eventcore.journal_receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventcore.journal_config import JournalConfig

__all__ = ["Journal", "JournalRow", "Receipt"]

GROUP = 100
"""Rows after which a commit takes no further entries: larger groups gain nothing and delay the first (measured)."""

ACK_LINGER_S = 0.01
"""How long acknowledgements wait for rows to share their commit with."""

RETRY_S = (1.0, 60.0)
"""Shortest and longest pause before a poisoned journal is opened afresh; doubled after each failure."""


class Journal:
    """Appends rows, reads them back by handler, and forgets what a handler has acknowledged.

    ``report`` is called with an error when the journal is poisoned, and with None when it is well again. Raises
    ConfigurationError where the file is none of ours, damaged, or in use by another process.
    """

    def __init__(
        self,
        config: JournalConfig,
        report: Callable[[Exception | None], None] = lambda _: None,
        open_file: OpenFile = sqlite3.connect,
    ) -> None:
        self.config = config
        self._open_file = open_file
        self.path = Path(config.path).absolute()
        self.problem: Exception | None = None
        self._report = report
        self._renew()
        self._is_closed = False
        self._users: set[str] = set()
        self._open()
        try:
            self._adopt_orphans()
        except BaseException:
            self.close()
            raise
        _JOURNALS.add(self)

    def _renew(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._locked: int | None = None
        self._using = threading.Lock()  # held around every use of the connection; see before_fork
        self._work = threading.Condition(threading.Lock())
        self._entries: deque[Entry] = deque()
        self._group: Sequence[Entry] = ()
        self._writer: threading.Thread | None = None
        self._is_stopping = False
        self._rows = 0
        self._bytes = 0
        self._last = 0
        self.dead = 0
        self._retry_at = 0.0
        self._pause_s = RETRY_S[0]

    # -- for writers -------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Envelopes that are in the journal or on their way into it."""
        return self._rows

    @property
    def bytes(self) -> int:
        """Bytes of these envelopes."""
        return self._bytes

    @property
    def fill(self) -> float:
        """How full it is, from 0 to 1: the share of ``max_rows`` or of ``max_bytes``, whichever is larger."""
        return max(self._rows / self.config.max_rows, self._bytes / self.config.max_bytes)

    def append(self, handler: str, rows: Sequence[JournalRow]) -> Receipt:
        """Have rows stored for a handler, in order; the receipt resolves to the last one's position.

        ``receipt.accepted`` says how many had room; the rest is refused. The receipt fails with NotDurable when the
        journal is closed or cannot be written.
        """
        with self._work:
            rows = rows[: self._room(rows)]
            receipt = Receipt(len(rows))
            if self._is_closed:
                receipt.set_exception(NotDurable(f"the journal {self.path} is closed"))
            elif not rows:
                receipt.set_result(self._last)
            else:
                self._enter(Append(handler, rows, receipt))
        return receipt

    def _room(self, rows: Sequence[JournalRow]) -> int:
        number, size = self._rows, self._bytes
        for index, row in enumerate(rows):
            number += 1
            size += len(row.envelope)
            if number > self.config.max_rows or size > self.config.max_bytes:
                return index
        return len(rows)

    def acknowledge(self, handler: str, position: int) -> Receipt:
        """Move a handler's cursor: what it has up to ``position`` will not be read again, and is deleted."""
        return self._order(Acknowledge(handler, position, Receipt(0)))

    def set_aside(self, positions: Sequence[int], reason: str) -> Receipt:
        """Make dead letters of the rows at these positions: no handler reads them again, ``dead_letters`` does."""
        return self._order(SetAside(positions[-1], positions, reason, Receipt(0)))

    def _order(self, entry: Acknowledge | SetAside) -> Receipt:
        with self._work:
            if self._is_closed:
                entry.receipt.set_exception(NotDurable(f"the journal {self.path} is closed"))
            else:
                self._enter(entry)
        return entry.receipt

    def _enter(self, entry: Entry) -> None:
        if self._writer is None:
            writer = threading.Thread(target=self._write, name="eventcore-journal", daemon=True)
            try:
                writer.start()
            except RuntimeError as error:  # the interpreter is shutting down, or there are no threads to be had
                entry.receipt.set_exception(NotDurable(f"the journal {self.path} has no thread to write: {error}"))
                return
            self._writer = writer
        if isinstance(entry, Append):
            self._rows += len(entry.rows)
            self._bytes += sum(len(row.envelope) for row in entry.rows)
        self._entries.append(entry)
        self._work.notify()

    # -- for readers -------------------------------------------------------------------------------------------------

    def read(self, handler: str, after: int, limit: int) -> list[JournalRow]:
        """Return the first rows of a handler beyond position ``after``; none while the journal is poisoned."""
        return [
            JournalRow(*row)
            for row in self._query(
                f"SELECT {COLUMNS}, position FROM rows WHERE handler = ? AND position > ? ORDER BY position LIMIT ?",  # noqa: S608 - constants only
                (handler, after, limit),
            )
        ]

    def is_first_use(self, handler: str) -> bool:
        """Whether a handler of this name uses this journal object for the first time."""
        is_first = handler not in self._users
        self._users.add(handler)
        return is_first

    def cursor(self, handler: str) -> int:
        """Return the position that a handler has acknowledged (0: none)."""
        found = self._query("SELECT position FROM cursors WHERE handler = ?", (handler,))
        return int(found[0][0]) if found else 0

    def last(self, handler: str) -> int:
        """Return the position of the last row that waits for a handler (0: none does)."""
        found = self._query("SELECT max(position) FROM rows WHERE handler = ?", (handler,))
        return int(found[0][0] or 0) if found else 0

    def waiting(self, handler: str) -> Counter[tuple[str, str]]:
        """Return how many rows a handler has not acknowledged, by event name and phase."""
        found = self._query("SELECT event, phase, count(*) FROM rows WHERE handler = ? GROUP BY 1, 2", (handler,))
        return Counter({(event, phase): number for event, phase, number in found})

    def handlers(self) -> dict[str, int]:
        """Return how many rows wait for each handler, configured or not."""
        return dict(self._query("SELECT handler, count(*) FROM rows GROUP BY 1", ()))

    def dead_letters(self) -> list[journal_dead.DeadLetter]:
        """Return what was set aside, oldest first; none while the journal is poisoned."""
        with self._using:
            return [] if self._connection is None else journal_dead.read(self._connection)

    def _query(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._using:
            if self._connection is None:
                return []
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                problem = error
        self._poison(problem)
        return []

    # -- the writer --------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        work = self._work
        while self._work is work:  # another one after a fork
            group, is_last = self._take()
            if group:
                self._commit(group)
                self._group = ()
            elif is_last:
                return

    def _take(self) -> tuple[list[Entry], bool]:
        group: list[Entry] = []
        with self._work:
            while not self._entries and not self._is_stopping:
                self._work.wait()
            if not self._is_stopping and all(isinstance(entry, Acknowledge) for entry in self._entries):
                self._work.wait(ACK_LINGER_S)
            rows = 0
            while self._entries and rows < GROUP:
                entry = self._entries.popleft()
                rows += len(entry.rows) if isinstance(entry, Append) else 0
                group.append(entry)
            self._group = group
            return group, self._is_stopping

    def _commit(self, group: Sequence[Entry]) -> None:
        done: Committed | None = None
        problem: Exception | None = None
        if self.problem is not None and time.monotonic() >= self._retry_at:
            self._reopen()
        with self._using:
            if self._connection is None and self.problem is None:
                problem = self._open_in_child()
            connection = self._connection
            if connection is not None:
                try:
                    done = transact(connection, group, self._last, self.config.max_dead_letters)
                except (sqlite3.Error, OSError) as error:
                    problem = error
        if problem is not None:
            self._poison(problem)
        if done is not None:
            self._last = done.last
            with self._work:
                self._rows -= done.removed
                self._bytes -= done.removed_bytes
            self.dead = self.dead if done.dead is None else done.dead
            for entry, position in zip(group, done.positions, strict=True):
                entry.receipt.set_result(position)
        else:
            for entry in group:
                self._refuse(entry)
        self._report_change()

    def _refuse(self, entry: Entry) -> None:
        if isinstance(entry, Append):
            with self._work:
                self._rows -= len(entry.rows)
                self._bytes -= sum(len(row.envelope) for row in entry.rows)
        entry.receipt.set_exception(NotDurable(f"the journal {self.path} cannot be written: {self.problem}"))

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _poison(self, error: Exception) -> None:
        with self._using:
            connection, self._connection = self._connection, None
            self.problem = error
            self._retry_at = time.monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, RETRY_S[1])
            self._is_news = True
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):  # what it still held is refused; the file is verified later
                    connection.close()

    _is_news = False

    def _report_change(self) -> None:
        if self._is_news:
            self._is_news = False
            with contextlib.suppress(Exception):  # whoever listens must not stop the writer
                self._report(self.problem)

    def reopen(self, *, at_once: bool = True) -> bool:
        """Open a poisoned journal afresh and verify it (``at_once``, or if its pause is over); return if it is well."""
        if self.problem is not None and not self._is_closed and (at_once or time.monotonic() >= self._retry_at):
            self._reopen()
            self._report_change()
        return self.problem is None

    def _reopen(self) -> None:
        try:
            with self._using:
                if self._connection is not None or self._is_closed:  # another thread was quicker
                    return
                self._connection = connect(self.path, self._open_file)
                # What was refused must not come back: a commit may have reached the file although its sync failed.
                self._connected.execute("DELETE FROM rows WHERE position > ?", (self._last,))
                self._measure()
        except (ConfigurationError, sqlite3.Error, OSError) as error:
            self._poison(error)
            self._is_news = False
            return
        self.problem = None
        self._pause_s = RETRY_S[0]
        self._is_news = True

    # -- the file ----------------------------------------------------------------------------------------------------

    @property
    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None  # noqa: S101 - callers have just connected; for the type checker
        return self._connection

    def _open(self) -> None:
        self._locked = lock(self.path)
        try:
            self._connection = connect(self.path, self._open_file)
            self._measure()
        except BaseException as error:
            self._release()
            if isinstance(error, sqlite3.Error | OSError):
                raise ConfigurationError(f"journal {self.path}: cannot be opened: {error}") from None
            raise

    def _measure(self) -> None:
        execute = self._connected.execute
        rows, size = execute("SELECT count(*), coalesce(sum(length(envelope)), 0) FROM rows").fetchone()
        self.dead = journal_dead.count(self._connected)
        last = execute("SELECT seq FROM sqlite_sequence WHERE name = 'rows'").fetchone()
        self._last = last[0] if last else 0
        with self._work:
            unwritten = [
                row for entry in (*self._group, *self._entries) if isinstance(entry, Append) for row in entry.rows
            ]
            self._rows = rows + len(unwritten)
            self._bytes = size + sum(len(row.envelope) for row in unwritten)

    def _adopt_orphans(self) -> None:
        """Take over what forked children of an earlier run left in files of their own."""
        for path in sorted(self.path.parent.glob(f"{self.path.name}.fork-*")):
            if not path.suffix.removeprefix(".fork-").isdigit():
                continue  # its WAL and lock files
            try:
                locked = lock(path)
            except ConfigurationError:
                continue  # a child that is still at work
            try:
                self._adopt(path)
            finally:
                os.close(locked)
                lock_path(path).unlink(missing_ok=True)

    def _adopt(self, path: Path) -> None:
        connection = self._connected
        connection.execute("ATTACH ? AS orphan", (str(path),))
        try:
            connection.execute(
                f"INSERT INTO rows (handler, {COLUMNS}) SELECT handler, {COLUMNS} FROM orphan.rows ORDER BY position"  # noqa: S608 - constants only
            )
            journal_dead.adopt(connection)
        except sqlite3.Error as error:
            raise ConfigurationError(f"journal {path}: {damaged(error)}") from None
        finally:
            connection.execute("DETACH orphan")
        remove(path)
        self._measure()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits and close the file; False if that took longer than ``timeout_s``."""
        with self._work:
            self._is_stopping = self._is_closed = True
            self._work.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join(timeout_s)
            if writer.is_alive():
                return False
        with self._using:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()
        is_childs = self.path.name.rpartition(".fork-")[2] == str(os.getpid())
        if is_childs and connection is not None and self._rows == self.dead == 0:
            remove(self.path)
        self._release()
        return True

    def _release(self) -> None:
        locked, self._locked = self._locked, None
        if locked is not None:
            os.close(locked)

    # -- fork --------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """See that no thread is inside SQLite when the process forks: the child would inherit its locks, held."""
        if self._using.acquire(timeout=1.0):  # a disk that hangs must not hang the fork
            _held.append(self._using)

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's file, and use one of our own when one is needed."""
        if self._connection is not None:
            # Closing it would meddle with the parent's files, and so would its finalizer, also at interpreter exit.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
        inherited = self._locked
        self._renew()
        self.problem = None
        self._locked = inherited
        self._release()  # the parent's own descriptor still holds the lock
        self.path = Path(f"{self.path.with_name(_own_name(self.path))}.fork-{os.getpid()}")

    def _open_in_child(self) -> Exception | None:
        try:
            self._locked = lock(self.path)
            self._connection = connect(self.path, self._open_file)
        except (ConfigurationError, sqlite3.Error, OSError) as error:
            return error
        return None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"poisoned by {self.problem!r}" if self.problem else "open"
        return f"<Journal {self.path}: {state}, {self._rows} rows>"


def _own_name(path: Path) -> str:
    return path.name.partition(".fork-")[0]


_JOURNALS: weakref.WeakSet[Journal] = weakref.WeakSet()
_held: list[threading.Lock] = []


def _before_fork() -> None:
    for journal in list(_JOURNALS):
        journal.before_fork()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    _held.clear()
    for journal in list(_JOURNALS):
        journal.after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
