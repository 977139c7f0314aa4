"""The reference of a vocabulary, in Markdown: events with their fields, metrics with their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventcore.exposition import label_text
from eventcore.fields import unset
from eventcore.instruments import Codes
from eventcore.snapshot import type_text
from eventcore_generate.output import Files  # noqa: TC001 - the command line reads the annotations
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eventcore.events import Event
    from eventcore.exposition import Metric
    from eventcore.field_spec import FieldSpec
    from eventcore.instruments import Instrument
    from eventcore_generate.source import Part

__all__ = ["reference"]

_ROLES = (
    "Roles: a *label* may become a metric label, a *measure* is a number to record, what is *sensitive* never leaves "
    "the process; the rest are attributes of log lines and spans."
)


def reference(source: Source) -> Files:
    """Make a reference of events, fields and metrics, in Markdown."""
    lines = [
        f"# Events and metrics of {source.service}",
        "",
        "Made by `eventcore generate docs` from the catalog; change the types and make it anew.",
        "",
        "## Events",
        "",
        _ROLES,
        "",
    ]
    by_category: dict[str, list[type[Event]]] = {}
    for event_type in source.events.values():
        by_category.setdefault(event_type.__event__.category.value, []).append(event_type)
    for category, types in sorted(by_category.items()):
        lines += [f"### Category {category}", ""]
        for event_type in types:
            lines += _event(event_type)
    lines += ["## Metrics", ""]
    for part in source.parts:
        if part.metrics:
            lines += _part(part)
    return {"reference.md": "\n".join(lines).rstrip() + "\n"}


def _event(event_type: type[Event]) -> list[str]:
    spec = event_type.__event__
    facts = [f"severity {spec.severity.name.lower()}", f"logger `{spec.logger}`"]
    if spec.is_operation:
        facts = [f"operation, span `{spec.span}`", *facts, f"on failure {spec.failure_severity.name.lower()}"]
    if spec.durable:
        facts.append("durable: its emit waits until it is on disk")
    lines = [f"#### `{spec.name}`", "", (event_type.__doc__ or "").strip().partition("\n")[0], ""]
    lines += [f"{'; '.join(facts).capitalize()}.", ""]
    said = {"Start": spec.start_message, "Message": spec.message, "Failure": spec.failure_message}
    lines += [f"- {what}: `{text}`" for what, text in said.items() if text]
    lines += [""] if any(said.values()) else []
    if spec.fields:
        rows = [_field(event_type, field) for field in spec.fields.values()]
        lines += [*_table(("field", "type", "role", "unit", "values", "default"), rows), ""]
    return lines


def _field(event_type: type[Event], field: FieldSpec) -> tuple[str, ...]:
    text = type_text(field.annotation)
    default = event_type.model_fields[field.name].get_default(call_default_factory=True)
    shown = "required" if field.required else "a result" if default is unset else f"`{default!r}`"
    return (
        f"`{field.name}`",
        f"array of {text}" if field.is_array else text,
        field.role.kind if field.role else "",
        field.unit or "",
        ", ".join(f"`{value}`" for value in field.values or ()),
        shown,
    )


def _part(part: Part) -> list[str]:
    lines = [f"### {part.title}", "", f"Pack `{part.name}`.", ""]
    for metric in part.metrics:
        lines += _metric(metric, part.instruments.get(metric.name))
    return lines


def _metric(metric: Metric, instrument: Instrument | None) -> list[str]:
    worst = metric.worst_case
    facts = [metric.kind, *([f"in {metric.unit}"] if metric.unit else [])]
    facts.append("no bound on its series but the limit" if worst is None else f"at most {worst} series")
    lines = [f"#### `{metric.name}`", "", metric.help, "", f"{'; '.join(facts).capitalize()}; {metric.origin}.", ""]
    if instrument is not None and isinstance(instrument.value_source, Codes):
        codes = ", ".join(f"{code:g} `{state}`" for state, code in instrument.value_source.codes.items())
        lines += [f"Values: {codes}.", ""]
    if metric.buckets:
        lines += [f"Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}.", ""]
    if metric.labels:
        rows = [(f"`{label}`", _values(label, values, instrument)) for label, values in metric.labels.items()]
        lines += [*_table(("label", "values"), rows), ""]
    return lines


def _values(label: str, values: frozenset[str] | None, instrument: Instrument | None) -> str:
    if values is None:
        return "any, up to the limit of series"
    declared = () if instrument is None else map(label_text, instrument.label_values(label) or ())
    ordered = [text for text in dict.fromkeys(declared) if text in values] or sorted(values)
    return ", ".join(f"`{value}`" for value in ordered)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
