"""A disk whose power can be cut: SQLite's writes are recorded below SQLite, and lost where nothing had synced them.

``Disk.open`` stands in for ``sqlite3.connect``: a real SQLite (apsw's) on a file system that notes every write, sync,
truncation and deletion. ``Disk.after_cut`` makes the files as a power cut at one of these operations may leave them:
what a file had synced is there; each later write is there, lost, or there in part (in sectors of 512 bytes), whatever
became of those before it. Files appear and vanish in order, as on journaling file systems: for certain with the next
sync of any file.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from pathlib import Path

import apsw

SECTOR = 512


class Disk:
    """Records what one SQLite does to its files."""

    def __init__(self, pragmas=()):
        self.operations = []
        self.pragmas = pragmas
        self._system = _System(self)

    def open(self, path, **_options):
        """Open a database as ``sqlite3.connect`` does, on this disk."""
        connection = _Connection(str(path), vfs=self._system.name)
        for pragma in self.pragmas:
            connection.execute(pragma)
        return connection

    def after_cut(self, place, folder, random):
        """Write the files into ``folder`` as a power cut after ``place`` operations may leave them."""
        done = self.operations[:place]
        last_sync = {name: index for index, (name, what, *_) in enumerate(done) if what == "sync"}
        certain = max(last_sync.values(), default=-1)
        files = defaultdict(bytearray)
        for index, (name, what, *values) in enumerate(done):
            is_synced = index < last_sync.get(name, -1)
            if what == "write":
                _write(files[name], *values, None if is_synced else random)
            elif what == "truncate" and (is_synced or random.random() < 0.5):
                del files[name][values[0] :]
            elif what == "delete":
                if index > certain and random.random() < 0.5:
                    break  # this and all later changes of the folder are lost; nothing was synced since
                files.pop(name, None)
        for name, content in files.items():
            Path(folder, name).write_bytes(content)


def _write(content, offset, data, random):
    fate = random.random() if random else 1.0
    if fate < 0.3:
        return
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    if fate > 0.6:
        content[offset : offset + len(data)] = data
        return
    start = 0
    while start < len(data):  # torn: sector by sector
        end = start + SECTOR - (offset + start) % SECTOR
        if random.random() < 0.5:
            content[offset + start : offset + min(end, len(data))] = data[start:end]
        start = end


class _System(apsw.VFS):
    def __init__(self, disk):
        self.name = f"power-{id(disk)}"
        self._disk = disk
        super().__init__(self.name, "")

    def xOpen(self, name, flags):  # noqa: N802 - apsw's name
        return _File(name, flags, self._disk.operations)

    def xDelete(self, name, sync):  # noqa: N802 - apsw's name
        self._disk.operations.append((Path(name).name, "delete"))
        super().xDelete(name, sync)


class _File(apsw.VFSFile):
    def __init__(self, name, flags, operations):
        super().__init__("", name, flags)
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name).name
        self._operations = operations

    def xWrite(self, data, offset):  # noqa: N802 - apsw's name
        self._operations.append((self._name, "write", offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size):  # noqa: N802 - apsw's name
        self._operations.append((self._name, "truncate", size))
        super().xTruncate(size)

    def xSync(self, flags):  # noqa: N802 - apsw's name
        self._operations.append((self._name, "sync"))
        super().xSync(flags)


class _Connection(apsw.Connection):
    """Speaks as much of ``sqlite3.Connection`` as the journal does."""

    def execute(self, statement, values=()):
        try:
            return _Result(self, list(super().execute(statement, values)))
        except apsw.Error as error:
            raise sqlite3.OperationalError(str(error)) from error


class _Result:
    def __init__(self, connection, rows):
        self._rows = rows
        self.lastrowid = connection.last_insert_rowid()
        self.rowcount = connection.changes()

    def __iter__(self):
        return iter(self._rows)

    def fetchall(self):
        return self._rows

    def fetchone(self):
        return self._rows[0] if self._rows else None
