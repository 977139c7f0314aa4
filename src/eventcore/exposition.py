"""The exposition, as data: which series the catalog's metrics have in Prometheus, before anything is emitted.

A metric is exposed as samples: a counter ``x`` as ``x_total``, a gauge under its own name, a histogram as ``x_bucket``
(with a label ``le``), ``x_sum`` and ``x_count``. Instruments say which labels they have and, as their sources are
data, which values; plugins declare with the hook ``eventcore_series`` what they expose beside instruments. Whatever
queries series (dashboards, rules, the linter, the coverage test) is held against this. No library is needed for it.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from eventcore.errors import InstrumentError
from eventcore.instruments import Codes

if TYPE_CHECKING:
    from eventcore.catalog import Catalog
    from eventcore.event_spec import EventSpec
    from eventcore.instruments import Instrument, Source
    from eventcore.plugins import Plugins

__all__ = [
    "MAX_SERIES",
    "Exposition",
    "Kind",
    "Labels",
    "Metric",
    "Part",
    "Series",
    "bound_text",
    "exposition_of",
    "label_sets",
    "label_text",
    "metric_of",
]

Kind = Literal["counter", "gauge", "histogram"]
Part = Literal["value", "bucket", "sum", "count"]
Labels = Mapping[str, frozenset[str] | None]
"""Label names, each with all its values as exposed, or None where they are an open set."""

MAX_SERIES = 1000
"""Label combinations that a metric may have unless the handler is told otherwise."""

_UNITS = ("seconds", "bytes", "ratio", "joules", "celsius", "meters", "grams", "volts", "amperes")
"""Prometheus' base units, which names end with (https://prometheus.io/docs/practices/naming/)."""


@dataclass(frozen=True, slots=True)
class Series:
    """One sample name as it is exposed, with the labels it bears.

    ``kind`` is that of the metric it belongs to, ``metric`` that metric's name, ``part`` what it is of it: a histogram
    has ``bucket``, ``sum`` and ``count``, any other metric one ``value``.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: Labels
    metric: str
    part: Part = "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric as it is exposed.

    ``name``: as on its ``# TYPE`` line, of a counter with ``_total``. ``unit``: in Prometheus' words (``seconds``,
    ``bytes``), empty if there is none. ``buckets``: upper bounds of a histogram, without +Inf. ``combinations``: the
    most label combinations it can have (as a rule those of all labels' values), None if a label is open; the overflow
    series of a metric at its limit is not among them. ``states``: all values of a gauge that shows states as numbers.
    ``origin``: what declares it, for people to read.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels = field(default_factory=dict)
    unit: str = ""
    buckets: tuple[float, ...] = ()
    combinations: int | None = None
    states: tuple[float, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        name = f"{self.name.removesuffix('_total')}_total" if self.kind == "counter" else self.name
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "labels", types.MappingProxyType(dict(self.labels)))
        object.__setattr__(self, "unit", self.unit or _unit_of(name))
        object.__setattr__(self, "buckets", tuple(float(bound) for bound in self.buckets if bound != math.inf))
        if self.combinations is None:
            object.__setattr__(self, "combinations", _product(self.labels.values()))
        if self.kind == "histogram" and not self.buckets:
            raise InstrumentError(f"metric {self.name!r} is declared a histogram without buckets; name their bounds")

    @property
    def series(self) -> tuple[Series, ...]:
        """The sample names it is exposed under."""
        if self.kind != "histogram":
            return (Series(self.name, self.kind, self.unit, self.help, self.labels, self.name),)
        bounds = frozenset(map(bound_text, (*self.buckets, math.inf)))
        with_le = types.MappingProxyType({**self.labels, "le": bounds})
        bucket = Series(f"{self.name}_bucket", self.kind, self.unit, self.help, with_le, self.name, "bucket")
        if self.buckets[0] < 0:
            return (bucket,)  # a sum that may fall is no counter: prometheus_client leaves it and the count out
        count = Series(f"{self.name}_count", self.kind, "", self.help, self.labels, self.name, "count")
        total = Series(f"{self.name}_sum", self.kind, self.unit, self.help, self.labels, self.name, "sum")
        return (bucket, count, total)

    @property
    def worst_case(self) -> int | None:
        """The most time series that it can make in Prometheus, without the overflow; None if a label is open."""
        if self.combinations is None:
            return None
        return self.combinations * sum(len(s.labels["le"] or ()) if s.part == "bucket" else 1 for s in self.series)


class Exposition:
    """All metrics that ``/metrics`` can show, and their series by sample name."""

    def __init__(self, metrics: Iterable[Metric] = ()) -> None:
        """Raise InstrumentError where two metrics would expose a series of the same name."""
        by_name: dict[str, Metric] = {}
        series: dict[str, Series] = {}
        for metric in metrics:
            for one in metric.series:
                if one.name in series:
                    other = by_name[series[one.name].metric]
                    raise InstrumentError(
                        f"series {one.name!r} would be exposed twice, by {metric.name!r} ({metric.origin}) and by "
                        f"{other.name!r} ({other.origin}); rename one of the metrics"
                    )
                series[one.name] = one
                by_name[metric.name] = metric
        self.metrics: Mapping[str, Metric] = types.MappingProxyType(by_name)
        self.series: Mapping[str, Series] = types.MappingProxyType(series)

    def __repr__(self) -> str:
        return f"<Exposition: {len(self.metrics)} metrics, {len(self.series)} series names>"


def exposition_of(catalog: Catalog, plugins: Plugins | None = None) -> Exposition:
    """Return what the instruments registered in ``catalog`` and the declarations of ``plugins`` expose.

    Of metric packs, those are registered that a metric handler uses or ``catalog.pack(name)`` has loaded. Raises
    InstrumentError where two metrics share a series name.
    """
    own = [metric_of(instrument) for instrument in catalog.instruments.values()]
    return Exposition([*own, *(plugins.series() if plugins is not None else ())])


def metric_of(instrument: Instrument) -> Metric:
    """Return how an instrument is exposed."""
    sets = [label_sets(instrument, event_type.__event__) for event_type in instrument.types]
    labels = {
        label: None
        if any(values[label] is None for values in sets)
        else frozenset(text for values in sets for text in values[label] or ())
        for label in instrument.labels
    }
    return Metric(
        name=instrument.name,
        kind=instrument.kind,  # type: ignore[arg-type]  # one of the three, by the classes there are
        help=instrument.help,
        labels=labels,
        unit=instrument.unit,
        buckets=getattr(instrument, "buckets", ()),
        combinations=_fewest(_product(labels.values()), [_product(values.values()) for values in sets]),
        states=tuple(value.codes.values()) if isinstance(value := instrument.value_source, Codes) else (),
        origin="instrument over " + ", ".join(event_type.__event__.name for event_type in instrument.types),
    )


def label_sets(instrument: Instrument, spec: EventSpec) -> dict[str, tuple[str, ...] | None]:
    """Return, per label, the texts it can have for one event type, None where the set is open.

    A label that reads a field named in ``where`` takes only the values that ``where`` lets through.
    """
    return {label: _values(instrument, source, spec) for label, source in instrument.label_sources.items()}


def _values(instrument: Instrument, source: Source, spec: EventSpec) -> tuple[str, ...] | None:
    finite = source.values(spec)
    if source.reads is not None and source.reads in instrument.where:
        selected = instrument.where[source.reads]
        through = [_read_as(source, value) for value in (selected if isinstance(selected, tuple) else (selected,))]
        finite = tuple(value for value in through if finite is None or value in finite)
    if finite is None:
        return None
    return tuple(dict.fromkeys(map(label_text, finite)))


def _read_as(source: Source, value: Any) -> Any:
    """Return what the source makes of ``value`` in the field that it reads."""
    return source.read(lambda _: value)


def label_text(value: Any) -> str:
    """Return a label value as exposed: None is empty, booleans are lower case, an enum member is its value."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return label_text(value.value)
    # A lone surrogate cannot be encoded, and would make every later scrape fail.
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def bound_text(bound: float) -> str:
    """Return the text of a bucket's bound in the label ``le``, as Go prints floats."""
    if math.isinf(bound):
        return "+Inf" if bound > 0 else "-Inf"
    text = repr(float(bound))
    dot = text.find(".")
    if bound <= 0 or dot <= 6:
        return text
    mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
    return f"{mantissa}e+{dot - 1:02d}"


def _unit_of(name: str) -> str:
    bare = name.removesuffix("_total")
    return next((unit for unit in _UNITS if bare.endswith(f"_{unit}")), "")


def _product(sets: Iterable[Iterable[str] | None]) -> int | None:
    product = 1
    for values in sets:
        if values is None:
            return None
        product *= len(frozenset(values))
    return product


def _fewest(overall: int | None, by_type: list[int | None]) -> int | None:
    """Return a bound on the types' combinations together: their sum, or the product of all values if that is less."""
    if overall is None:
        return None
    return min(overall, sum(number for number in by_type if number is not None))
