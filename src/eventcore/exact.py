"""Values that validation would hand back as they are, told without it.

An operation's fields are mostly what their types say: a float where a float is declared, one of a ``Literal``'s texts.
pydantic takes 0.8 µs to find that out, and makes an event of it: three more objects that wait in queues and that the
garbage collector looks at, while handlers only read values. What is done here instead is read off pydantic's own core
schema when a class is made, and only off its plainest parts; a type with anything else in it, and a value of any other
class than the declared one, is pydantic's affair as before (decision 041).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from eventcore.fields import unset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventcore.events import Event

__all__ = ["ExactFields", "exact_fields"]

_SCALARS: Mapping[str, type] = {
    "bool": bool,
    "bytes": bytes,
    "float": float,
    "int": int,
    "none": type(None),
    "str": str,
}
_KNOWN = frozenset({"type", "metadata", "ref"})
_KNOWN_OF_MODELS = _KNOWN | {"cls", "config", "custom_init", "root_model", "schema"}
_KNOWN_OF_FIELDS = _KNOWN | {"computed_fields", "fields", "model_name"}
_KNOWN_OF_CONFIG = frozenset({"extra_fields_behavior", "hide_input_in_errors", "title"})
_COMPARABLE = (frozenset({str}), frozenset({int}))
_MISSING: Any = object()


class _Field(NamedTuple):
    """Of which classes a field's values are taken as they are; ``choices`` are the only ones, where there are some."""

    name: str
    kinds: frozenset[type]
    choices: frozenset[Any] | None
    default: Any


class ExactFields:
    """The fields of one event type, each of which takes values of some classes as they are."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[_Field]) -> None:
        self._fields = [tuple(field) for field in fields]  # plain ones are taken apart six times as fast

    def read(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what ``given`` is when it is validated, with defaults; None where only pydantic can tell.

        All names in ``given`` must be those of fields.
        """
        values = {}
        for name, kinds, choices, default in self._fields:
            value = given.get(name, _MISSING)
            if value is _MISSING:
                if default is _MISSING:
                    return None
                value = default
            elif value.__class__ not in kinds or (choices is not None and value not in choices):
                return None
            values[name] = value
        return values


def exact_fields(event_type: type[Event]) -> ExactFields | None:
    """Return how an event type's values are read without pydantic; None where its schema asks for more."""
    schema: Any = event_type.__pydantic_core_schema__
    if not isinstance(schema, dict) or schema.get("type") != "model" or not schema.keys() <= _KNOWN_OF_MODELS:
        return None
    inner, config = schema["schema"], schema.get("config", {})
    is_plain = inner["type"] == "model-fields" and inner.keys() <= _KNOWN_OF_FIELDS and not inner.get("computed_fields")
    if schema.get("custom_init") or schema.get("root_model") or not is_plain or not config.keys() <= _KNOWN_OF_CONFIG:
        return None
    fields = [_field(name, field) for name, field in inner["fields"].items()]
    return None if None in fields else ExactFields(field for field in fields if field is not None)


def _field(name: str, field: Mapping[str, Any]) -> _Field | None:
    schema, default = field["schema"], _MISSING
    if not field.keys() <= _KNOWN | {"schema", "frozen", "serialization_exclude"}:
        return None
    if schema["type"] == "default":
        default = schema.get("default", _MISSING)
        is_shared = default is unset or default.__class__ in _SCALARS.values()
        if not schema.keys() <= _KNOWN | {"schema", "default"} or not is_shared:
            return None
        schema = schema["schema"]
    accepted = _accepted(schema)
    return None if accepted is None else _Field(name, *accepted, default)


def _accepted(schema: Mapping[str, Any]) -> tuple[frozenset[type], frozenset[Any] | None] | None:
    """Return the classes, and the choices among their values, that a field's schema takes as they are."""
    kind = schema["type"]
    if kind == "nullable" and schema.keys() <= _KNOWN | {"schema"}:
        inner = _accepted(schema["schema"])
        if inner is None:
            return None
        kinds, choices = inner
        return kinds | {type(None)}, choices if choices is None else choices | {None}
    if kind == "literal" and schema.keys() <= _KNOWN | {"expected"}:
        kinds = frozenset(map(type, schema["expected"]))
        # Of texts or of integers alone: True and 1 are equal, and different choices.
        return (kinds, frozenset(schema["expected"])) if kinds in _COMPARABLE else None
    if kind in _SCALARS and schema.keys() <= _KNOWN:
        return frozenset({_SCALARS[kind]}), None
    return None
