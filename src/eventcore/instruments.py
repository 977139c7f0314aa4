"""Instruments: metrics declared over event types, outside the code that emits.

An instrument is pure data. Its labels and its value come from *sources*: a field or envelope fact by name, or one of
``const``, ``bins``, ``codes``, ``rename``. A source knows the finite set of values it can take, so the catalog knows
every label's values before anything is emitted. What does not fit the event type is an error when the instrument is
made.
"""

from __future__ import annotations

import enum
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin

from eventcore.errors import InstrumentError, did_you_mean
from eventcore.events import ENVELOPE_FACTS, Event
from eventcore.fields import Label, Sensitive, unset

if TYPE_CHECKING:
    from eventcore.event_spec import EventSpec
    from eventcore.field_spec import FieldSpec

__all__ = [
    "DEFAULT_BUCKETS",
    "Bins",
    "Codes",
    "Const",
    "Counter",
    "Field",
    "Gauge",
    "Histogram",
    "Instrument",
    "Rename",
    "Source",
    "bins",
    "check_names",
    "codes",
    "const",
    "rename",
]

DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, as OpenTelemetry recommends for durations in seconds (less its finest)."""

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

Get = Callable[[str], Any]
"""Reads a field or envelope fact by name; ``ec.unset`` where it has no value."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a label or a value comes from."""

    @property
    def reads(self) -> str | None:
        """The field or fact that it reads, if any."""
        return None

    def values(self, spec: EventSpec) -> tuple[Any, ...] | None:
        """All values it can take for events of this type, or None if they are not finite."""
        raise NotImplementedError

    def read(self, get: Get) -> Any:
        """Return its value for one event."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Field(Source):
    """A payload field or envelope fact, as it is."""

    name: str

    @property
    def reads(self) -> str | None:
        """The field or fact."""
        return self.name

    def values(self, spec: EventSpec) -> tuple[Any, ...] | None:
        """The finite set of the field's type, if it has one."""
        if self.name in spec.fields:
            return spec.fields[self.name].values
        if self.name == "event":
            return (spec.name,)
        if self.name == "category":
            return (spec.category.value,)
        return ENVELOPE_FACTS[self.name]

    def read(self, get: Get) -> Any:
        """Return the field's value, of an enum its member's value."""
        return _plain(get(self.name))


@dataclass(frozen=True, slots=True)
class Const(Source):
    """Always the same."""

    value: Any

    def values(self, spec: EventSpec) -> tuple[Any, ...] | None:  # noqa: ARG002 - the same for every type
        """Its one value."""
        return (self.value,)

    def read(self, get: Get) -> Any:  # noqa: ARG002 - nothing is read
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Bins(Source):
    """The range that a number falls into: edges 10, 50, 100 give ``1-10``, ``11-50``, ``51-100``, ``100+``.

    Numbers below 1 fall into the first range.
    """

    name: str
    edges: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.edges or list(self.edges) != sorted(set(self.edges)) or self.edges[0] < 1:
            raise InstrumentError(
                f"bins({self.name!r}): edges must be increasing whole numbers from 1, not {self.edges}"
            )

    @property
    def reads(self) -> str | None:
        """The numeric field."""
        return self.name

    def values(self, spec: EventSpec) -> tuple[Any, ...] | None:  # noqa: ARG002 - the same for every type
        """All ranges, in order."""
        lower = (1, *(edge + 1 for edge in self.edges[:-1]))
        return (*(f"{low}-{high}" for low, high in zip(lower, self.edges, strict=True)), f"{self.edges[-1]}+")

    def read(self, get: Get) -> Any:
        """Return the range's text."""
        number = get(self.name)
        if number is unset:
            return unset
        lower = 1
        for edge in self.edges:
            if number <= edge:
                return f"{lower}-{edge}"
            lower = edge + 1
        return f"{self.edges[-1]}+"


@dataclass(frozen=True, slots=True)
class Codes(Source):
    """A number for each state, for gauges that dashboards compare (``state == 2``)."""

    name: str
    codes: Mapping[Any, float]
    initial: Any = None

    @property
    def reads(self) -> str | None:
        """The field that holds the state."""
        return self.name

    def values(self, spec: EventSpec) -> tuple[Any, ...] | None:  # noqa: ARG002 - the same for every type
        """All codes."""
        return tuple(self.codes.values())

    def read(self, get: Get) -> Any:
        """Return the code of the state; NaN for one that has none."""
        state = _plain(get(self.name))
        return unset if state is unset else self.codes.get(state, math.nan)


@dataclass(frozen=True, slots=True)
class Rename(Source):
    """Other names for values, and one name for all that are not listed."""

    name: str
    names: Mapping[Any, str]
    other: str | None = None

    @property
    def reads(self) -> str | None:
        """The field or fact that is renamed."""
        return self.name

    def values(self, spec: EventSpec) -> tuple[Any, ...] | None:
        """The new names; finite even for free text when ``other`` is given."""
        known = Field(self.name).values(spec)
        if known is not None:
            return tuple(dict.fromkeys(self._name(value) for value in known))
        return (*dict.fromkeys(self.names.values()), self.other) if self.other is not None else None

    def read(self, get: Get) -> Any:
        """Return the new name."""
        value = _plain(get(self.name))
        return unset if value is unset else self._name(value)

    def _name(self, value: Any) -> Any:
        return self.names.get(value, value if self.other is None else self.other)


def const(value: Any) -> Const:
    """A label or value that is always ``value``."""
    return Const(value)


def bins(name: str, edges: Sequence[int]) -> Bins:
    """The range that the number in field ``name`` falls into."""
    return Bins(name, tuple(edges))


def codes(name: str, /, *, initial: Any = None, **numbers: float) -> Codes:
    """A number per state of field ``name``; ``initial`` is the state exported before the first event."""
    if initial is not None and initial not in numbers:
        raise InstrumentError(f"codes({name!r}): initial state {initial!r} has no code{did_you_mean(initial, numbers)}")
    return Codes(name, dict(numbers), initial)


def rename(name: str, names: Mapping[Any, str], *, other: str | None = None) -> Rename:
    """Other names for the values of field ``name``; ``other`` for all that are not listed (as they are when None)."""
    return Rename(name, dict(names), other)


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """What every instrument has; use Counter, Gauge or Histogram.

    ``on``: one event type or several. ``labels``: label name to source. ``where``: field or fact to the value (or
    tuple of values) it must have. ``each``: array fields that are observed element by element. ``phase="start"``
    observes starts of operations; a gauge with it adds at the start and subtracts at the end (in flight).
    """

    kind: ClassVar[str]

    name: str = field(kw_only=False)
    on: type[Event] | tuple[type[Event], ...]
    help: str
    value: str | Source | None = None
    labels: Mapping[str, str | Source] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    each: tuple[str, ...] = ()
    phase: Literal["start", "end"] = "end"
    unit: str = ""

    def __post_init__(self) -> None:
        check_names(self.name)
        if not isinstance(self.labels, Mapping):
            raise InstrumentError(
                f"instrument {self.name!r}: labels maps label names to sources, such as {{'status': 'outcome'}}; "
                f"it is {self.labels!r}"
            )
        if not self.types:
            raise InstrumentError(f"instrument {self.name!r}: on=() observes nothing; name at least one event type")
        for event_type in self.types:
            self._check(event_type)

    @property
    def types(self) -> tuple[type[Event], ...]:
        """The event types it observes."""
        return self.on if isinstance(self.on, tuple) else (self.on,)

    @property
    def label_sources(self) -> Mapping[str, Source]:
        """Sources of the labels, by label name."""
        return {label: _source(source) for label, source in self.labels.items()}

    @property
    def value_source(self) -> Source | None:
        """Source of the value; None: each event counts 1."""
        return None if self.value is None else _source(self.value)

    def label_values(self, label: str) -> tuple[Any, ...] | None:
        """All values that ``label`` can take over the types it observes, or None if they are not finite."""
        sets = [self.label_sources[label].values(event_type.__event__) for event_type in self.types]
        if any(values is None for values in sets):
            return None
        return tuple(dict.fromkeys(itertools.chain.from_iterable(values for values in sets if values)))

    # -- checks when it is made --------------------------------------------------------------------------------------

    def _check(self, event_type: type[Event]) -> None:
        if not _is_event_type(event_type) or event_type.is_abstract():
            raise InstrumentError(f"instrument {self.name!r}: on={event_type!r} is no event type with a name")
        spec = event_type.__event__
        if self.phase not in ("start", "end"):
            raise InstrumentError(f"instrument {self.name!r}: phase is 'start' or 'end', not {self.phase!r}")
        if self.phase == "start" and not spec.is_operation:
            raise InstrumentError(f"instrument {self.name!r}: {spec.name!r} is no operation, it has no start")
        for key in self.each:
            if key not in spec.fields or not spec.fields[key].is_array:
                raise InstrumentError(f"instrument {self.name!r}: each={key!r} is no array field of {spec.name!r}")
        for label, source in self.label_sources.items():
            self._check_label(spec, label, source)
        if self.value_source is not None:
            self._check_known(spec, "value", self.value_source)
            self._check_value(spec, self.value_source)
        for key, wanted in self.where.items():
            self._check_where(spec, key, wanted)

    def _check_known(self, spec: EventSpec, what: str, source: Source) -> None:
        name = source.reads
        if name is None:
            return
        known = set(spec.fields) | spec.facts()
        if name not in known:
            raise InstrumentError(
                f"instrument {self.name!r}: {what} reads {name!r}, which {spec.name!r} does not have"
                f"{did_you_mean(name, known)}"
            )
        if name in spec.fields and spec.fields[name].role is Sensitive:
            raise InstrumentError(
                f"instrument {self.name!r}: {what} reads {name!r} of {spec.name!r}, which is sensitive"
            )
        if name in spec.fields and spec.fields[name].is_array and name not in self.each:
            raise InstrumentError(
                f"instrument {self.name!r}: {what} reads {name!r} of {spec.name!r}, an array field; name it in each=(…)"
            )

    def _check_label(self, spec: EventSpec, label: str, source: Source) -> None:
        what = f"label {label!r}"
        check_names(self.name, (label,))
        self._check_known(spec, what, source)
        field_spec = spec.fields.get(source.reads or "")
        if isinstance(source, Bins) and (field_spec is None or not _is_number(field_spec)):
            raise InstrumentError(
                f"instrument {self.name!r}: {what} puts {source.name!r} of {spec.name!r} into bins; it is no number"
            )
        if field_spec is not None and field_spec.role is Label:
            if get_origin(field_spec.annotation) in (list, tuple, set, frozenset, dict):
                raise InstrumentError(
                    f"instrument {self.name!r}: {what} reads {source.reads!r} of {spec.name!r}, which holds many "
                    "values; make it an ec.Array and name it in each=(…)"
                )
            return
        if source.values(spec) is None and source.reads != "error_type":
            raise InstrumentError(
                f"instrument {self.name!r}: {what} reads {source.reads!r} of {spec.name!r}, which has neither the "
                "Label role nor a finite set of values; mark it Annotated[…, ec.Label], or use ec.bins or "
                "ec.rename(…, other=…)"
            )

    def _check_value(self, spec: EventSpec, source: Source) -> None:
        field_spec = spec.fields.get(source.reads or "")
        if isinstance(source, Bins | Rename):
            raise InstrumentError(f"instrument {self.name!r}: value={source!r} is text; bins and rename make labels")
        if isinstance(source, Field) and field_spec is not None:
            if not _is_number(field_spec):
                raise InstrumentError(
                    f"instrument {self.name!r}: value {source.name!r} of {spec.name!r} is no number "
                    f"({field_spec.annotation!r}); use ec.codes to give states numbers"
                )
        elif isinstance(source, Field) and source.name not in ("duration_s", "time"):
            raise InstrumentError(f"instrument {self.name!r}: envelope fact {source.name!r} is no number")
        if isinstance(source, Codes):
            known = Field(source.name).values(spec)
            missing = [value for value in known or () if value not in source.codes]
            if missing:
                raise InstrumentError(f"instrument {self.name!r}: codes({source.name!r}) lacks a number for {missing}")

    def _check_where(self, spec: EventSpec, key: str, wanted: Any) -> None:
        self._check_known(spec, "where", Field(key))
        known = Field(key).values(spec)
        for value in wanted if isinstance(wanted, tuple) else (wanted,):
            if known is not None and value not in known:
                raise InstrumentError(
                    f"instrument {self.name!r}: where={key!r} is never {value!r} in {spec.name!r}"
                    f"{did_you_mean(str(value), map(str, known))}"
                )


@dataclass(frozen=True, kw_only=True)
class Counter(Instrument):
    """A total that only goes up: 1 per event, or ``value``."""

    kind: ClassVar[str] = "counter"


@dataclass(frozen=True, kw_only=True)
class Gauge(Instrument):
    """A value that goes up and down: the latest ``value``, or with ``phase="start"`` the number in flight.

    ``across`` says what several processes show as one: ``sum`` (the default for what is in flight), ``max``, ``min``,
    or ``latest``, the value set last (the default otherwise).
    """

    kind: ClassVar[str] = "gauge"
    across: Literal["sum", "max", "min", "latest"] | None = None

    def __post_init__(self) -> None:
        if self.value is None and self.phase != "start":
            raise InstrumentError(f"gauge {self.name!r} needs a value=, or phase='start' to count what is in flight")
        if self.across not in (None, "sum", "max", "min", "latest"):
            raise InstrumentError(
                f"gauge {self.name!r}: across is 'sum', 'max', 'min' or 'latest', not {self.across!r}"
            )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Histogram(Instrument):
    """A distribution of ``value`` over buckets (upper bounds, increasing; ``+Inf`` is added)."""

    kind: ClassVar[str] = "histogram"
    buckets: tuple[float, ...] = DEFAULT_BUCKETS

    def __post_init__(self) -> None:
        if self.value is None:
            raise InstrumentError(f"histogram {self.name!r} needs a value=, such as 'duration_s'")
        if not self.buckets or any(low >= high for low, high in itertools.pairwise(self.buckets)):
            raise InstrumentError(f"histogram {self.name!r}: buckets must increase, got {self.buckets}")
        super().__post_init__()


def check_names(metric: str, labels: Iterable[str] = ()) -> None:
    """Raise InstrumentError for a metric or label name that Prometheus does not allow."""
    if not _METRIC_NAME.fullmatch(metric):
        raise InstrumentError(f"{metric!r} is no metric name: ASCII letters, digits and underscores, no digit first")
    for label in labels:
        if not _LABEL_NAME.fullmatch(label) or label.startswith("__") or label == "le":
            raise InstrumentError(f"instrument {metric!r}: {label!r} is no label name")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _is_number(spec: FieldSpec) -> bool:
    if spec.unit is not None:
        return True
    parts = set(get_args(spec.annotation)) - {type(None)} or {spec.annotation}
    return parts <= {int, float, bool}


def _is_event_type(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Event)


def _source(source: str | Source) -> Source:
    return Field(source) if isinstance(source, str) else source
