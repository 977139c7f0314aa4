"""Counters, gauges and histograms by hand, for what is no event: a loop's progress, a pool's size, a cache's hits.

Most metrics are instruments over events. What is too frequent or too small to be one is recorded here: declared once,
typed, known to the catalog, bounded and exported as instruments are. A declaration is process-wide, as event types are;
every metric handler records it from the moment it is attached, and without one a call costs next to nothing.

    HITS = ec.counter("cache_hits_total", labels={"tier": Literal["memory", "disk"]}, help="Cache hits.")
    HITS.inc(tier="memory")
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, get_origin

from eventcore.errors import InstrumentError, did_you_mean
from eventcore.exposition import Metric, label_text
from eventcore.instruments import DEFAULT_BUCKETS, check_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Across",
    "HandCounter",
    "HandGauge",
    "HandHistogram",
    "HandMade",
    "Recorder",
    "counter",
    "gauge",
    "histogram",
]

Across = Literal["sum", "max", "min", "latest"]

LabelNames = Iterable[str] | Mapping[str, Any]
"""Names of labels, or name to what it can be: ``str`` (open), ``bool``, a ``Literal``, an ``Enum``, or its values."""


class Recorder(Protocol):
    """What a metric handler does with one metric by hand; any thread may call it."""

    def add(self, labels: tuple[str, ...], amount: float) -> None:
        """Add to a counter or gauge."""

    def set(self, labels: tuple[str, ...], value: float) -> None:
        """Set a gauge."""

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        """Add an observation to a histogram."""


class HandMade:
    """One metric by hand; ``metric`` is its declaration, ``across`` how a gauge of several processes becomes one."""

    __slots__ = ("_names", "across", "metric", "recorders")

    def __init__(self, metric: Metric, across: Across) -> None:
        self.metric = metric
        self.across: Across = across
        self.recorders: tuple[Recorder, ...] = ()
        self._names = frozenset(metric.labels)

    def _texts(self, labels: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the labels' values as exported, in the order of the declaration."""
        metric = self.metric
        if labels.keys() != self._names:
            wrong = next(iter(labels.keys() - self._names), None)
            if wrong is not None:
                raise InstrumentError(
                    f"metric {metric.name!r} has no label {wrong!r}{did_you_mean(wrong, self._names)}"
                )
            missing = ", ".join(sorted(self._names - labels.keys()))
            raise InstrumentError(f"metric {metric.name!r} needs a value for its labels: {missing}")
        texts = []
        for name, allowed in metric.labels.items():
            text = label_text(labels[name])
            if allowed is not None and text not in allowed:
                raise InstrumentError(
                    f"metric {metric.name!r}: label {name!r} is never {text!r}{did_you_mean(text, allowed)}"
                )
            texts.append(text)
        return tuple(texts)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.metric.name}({', '.join(self.metric.labels)})>"


class HandCounter(HandMade):
    """A total that only goes up."""

    __slots__ = ()

    def inc(self, amount: float = 1, /, **labels: Any) -> None:
        """Add ``amount``; one that is negative or no number is left out and counted.

        Raises InstrumentError for labels that were not declared.
        """
        texts = self._texts(labels) if labels or self._names else ()
        for recorder in self.recorders:
            recorder.add(texts, amount)


class HandGauge(HandMade):
    """A value that goes up and down."""

    __slots__ = ()

    def set(self, value: float, /, **labels: Any) -> None:
        """Set it; InstrumentError for labels that were not declared."""
        texts = self._texts(labels)
        for recorder in self.recorders:
            recorder.set(texts, value)

    def inc(self, amount: float = 1, /, **labels: Any) -> None:
        """Add ``amount``; InstrumentError for labels that were not declared."""
        texts = self._texts(labels)
        for recorder in self.recorders:
            recorder.add(texts, amount)

    def dec(self, amount: float = 1, /, **labels: Any) -> None:
        """Subtract ``amount``; InstrumentError for labels that were not declared."""
        self.inc(-amount, **labels)


class HandHistogram(HandMade):
    """A distribution over buckets."""

    __slots__ = ()

    def observe(self, value: float, /, **labels: Any) -> None:
        """Add an observation; one that is no finite number is left out and counted.

        Raises InstrumentError for labels that were not declared.
        """
        texts = self._texts(labels) if labels or self._names else ()
        for recorder in self.recorders:
            recorder.observe(texts, value)

    @contextmanager
    def time(self, **labels: Any) -> Iterator[None]:
        """Observe how long the block takes, in seconds, however it ends."""
        self._texts(labels)  # a mistake shows before the block runs, not after
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - began, **labels)


def counter(name: str, *, help: str, labels: LabelNames = (), unit: str = "") -> HandCounter:
    """Declare a counter, exported as ``name`` with ``_total``; the same declaration again returns the same counter.

    ``labels`` names the labels, or maps them to what they can be (``str``, ``bool``, a ``Literal``, an ``Enum``, or a
    list of values). Raises InstrumentError for a name that cannot be one, or that is declared otherwise already.
    """
    return _declare(HandCounter, Metric(name=name, kind="counter", help=help, labels=_labels(name, labels), unit=unit))


def gauge(
    name: str,
    *,
    help: str,
    labels: LabelNames = (),
    unit: str = "",
    across: Across = "sum",
) -> HandGauge:
    """Declare a gauge, as ``counter`` does.

    ``across`` says what several processes show as one: their ``sum``, ``max`` or ``min``, or the ``latest`` value set.
    """
    if across not in get_args(Across):
        raise InstrumentError(f"gauge {name!r}: across is 'sum', 'max', 'min' or 'latest', not {across!r}")
    metric = Metric(name=name, kind="gauge", help=help, labels=_labels(name, labels), unit=unit)
    return _declare(HandGauge, metric, across)


def histogram(
    name: str,
    *,
    help: str,
    labels: LabelNames = (),
    unit: str = "",
    buckets: Sequence[float] = DEFAULT_BUCKETS,
) -> HandHistogram:
    """Declare a histogram, as ``counter`` does, over ``buckets`` (upper bounds, increasing; ``+Inf`` is added)."""
    if not buckets or any(not low < high for low, high in itertools.pairwise(buckets)):
        raise InstrumentError(f"histogram {name!r}: buckets must increase, got {tuple(buckets)}")
    metric = Metric(
        name=name, kind="histogram", help=help, labels=_labels(name, labels), unit=unit, buckets=tuple(buckets)
    )
    return _declare(HandHistogram, metric)


def _labels(name: str, labels: LabelNames) -> dict[str, frozenset[str] | None]:
    if isinstance(labels, str):
        raise InstrumentError(f"metric {name!r}: labels={labels!r} is one text; write ({labels!r},)")
    given = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels, str)
    check_names(name, given)
    return {label: _values(name, label, kind) for label, kind in given.items()}


def _values(name: str, label: str, kind: Any) -> frozenset[str] | None:
    if kind is str:
        return None
    if kind is bool:
        values: Iterable[Any] = (True, False)
    elif get_origin(kind) is Literal:
        values = get_args(kind)
    elif (isinstance(kind, type) and issubclass(kind, Enum)) or (isinstance(kind, list | tuple | set) and kind):
        values = kind
    else:
        raise InstrumentError(
            f"metric {name!r}: label {label!r} can be str, bool, a Literal, an Enum or a list of values, not {kind!r}"
        )
    return frozenset(map(label_text, values))


# -- who records -------------------------------------------------------------------------------------------------------

H = TypeVar("H", bound=HandMade)
_lock = threading.RLock()
_declared: dict[str, HandMade] = {}
_listeners: weakref.WeakKeyDictionary[Any, Callable[[Any, HandMade], Recorder]] = weakref.WeakKeyDictionary()


def _declare(kind: type[H], metric: Metric, across: Across = "sum") -> H:
    with _lock:
        known = _declared.get(metric.name)
        if known is not None:
            if type(known) is kind and known.metric == metric and known.across == across:
                return known
            raise InstrumentError(
                f"metric {metric.name!r} is declared already, and otherwise ({known!r}); names are unique in a process"
            )
        made = kind(metric, across)
        made.recorders = tuple(recorder(owner, made) for owner, recorder in _listeners.items())
        _declared[metric.name] = made
        return made


def declared() -> tuple[HandMade, ...]:
    """Return all metrics by hand of this process."""
    return tuple(_declared.values())


def record(owner: Any, recorder: Callable[[Any, HandMade], Recorder]) -> None:
    """Have ``recorder(owner, metric)`` make a recorder for every metric by hand, now and in future.

    Its InstrumentError refuses a declaration. The owner, a metric handler, is held weakly.
    """
    with _lock:
        made = {name: recorder(owner, metric) for name, metric in _declared.items()}  # all, or none
        _listeners[owner] = recorder
        for name, one in made.items():
            _declared[name].recorders += (one,)


def forget(owner: Any, recorders: Iterable[Recorder]) -> None:
    """Record no more for ``owner``."""
    gone = set(map(id, recorders))
    with _lock:
        _listeners.pop(owner, None)
        for metric in _declared.values():
            metric.recorders = tuple(one for one in metric.recorders if id(one) not in gone)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - it may have been held when the process was forked
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
