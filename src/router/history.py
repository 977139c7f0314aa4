"""What is known of candidates from feedback: kept in SQLite, bounded, shared by the processes that open the same file.

An outcome is the quality of one answer of one candidate, with what the router had expected. Only the newest rows count,
and none older than an age: a candidate is known by what it did lately. The file is in WAL mode, so that readers and a
writer do not wait for each other; the last few outcomes before a power cut may be lost, the file is not.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from router.errors import ConfigError, DuplicateFeedback, HistoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from router.features import Candidate

__all__ = ["History", "Known", "duplicate"]

SCHEMA_VERSION = 1
APPLICATION_ID = 0x65637274  # "ecrt": tells our files from other SQLite databases
_SCHEMA = f"""
CREATE TABLE outcome (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    candidate_id TEXT NOT NULL,
    quality REAL NOT NULL,
    expected REAL NOT NULL,
    at_s REAL NOT NULL
);
CREATE INDEX outcome_candidate ON outcome (candidate_id, quality);
CREATE INDEX outcome_at ON outcome (at_s);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_BUSY_S = 5.0


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

    Remembers at most ``max_rows`` outcomes, none older than ``max_age_s`` seconds. Raises HistoryError when the file
    cannot be opened or is of something else, ConfigError for bounds that are not positive.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_rows: int = 100_000,
        max_age_s: float = 30 * 86_400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file, or make it."""
        if max_rows < 1 or not max_age_s > 0.0:
            raise ConfigError(f"max_rows is {max_rows!r} and max_age_s {max_age_s!r}: both have to be positive")
        self.path = os.fspath(path)
        self.max_rows = max_rows
        self.max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        with self._opened():
            pass

    def add(self, request_id: str, candidate_id: str, quality: float, expected: float) -> None:
        """Remember an outcome and forget what is too much or too old.

        Raises DuplicateFeedback when there is an outcome of that request already.
        """
        now = self._clock()
        with self._opened() as connection:
            try:
                connection.execute(
                    "INSERT INTO outcome (request_id, candidate_id, quality, expected, at_s) VALUES (?, ?, ?, ?, ?)",
                    (request_id, candidate_id, quality, expected, now),
                )
            except sqlite3.IntegrityError:
                raise duplicate(request_id) from None
            # Numbers only rise, so those within max_rows of the newest are at most max_rows.
            connection.execute(
                "DELETE FROM outcome WHERE number <= (SELECT max(number) FROM outcome) - ? OR at_s < ?",
                (self.max_rows, now - self.max_age_s),
            )

    def has(self, request_id: str) -> bool:
        """Whether there is an outcome of that request."""
        with self._opened() as connection:
            row = connection.execute("SELECT 1 FROM outcome WHERE request_id = ?", (request_id,)).fetchone()
        return row is not None

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
        """Close the file; it is opened again when it is used again."""
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
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False)
        try:
            if self._is_new(connection):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("BEGIN IMMEDIATE")
                if self._is_new(connection):  # another process may have been faster
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                connection.commit()
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Whether the database is empty; HistoryError if it holds something else than a history."""
        found = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if found == (APPLICATION_ID, SCHEMA_VERSION):
            return False
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


_ABANDONED: list[sqlite3.Connection] = []
"""Connections of a parent process: closing one in a child would take the parent's locks away, so they are kept."""
