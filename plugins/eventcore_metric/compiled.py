"""All folds of one event type as one function, written for it and compiled once.

A fold (see ``folding``) calls functions that read labels and values; for the plain cases, which are most, the calls
cost more than the work. So the code of all instruments of a type is put together as source text: fields are read by
name, series are found in the same dictionaries, values are checked in the same way. What is not plain (``each``,
gauges) is called as it is. The text holds only names that are made here; those of the application, and its values, are
passed in beside it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from eventcore.fields import unset
from eventcore.instruments import Field
from eventcore_metric.folding import checked_by, resolver_of
from eventcore_metric.series import EXEMPLAR_INTERVAL_NS, CounterFamily, HistogramFamily
from eventcore_metric.sources import predicate_of, reader_of

if TYPE_CHECKING:
    from eventcore.envelope import Envelope
    from eventcore.event_spec import EventSpec
    from eventcore.events import Event
    from eventcore.instruments import Instrument, Source
    from eventcore_metric.folding import Fold
    from eventcore_metric.series import AnyFamily, Family

__all__ = ["WholeFold", "whole_fold"]

WholeFold = Callable[["Envelope", Mapping[str, Any]], Exception | None]
"""Folds an envelope, given its payload fields, for all instruments; returns the first error that one of them raised."""

_FACTS = {
    "outcome": "outcome = unset if span is None or span.outcome is None else span.outcome",
    "duration_s": "duration_s = unset if span is None or span.outcome is None else span.duration_ns / 1e9",
    "error_type": "error_type = unset if span is None or span.error_type is None else span.error_type",
}
"""Envelope facts that are worked out once for all instruments of a type."""

_HEAD = """\
def whole(envelope, fields):
    failed = None
    span = envelope.span
    trace = span or envelope.scope
    sampled = trace.sampled
"""

_COUNT = """\
series.value += {amount}
if {sampled}:
    known = series.exemplar
    if known is None or envelope.time_ns - known.time_ns >= interval:
        series.remember(trace, {amount}, envelope.time_ns)
"""

_OBSERVE = """\
bucket = bisect_left(bounds_{n}, value)
series.counts[bucket] += 1
series.sum += value
if {sampled}:
    known = series.exemplars and series.exemplars[bucket]
    if known is None or envelope.time_ns - known.time_ns >= interval:
        series.remember(trace, bucket, value, envelope.time_ns)
"""

_SAMPLED = {"always_off": "False", "always_on": "True", "trace_based": "sampled"}


def whole_fold(event_type: type[Event], folds: list[tuple[Instrument, AnyFamily, Fold]]) -> WholeFold:
    """Return one function for all ``folds`` of an event type in one phase."""
    writer = _Writer(event_type.__event__)
    for number, (instrument, family, fold) in enumerate(folds):
        writer.add(number, instrument, family, fold)
    return writer.compiled()


class _Writer:
    """Puts the source text together, and the values that it names."""

    def __init__(self, spec: EventSpec) -> None:
        self._spec = spec
        self._facts: list[str] = []
        self._body: list[str] = []
        self._names: dict[str, Any] = {
            "bisect_left": bisect_left,
            "interval": EXEMPLAR_INTERVAL_NS,
            "isfinite": isfinite,
            "unset": unset,
        }

    def add(self, n: int, instrument: Instrument, family: AnyFamily, fold: Fold) -> None:
        """Add the code of one instrument."""
        if isinstance(family, CounterFamily | HistogramFamily) and not instrument.each:
            code = self._plain(n, instrument, family)
        else:
            code = [f"{self._name('fold', n, fold)}(envelope, fields)"]
        self._body += ["try:", *_indented(code), "except Exception as error:", "    failed = failed or error"]

    def compiled(self) -> WholeFold:
        """Return the function."""
        lines = [_FACTS[fact] for fact in self._facts] + self._body + ["return failed"]
        source = _HEAD + "\n".join(_indented(lines))
        exec(compile(source, f"<folds of {self._spec.name}>", "exec"), self._names)  # noqa: S102 - text made here alone
        whole: WholeFold = self._names["whole"]
        return whole

    def _plain(self, n: int, instrument: Instrument, family: CounterFamily | HistogramFamily) -> list[str]:
        sampled = _SAMPLED[family.exemplars]
        series = self._series(n, instrument, family)
        if instrument.value_source is None:
            code = [
                series,
                "if series is not None:",
                *_indented(_COUNT.format(amount="1.0", sampled=sampled).splitlines()),
            ]
        else:
            is_counter = isinstance(family, CounterFamily)
            self._name("bounds", n, () if is_counter else family.bounds)  # type: ignore[union-attr]  # a histogram's
            add = (_COUNT if is_counter else _OBSERVE).format(amount="value", sampled=sampled, n=n).splitlines()
            checked = self._name("checked", n, checked_by(family, at_least=0.0 if is_counter else None))
            is_good = "value.__class__ is float and isfinite(value)" + " and value >= 0" * is_counter
            code = [
                f"value = {self._read(f'{n}_value', instrument.value_source)}",
                f"if not ({is_good}):",
                f"    value = {checked}(value)",
                "if value is not None:",
                *_indented([series, "if series is not None:", *_indented(add)]),
            ]
        selected = predicate_of(instrument.where, self._spec)
        if selected is None:
            return code
        return [f"if {self._name('selected', n, selected)}(envelope, fields):", *_indented(code)]

    def _series(self, n: int, instrument: Instrument, family: Family[Any]) -> str:
        resolver, varying = resolver_of(instrument, self._spec, family)
        if not varying:
            return f"series = {self._name('series', n, family.at(tuple(resolver.constants.values())))}"
        known = self._name("known", n, resolver.known)
        resolve = self._name("resolve", n, resolver.resolve)
        reads = [self._read(f"{n}_{place}", source) for place, source in enumerate(varying)]
        key = reads[0] if len(reads) == 1 else f"({', '.join(reads)})"
        return f"series = {known}.get(key := {key}) or {resolve}(key)"

    def _read(self, n: str, source: Source) -> str:
        if isinstance(source, Field):
            if source.name in self._spec.fields:
                return f"fields[{self._name('field', n, source.name)}]"
            if source.name in _FACTS:
                if source.name not in self._facts:
                    self._facts.append(source.name)
                return source.name
        return f"{self._name('read', n, reader_of(source, self._spec))}(envelope, fields)"

    def _name(self, kind: str, n: int | str, value: Any) -> str:
        name = f"{kind}_{n}"
        self._names[name] = value
        return name


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]
