"""JSON Schema of events: what a webhook's body holds, per event type.

Schemas describe what leaves the process, so they say what may stand in a field besides its type: a mark where a
sensitive value was, null where a number is not finite. Unknown properties are allowed: a receiver must not fail where a
newer version sends an optional field more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from eventcore.errors import ConfigurationError
from eventcore.events import OUTCOMES, Severity
from eventcore.fields import Sensitive
from eventcore.redaction import REDACTED
from eventcore.vocabulary import AdHocEvent, AdHocOperation, LogRecord
from eventcore_generate.output import Files, json_text
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventcore.events import Event
    from eventcore.field_spec import FieldSpec

__all__ = ["DRAFT", "bodies", "json_schema"]

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_TEXT = {"type": "string"}
_FACTS: Mapping[str, Any] = {
    "service": {**_TEXT, "description": "The service that emitted it."},
    "severity": {"enum": [severity.name.lower() for severity in Severity]},
    "category": _TEXT,
    "message": {**_TEXT, "description": "What happened, for people."},
    "tags": {"type": "array", "items": _TEXT},
    "trace_id": {**_TEXT, "pattern": "^[0-9a-f]{32}$"},
    "span_id": {**_TEXT, "pattern": "^[0-9a-f]{16}$"},
    "correlation_id": _TEXT,
}
_OPERATION_FACTS: Mapping[str, Any] = {
    "duration_s": {"type": "number", "minimum": 0, "x-unit": "s"},
    "outcome": {"enum": list(OUTCOMES)},
    "error_type": _TEXT,
}


class _Generator(GenerateJsonSchema):
    """pydantic's, without titles that repeat names and without warnings of results that are not set by default."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - declared so by pydantic

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - none is
        return False


def json_schema(source: Source) -> Files:
    """Make a JSON Schema of what webhooks send.

    A body is of one of the event types, whose schemas stand in ``$defs`` by name.
    """
    schemas, shared = bodies(source.events, "#/$defs/{model}")
    document = {
        "$schema": DRAFT,
        "title": f"Events of {source.service}",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in schemas],
        "$defs": {**schemas, **shared},
    }
    return {"events.schema.json": json_text(document)}


def bodies(events: Mapping[str, type[Event]], reference: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schemas of bodies by event name, and those of the models they share, by the models' names.

    ``reference``: where the shared ones will stand, with ``{model}`` for the name. ConfigurationError names an event
    with a field that has no JSON form.
    """
    try:
        references, definitions = _models(events.values(), reference)
    except Exception:
        for name, event_type in events.items():
            try:
                _models([event_type], reference)
            except Exception as error:
                raise ConfigurationError(f"event {name!r} has a field without a JSON form: {error}") from error
        raise
    models = dict(definitions["$defs"])
    prefix = reference.partition("{model}")[0]
    payloads = {
        name: models.pop(references[event_type, "serialization"]["$ref"].removeprefix(prefix))
        for name, event_type in events.items()
    }
    return {name: _body(events[name], payload) for name, payload in payloads.items()}, dict(sorted(models.items()))


def _models(events: Iterable[type[Event]], reference: str) -> Any:
    asked = [(event_type, "serialization") for event_type in events]
    return models_json_schema(asked, ref_template=reference, schema_generator=_Generator)  # type: ignore[arg-type]


def _body(event_type: type[Event], payload: Mapping[str, Any]) -> dict[str, Any]:
    spec = event_type.__event__
    facts = {**_FACTS, **(_OPERATION_FACTS if spec.is_operation else {})}
    facts["category"] = {"const": spec.category.value}
    properties = dict(facts)
    required = ["service", "severity", "category"]
    if not issubclass(event_type, AdHocEvent | AdHocOperation | LogRecord):  # their data is whatever it is
        fields = payload.get("properties", {})
        properties |= {name: _field(field, fields[name]) for name, field in spec.fields.items() if name in fields}
        required += [name for name in payload.get("required", ()) if name not in required]
    return {
        "title": spec.name,
        "description": payload.get("description", ""),
        "type": "object",
        "properties": {
            "type": {"const": spec.name},
            "timestamp": {**_TEXT, "format": "date-time"},
            "data": {"type": "object", "properties": properties, "required": required},
        },
        "required": ["type", "timestamp", "data"],
    }


def _field(field: FieldSpec, schema: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {key: value for key, value in schema.items() if key != "default"}
    if field.is_array:
        items = TypeAdapter(field.annotation).json_schema(mode="serialization", schema_generator=_Generator)
        made["items"] = _nullable(items)
    made = _nullable(made)
    if field.role is Sensitive:
        made = {"anyOf": [made, {"const": REDACTED}], "description": "Sensitive: only a mark leaves the process."}
    if field.role is not None:
        made["x-role"] = field.role.kind
    if field.unit is not None:
        made["x-unit"] = field.unit
    return made


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Allow null for floating-point numbers: NaN and infinities have no other JSON form."""
    return {**schema, "type": ["number", "null"]} if schema.get("type") == "number" else schema
