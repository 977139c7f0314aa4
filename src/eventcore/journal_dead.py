"""Dead letters: rows that their handler could not handle, set aside so that those behind them get through.

They stay in the journal's file, in a table of their own that no handler reads, until somebody looks; of more than the
configured number the oldest are deleted. What is here was counted as dropped when it was set aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

__all__ = ["SCHEMA", "DeadLetter", "adopt", "count", "read", "set_aside"]

SCHEMA = """CREATE TABLE IF NOT EXISTS dead_letters (
    position INTEGER PRIMARY KEY, handler TEXT NOT NULL, event TEXT NOT NULL, phase TEXT NOT NULL,
    time_ns INTEGER NOT NULL, severity INTEGER NOT NULL, id TEXT NOT NULL, envelope BLOB NOT NULL,
    reason TEXT NOT NULL)"""
_COLUMNS = "handler, event, phase, time_ns, severity, id, envelope"


class DeadLetter(NamedTuple):
    """A row that was set aside, as it was stored, and why; ``position`` is that among the dead letters."""

    position: int
    handler: str
    event: str
    phase: str
    time_ns: int
    severity: int
    id: str
    envelope: bytes
    reason: str


def set_aside(connection: sqlite3.Connection, positions: Iterable[int], reason: str, most: int) -> tuple[int, int]:
    """Move rows to the dead letters, of which ``most`` are kept; return how many were moved, and their bytes."""
    moved = size = 0
    for position in positions:
        found = connection.execute("SELECT length(envelope) FROM rows WHERE position = ?", (position,)).fetchone()
        if found is None:
            continue
        moved, size = moved + 1, size + found[0]
        connection.execute(
            f"INSERT INTO dead_letters SELECT NULL, {_COLUMNS}, ? FROM rows WHERE position = ?",  # noqa: S608 - constants only
            (reason, position),
        )
        connection.execute("DELETE FROM rows WHERE position = ?", (position,))
    connection.execute(
        "DELETE FROM dead_letters WHERE position <= "
        "(SELECT position FROM dead_letters ORDER BY position DESC LIMIT 1 OFFSET ?)",
        (most,),
    )
    return moved, size


def adopt(connection: sqlite3.Connection) -> None:
    """Take over the dead letters of the journal that is attached as ``orphan``."""
    connection.execute(SCHEMA.replace("dead_letters", "orphan.dead_letters"))  # one of an older version has none
    connection.execute(
        f"INSERT INTO dead_letters SELECT NULL, {_COLUMNS}, reason FROM orphan.dead_letters ORDER BY position"  # noqa: S608 - constants only
    )


def count(connection: sqlite3.Connection) -> int:
    """Return how many rows were set aside."""
    return int(connection.execute("SELECT count(*) FROM dead_letters").fetchone()[0])


def read(connection: sqlite3.Connection) -> list[DeadLetter]:
    """Return all that was set aside, oldest first."""
    return [
        DeadLetter(*found)
        for found in connection.execute(f"SELECT position, {_COLUMNS}, reason FROM dead_letters ORDER BY position")  # noqa: S608 - constants only
    ]
