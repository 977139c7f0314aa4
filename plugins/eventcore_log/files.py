"""A file that lines are appended to, and that makes way for a new one when it is large or old enough.

Files are appended to, unbuffered: what was written survives the process. Rotation renames: ``app.log`` becomes
``app.log.1``, that ``app.log.2``, and so on up to ``backups``; the oldest is replaced. Several processes may write one
file: whoever finds it due takes a lock on it, looks again, and renames; the others go on, and notice by the file's
number that their path leads elsewhere. So it follows a rotation by others (logrotate) as well, without a signal. The
new file takes the place of the old one under the same descriptor, so that no thread finds it closed; the lock goes with
the old one.
"""

from __future__ import annotations

import fcntl
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventcore.errors import ConfigurationError
from eventcore_log.outputs import Shortfall

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["FileOutput", "Rotation"]

_NEWLINE = ord("\n")


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file makes way for a new one, and how many of the old ones are kept."""

    max_bytes: int | None
    every_s: float | None
    backups: int

    def is_due(self, found: os.stat_result, now_s: float) -> bool:
        """Whether a file was last written to in an earlier period than this one."""
        return self.every_s is not None and found.st_size > 0 and found.st_mtime // self.every_s < now_s // self.every_s


class FileOutput:
    """A file, opened for appending; ``time_ns`` tells when it is too old."""

    is_tty = False

    def __init__(self, path: Path, rotation: Rotation | None = None, *, time_ns: Callable[[], int]) -> None:
        self._path = path
        self._rotation = rotation
        self._time_ns = time_ns
        self._is_torn = False
        self._pid = os.getpid()
        self._rotating = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: io.FileIO = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigurationError(
                f"output {str(path)!r} cannot be written: {error.strerror or error}; "
                "name a file in a folder that this user may write to, or 'stderr' or 'stdout'"
            ) from error
        self._number = os.fstat(self._file.fileno()).st_ino

    def write(self, items: Sequence[bytes]) -> None:
        """Append whole items, by one system call unless the disk is full or a new file begins in between.

        Shortfall says how many were written before an error.
        """
        if self._rotation is None:
            self._follow()
            self._append(items)
            return
        if os.getpid() != self._pid:  # a forked child: another thread of the parent may have held it
            self._pid, self._rotating = os.getpid(), threading.RLock()
        written = 0
        with self._rotating:
            while written < len(items):
                number = self._room(self._rotation, items[written:])
                try:
                    self._append(items[written : written + number])
                except Shortfall as error:
                    error.written += written
                    raise
                written += number

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _follow(self) -> os.stat_result:
        """Make sure that the open file is the one at the path; return what is known of it."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            found = None
        if found is None or found.st_ino != self._number:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as new:
                os.dup2(new.fileno(), self._file.fileno(), inheritable=False)
            found = os.fstat(self._file.fileno())
            self._number = found.st_ino
        return found

    def _room(self, rotation: Rotation, items: Sequence[bytes]) -> int:
        """Rotate if it is time to; return how many of the items the file has room for, at least one."""
        found = self._follow()
        if rotation.is_due(found, self._time_ns() / 1e9) or not self._fitting(rotation, found.st_size, items):
            self._rotate(rotation, found)
            found = self._follow()
        return self._fitting(rotation, found.st_size, items) or 1

    @staticmethod
    def _fitting(rotation: Rotation, size: int, items: Sequence[bytes]) -> int:
        if rotation.max_bytes is None:
            return len(items)
        for number, item in enumerate(items):
            size += len(item)
            if size > rotation.max_bytes and (number or size > len(item)):  # one alone in its file may be longer
                return number
        return len(items)

    def _rotate(self, rotation: Rotation, found: os.stat_result) -> None:
        """Rename the files, unless another process is at it, or has done so meanwhile."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._path.stat().st_ino != found.st_ino:
                return
        except (BlockingIOError, FileNotFoundError):
            return
        free = 1
        while free < rotation.backups and self._numbered(free).exists():
            free += 1
        for number in range(free, 1, -1):
            self._numbered(number - 1).replace(self._numbered(number))
        self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _append(self, items: Sequence[bytes]) -> None:
        data = b"".join(items)
        prefix = b"\n" if self._is_torn else b""  # keep half a line apart from what follows
        rest = memoryview(prefix + data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            written = max(0, len(data) - len(rest))
            if len(rest) <= len(data):
                self._is_torn = bool(written) and data[written - 1] != _NEWLINE
            whole, end = 0, 0
            for item in items:
                end += len(item)
                if end > written:
                    break
                whole += 1
            raise Shortfall(whole, error) from error
        self._is_torn = False

    def __repr__(self) -> str:
        return f"<file {self._path}>"
