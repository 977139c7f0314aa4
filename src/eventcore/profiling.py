"""A small profiler: how long a section of code took, what CPU time it cost, and by how much memory grew meanwhile.

``with ec.profile("inference"):`` is an operation like others, and what happens inside belongs to it. ``start_profile``
and ``end_profile`` mark sections that fit no block; such sections may overlap, so nothing belongs to them.

Memory is what ``tracemalloc`` traced where it is on at both ends: objects of Python, to the byte. Else it is the
resident memory of the process, in which an allocator keeps what was freed and every thread has its part: a hint. Each
result says which of the two it is.
"""

from __future__ import annotations

import os
import sys
import time
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypedDict

from eventcore.errors import OperationMisuse, did_you_mean
from eventcore.events import Category, Operation
from eventcore.fields import Label, Measure, unset
from eventcore.in_use import get_emitter

if TYPE_CHECKING:
    from types import TracebackType

    from eventcore.emitter import Emitter

__all__ = ["Profile", "ProfileData", "ProfileSection", "end_profile", "profile", "start_profile"]

MAX_OPEN = 100
"""Sections that one context may have begun and not ended; the oldest beyond that end as abandoned."""

MemorySource = Literal["tracemalloc", "resident"]


class Profile(
    Operation,
    name="eventcore.profile",
    category=Category.PERFORMANCE,
    message="{profile} took {cpu_s} s of CPU, memory {memory_delta_bytes} bytes ({memory_source})",
):
    """A profiled section of code."""

    profile: Annotated[str, Label]
    cpu_s: Annotated[float, Measure(unit="s")] = unset
    memory_delta_bytes: Annotated[int, Measure(unit="By")] = unset
    memory_source: Annotated[MemorySource, Label] = unset


class ProfileData(TypedDict):
    """What a section cost: seconds of time and of the process's CPU, bytes, and what was measured; None: cannot say."""

    name: str
    duration: float
    cpu: float
    memory_delta: int | None
    memory_source: MemorySource | None


class ProfileSection:
    """A section that is, or was, profiled; ``data`` is there when it has ended."""

    def __init__(self, name: str, emitter: Emitter | None = None) -> None:
        self.name = name
        self.data: ProfileData | None = None
        self._operation = (emitter or get_emitter()).operation(Profile, profile=name)
        self._memory: tuple[int | None, int | None] = (None, None)
        self._cpu_s = self._began = 0.0

    def __enter__(self) -> Self:
        self._operation.__enter__()
        self._memory = _traced(), _resident()
        self._cpu_s = time.process_time()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._measure()
        self._operation.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def start(self) -> Self:
        """Begin, without a block: what happens meanwhile does not belong to it."""
        self.__enter__()
        self._operation.suspend()
        return self

    def end(self) -> ProfileData:
        """End and return what it cost. Raises OperationMisuse when it has ended."""
        if not self._operation.is_open or self.data is not None:
            raise OperationMisuse(f"profile {self.name!r} has ended already, or never began")
        data = self._measure()
        self._operation.end()
        return data

    def abandon(self) -> None:
        """End it without anybody asking what it cost."""
        self._operation.abandon(f"call ec.end_profile({self.name!r})")

    def _measure(self) -> ProfileData:
        duration, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_s
        (traced, resident), now_traced, now_resident = self._memory, _traced(), _resident()
        delta: int | None = None
        source: MemorySource | None = None
        if traced is not None and now_traced is not None:
            delta, source = now_traced - traced, "tracemalloc"
        elif resident is not None and now_resident is not None:
            delta, source = now_resident - resident, "resident"
        self._operation.set(cpu_s=cpu_s)
        if source is not None:
            self._operation.set(memory_delta_bytes=delta, memory_source=source)
        self.data = ProfileData(name=self.name, duration=duration, cpu=cpu_s, memory_delta=delta, memory_source=source)
        return self.data

    def __repr__(self) -> str:
        took = "" if self.data is None else f" {self.data['duration']:.6f} s"
        return f"<ProfileSection {self.name}{took}>"


_OPEN: ContextVar[tuple[ProfileSection, ...]] = ContextVar("eventcore_profiles", default=())


def profile(name: str) -> ProfileSection:
    """Profile a block: ``with ec.profile("inference") as section:``, then ``section.data``; also ``async with``."""
    return ProfileSection(name)


def start_profile(name: str) -> ProfileSection:
    """Begin to profile a section; end it by its name in the same context, or anywhere by what is returned."""
    section = ProfileSection(name).start()
    sections = (*_OPEN.get(), section)
    if len(sections) > MAX_OPEN:
        sections[0].abandon()
        sections = sections[1:]
    _OPEN.set(sections)
    return section


def end_profile(section: str | ProfileSection) -> ProfileData:
    """End the section, of several of one name the one begun last, and return what it cost.

    The result has ``duration`` and ``cpu`` in seconds, ``memory_delta`` in bytes and ``memory_source``. Raises
    OperationMisuse for a name that nobody has begun in this context, or a section that has ended.
    """
    begun = _OPEN.get()
    if isinstance(section, str):
        found = next((one for one in reversed(begun) if one.name == section), None)
        if found is None:
            names = sorted({one.name for one in begun})
            raise OperationMisuse(
                f"no profile {section!r} has begun in this context{did_you_mean(section, names) if names else ''}; "
                "begin it with ec.start_profile(), and end one of another thread or task by what that returned"
            )
        section = found
    _OPEN.set(tuple(one for one in begun if one is not section))
    return section.end()


def _traced() -> int | None:
    """Return the bytes that tracemalloc knows of; None where it is off, and it is not imported to find out."""
    tracemalloc = sys.modules.get("tracemalloc")
    return tracemalloc.get_traced_memory()[0] if tracemalloc is not None and tracemalloc.is_tracing() else None


_STATM = Path("/proc/self/statm")


def _resident() -> int | None:
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # no such file system here
        return None
