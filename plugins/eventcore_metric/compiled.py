"""All folds of one event type as one function, written for it and compiled once.

A fold (see ``folding``) calls functions that read labels and values; for the plain cases, which are most, the calls
cost more than the work. So the code of all instruments of a type is put together as source text: fields are read by
name, series are found in the same dictionaries, values are checked in the same way. What is not plain (``each``,
gauges) is called as it is. The text holds only names that are made here; those of the application, and its values, are
passed in beside it.

Where all is plain and read from fields, a second function takes the event alone, in the thread that emits it. Many
threads may, so both take a lock then; it may be taken again by a signal handler of its holder.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from eventcore.context import SCOPE
from eventcore.fields import unset
from eventcore.instruments import Field
from eventcore_metric.folding import checked_by, resolver_of
from eventcore_metric.series import CounterFamily, HistogramFamily
from eventcore_metric.sources import constant_of, predicate_of, reader_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from eventcore.envelope import Envelope
    from eventcore.event_spec import EventSpec
    from eventcore.events import Event
    from eventcore.handler import DirectSink
    from eventcore.instruments import Instrument, Source
    from eventcore_metric.folding import Fold
    from eventcore_metric.series import AnyFamily, Family

    Folds = Mapping[type[Event], Sequence[tuple[Instrument, AnyFamily, Fold]]]

__all__ = ["Compiled", "WholeFold", "direct_fold", "whole_fold"]

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

_DIRECT = """\
def direct(event):
    failed = envelope = None
    fields = event.__dict__
    trace = scope()
    sampled = trace.sampled
"""

_COUNT = """\
series.value += {amount}
if {sampled}:
    series.remember(trace, {amount}, envelope.time_ns if envelope else time_ns())
"""

_OBSERVE = """\
bucket = bisect_left(bounds_{n}, value)
series.counts[bucket] += 1
series.sum += value
if {sampled}:
    series.remember(trace, bucket, value, envelope.time_ns if envelope else time_ns())
"""

_SAMPLED = {"always_off": "False", "always_on": "True", "trace_based": "sampled"}


class Compiled:
    """The functions of all event types: ``starts`` and ``ends`` for the worker, ``direct`` for callers.

    Callers add only where ``time_ns`` is given. The folds of families that they add to hold a lock, in the worker too.
    """

    def __init__(self, starts: Folds, ends: Folds, time_ns: Callable[[], int] | None = None) -> None:
        lock = threading.RLock()
        self.direct: dict[type[Event], DirectSink] = {}
        if time_ns is not None:
            direct = {event_type: direct_fold(event_type, folds, lock, time_ns) for event_type, folds in ends.items()}
            self.direct |= {event_type: sink for event_type, sink in direct.items() if sink is not None}
        shared = {family for event_type in self.direct for _, family, _ in ends[event_type]}

        def whole(event_type: type[Event], folds: Sequence[tuple[Instrument, AnyFamily, Fold]]) -> WholeFold:
            return whole_fold(event_type, folds, lock if any(family in shared for _, family, _ in folds) else None)

        self.starts = {event_type: whole(event_type, folds) for event_type, folds in starts.items()}
        self.ends = {event_type: whole(event_type, folds) for event_type, folds in ends.items()}

    def renew_lock(self) -> None:
        """Make the lock new in a forked child: a thread of the parent's may have held it."""
        lock = threading.RLock()
        for function in (*self.starts.values(), *self.ends.values(), *self.direct.values()):
            names = function.__globals__
            if names["lock"] is not None:
                names["lock"] = lock


def whole_fold(
    event_type: type[Event],
    folds: Sequence[tuple[Instrument, AnyFamily, Fold]],
    lock: AbstractContextManager[object] | None = None,
) -> WholeFold:
    """Return one function for all ``folds`` of an event type in one phase; it holds the ``lock``, if there is one."""
    whole: WholeFold = _written(event_type, folds, lock).compiled(_HEAD, "whole")
    return whole


def direct_fold(
    event_type: type[Event],
    folds: Sequence[tuple[Instrument, AnyFamily, Fold]],
    lock: AbstractContextManager[object],
    time_ns: Callable[[], int],
) -> DirectSink | None:
    """Return a function that takes the event alone and raises what ``whole_fold`` returns; None: it needs more."""
    spec = event_type.__event__
    if spec.is_operation or not all(_is_direct(instrument, family, spec) for instrument, family, _ in folds):
        return None
    writer = _written(event_type, folds, lock)
    direct: DirectSink = writer.compiled(_DIRECT, "direct", scope=SCOPE.get, time_ns=time_ns)
    return direct


def _is_direct(instrument: Instrument, family: AnyFamily, spec: EventSpec) -> bool:
    """Whether an instrument adds, so that order does not matter, and reads nothing but fields."""
    sources = (*instrument.label_sources.values(), *filter(None, (instrument.value_source,)))
    reads = {s.reads for s in sources if constant_of(s, spec) is unset} | set(instrument.where)
    return isinstance(family, CounterFamily | HistogramFamily) and not instrument.each and reads <= spec.fields.keys()


def _written(
    event_type: type[Event],
    folds: Sequence[tuple[Instrument, AnyFamily, Fold]],
    lock: AbstractContextManager[object] | None,
) -> _Writer:
    writer = _Writer(event_type.__event__, lock)
    for number, (instrument, family, fold) in enumerate(folds):
        writer.add(number, instrument, family, fold)
    return writer


class _Writer:
    """Puts the source text together, and the values that it names."""

    def __init__(self, spec: EventSpec, lock: AbstractContextManager[object] | None) -> None:
        self._spec = spec
        self._lock = lock
        self._facts: list[str] = []
        self._body: list[str] = []
        self._names: dict[str, Any] = {
            "bisect_left": bisect_left,
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

    def compiled(self, head: str, name: str, **names: Any) -> Any:
        """Return the function that ``head`` begins."""
        body = self._body if self._lock is None else ["with lock:", *_indented(self._body)]
        last = "return failed" if name == "whole" else "if failed is not None: raise failed"
        source = head + "\n".join(_indented([*(_FACTS[fact] for fact in self._facts), *body, last]))
        self._names |= {"lock": self._lock, **names}
        exec(compile(source, f"<folds of {self._spec.name}>", "exec"), self._names)  # noqa: S102 - text made here alone
        return self._names[name]

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
