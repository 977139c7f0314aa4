"""What one commit of the journal does: rows stored, cursors moved, rows set aside, in the order in which they came."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventcore import journal_dead

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from eventcore.journal_receipt import Receipt

__all__ = ["COLUMNS", "Acknowledge", "Append", "Committed", "Entry", "JournalRow", "SetAside", "transact"]

COLUMNS = "event, phase, time_ns, severity, id, envelope"
_INSERT = f"INSERT INTO rows (handler, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants only


class JournalRow(NamedTuple):
    """One envelope as it is stored; ``position`` is 0 before it is."""

    event: str
    phase: str
    time_ns: int
    severity: int
    id: str
    envelope: bytes
    position: int = 0


class Append(NamedTuple):
    """Rows to store for a handler."""

    handler: str
    rows: Sequence[JournalRow]
    receipt: Receipt


class Acknowledge(NamedTuple):
    """A handler's cursor to move to ``position``, and what it has handled so far to delete."""

    handler: str
    position: int
    receipt: Receipt


class SetAside(NamedTuple):
    """Rows to make dead letters of; ``position`` is the last one's."""

    position: int
    positions: Sequence[int]
    reason: str
    receipt: Receipt


Entry = Append | Acknowledge | SetAside


class Committed(NamedTuple):
    """What a commit has done: a position per entry, the last one given, what is not in the rows any more.

    ``dead`` is how many dead letters there are now, where there are others than before.
    """

    positions: list[int]
    last: int
    removed: int
    removed_bytes: int
    dead: int | None


def transact(connection: sqlite3.Connection, group: Sequence[Entry], last: int, most_dead: int) -> Committed:
    """Commit a group; ``last`` is the last position given so far, ``most_dead`` how many dead letters are kept."""
    execute = connection.execute
    positions: list[int] = []
    removed = size = 0
    dead = None
    execute("BEGIN IMMEDIATE")
    for entry in group:
        if isinstance(entry, Append):
            for row in entry.rows:
                last = execute(_INSERT, (entry.handler, *row[:6])).lastrowid or 0
            positions.append(last)
            continue
        positions.append(entry.position)
        if isinstance(entry, SetAside):
            rows, length = journal_dead.set_aside(connection, entry.positions, entry.reason, most_dead)
            dead = journal_dead.count(connection)
        else:
            rows, length = _acknowledge(connection, entry)
        removed, size = removed + rows, size + length
    execute("COMMIT")
    return Committed(positions, last, removed, size, dead)


def _acknowledge(connection: sqlite3.Connection, entry: Acknowledge) -> tuple[int, int]:
    execute, mine = connection.execute, (entry.handler, entry.position)
    lengths = execute("SELECT length(envelope) FROM rows WHERE handler = ? AND position <= ?", mine).fetchall()
    removed = execute("DELETE FROM rows WHERE handler = ? AND position <= ?", mine).rowcount
    execute("INSERT INTO cursors VALUES (?, ?) ON CONFLICT DO UPDATE SET position = excluded.position", mine)
    return removed, sum(length for (length,) in lengths)
