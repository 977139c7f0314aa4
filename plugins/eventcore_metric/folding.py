"""Instruments compiled into folds: functions that add one envelope to the series of one metric.

Everything that can be decided once is decided here, per instrument and event type: which fields are read, which labels
are constant, which values must be checked. A fold finds its series through a dictionary from raw label values; only a
combination that it has not seen takes the slow way through ``_Resolver`` (text of labels, limit of the family). A value
without meaning (``ec.unset``, None) gives no observation; one that a metric cannot take (not a number, not finite,
negative for a counter) is counted as rejected, since a single NaN in a sum would make all later rates NaN.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import isfinite
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from eventcore.fields import unset
from eventcore.instruments import Field
from eventcore_metric.series import CounterFamily, Distribution, Family, HistogramFamily, Number, label_text
from eventcore_metric.sources import constant_of, payload_field, predicate_of, reader_of

if TYPE_CHECKING:
    from eventcore.envelope import Envelope
    from eventcore.event_spec import EventSpec
    from eventcore.events import Event
    from eventcore.instruments import Instrument, Source
    from eventcore_metric.series import AnyFamily

__all__ = ["Fold", "Folds", "Resolver", "checked_by", "folds_of", "resolver_of"]

A = TypeVar("A", bound=Number | Distribution)
Fold = Callable[["Envelope", Mapping[str, Any]], None]
SeriesOf = Callable[["Envelope", Mapping[str, Any]], A | None]
ValueOf = Callable[["Envelope", Mapping[str, Any]], float | None]

MAX_IN_FLIGHT = 20_000
"""Starts whose end is awaited per gauge; the oldest beyond are taken for lost. The bus keeps half as many open."""


class Folds:
    """What one instrument does with envelopes of one event type: at the start of operations, and at the end."""

    __slots__ = ("end", "start")

    def __init__(self, *, start: Fold | None = None, end: Fold | None = None) -> None:
        self.start = start
        self.end = end


def folds_of(instrument: Instrument, event_type: type[Event], family: AnyFamily) -> Folds:
    """Return the folds of an instrument over one of its event types into ``family``."""
    spec = event_type.__event__
    if instrument.kind == "gauge" and instrument.phase == "start":
        return _in_flight(instrument, spec, family)  # type: ignore[arg-type]  # a gauge's family holds numbers
    if isinstance(family, HistogramFamily):
        fold = _observe(family, _series_of(instrument, spec, family), _value_of(instrument, spec, family))
    elif isinstance(family, CounterFamily):
        fold = _count(instrument, spec, family)
    else:
        fold = _set(_series_of(instrument, spec, family), _value_of(instrument, spec, family))
    fold = _expanded(instrument, _selected(instrument, spec, fold), family)
    return Folds(start=fold) if instrument.phase == "start" else Folds(end=fold)


# -- what each kind does -----------------------------------------------------------------------------------------------


def _count(instrument: Instrument, spec: EventSpec, family: CounterFamily) -> Fold:
    series_of = _series_of(instrument, spec, family)
    if instrument.value is not None:
        return _add(family, series_of, _value_of(instrument, spec, family))
    has_exemplars, all_traces = family.exemplars != "always_off", family.exemplars == "always_on"

    def count(envelope: Envelope, fields: Mapping[str, Any]) -> None:
        series = series_of(envelope, fields)
        if series is not None:
            series.value += 1
            if has_exemplars:
                trace = envelope.span or envelope.scope
                if trace.sampled or all_traces:
                    series.remember(trace, 1.0, envelope.time_ns)

    return count


def _add(family: CounterFamily, series_of: SeriesOf[Number], value_of: ValueOf) -> Fold:
    has_exemplars, all_traces = family.exemplars != "always_off", family.exemplars == "always_on"

    def add(envelope: Envelope, fields: Mapping[str, Any]) -> None:
        value = value_of(envelope, fields)
        if value is None:
            return
        series = series_of(envelope, fields)
        if series is not None:
            series.value += value
            if has_exemplars:
                trace = envelope.span or envelope.scope
                if trace.sampled or all_traces:
                    series.remember(trace, value, envelope.time_ns)

    return add


def _set(series_of: SeriesOf[Number], value_of: ValueOf) -> Fold:
    def set_(envelope: Envelope, fields: Mapping[str, Any]) -> None:
        value = value_of(envelope, fields)
        if value is None:
            return
        series = series_of(envelope, fields)
        if series is not None:
            series.value = value

    return set_


def _observe(family: HistogramFamily, series_of: SeriesOf[Distribution], value_of: ValueOf) -> Fold:
    bounds = family.bounds
    has_exemplars, all_traces = family.exemplars != "always_off", family.exemplars == "always_on"

    def observe(envelope: Envelope, fields: Mapping[str, Any]) -> None:
        value = value_of(envelope, fields)
        if value is None:
            return
        series = series_of(envelope, fields)
        if series is not None:
            bucket = bisect_left(bounds, value)
            series.counts[bucket] += 1
            series.sum += value
            if has_exemplars:
                trace = envelope.span or envelope.scope
                if trace.sampled or all_traces:
                    series.remember(trace, bucket, value, envelope.time_ns)

    return observe


def _in_flight(instrument: Instrument, spec: EventSpec, family: Family[Number]) -> Folds:
    """Return folds that add at the start and subtract at the end, from the very series that was added to.

    Ends are matched to starts by span id, so results set meanwhile cannot change the series, and the end of an
    operation whose start was dropped (or came before the handler) does not make the gauge negative.
    """
    series_of = _series_of(instrument, spec, family)
    value_of = None if instrument.value is None else _value_of(instrument, spec, family)
    awaited: dict[int, list[tuple[Number, float]]] = {}

    def begin(envelope: Envelope, fields: Mapping[str, Any]) -> None:
        amount = 1.0 if value_of is None else value_of(envelope, fields)
        if amount is None or envelope.span is None:
            return
        series = series_of(envelope, fields)
        if series is not None:
            series.value += amount
            awaited.setdefault(envelope.span.span_id, []).append((series, amount))
            if len(awaited) > MAX_IN_FLIGHT:
                settle(next(iter(awaited)))

    def settle(span_id: int) -> None:
        for series, amount in awaited.pop(span_id, ()):
            series.value -= amount

    def end(envelope: Envelope, _fields: Mapping[str, Any]) -> None:
        if envelope.span is not None:
            settle(envelope.span.span_id)

    return Folds(start=_expanded(instrument, _selected(instrument, spec, begin), family), end=end)


# -- where and each ----------------------------------------------------------------------------------------------------


def _selected(instrument: Instrument, spec: EventSpec, fold: Fold) -> Fold:
    is_selected = predicate_of(instrument.where, spec)
    if is_selected is None:
        return fold

    def selected(envelope: Envelope, fields: Mapping[str, Any]) -> None:
        if is_selected(envelope, fields):
            fold(envelope, fields)

    return selected


def _expanded(instrument: Instrument, fold: Fold, family: Family[Any]) -> Fold:
    """Return a fold that runs once per element of the ``each`` arrays; arrays of unequal length are rejected."""
    names = instrument.each
    if not names:
        return fold

    def expanded(envelope: Envelope, fields: Mapping[str, Any]) -> None:
        arrays = {
            name: array.tolist() if hasattr(array, "tolist") else array
            for name in names
            if (array := fields[name]) is not unset and array is not None
        }
        if len({len(array) for array in arrays.values()}) > 1:
            family.rejected += 1
            return
        view = dict(fields)
        for row in zip(*arrays.values(), strict=True):
            view.update(zip(arrays, row, strict=True))
            fold(envelope, view)

    return expanded


# -- values ------------------------------------------------------------------------------------------------------------


def _value_of(instrument: Instrument, spec: EventSpec, family: Family[Any]) -> ValueOf:
    source = instrument.value_source
    assert source is not None  # noqa: S101 - the callers looked; for the type checker
    read = reader_of(source, spec)
    if isinstance(source, Field) and source.name == "duration_s" and "duration_s" not in spec.fields:

        def duration_of(envelope: Envelope, _fields: Mapping[str, Any]) -> float | None:
            span = envelope.span  # stamped by the bus: needs no check
            return None if span is None or span.outcome is None else span.duration_ns / 1e9

        return duration_of
    check = checked_by(
        family, takes_any=instrument.kind == "gauge", at_least=0.0 if isinstance(family, CounterFamily) else None
    )
    return lambda envelope, fields: check(read(envelope, fields))


def checked_by(
    family: Family[Any], *, takes_any: bool = False, at_least: float | None = None
) -> Callable[[Any], float | None]:
    """Return what makes a number of a value, or None where it has no meaning or the metric cannot take it."""

    def checked(value: Any) -> float | None:
        try:
            if (isfinite(value) or takes_any) and (at_least is None or value >= at_least):
                return float(value)
        except (TypeError, ValueError, OverflowError):
            if value is unset or value is None:
                return None
        family.rejected += 1
        return None

    return checked


# -- series ------------------------------------------------------------------------------------------------------------


def _series_of(instrument: Instrument, spec: EventSpec, family: Family[A]) -> SeriesOf[A]:
    """Return a function from an envelope to its series, or to None where a label has no value."""
    resolver, varying = resolver_of(instrument, spec, family)
    if not varying:
        labels = tuple(resolver.constants.values())
        if labels not in family:  # a gauge, of which nothing is known before the first event
            return lambda _envelope, _fields: family.at(labels)
        always = family.at(labels)
        return lambda _envelope, _fields: always
    known, resolve = resolver.known, resolver.resolve
    names = [payload_field(source, spec) for source in varying]
    if None not in names:
        key_of = itemgetter(*names)

        def of_fields(_envelope: Envelope, fields: Mapping[str, Any]) -> A | None:
            key = key_of(fields)
            return known.get(key) or resolve(key)

        return of_fields
    readers = [reader_of(source, spec) for source in varying]
    if len(readers) == 1:
        (read,) = readers

        def of_one(envelope: Envelope, fields: Mapping[str, Any]) -> A | None:
            key = read(envelope, fields)
            return known.get(key) or resolve(key)

        return of_one

    if len(readers) == 2:
        first, second = readers

        def of_two(envelope: Envelope, fields: Mapping[str, Any]) -> A | None:
            key = (first(envelope, fields), second(envelope, fields))
            return known.get(key) or resolve(key)

        return of_two

    def of_many(envelope: Envelope, fields: Mapping[str, Any]) -> A | None:
        key = tuple([read(envelope, fields) for read in readers])
        return known.get(key) or resolve(key)

    return of_many


def resolver_of(instrument: Instrument, spec: EventSpec, family: Family[A]) -> tuple[Resolver[A], list[Source]]:
    """Return what finds the series of an instrument, and the sources of the labels that vary, in their order."""
    sources = instrument.label_sources
    constants = {
        label: label_text(value)
        for label, source in sources.items()
        if (value := constant_of(source, spec)) is not unset
    }
    return Resolver(family, constants), [source for label, source in sources.items() if label not in constants]


class Resolver(Generic[A]):
    """Finds series by the raw values of the labels that vary (a tuple, or the value itself where there is one)."""

    def __init__(self, family: Family[A], constants: Mapping[str, str]) -> None:
        self.known: dict[Any, A] = {}
        self._family = family
        self.constants = constants
        self._varying = [label for label in family.labels if label not in constants]

    def resolve(self, key: Any) -> A | None:
        """Return the series of label values not seen before, None where one is unset; what overflows is not kept."""
        raw = key if len(self._varying) > 1 else (key,)
        if any(value is unset for value in raw):
            return None
        texts = {**self.constants, **dict(zip(self._varying, map(label_text, raw), strict=True))}
        series = self._family.at(tuple(texts[label] for label in self._family.labels))
        if series is not self._family.overflow and len(self.known) < self._family.limit:
            self.known[key] = series
        return series
