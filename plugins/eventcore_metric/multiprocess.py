"""Many processes, one ``/metrics``: the values files of the living are merged, those of the dead folded into one.

``<name>.totals`` holds what dead processes have counted. Folding happens under a lock, by whoever starts, scrapes or
ends: counters and histograms of a dead process are added to the totals, its gauges are gone, its file is removed. The
totals name the files they contain and are replaced whole, so a fold that is cut off anywhere counts nothing twice, and
nothing is ever missing: totals never go backwards.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eventcore.errors import EventCoreError
from eventcore.exposition import Metric
from eventcore_metric.readings import OTHER, Exemplar, Point, Reading
from eventcore_metric.values_file import SUFFIX, entries_of, packed, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventcore_metric.readings import Across

__all__ = ["MARK", "Directory", "definition_key", "mark_of", "read_directory", "series_key", "set_mark"]

LOCK_TIMEOUT_S = 5.0
STALE_S = 60.0


class _Definition(NamedTuple):
    """What a file says of a metric; two that differ are two metrics, even of one name."""

    name: str
    kind: str
    help: str
    unit: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]
    across: Across
    limit: int

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.name, self.kind, self.labels, self.buckets

    @property
    def metric(self) -> Metric:
        return Metric(
            name=self.name,
            kind=self.kind,  # type: ignore[arg-type]  # as it was written
            help=self.help,
            labels=dict.fromkeys(self.labels),
            unit=self.unit,
            buckets=self.buckets,
        )


def definition_key(metric: Metric, across: Across, limit: int) -> list[Any]:
    """Return the key of a metric's definition."""
    labels, buckets = list(metric.labels), list(metric.buckets)
    return ["metric", metric.name, metric.kind, metric.help, metric.unit, labels, buckets, across, limit]


def series_key(definition: int, labels: Sequence[str]) -> list[Any]:
    """Return the key of one series of the definition with that number in the file."""
    return [definition, *labels]


def _includes_key(file: str) -> list[Any]:
    return ["includes", file]


class _Merged:
    """One metric over several processes."""

    def __init__(self, definition: _Definition) -> None:
        self.definition = definition
        self.series: dict[tuple[str, ...], list[float]] = {}
        self.exemplars: dict[tuple[str, ...], list[Exemplar | None]] = {}

    def add(self, labels: tuple[str, ...], cells: list[float], exemplars: list[Exemplar | None]) -> None:
        known = self.series.get(labels)
        if known is None:
            if len(self.series) >= self.definition.limit and labels and labels != (OTHER,) * len(labels):
                if self.definition.kind != "gauge" or self.definition.across == "sum":
                    self.add((OTHER,) * len(labels), cells, exemplars)
                return
            self.series[labels] = cells
            self.exemplars[labels] = exemplars
            return
        self.series[labels] = _together(self.definition, known, cells)
        self.exemplars[labels] = [_later(*pair) for pair in zip(self.exemplars[labels], exemplars, strict=True)]

    def reading(self) -> Reading:
        is_histogram, is_gauge = self.definition.kind == "histogram", self.definition.kind == "gauge"
        points = [
            Point(
                labels,
                cells[0],
                cells[1:] if is_histogram else (),
                self.exemplars[labels] if any(self.exemplars[labels]) else (),
                cells[1] if is_gauge else 0.0,
            )
            for labels, cells in self.series.items()
        ]
        return Reading(self.definition.metric, points, self.definition.across)


def _together(definition: _Definition, one: list[float], other: list[float]) -> list[float]:
    across = definition.across
    if definition.kind == "gauge" and across == "latest":
        return one if one[1] >= other[1] else other
    if across == "max":
        return max(one, other)
    if across == "min":
        return min(one, other)
    return [a + b for a, b in zip(one, other, strict=True)]


def _later(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    if one is None or other is None:
        return one or other
    return one if one.time_ns >= other.time_ns else other


class Directory:
    """The files of one handler in one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._totals = folder / f"{name}.totals"

    def read(self) -> list[Reading]:
        """Return what all processes together have recorded; EventCoreError where the lock cannot be had."""
        with self._locked(LOCK_TIMEOUT_S):
            self._fold()
            merged: dict[tuple[Any, ...], _Merged] = {}
            self._merge_file(self._totals, merged)
            newest: dict[str, tuple[Any, ...]] = {one.definition.name: shape for shape, one in merged.items()}
            for path in self._living():
                newest.update(self._merge_file(path, merged))
        # After a change of labels or buckets only the newest shape can be shown under the name.
        return [one.reading() for shape, one in merged.items() if newest[one.definition.name] == shape and one.series]

    def fold(self, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Fold the files of dead processes, unless somebody else is at it all the time."""
        with suppress(EventCoreError), self._locked(timeout_s):
            self._fold()

    @contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        descriptor = os.open(self.folder / f"{self.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EventCoreError(
                            f"{self.folder}: another process has held the lock for {timeout_s} s; is one stopped?"
                        ) from None
                    time.sleep(0.002)
            yield
        finally:
            os.close(descriptor)

    def _living(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.*{SUFFIX}"))

    def _fold(self) -> None:
        """Fold the dead; the lock is held."""
        dead = [path for path in self._living() if try_lock(path)]
        for unready in self.folder.glob(f"{self.name}.*.new"):
            with suppress(OSError):
                if time.time() - unready.stat().st_mtime > STALE_S and try_lock(unready):
                    unready.unlink()
        if not dead:
            return
        merged: dict[tuple[Any, ...], _Merged] = {}
        included = self._merge_totals(merged)
        for path in dead:
            if path.name not in included:
                self._merge_file(path, merged, keep=("counter", "histogram"))
        unready = self._totals.with_suffix(".unready")
        with unready.open("wb") as file:
            file.write(packed(_entries(merged, [path.name for path in dead])))
            file.flush()
            os.fsync(file.fileno())
        unready.replace(self._totals)
        for path in dead:  # cut off here, they are known to be included
            path.unlink(missing_ok=True)

    def _merge_totals(self, merged: dict[tuple[Any, ...], _Merged]) -> set[str]:
        """Merge the totals; return the names of the files that they contain."""
        included: set[str] = set()
        self._merge_file(self._totals, merged, included=included)
        return included

    def _merge_file(
        self,
        path: Path,
        merged: dict[tuple[Any, ...], _Merged],
        *,
        keep: tuple[str, ...] = ("counter", "gauge", "histogram"),
        included: set[str] | None = None,
    ) -> dict[str, tuple[Any, ...]]:
        """Add a file's series; return the shapes of its metrics by name. What is no values file adds nothing."""
        definitions: list[_Definition] = []
        with suppress(FileNotFoundError, ValueError):
            for key, cells in entries_of(path):
                head, *rest = json.loads(key)
                if head == "metric":
                    name, kind, text, unit, labels, buckets, across, limit = rest
                    definitions.append(
                        _Definition(name, kind, text, unit, tuple(labels), tuple(buckets), across, limit)
                    )
                elif head == "includes":
                    if included is not None:
                        included.update(rest)
                elif definitions[head].kind in keep:
                    definition = definitions[head]
                    one = merged.get(definition.shape)
                    if one is None:
                        one = merged[definition.shape] = _Merged(definition)
                    one.add(tuple(rest), *_unpacked(definition, cells))
        return {definition.name: definition.shape for definition in definitions}


def _unpacked(definition: _Definition, raw: memoryview) -> tuple[list[float], list[Exemplar | None]]:
    """Return the numbers and the exemplars of one series."""
    doubles = raw.cast("d")
    if definition.kind == "gauge":
        return list(doubles), []
    numbers = 2 + len(definition.buckets) if definition.kind == "histogram" else 1
    marks = raw.cast("Q")[numbers:]
    places = (numbers - 1) or 1
    return list(doubles[:numbers]), [mark_of(marks, place) if marks else None for place in range(places)]


def _entries(merged: dict[tuple[Any, ...], _Merged], included: list[str]) -> Iterator[tuple[bytes, list[float]]]:
    for name in included:
        yield json.dumps(_includes_key(name)).encode(), []
    for number, one in enumerate(merged.values()):
        definition = one.definition
        yield json.dumps(definition_key(definition.metric, definition.across, definition.limit)).encode(), []
        for labels, cells in one.series.items():
            yield json.dumps(series_key(number, labels)).encode(), cells


# -- exemplars ---------------------------------------------------------------------------------------------------------

MARK = 5
"""Cells of an exemplar: time (0 while there is none), trace id in two, span id, the value's bits."""


def set_mark(marks: memoryview[int], place: int, exemplar: Exemplar) -> None:
    """Write an exemplar; meanwhile there is none, so that a reader sees the old one, none, or the new one."""
    at = place * MARK
    marks[at] = 0
    marks[at + 1], marks[at + 2] = exemplar.trace_id >> 64, exemplar.trace_id & 0xFFFFFFFFFFFFFFFF
    marks[at + 3] = exemplar.span_id
    (marks[at + 4],) = struct.unpack("=Q", struct.pack("=d", exemplar.value))
    marks[at] = exemplar.time_ns


def mark_of(marks: memoryview[int], place: int) -> Exemplar | None:
    """Return the exemplar at a place, if there is one."""
    at = place * MARK
    time_ns, high, low, span_id, bits = marks[at : at + MARK]
    if not time_ns or marks[at] != time_ns:
        return None
    return Exemplar(high << 64 | low, span_id, struct.unpack("=d", struct.pack("=Q", bits))[0], time_ns)


def read_directory(folder: Path | str, name: str = "metric") -> list[Reading]:
    """Return what the processes that share ``multiprocess_dir`` have recorded in their handlers called ``name``.

    EventCoreError: there is no such folder, or it has no files of such a handler.
    """
    folder = Path(folder)
    if not any(folder.glob(f"{name}.*")):
        raise EventCoreError(f"{folder} has no metrics of a handler {name!r}; is it the multiprocess_dir of a process?")
    return Directory(folder, name).read()
