"""The journal's file: its tables, its mode, its verification, and the lock that gives it to one process."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from eventcore import journal_dead
from eventcore.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OpenFile", "connect", "damaged", "lock", "lock_path", "remove"]

APPLICATION_ID = 0x65766A6C
"""``evjl`` in the header of the file: what tells a journal from other SQLite files."""

FORMAT = 1
_ROWS = """CREATE TABLE rows (
    position INTEGER PRIMARY KEY AUTOINCREMENT, handler TEXT NOT NULL, event TEXT NOT NULL, phase TEXT NOT NULL,
    time_ns INTEGER NOT NULL, severity INTEGER NOT NULL, id TEXT NOT NULL, envelope BLOB NOT NULL)"""
_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
    _ROWS,  # AUTOINCREMENT: a position is never used twice, also after everything was deleted
    "CREATE INDEX rows_by_handler ON rows (handler)",
    "CREATE TABLE cursors (handler TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID",
)


OpenFile = Callable[..., sqlite3.Connection]
"""What ``sqlite3.connect`` is: a seam, for files on a disk whose power a test can cut."""


def connect(path: Path, open_file: OpenFile = sqlite3.connect) -> sqlite3.Connection:
    """Open a journal, making it if there is none (mode 0600); an old one is verified.

    Raises ConfigurationError for a file that is no journal or is damaged, sqlite3.OperationalError or OSError where the
    system refuses.
    """
    if not path.exists():  # before SQLite makes it, with its own idea of the mode; the WAL files take the same
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = open_file(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        _check(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 4194304")
        connection.execute(journal_dead.SCHEMA)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            raise ConfigurationError(f"journal {path}: {damaged(error)}") from None
        raise
    return connection


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Make the tables of a new file; verify that an old one is a journal, and whole."""
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")
        return
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise ConfigurationError(
            f"journal {path}: is a SQLite file, but no journal of eventcore; set journal.path to another file"
        )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT:
        raise ConfigurationError(
            f"journal {path}: has format {version}, this version of eventcore reads {FORMAT}; set journal.path to "
            "another file, or use the version that wrote it"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise ConfigurationError(f"journal {path}: {damaged(found)}")


def damaged(what: object) -> str:
    """Say that a file cannot be read as a journal, and what to do."""
    return f"is no SQLite file, truncated or damaged ({what}); move it away, or set journal.path to another file"


def lock_path(path: Path) -> Path:
    """Return the file that is locked for a journal."""
    return path.with_name(f"{path.name}.lock")


def lock(path: Path) -> int:
    """Lock a journal for this process, and return the descriptor that holds the lock.

    It is a file of its own: SQLite's locks on the journal itself would end when any descriptor of it is closed. Raises
    ConfigurationError where another process holds it.
    """
    try:
        descriptor = os.open(lock_path(path), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"journal {path}: its folder cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ConfigurationError(
            f"journal {path}: is in use by another emitter (process {holder}); a journal belongs to one: set "
            "journal.path to a file of its own"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def remove(path: Path) -> None:
    """Delete a journal with all that belongs to it."""
    for suffix in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
