"""The series of one metric: bounded in number, written by one worker thread, read by scrapes and pushes.

Accumulators are plain objects without locks: the handler's worker is their only writer, and a scrape that reads a
number while it changes sees the old or the new one. Children of prometheus_client take a lock per operation and check
their arguments each time, at about three times the cost. A store makes the accumulators: in this process's memory, or
in a file that other processes read (``multiprocess``).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from eventcore.exposition import label_sets, label_text, metric_of
from eventcore.instruments import Codes, Counter, Gauge, Histogram, Instrument
from eventcore_metric.readings import OTHER, Exemplar, Point, Reading

if TYPE_CHECKING:
    from collections.abc import MutableSequence

    from eventcore.exposition import Metric
    from eventcore_metric.readings import Across

__all__ = ["MEMORY", "Distribution", "ExemplarFilter", "Family", "Memory", "Number", "Store", "family_of", "label_text"]

ExemplarFilter = Literal["trace_based", "always_on", "always_off"]

MAX_INITIAL_SERIES = 50
"""A metric with at most so many possible label combinations is exported at zero from the start."""


EXEMPLAR_INTERVAL_NS = 1_000_000_000
"""An exemplar is replaced by a newer one not more often; that makes them cost next to nothing."""


class Trace(Protocol):
    """What an observation was made in: an operation, or the scope of an event."""

    trace_id: int
    span_id: int
    sampled: bool


class Number:
    """The value of a counter or gauge."""

    __slots__ = ("exemplar", "value")

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.exemplar: Exemplar | None = None

    @property
    def time_s(self) -> float:
        """When it was set, where that is kept."""
        return 0.0

    def remember(self, trace: Trace, value: float, time_ns: int) -> None:
        """Keep an observation made in a trace, one per second at most."""
        known = self.exemplar
        if trace.trace_id and (known is None or time_ns - known.time_ns >= EXEMPLAR_INTERVAL_NS):
            self.exemplar = Exemplar(trace.trace_id, trace.span_id, value, time_ns)


class Distribution:
    """Observations per bucket (not cumulative; the last one is +Inf) and their sum."""

    __slots__ = ("counts", "exemplars", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts: MutableSequence[float] = [0] * (buckets + 1)
        self.sum = 0.0
        self.exemplars: list[Exemplar | None] | None = None

    def remember(self, trace: Trace, bucket: int, value: float, time_ns: int) -> None:
        """Keep an observation made in a trace, one per bucket and second at most."""
        if self.exemplars is None:
            self.exemplars = [None] * len(self.counts)
        known = self.exemplars[bucket]
        if trace.trace_id and (known is None or time_ns - known.time_ns >= EXEMPLAR_INTERVAL_NS):
            self.exemplars[bucket] = Exemplar(trace.trace_id, trace.span_id, value, time_ns)


class Store(Protocol):
    """Makes accumulators, and makes them anew in a forked child."""

    def number(self, family: Family[Number], labels: tuple[str, ...]) -> Number:
        """Return a new number at zero."""

    def distribution(self, family: Family[Distribution], labels: tuple[str, ...]) -> Distribution:
        """Return a new distribution without observations."""

    def renew(self, family: AnyFamily, labels: tuple[str, ...], series: Number | Distribution) -> None:
        """Set an accumulator of the parent process to zero, in this child's own storage."""


class Memory:
    """The store of a process that is alone."""

    def number(self, family: Family[Number], labels: tuple[str, ...]) -> Number:  # noqa: ARG002 - all are alike
        """Return a new number."""
        return Number()

    def distribution(self, family: Family[Distribution], labels: tuple[str, ...]) -> Distribution:  # noqa: ARG002 - likewise
        """Return a new distribution."""
        return Distribution(len(family.metric.buckets))

    def renew(self, family: AnyFamily, labels: tuple[str, ...], series: Number | Distribution) -> None:  # noqa: ARG002 - likewise
        """Set an accumulator to zero."""
        if isinstance(series, Number):
            series.value = 0.0
            series.exemplar = None
        else:
            series.counts[:] = [0] * len(series.counts)
            series.sum = 0.0
            series.exemplars = None


MEMORY = Memory()

A = TypeVar("A", bound=Number | Distribution)


class Family(ABC, Generic[A]):
    """One metric: its accumulators by label values, at most ``limit`` of them and one for the overflow.

    ``exemplars`` is OpenTelemetry's filter: which observations may be kept with their trace.
    """

    exemplars: ExemplarFilter = "trace_based"

    def __init__(self, metric: Metric, limit: int, store: Store = MEMORY, across: Across = "sum") -> None:
        self.metric = metric
        self.name = metric.name
        self.labels = tuple(metric.labels)
        self.limit = limit
        self.across = across
        self.overflow: A | None = None
        self.overflowed = 0
        self.rejected = 0
        self._store = store
        self._own = 0
        self._series: dict[tuple[str, ...], A] = {}

    def at(self, labels: tuple[str, ...]) -> A:
        """Return the accumulator of these label values; that of the overflow beyond the limit, which counts the use."""
        found = self._series.get(labels)
        if found is None:
            if self._own == self.limit:
                return self._overflowing()
            made = self._make(labels)
            found = self._series.setdefault(labels, made)  # a signal handler may have been here meanwhile
            self._own += found is made
        return found

    def _overflowing(self) -> A:
        self.overflowed += 1
        if self.overflow is None:
            labels = (OTHER,) * len(self.labels)
            self.overflow = self._series.get(labels) or self._make(labels)  # 'other' may be a label value like any
            self._series[labels] = self.overflow
        return self.overflow

    def __contains__(self, labels: tuple[str, ...]) -> bool:
        return labels in self._series

    def __len__(self) -> int:
        return len(self._series)

    def initialise(self, instrument: Instrument) -> None:
        """Make the series that are known beforehand, if they are few and their value is known, too.

        Counters and histograms start at zero, so that ``rate()`` sees the first event; so do gauges of what is in
        flight. A gauge over ``codes`` with an initial state starts with it. Of any other gauge nothing is known before
        its first event, and a zero would be false.
        """
        combinations = known_combinations(instrument)
        if combinations is not None and len(combinations) <= min(MAX_INITIAL_SERIES, self.limit):
            for labels in combinations:
                self.at(labels)

    def after_fork(self) -> None:
        """In a forked child: what was counted so far is the parent's; start at zero."""
        self.overflowed = self.rejected = 0
        for labels, series in self._series.copy().items():
            self._store.renew(self, labels, series)  # type: ignore[arg-type]  # one of the three kinds

    def samples(self) -> list[tuple[tuple[str, ...], A]]:
        """Return what there is now, by label values; the worker may go on meanwhile."""
        return list(self._series.copy().items())

    def read(self) -> Reading:
        """Return the series as they are now."""
        return Reading(self.metric, [self._point(*sample) for sample in self.samples()], self.across)

    @abstractmethod
    def _make(self, labels: tuple[str, ...]) -> A:
        """Return a new accumulator."""

    @abstractmethod
    def _point(self, labels: tuple[str, ...], series: A) -> Point:
        """Return one series as it is now."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self)} series>"


class CounterFamily(Family[Number]):
    """Series of a counter."""

    def _make(self, labels: tuple[str, ...]) -> Number:
        return self._store.number(self, labels)

    def _point(self, labels: tuple[str, ...], series: Number) -> Point:
        exemplar = series.exemplar
        return Point(labels, series.value, (), () if exemplar is None else (exemplar,))


class GaugeFamily(Family[Number]):
    """Series of a gauge; ``initial`` is the value of those that are there before the first event."""

    initial: float | None = None

    def initialise(self, instrument: Instrument) -> None:
        """Make the series whose value is known before the first event."""
        source = instrument.value_source
        if instrument.phase == "start":
            super().initialise(instrument)
        elif isinstance(source, Codes) and source.initial is not None:
            super().initialise(instrument)
            self.initial = float(source.codes[source.initial])
            self._begin()

    def after_fork(self) -> None:
        """In a forked child: begin as at first."""
        super().after_fork()
        self._begin()

    def _begin(self) -> None:
        if self.initial is not None:
            for _, series in self.samples():
                series.value = self.initial

    def _make(self, labels: tuple[str, ...]) -> Number:
        return self._store.number(self, labels)

    def _point(self, labels: tuple[str, ...], series: Number) -> Point:
        return Point(labels, series.value, time_s=series.time_s)


class HistogramFamily(Family[Distribution]):
    """Series of a histogram; ``bounds`` are the upper bounds without +Inf."""

    def __init__(self, metric: Metric, limit: int, store: Store = MEMORY, across: Across = "sum") -> None:
        super().__init__(metric, limit, store, across)
        self.bounds = metric.buckets

    def _make(self, labels: tuple[str, ...]) -> Distribution:
        return self._store.distribution(self, labels)

    def _point(self, labels: tuple[str, ...], series: Distribution) -> Point:
        # The counts once, as they are now: buckets and count are made of the same numbers, so they agree at any time.
        return Point(labels, series.sum, tuple(series.counts), tuple(series.exemplars or ()))


AnyFamily = CounterFamily | GaugeFamily | HistogramFamily


def family_of(instrument: Instrument, limit: int, store: Store = MEMORY) -> AnyFamily:
    """Return the family for an instrument, without series."""
    metric = metric_of(instrument)
    if isinstance(instrument, Counter):
        return CounterFamily(metric, limit, store)
    if isinstance(instrument, Gauge):
        across = instrument.across or ("sum" if instrument.phase == "start" else "latest")
        return GaugeFamily(metric, limit, store, across)
    if isinstance(instrument, Histogram):
        return HistogramFamily(metric, limit, store)
    raise TypeError(f"instrument {instrument.name!r} is a {type(instrument).__name__}, which has no series here")


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
