"""The series of one metric: bounded in number, written by one worker thread, read by scrapes.

Accumulators are plain objects without locks: the handler's worker is their only writer, and a scrape that reads a
number while it changes sees the old or the new one. Children of prometheus_client take a lock per operation and check
their arguments each time, at about three times the cost. prometheus_client sees ours through its public collector
interface, ``collect()`` and ``describe()``.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from eventcore.exposition import label_sets, label_text
from eventcore.instruments import Codes, Counter, Gauge, Histogram, Instrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

__all__ = ["Distribution", "Family", "Number", "family_of", "label_text"]

OTHER = "other"
"""Every label value of the overflow series."""

MAX_INITIAL_SERIES = 50
"""A metric with at most so many possible label combinations is exported at zero from the start."""


class Number:
    """The value of a counter or gauge."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = value


class Distribution:
    """Observations per bucket (not cumulative; the last one is +Inf) and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.sum = 0.0


A = TypeVar("A", bound=Number | Distribution)


class Family(ABC, Generic[A]):
    """One metric: its accumulators by label values, at most ``limit`` of them and one for the overflow."""

    def __init__(self, instrument: Instrument, limit: int, make: Callable[[], A]) -> None:
        self.instrument = instrument
        self.name = instrument.name
        self.labels = tuple(instrument.labels)
        self.limit = limit
        self.overflow: A | None = None
        self.overflowed = 0
        self.rejected = 0
        self._make = make
        self._own = 0
        self._series: dict[tuple[str, ...], A] = {}
        # Not passed on unless the name ends with it: prometheus_client would append it to the name.
        bare = self.name.removesuffix("_total")
        self._unit = instrument.unit if instrument.unit and bare.endswith(f"_{instrument.unit}") else ""

    def at(self, labels: tuple[str, ...]) -> A:
        """Return the accumulator of these label values; that of the overflow beyond the limit, which counts the use."""
        found = self._series.get(labels)
        if found is None:
            if self._own == self.limit:
                return self._overflowing()
            found = self._series[labels] = self._make()
            self._own += 1
        return found

    def _overflowing(self) -> A:
        self.overflowed += 1
        if self.overflow is None:
            labels = (OTHER,) * len(self.labels)
            self.overflow = self._series.get(labels) or self._make()  # 'other' may be a label value like any
            self._series[labels] = self.overflow
        return self.overflow

    def __contains__(self, labels: tuple[str, ...]) -> bool:
        return labels in self._series

    def __len__(self) -> int:
        return len(self._series)

    def initialise(self) -> None:
        """Make the series that are known beforehand, if they are few and their value is known, too.

        Counters and histograms start at zero, so that ``rate()`` sees the first event; so do gauges of what is in
        flight. A gauge over ``codes`` with an initial state starts with it. Of any other gauge nothing is known before
        its first event, and a zero would be false.
        """
        combinations = known_combinations(self.instrument)
        if combinations is not None and len(combinations) <= min(MAX_INITIAL_SERIES, self.limit):
            for labels in combinations:
                self.at(labels)

    def samples(self) -> list[tuple[tuple[str, ...], A]]:
        """Return what there is now, by label values; the worker may go on meanwhile."""
        return list(self._series.copy().items())

    @abstractmethod
    def describe(self) -> Iterable[Metric]:
        """Return the metric without samples (prometheus_client's collector interface)."""

    @abstractmethod
    def collect(self) -> Iterable[Metric]:
        """Return the metric with its samples (prometheus_client's collector interface)."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self)} series>"


class CounterFamily(Family[Number]):
    """Series of a counter."""

    def __init__(self, instrument: Counter, limit: int) -> None:
        super().__init__(instrument, limit, Number)

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Return the metric without samples."""
        return [CounterMetricFamily(self.name, self.instrument.help, labels=self.labels, unit=self._unit)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the metric with its samples."""
        (metric,) = self.describe()
        for labels, series in self.samples():
            metric.add_metric(labels, series.value)
        return [metric]


class GaugeFamily(Family[Number]):
    """Series of a gauge."""

    def __init__(self, instrument: Gauge, limit: int) -> None:
        super().__init__(instrument, limit, Number)

    def initialise(self) -> None:
        """Make the series whose value is known before the first event."""
        source = self.instrument.value_source
        if self.instrument.phase == "start":
            super().initialise()
        elif isinstance(source, Codes) and source.initial is not None:
            super().initialise()
            for _, series in self.samples():
                series.value = float(source.codes[source.initial])

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the metric without samples."""
        return [GaugeMetricFamily(self.name, self.instrument.help, labels=self.labels, unit=self._unit)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the metric with its samples."""
        (metric,) = self.describe()
        for labels, series in self.samples():
            metric.add_metric(labels, series.value)
        return [metric]


class HistogramFamily(Family[Distribution]):
    """Series of a histogram; ``bounds`` are the upper bounds without +Inf."""

    def __init__(self, instrument: Histogram, limit: int) -> None:
        bounds = [float(bound) for bound in instrument.buckets]
        self.bounds = bounds[:-1] if bounds[-1] == float("inf") else bounds
        self._les = [
            floatToGoString(bound)  # type: ignore[no-untyped-call]  # it has no annotations
            for bound in (*self.bounds, float("inf"))
        ]
        super().__init__(instrument, limit, lambda: Distribution(len(self.bounds)))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the metric without samples."""
        return [HistogramMetricFamily(self.name, self.instrument.help, labels=self.labels, unit=self._unit)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the metric with its samples; buckets are cumulative, so +Inf and the count agree at any time."""
        (metric,) = self.describe()
        for labels, series in self.samples():
            cumulative = itertools.accumulate(series.counts)
            metric.add_metric(labels, list(zip(self._les, cumulative, strict=True)), series.sum)
        return [metric]


AnyFamily = CounterFamily | GaugeFamily | HistogramFamily


def family_of(instrument: Instrument, limit: int) -> AnyFamily:
    """Return the family for an instrument, with its initial series."""
    family: AnyFamily
    if isinstance(instrument, Counter):
        family = CounterFamily(instrument, limit)
    elif isinstance(instrument, Gauge):
        family = GaugeFamily(instrument, limit)
    elif isinstance(instrument, Histogram):
        family = HistogramFamily(instrument, limit)
    else:
        raise TypeError(f"instrument {instrument.name!r} is a {type(instrument).__name__}, which has no series here")
    family.initialise()
    return family


def known_combinations(instrument: Instrument) -> list[tuple[str, ...]] | None:
    """Return every combination of label values that the instrument can have, or None if they are not finite or many.

    A label that reads a field named in ``where`` takes only the values that ``where`` lets through.
    """
    combinations: dict[tuple[str, ...], None] = {}
    for event_type in instrument.types:
        sets = []
        for values in label_sets(instrument, event_type.__event__).values():
            if values is None:
                return None
            sets.append(values)
        for combination in itertools.islice(itertools.product(*sets), MAX_INITIAL_SERIES + 1):
            combinations[combination] = None
    return list(combinations)
