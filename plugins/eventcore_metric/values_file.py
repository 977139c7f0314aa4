"""One process' values in a file that other processes read: whatever was recorded survives the process' death.

The file is mapped into memory, so recording is a store of eight bytes, which the kernel keeps even when the process is
killed. It grows in chunks, each mapped by itself: nothing that was handed out ever moves. Layout, little-endian: a
header (magic, bytes used), then entries: total length, length of the key, the key (JSON), padding to eight bytes, cells
of eight bytes. An entry is complete before ``used`` covers it. The owner holds a lock on the file for its life, on an
open file of its own that a forked child closes: who gets the lock knows that the owner is gone, in any PID namespace.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["SUFFIX", "ValuesFile", "entries_of", "packed", "try_lock"]

SUFFIX = ".values"

_MAGIC = b"ecvalue1"
_HEADER = struct.Struct("<8sQ")
_ENTRY = struct.Struct("<II")
_FILLER = 0xFFFFFFFF
CHUNK = 1 << 16


class ValuesFile:
    """The file of this process, made and locked; OSError where that is impossible."""

    def __init__(self, folder: Path, name: str) -> None:
        # The time first: names in order are files in the order of their making.
        self.path = folder / f"{name}.{time.time_ns():020d}.{os.getpid()}.{secrets.token_hex(4)}{SUFFIX}"
        unready = self.path.with_suffix(".new")
        self._held = os.open(unready, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._descriptor = -1
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX)
            self._descriptor = os.open(unready, os.O_RDWR)
            self._adding = threading.Lock()
            self._end = 0
            self._add_chunk(_HEADER.size)
            self._first = self._integers
            self._doubles[0:1].cast("B")[:] = _MAGIC
            self._use(_HEADER.size)
            unready.rename(self.path)  # only now: what others see is locked, and has a header
        except BaseException:
            self.release()
            with suppress(OSError):
                unready.unlink()
            raise

    def _add_chunk(self, size: int) -> None:
        size = -(-size // CHUNK) * CHUNK
        os.posix_fallocate(self._descriptor, self._end, size)  # a full disk is an error here, not a SIGBUS later
        chunk = memoryview(mmap.mmap(self._descriptor, size, offset=self._end))
        self._integers, self._doubles, self._bytes = chunk.cast("Q"), chunk.cast("d"), chunk
        self._start, self._used, self._end = self._end, self._end, self._end + size

    def _use(self, used: int) -> None:
        self._used = used
        self._first[1] = used

    def add(self, key: bytes, cells: int) -> tuple[memoryview[float], memoryview[int]]:
        """Add an entry; return its cells, zero, as floats and as integers. OSError: the disk is full."""
        with self._adding:
            head = _entry_head(key, cells)
            size = len(head) + 8 * cells
            if self._used + size > self._end:
                rest = self._end - self._used
                if rest:
                    _ENTRY.pack_into(self._bytes, self._used - self._start, rest, _FILLER)
                self._add_chunk(size)
            at = self._used - self._start
            self._bytes[at : at + len(head)] = head
            first = (at + len(head)) // 8
            self._use(self._used + size)
            return self._doubles[first : first + cells], self._integers[first : first + cells]

    def release(self) -> None:
        """Give up the lock, as the end of the process would: the file is complete, and others may fold it.

        In a forked child: close its copies, the lock stays the parent's.
        """
        for descriptor in (self._held, self._descriptor):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self._held = self._descriptor = -1

    def __repr__(self) -> str:
        return f"<ValuesFile {self.path.name}: {self._used} bytes>"


def _entry_head(key: bytes, cells: int) -> bytes:
    padded = key + b" " * (-len(key) % 8)
    return _ENTRY.pack(_ENTRY.size + len(padded) + 8 * cells, len(key)) + padded


def packed(entries: Iterator[tuple[bytes, list[float]]]) -> bytes:
    """Return a whole file with these entries, each a key and its cells."""
    body = b"".join(_entry_head(key, len(cells)) + struct.pack(f"<{len(cells)}d", *cells) for key, cells in entries)
    return _HEADER.pack(_MAGIC, _HEADER.size + len(body)) + body


def entries_of(path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """Yield keys and cells (as bytes, eight per cell) of a file as they are now; ValueError for what is none."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:8] != _MAGIC:
            raise ValueError(f"{path} is no file of metric values")
        used = _HEADER.unpack(header)[1]
        if used > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path} is cut off")
        # Mapped, not read: a cell is then taken by one load of eight bytes, never in halves.
        view = memoryview(mmap.mmap(file.fileno(), used, access=mmap.ACCESS_READ))
    at = _HEADER.size
    while at < used:
        size, key_size = _ENTRY.unpack_from(view, at)
        end = at + size
        if size < _ENTRY.size or size % 8 or end > used:
            raise ValueError(f"{path} has a broken entry at byte {at}")
        if key_size != _FILLER:
            cells = at + _ENTRY.size + -(-key_size // 8) * 8
            yield bytes(view[at + _ENTRY.size : at + _ENTRY.size + key_size]), view[cells:end]
        at = end


def try_lock(path: Path) -> bool:
    """Whether nobody holds a file's lock: its owner has released it, or is dead."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
