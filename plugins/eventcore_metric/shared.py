"""The store of a process that is one of several: accumulators whose numbers live in its values file.

Counters, gauges and histograms are written through, so nothing recorded is lost by a kill. What is read from elsewhere
(the bus's account, the process) is published at an interval, at every scrape and at the end.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from eventcore.errors import ConfigurationError
from eventcore_metric.multiprocess import MARK, Directory, definition_key, mark_of, series_key, set_mark
from eventcore_metric.readings import Exemplar
from eventcore_metric.series import EXEMPLAR_INTERVAL_NS, Distribution, Number
from eventcore_metric.values_file import ValuesFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from eventcore.exposition import Metric
    from eventcore_metric.readings import Across, Point, Reading
    from eventcore_metric.series import AnyFamily, Family, Trace

__all__ = ["Publisher", "Shared"]

PUBLISH_INTERVAL_S = 1.0
"""How much of the bus's own account a kill may cost; instruments and metrics by hand are written through."""


class SharedNumber(Number):
    """A counter's value, and its exemplar."""

    __slots__ = ("_cells", "_marks")

    def __init__(self, cells: memoryview[float], integers: memoryview[int]) -> None:
        self.bind(cells, integers)

    def bind(self, cells: memoryview[float], integers: memoryview[int]) -> None:
        """Move to new cells."""
        self._cells = cells
        self._marks = integers[1:]

    @property
    def value(self) -> float:
        """The value."""
        return self._cells[0]

    @value.setter
    def value(self, value: float) -> None:
        self._cells[0] = value

    @property
    def exemplar(self) -> Exemplar | None:
        """The exemplar."""
        return mark_of(self._marks, 0)

    @exemplar.setter
    def exemplar(self, exemplar: Exemplar | None) -> None:
        if exemplar is not None:
            set_mark(self._marks, 0, exemplar)


class SharedGauge(SharedNumber):
    """A gauge's value, and when it was set."""

    __slots__ = ()

    @property
    def value(self) -> float:
        """The value."""
        return self._cells[0]

    @value.setter
    def value(self, value: float) -> None:
        self._cells[0] = value
        self._cells[1] = time.time()

    @property
    def time_s(self) -> float:
        """When it was set."""
        return self._cells[1]


class SharedDistribution(Distribution):
    """A histogram's sum, observations per bucket, and an exemplar per bucket."""

    __slots__ = ("_cells", "_marks")

    def __init__(self, cells: memoryview[float], integers: memoryview[int], buckets: int) -> None:
        self.bind(cells, integers, buckets)

    def bind(self, cells: memoryview[float], integers: memoryview[int], buckets: int) -> None:
        """Move to new cells."""
        self._cells = cells
        self.counts = cells[1 : buckets + 2]  # type: ignore[assignment]  # all of it that is used here
        self._marks = integers[buckets + 2 :]

    def _get_sum(self) -> float:
        return self._cells[0]

    def _set_sum(self, value: float) -> None:
        self._cells[0] = value

    sum = property(_get_sum, _set_sum)

    @property
    def exemplars(self) -> list[Exemplar | None] | None:
        """The exemplars."""
        found = [mark_of(self._marks, bucket) for bucket in range(len(self.counts))]
        return found if any(found) else None

    @exemplars.setter
    def exemplars(self, value: list[Exemplar | None] | None) -> None:
        """Only ever emptied, and new cells are empty."""

    def remember(self, trace: Trace, bucket: int, value: float, time_ns: int) -> None:
        """Keep an observation made in a trace, one per bucket and second at most."""
        if trace.trace_id and time_ns - self._marks[bucket * MARK] >= EXEMPLAR_INTERVAL_NS:
            set_mark(self._marks, bucket, Exemplar(trace.trace_id, trace.span_id, value, time_ns))


class Shared:
    """A store in ``folder``, together with all processes that use it; ConfigurationError where that cannot be used."""

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self.directory = Directory(folder, name)
        self.problem = ""
        self._limit = limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
            self.directory.fold()
        except OSError as error:
            raise ConfigurationError(f"multiprocess_dir {str(folder)!r} cannot be used: {error}") from None

    def _open(self) -> None:
        self._file: ValuesFile | None = ValuesFile(self.directory.folder, self.directory.name)
        self._definitions: dict[str, int] = {}
        self._defining = threading.Lock()
        self._published: dict[tuple[str, tuple[str, ...]], memoryview[float]] = {}
        self._publishing = threading.RLock()

    # -- accumulators ------------------------------------------------------------------------------------------------

    def number(self, family: Family[Number], labels: tuple[str, ...]) -> Number:
        """Return a new number at zero."""
        cells, integers = self._cells(family.metric, family.across, labels)
        return SharedGauge(cells, integers) if family.metric.kind == "gauge" else SharedNumber(cells, integers)

    def distribution(self, family: Family[Distribution], labels: tuple[str, ...]) -> Distribution:
        """Return a new distribution without observations."""
        return SharedDistribution(*self._cells(family.metric, family.across, labels), len(family.metric.buckets))

    def renew(self, family: AnyFamily, labels: tuple[str, ...], series: Number | Distribution) -> None:
        """Move an accumulator of the parent process to this child's own file, at zero."""
        cells, integers = self._cells(family.metric, family.across, labels)
        if isinstance(series, SharedNumber):
            series.bind(cells, integers)
        elif isinstance(series, SharedDistribution):
            series.bind(cells, integers, len(family.metric.buckets))

    def _cells(
        self, metric: Metric, across: Across, labels: tuple[str, ...]
    ) -> tuple[memoryview[float], memoryview[int]]:
        number = cells_of(metric)
        try:
            if self._file is not None:
                definition = self._definition(self._file, metric, across)
                return self._file.add(json.dumps(series_key(definition, labels)).encode(), number)
        except OSError as error:  # the disk is full, say: this process goes on alone, and says so
            self.problem = f"{type(error).__name__}: {error}"
        alone = memoryview(bytearray(8 * number))
        return alone.cast("d"), alone.cast("Q")

    def _definition(self, file: ValuesFile, metric: Metric, across: Across) -> int:
        """Return the number of a metric's definition in the file, which comes before its series."""
        with self._defining:
            number = self._definitions.get(metric.name)
            if number is None:
                file.add(json.dumps(definition_key(metric, across, self._limit)).encode(), 0)
                number = self._definitions[metric.name] = len(self._definitions)
            return number

    # -- the others --------------------------------------------------------------------------------------------------

    def publish(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Read what is kept elsewhere and write it for the other processes; one at a time, so that none writes less."""
        with self._publishing:
            for reading in read():
                for point in reading.points:
                    self._write(reading.metric, reading.across, point)

    def _write(self, metric: Metric, across: Across, point: Point) -> None:
        key = (metric.name, point.labels)
        cells = self._published.get(key)
        if cells is None:
            cells = self._published[key] = self._cells(metric, across, point.labels)[0]
        cells[0] = point.value
        if metric.kind == "gauge":
            cells[1] = point.time_s or time.time()
        for index, count in enumerate(point.counts, start=1):
            cells[index] = count

    def read(self) -> list[Reading]:
        """Return what all processes together have recorded, the dead ones included."""
        return self.directory.read()

    def after_fork(self) -> None:
        """In a forked child: a file of its own."""
        if self._file is None:
            return
        self._file.release()
        try:
            self._open()
        except OSError as error:
            self._file = None
            self.problem = f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Leave the file to be folded, and fold it, if nobody else is at it."""
        file, self._file = self._file, None
        if file is not None:
            file.release()
            self.directory.fold(timeout_s=0.5)

    def describe(self) -> dict[str, Any]:
        """Return where the files are."""
        return {"multiprocess_dir": str(self.directory.folder)} | ({"problem": self.problem} if self.problem else {})


def cells_of(metric: Metric) -> int:
    """Return how many cells a series has: a gauge its value and time, the others exemplars too."""
    if metric.kind == "gauge":
        return 2
    if metric.kind == "counter":
        return 1 + MARK
    buckets = len(metric.buckets) + 1
    return 1 + buckets + MARK * buckets


class Publisher:
    """Publishes at an interval what is read from elsewhere, in a thread of its own."""

    def __init__(self, name: str, publish: Callable[[], None]) -> None:
        self._name = name
        self._publish = publish
        self.start()

    def start(self) -> None:
        """Start, at first and in a forked child."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"eventcore-{self._name}-publish", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stopping.wait(PUBLISH_INTERVAL_S):
            self._publish()

    def stop(self) -> None:
        """Stop; what it is doing is finished soon."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)
