"""The catalog as a file, and what a change of it would break.

Dashboards, alerts, queries over logs and receivers of webhooks are written against names: of events, fields, labels.
A snapshot in the repository says which names there are; ``changes`` says what a newer catalog took away or gave another
meaning. New things are allowed: an event, an optional field, a value, a metric.
"""

from __future__ import annotations

import json
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from eventcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from eventcore.event_spec import EventSpec
    from eventcore.exposition import Metric
    from eventcore.field_spec import FieldSpec

__all__ = ["FORMAT", "changes", "load_snapshot", "snapshot_of", "snapshot_text", "type_text"]

FORMAT = 1
"""Version of the shape below."""


def snapshot_of(specs: Iterable[EventSpec], metrics: Iterable[Metric]) -> dict[str, Any]:
    """Return events and metrics by name, fit for JSON and in an order that depends on names alone.

    ``events``: category, severity, durable, span (of operations), fields (type, role, unit, values, required).
    ``metrics``, as they are exposed: kind, unit, labels (name to values, null where they are open), buckets.
    """
    return {
        "format": FORMAT,
        "events": {spec.name: _event(spec) for spec in sorted(specs, key=lambda spec: spec.name)},
        "metrics": {metric.name: _metric(metric) for metric in sorted(metrics, key=lambda metric: metric.name)},
    }


def snapshot_text(snapshot: Mapping[str, Any]) -> str:
    """Return a snapshot as it is kept: JSON, an entry per line, so that a review shows what changed."""
    return json.dumps(snapshot, indent=1, ensure_ascii=False) + "\n"


def load_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot; ConfigurationError names the file and what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}; make it with --save {path}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: no JSON: {error}; make it anew with --save {path}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not {"events", "metrics"} <= set(content):
        raise ConfigurationError(f"{path}: no snapshot of format {FORMAT}; make it anew with --save {path}")
    return content


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what ``now`` breaks of ``before``, each as a sentence that names it and who is hurt; empty: nothing."""
    return [
        *_of_each("event", before["events"], now["events"], _event_changes, "its routes, logs and receivers end"),
        *_of_each("metric", before["metrics"], now["metrics"], _metric_changes, "queries of it find nothing"),
    ]


def type_text(annotation: Any) -> str:
    """Return a field's type as Python code would say it, without roles: ``str | None``, ``list[int]``."""
    origin = get_origin(annotation)
    if annotation is None or annotation is type(None):
        return "None"
    if origin is Literal:
        return " | ".join(dict.fromkeys(type_text(type(value)) for value in get_args(annotation)))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(type_text, get_args(annotation))))
    if hasattr(annotation, "__metadata__"):
        return type_text(annotation.__origin__)
    if origin is not None:
        inner = ", ".join("..." if part is Ellipsis else type_text(part) for part in get_args(annotation))
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", None) or str(annotation)


# -- what is kept ------------------------------------------------------------------------------------------------------


def _event(spec: EventSpec) -> dict[str, Any]:
    return {
        "category": spec.category.value,
        "severity": spec.severity.name.lower(),
        "durable": spec.durable,
        "span": spec.span if spec.is_operation else None,
        "fields": {name: _field(field) for name, field in sorted(spec.fields.items())},
    }


def _field(field: FieldSpec) -> dict[str, Any]:
    text = type_text(field.annotation)
    return {
        "type": f"array of {text}" if field.is_array else text,
        "role": field.role.kind if field.role else None,
        "unit": field.unit,
        "values": None if field.values is None else list(field.values),
        "required": field.required,
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "kind": metric.kind,
        "unit": metric.unit,
        "labels": {
            label: None if values is None else sorted(values) for label, values in sorted(metric.labels.items())
        },
        "buckets": list(metric.buckets),
    }


# -- what is compared --------------------------------------------------------------------------------------------------

_WHY_EVENT = {
    "category": "filters by category miss it",
    "severity": "filters by severity miss it",
    "durable": "what was kept on disk is not, or the other way round",
    "span": "queries of traces miss it",
}
_WHY_FIELD = {
    "type": "receivers read another type",
    "role": "it leaves the process otherwise, or labels of it are gone",
    "unit": "the same number means something else",
}
_WHY_METRIC = {"kind": "rate() and quantiles are wrong", "unit": "the same number means something else"}


def _of_each(what: str, before: Mapping[str, Any], now: Mapping[str, Any], compare: Any, why: str) -> Iterator[str]:
    for name, old in before.items():
        if name not in now:
            yield f"{what} {name!r} is gone: {why}"
        else:
            yield from compare(f"{what} {name!r}", old, now[name])


def _event_changes(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    yield from _facts(where, old, new, _WHY_EVENT)
    for name, field in old["fields"].items():
        place = f"{where}, field {name!r}"
        if name not in new["fields"]:
            yield f"{place} is gone: queries and receivers that read it find nothing"
            continue
        changed = new["fields"][name]
        yield from _facts(place, field, changed, _WHY_FIELD)
        yield from _values(place, field["values"], changed["values"])
        if changed["required"] and not field["required"]:
            yield f"{place} is required now: emitters that leave it out fail"
    for name, field in new["fields"].items():
        if name not in old["fields"] and field["required"]:
            yield f"{where}, field {name!r} is new and required: emitters that leave it out fail; give it a default"


def _metric_changes(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    yield from _facts(where, old, new, _WHY_METRIC)
    for label in new["labels"]:
        if label not in old["labels"]:
            yield f"{where}, label {label!r} is new: one series becomes many, and sums and matches over it change"
    for label, values in old["labels"].items():
        if label not in new["labels"]:
            yield f"{where}, label {label!r} is gone: queries that name it find nothing"
        else:
            yield from _values(f"{where}, label {label!r}", values, new["labels"][label])
    for bound in old["buckets"]:
        if bound not in new["buckets"]:
            yield f"{where}, bucket {bound:g} is gone: quantiles jump, and queries that name it find nothing"


def _facts(where: str, old: Mapping[str, Any], new: Mapping[str, Any], why: Mapping[str, str]) -> Iterator[str]:
    for key, reason in why.items():
        if old[key] != new[key]:
            yield f"{where}: {key} was {old[key]!r}, is {new[key]!r}: {reason}"


def _values(where: str, old: list[Any] | None, new: list[Any] | None) -> Iterator[str]:
    if old is None or new == old:
        return
    if new is None:
        yield f"{where}: its values were {old}, now any: the number of series has no bound"
        return
    for value in old:
        if value not in new:
            yield f"{where}: value {value!r} is gone: queries that name it find nothing"
