"""What is known of candidates from feedback: kept in SQLite, bounded, shared by the processes that open the same file.

An outcome is the quality of one answer of one candidate, with what the router had expected. Only the newest rows count,
and none older than an age: a candidate is known by what it did lately. The file is in WAL mode, so that readers and a
writer do not wait for each other; the last few outcomes before a power cut may be lost, the file is not.

Beside them are the requests that wait for feedback, so that it may be given to any process that has the file open. They
are bounded, too, and written a moment after they were routed, see `router.waiting`.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router.errors import ConfigError, DuplicateFeedback, HistoryError
from router.waiting import Open, Pending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from router.features import Candidate

__all__ = ["History", "Known", "duplicate"]

SCHEMA_VERSION = 1
APPLICATION_ID = 0x65637274  # "ecrt": tells our files from other SQLite databases
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS outcome (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    candidate_id TEXT NOT NULL,
    quality REAL NOT NULL,
    expected REAL NOT NULL,
    at_s REAL NOT NULL,
    need REAL,
    was_cheap INTEGER
);
CREATE INDEX IF NOT EXISTS outcome_candidate ON outcome (candidate_id, quality);
CREATE INDEX IF NOT EXISTS outcome_at ON outcome (at_s);
CREATE TABLE IF NOT EXISTS waiting (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    candidate_ids TEXT NOT NULL,
    expected BLOB NOT NULL,
    chosen INTEGER NOT NULL,
    need REAL,
    cheap INTEGER,
    at_s REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS waiting_at ON waiting (at_s);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Known(NamedTuple):
    """What is known of a candidate."""

    calls: int
    """Outcomes that are remembered."""
    quality_sum: float

    @property
    def success_rate(self) -> float:
        """Mean quality by the rule of succession, (s + 1) / (n + 2): an untried candidate stands at ½."""
        return (self.quality_sum + 1.0) / (self.calls + 2)


class History:
    """Outcomes of candidates in the SQLite file at ``path``; safe to share between threads, and over forks.

    Remembers at most ``max_rows`` outcomes, none older than ``max_age_s`` seconds; and, of the last ``max_waiting``
    requests, those that feedback may still come for, none longer than ``max_waiting_s``, each in about 100 bytes and
    for every candidate 8 and its id. Another writer is waited for during ``busy_s`` seconds. Raises HistoryError when
    the file cannot be opened or is of something else, ConfigError for bounds that are not positive.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_rows: int = 100_000,
        max_age_s: float = 30 * 86_400.0,
        max_waiting: int = 20_000,
        max_waiting_s: float = 7 * 86_400.0,
        busy_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file, or make it."""
        if max_rows < 1 or max_waiting < 1 or not max_age_s > 0.0 or not max_waiting_s > 0.0:
            raise ConfigError(
                f"max_rows is {max_rows!r}, max_age_s {max_age_s!r}, max_waiting {max_waiting!r} and max_waiting_s "
                f"{max_waiting_s!r}: they have to be positive"
            )
        self.path = os.fspath(path)
        self.max_rows = max_rows
        self.max_age_s = max_age_s
        self.max_waiting = max_waiting
        self.max_waiting_s = max_waiting_s
        self._busy_s = busy_s
        self._clock = clock
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._forgotten = 0
        self._told = 0
        self._told_of: HistoryError | None = None
        self._report: weakref.WeakMethod[Callable[[int, HistoryError | None], None]] | None = None
        self._pending = Pending(self._write, self._settled)
        with self._opened():
            pass

    def add(
        self,
        request_id: str,
        candidate_id: str,
        quality: float,
        expected: float,
        *,
        need: float | None = None,
        was_cheap: bool = False,
    ) -> None:
        """Remember an outcome and forget what is too much or too old; the request waits no more.

        Of two candidates, ``need`` is that for the dear one, and ``was_cheap`` whether the cheap one answered. Raises
        DuplicateFeedback when there is an outcome of that request already.
        """
        now, key = self._clock(), _key(request_id)
        with self._opened() as connection:
            try:
                connection.execute(
                    "INSERT INTO outcome (request_id, candidate_id, quality, expected, at_s, need, was_cheap)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key, _key(candidate_id), quality, expected, now, need, was_cheap),
                )
            except sqlite3.IntegrityError:
                raise duplicate(request_id) from None
            connection.execute("DELETE FROM waiting WHERE request_id = ?", (key,))
            # Numbers only rise, so those within max_rows of the newest are at most max_rows.
            connection.execute(
                "DELETE FROM outcome WHERE number <= (SELECT max(number) FROM outcome) - ? OR at_s < ?",
                (self.max_rows, now - self.max_age_s),
            )
        self._pending.drop(request_id)

    def has(self, request_id: str) -> bool:
        """Whether there is an outcome of that request."""
        with self._opened() as connection:
            row = connection.execute("SELECT 1 FROM outcome WHERE request_id = ?", (_key(request_id),)).fetchone()
        return row is not None

    def harms(self) -> Iterator[tuple[float, float | None]]:
        """Yield need and harm of each remembered request that a guarantee decided about, in the order of the feedback.

        The harm is None of one that the dear candidate answered: nobody knows what the cheap one would have made.
        """
        with self._opened() as connection:
            rows = connection.execute(
                "SELECT need, CASE WHEN was_cheap THEN 1.0 - quality END FROM outcome"
                " WHERE need IS NOT NULL AND at_s >= ? ORDER BY number",
                (self._clock() - self.max_age_s,),
            ).fetchall()
        yield from rows

    def await_feedback(self, request_id: str, request: Open) -> None:
        """Let a request wait for feedback; it is written later, and `flush` waits for that. Never raises."""
        self._pending.add(request_id, request)

    def waiting(self, request_id: str) -> Open | None:
        """Return a request that waits for feedback, whoever routed it."""
        found = self._pending.get(request_id)
        if found is not None:
            return found
        with self._opened() as connection:
            row = connection.execute(
                "SELECT candidate_ids, expected, chosen, need, cheap FROM waiting WHERE request_id = ? AND at_s >= ?",
                (_key(request_id), self._clock() - self.max_waiting_s),
            ).fetchone()
        return None if row is None else Open(json.loads(row[0]), np.frombuffer(row[1]), *row[2:])

    @property
    def waiting_count(self) -> int:
        """How many requests wait for feedback, of all processes."""
        with self._opened() as connection:
            return int(connection.execute("SELECT count(*) FROM waiting").fetchone()[0]) + len(self._pending)

    @property
    def forgotten(self) -> int:
        """Requests that this process has dropped before any feedback came: too old, too many, or an id used again."""
        return self._forgotten + self._pending.lost

    @property
    def trouble(self) -> HistoryError | None:
        """Why requests that wait could not be written last time; it is tried again."""
        return self._pending.trouble

    def report_to(self, report: Callable[[int, HistoryError | None], None]) -> None:
        """Tell a method how many requests were forgotten, and what the trouble is where writing begins to fail.

        It is called by whoever writes. One of them is told, the first whose object still lives.
        """
        if self._report is None or self._report() is None:
            self._report = weakref.WeakMethod(report)

    def flush(self) -> None:
        """Write the requests that wait, so that other processes know them; HistoryError when that cannot be done."""
        self._pending.flush()

    def _settled(self) -> None:
        """Tell what has changed since it was told last."""
        report = None if self._report is None else self._report()
        if report is None or self._pid != os.getpid():  # a forked child that has not opened the file has no news
            return
        with self._telling:
            forgotten, trouble = self.forgotten, self.trouble
            count, self._told = forgotten - self._told, forgotten
            is_new, self._told_of = trouble is not None and self._told_of is None, trouble
        if count or is_new:
            report(count, trouble if is_new else None)

    def _write(self, requests: Mapping[str, Open]) -> None:
        now = self._clock()
        keys = [(_key(request_id),) for request_id in requests]
        rows = (
            (*key, _text_of(tuple(each.ids)), each.expected.astype(np.float64).tobytes(), *each[2:], now, *key)
            for key, each in zip(keys, requests.values(), strict=True)
        )
        with self._opened() as connection:
            dropped = connection.executemany("DELETE FROM waiting WHERE request_id = ?", keys).rowcount
            connection.executemany(
                "INSERT OR REPLACE INTO waiting (request_id, candidate_ids, expected, chosen, need, cheap, at_s)"
                " SELECT ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM outcome WHERE request_id = ?)",
                rows,
            )
            dropped += connection.execute(
                "DELETE FROM waiting WHERE number <= (SELECT max(number) FROM waiting) - ? OR at_s < ?",
                (self.max_waiting, now - self.max_waiting_s),
            ).rowcount
        self._forgotten += dropped

    def known(self) -> dict[str, Known]:
        """Return what is known, by candidate; candidates without an outcome are not in it."""
        with self._opened() as connection:
            rows = connection.execute(
                "SELECT candidate_id, count(*), sum(quality) FROM outcome WHERE at_s >= ? GROUP BY candidate_id",
                (self._clock() - self.max_age_s,),
            ).fetchall()
        return {candidate_id: Known(calls, total) for candidate_id, calls, total in rows}

    def refreshed(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates with access count and success rate as known here; unknown ones as they are."""
        known = self.known()
        return [
            replace(each, access_count=found.calls, success_rate=found.success_rate)
            if (found := known.get(each.id))
            else each
            for each in candidates
        ]

    def close(self) -> None:
        """Write what waits to be written and close the file; it is opened again when it is used again."""
        self._pending.close()
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def __len__(self) -> int:
        """Return how many outcomes are remembered."""
        with self._opened() as connection:
            return int(connection.execute("SELECT count(*) FROM outcome").fetchone()[0])

    def __repr__(self) -> str:
        """Show where it is and its bounds."""
        return f"History({self.path!r}, max_rows={self.max_rows}, max_age_s={self.max_age_s:g})"

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Give the connection of this process for one transaction; SQLite's errors become HistoryError."""
        if self._pid != os.getpid():  # a forked child must neither use the parent's connection nor close it
            self._lock = threading.Lock()
            self._telling = threading.Lock()
            if self._connection is not None:
                _ABANDONED.append(self._connection)
            self._connection = None
            self._pid = os.getpid()
        try:
            with self._lock:
                if self._connection is None:
                    self._connection = self._connect()
                with self._connection:
                    yield self._connection
        except sqlite3.Error as error:
            raise HistoryError(
                f"the history {self.path} cannot be used: {error}; check that it is a writable file of ours, or name "
                "another"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._busy_s, check_same_thread=False)
        try:
            # What is read of the file has to be of one moment: another process may be making it.
            connection.execute("BEGIN")
            lacks_tables = self._lacks_tables(connection)
            connection.rollback()
            if lacks_tables:
                self._use_wal(connection)
                connection.execute("BEGIN IMMEDIATE")
                if self._lacks_tables(connection):  # another process may have been faster
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    there = {row[1] for row in connection.execute("PRAGMA table_info(outcome)")}
                    for name in sorted({"need", "was_cheap"} - there):  # of files of before
                        connection.execute(f"ALTER TABLE outcome ADD COLUMN {name}")
                connection.commit()
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Change to WAL mode; SQLite does not wait where several processes do that at once, so this does."""
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _lacks_tables(self, connection: sqlite3.Connection) -> bool:
        """Whether it is empty, or a history of before; HistoryError if it holds something else."""
        found = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if found == (APPLICATION_ID, SCHEMA_VERSION):
            has_waiting = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'waiting'").fetchone()
            has_needs = connection.execute(
                "SELECT 1 FROM pragma_table_info('outcome') WHERE name = 'was_cheap'"
            ).fetchone()
            return has_waiting is None or has_needs is None
        if found == (0, 0) and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return True
        raise HistoryError(
            f"{self.path} is a database of something else, or of another version: name another file for the history of "
            "candidates"
        )


def duplicate(request_id: str) -> DuplicateFeedback:
    """Return the error for a second outcome of a request."""
    return DuplicateFeedback(
        f"there was feedback on request {request_id!r} already: give it once, and give every request an id of its own"
    )


def _key(text: str) -> str:
    """Return an id as SQLite can take it: a lone surrogate is no text there."""
    return str(text).encode("utf-8", "replace").decode()


@functools.lru_cache(maxsize=128)
def _text_of(ids: tuple[str, ...]) -> str:
    """Return candidate ids as JSON; those of a pool are the same in every request."""
    return json.dumps(ids)


_ABANDONED: list[sqlite3.Connection] = []
"""Connections of a parent process: closing one in a child would take the parent's locks away, so they are kept."""
