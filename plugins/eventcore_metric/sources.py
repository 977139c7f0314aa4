"""Sources of instruments, compiled into functions that read one envelope.

A reader takes an envelope and its payload fields and returns what ``source.read(envelope.get)`` returns (``ec.unset``
where there is no value), without looking the name up each time. The fields are an argument of their own, because an
instrument with ``each`` reads the same envelope once per array element, through a view of the fields.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from enum import Enum
from math import nan
from typing import TYPE_CHECKING, Any

from eventcore.events import Severity
from eventcore.fields import unset
from eventcore.instruments import Bins, Codes, Const, Field, Rename

if TYPE_CHECKING:
    from eventcore.envelope import Envelope
    from eventcore.event_spec import EventSpec
    from eventcore.instruments import Source

__all__ = ["Predicate", "Reader", "constant_of", "payload_field", "predicate_of", "reader_of"]

Reader = Callable[["Envelope", Mapping[str, Any]], Any]
Predicate = Callable[["Envelope", Mapping[str, Any]], bool]


def constant_of(source: Source, spec: EventSpec) -> Any:
    """Return the value that the source has for every event of this type, or ``ec.unset`` if it varies."""
    if isinstance(source, Const):
        return source.value
    if isinstance(source, Field) and source.name in ("event", "category") and source.name not in spec.fields:
        return spec.name if source.name == "event" else spec.category.value
    return unset


def payload_field(source: Source, spec: EventSpec) -> str | None:
    """Return the name of the payload field that the source passes on as it is, if that is what it does."""
    return source.name if isinstance(source, Field) and source.name in spec.fields else None


def reader_of(source: Source, spec: EventSpec) -> Reader:
    """Return a function that reads the source from envelopes of one event type."""
    constant = constant_of(source, spec)
    if constant is not unset:
        return lambda _envelope, _fields: constant
    if isinstance(source, Field):
        return _named(source.name, spec)
    if isinstance(source, Bins):
        return _bins(source, spec)
    if isinstance(source, Codes):
        return _mapped(_named(source.name, spec), source.codes, default=nan)
    if isinstance(source, Rename):
        return _mapped(_named(source.name, spec), source.names, default=unset if source.other is None else source.other)

    def read(envelope: Envelope, fields: Mapping[str, Any]) -> Any:
        """Read a kind of source that is not known here, by its own definition."""
        return source.read(lambda name: fields[name] if name in fields else envelope.get(name))

    return read


def predicate_of(where: Mapping[str, Any], spec: EventSpec) -> Predicate | None:
    """Return a function that tells whether an envelope is selected by ``where``; None: every envelope is."""
    tests = [(_named(key, spec), wanted if isinstance(wanted, tuple) else (wanted,)) for key, wanted in where.items()]
    if not tests:
        return None
    if len(tests) == 1:
        ((read, wanted),) = tests
        return lambda envelope, fields: _is_one_of(read(envelope, fields), wanted)
    return lambda envelope, fields: all(_is_one_of(read(envelope, fields), wanted) for read, wanted in tests)


def _is_one_of(value: Any, wanted: tuple[Any, ...]) -> bool:
    return value in wanted or (isinstance(value, Enum) and value.value in wanted)


def _named(name: str, spec: EventSpec) -> Reader:
    """Return a reader of a payload field or, where the payload has none of that name, of an envelope fact."""
    if name in spec.fields:
        return lambda _envelope, fields: fields[name]
    return _FACTS.get(name) or (lambda envelope, _fields: envelope.get(name))


def _bins(source: Bins, spec: EventSpec) -> Reader:
    read = _named(source.name, spec)
    edges = source.edges
    ranges = source.values(spec) or ()

    def range_of(envelope: Envelope, fields: Mapping[str, Any]) -> Any:
        number = read(envelope, fields)
        if number is unset or number is None:
            return unset
        return ranges[bisect_left(edges, number)] if number == number else ranges[-1]  # noqa: PLR0124 - not NaN

    return range_of


def _mapped(read: Reader, table: Mapping[Any, Any], *, default: Any) -> Reader:
    """Return a reader of ``table[value]``; ``default`` for other values, or the value itself if that is unset."""

    def mapped(envelope: Envelope, fields: Mapping[str, Any]) -> Any:
        value = read(envelope, fields)
        if value is unset:
            return unset
        if isinstance(value, Enum) and value not in table:
            value = value.value
        return table.get(value, value if default is unset else default)

    return mapped


# -- envelope facts ----------------------------------------------------------------------------------------------------


def _duration_s(envelope: Envelope, _fields: Mapping[str, Any]) -> Any:
    span = envelope.span
    return unset if span is None or span.outcome is None else span.duration_ns / 1e9


def _outcome(envelope: Envelope, _fields: Mapping[str, Any]) -> Any:
    span = envelope.span
    return unset if span is None or span.outcome is None else span.outcome


def _error_type(envelope: Envelope, _fields: Mapping[str, Any]) -> Any:
    span = envelope.span
    return unset if span is None or span.error_type is None else span.error_type


_SEVERITIES = {severity: severity.name.lower() for severity in Severity}


def _severity(envelope: Envelope, _fields: Mapping[str, Any]) -> Any:
    return _SEVERITIES[envelope.severity]


_FACTS: Mapping[str, Reader] = {
    "duration_s": _duration_s,
    "error_type": _error_type,
    "outcome": _outcome,
    "severity": _severity,
}
"""The facts that instruments read most, without the detour through ``Envelope.get``."""
