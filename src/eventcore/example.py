"""An example of any event type, built from its fields, and the envelope it would come in.

A value is guessed from the field's type, built, and where pydantic refuses it the next guess is tried: constraints need
not be understood that way. Fields that have a default keep it, except results of operations, which are shown set.
"""

from __future__ import annotations

import datetime as dt
import decimal
import types
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from eventcore.context import SCOPE
from eventcore.emitter import Emitter
from eventcore.envelope import Envelope
from eventcore.field_spec import finite_values
from eventcore.fields import unset
from eventcore.handler import Handler
from eventcore.sampling import ALL_TRACES

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from eventcore.events import Event, Severity
    from eventcore.field_spec import FieldSpec
    from eventcore.operation import LiveOperation
    from eventcore.resource import Resource

__all__ = ["Witness", "example_envelope", "example_fields"]

MAX_TRIES = 60
ELEMENTS = 2
"""Elements of example arrays and lists."""

_GUESSES: Mapping[Any, tuple[Any, ...]] = {
    bool: (True,),
    int: (1, 10, 100, 1000, 0, -1),
    float: (0.5, 1.5, 10.0, 100.0, 0.0, -0.5),
    str: ("example", "a", "exampleexampleexampleexampleexample", "1", "2026-01-01", "http://example.com"),
    bytes: (b"example",),
    dt.datetime: (dt.datetime(2026, 1, 1, tzinfo=dt.UTC),),
    dt.date: (dt.date(2026, 1, 1),),
    dt.time: (dt.time(12),),
    dt.timedelta: (dt.timedelta(seconds=1),),
    decimal.Decimal: (decimal.Decimal("1.5"), decimal.Decimal(1)),
    uuid.UUID: (uuid.UUID(int=1),),
    Path: (Path("example"),),
    Any: ("example",),
}


def example_fields(event_type: type[Event]) -> tuple[dict[str, Any], str]:
    """Return example values by field, and what pydantic says against them ("" where they validate)."""
    guesses = {
        name: _guesses(event_type.model_fields[name], spec) for name, spec in event_type.__event__.fields.items()
    }
    turns = dict.fromkeys(guesses, 0)
    values: dict[str, Any] = {}
    problem = ""
    for _ in range(MAX_TRIES):
        values = {name: guesses[name][turns[name]] for name in guesses}
        try:
            event_type(**values)
        except ValidationError as error:
            wrong = {str(problem["loc"][0]) for problem in error.errors(include_url=False) if problem["loc"]}
            problem = "; ".join(
                f"{'.'.join(map(str, p['loc']))}: {p['msg']}"
                for p in error.errors(include_url=False, include_input=False)
            )
            wrong = {name for name in wrong if name in turns and turns[name] + 1 < len(guesses[name])}
            if not wrong:
                return values, problem
            for name in wrong:
                turns[name] += 1
        except Exception as error:  # noqa: BLE001 - a validator of the type's own
            return values, f"{type(error).__name__}: {error}"
        else:
            return values, ""
    return values, problem


def example_envelope(event_type: type[Event], severity: Severity, resource: Resource) -> tuple[Envelope, str]:
    """Return an example in its envelope, redacted, and what is wrong with it ("" where it validates).

    An operation in it has started and succeeded, and is sampled. Nothing is emitted.
    """
    values, problem = example_fields(event_type)
    stage = _Stage(resource=resource)
    if event_type.__event__.is_operation:
        with stage.operation(event_type, **values) as operation:  # type: ignore[type-var]  # one, as its facts say
            pass
        envelope = stage.envelope(None, severity, operation)
    else:
        envelope = stage.envelope(event_type.model_construct(**values) if problem else event_type(**values), severity)
    return envelope.redact(), problem


class _Stage(Emitter):
    """Runs operations that nobody hears of, and every one of them sampled."""

    def __init__(self, *, resource: Resource) -> None:
        super().__init__(resource=resource)
        self.is_enabled = False
        self.trace_bound = ALL_TRACES

    def envelope(
        self, event: Event | None, severity: Severity, operation: LiveOperation[Any] | None = None
    ) -> Envelope:
        """Return the envelope that an emit would have made."""
        scope = SCOPE.get() if operation is None else operation
        return Envelope(event, severity, (), self.time_ns(), self.ids.next_sequence(), self.ids, scope, operation)


class Witness(Handler):
    """Keeps envelopes as they pass, in the caller."""

    kind = "witness"
    delivery = "inline"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.envelopes: list[Envelope] = []

    def handle(self, envelope: Envelope) -> None:
        """Keep it."""
        self.envelopes.append(envelope)


def _guesses(info: FieldInfo, spec: FieldSpec) -> tuple[Any, ...]:
    given = tuple(info.examples or ())
    if not info.is_required():
        default = info.get_default(call_default_factory=True, validated_data={})
        if default is not unset and default is not None:
            given = (*given, default)
    of_type = _of(spec.annotation)
    if spec.is_array:
        of_type = tuple([guess] * ELEMENTS for guess in of_type)
    rest = () if info.is_required() else (info.get_default(call_default_factory=True, validated_data={}),)
    return (*given, *of_type, *rest)


def _of(annotation: Any) -> tuple[Any, ...]:
    """Return guesses for a type, the likeliest first; at least one."""
    finite = finite_values(annotation)
    if annotation is not bool and finite:
        return finite
    if _is_known(annotation):
        return _GUESSES[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _of(parts[0])
    if origin in (Union, types.UnionType):
        return tuple(guess for part in parts if part is not type(None) for guess in _of(part))
    if isinstance(origin, type):
        return _container(origin, parts)
    return _class(annotation) if isinstance(annotation, type) else ("example", 1)


def _class(annotation: type) -> tuple[Any, ...]:
    if issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return ({name: _of(info.annotation)[0] for name, info in fields.items() if info.is_required()},)
    if issubclass(annotation, Mapping):
        return ({"key": "example"},)
    if issubclass(annotation, list | tuple | set | frozenset):
        return (["example"],)
    bases = (base for base in _GUESSES if isinstance(base, type) and issubclass(annotation, base))
    return _GUESSES.get(next(bases, None), ("example", 1))


def _is_known(annotation: Any) -> bool:
    try:
        return annotation in _GUESSES
    except TypeError:  # an annotation that cannot be hashed
        return False


def _container(origin: type, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if origin is tuple and parts[-1] is not Ellipsis:
        return (tuple(_of(part)[0] for part in parts),)
    if issubclass(origin, Mapping):
        key, value = (_of(part)[0] for part in parts) if len(parts) == ELEMENTS else ("key", "example")
        return ({key: value}, {})
    if issubclass(origin, Sequence | set | frozenset):
        return tuple([guess] * ELEMENTS for guess in _of(parts[0]))
    return ("example",)
