"""The facts of an event class, and the checks that are made when the class is.

A module of its own, so that importing an event's base class does not cost what only making event classes needs.
"""

from __future__ import annotations

import re
import string
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventcore.errors import DefinitionError, did_you_mean
from eventcore.events import ENVELOPE_FACTS, Category, Operation, Severity
from eventcore.exact import ExactFields, exact_fields
from eventcore.field_spec import FieldSpec
from eventcore.fields import Sensitive

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventcore.events import Event

__all__ = ["EventSpec", "spec_of"]

_OPERATION_FACTS = frozenset({"duration_s", "outcome", "error_type"})
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_FORMATTER = string.Formatter()


@dataclass(frozen=True, slots=True)
class EventSpec:
    """The facts of one event class.

    ``is_plain``: all fields hold immutable scalars, so an operation may be validated after its end, in a worker.
    ``names``: those of the fields, for a quick look.
    ``texts``: the fields that may hold free text, in which secrets are looked for.
    ``exact``: reads the values of an operation that need no validation.
    """

    name: str
    category: Category
    severity: Severity
    message: str | None
    logger: str
    fields: Mapping[str, FieldSpec]
    names: frozenset[str]
    is_operation: bool
    span: str = ""
    start_message: str | None = None
    failure_message: str | None = None
    failure_severity: Severity = Severity.ERROR
    each: tuple[str, ...] = ()
    sensitive: frozenset[str] = frozenset()
    durable: bool = False
    is_plain: bool = False
    texts: tuple[str, ...] = ()
    exact: ExactFields | None = field(default=None, compare=False, repr=False)

    def severity_of(self, outcome: str) -> Severity:
        """Return the default severity of an operation that ended with ``outcome``."""
        if outcome == "success":
            return self.severity
        return self.failure_severity if outcome == "failure" else max(self.severity, Severity.WARNING)

    def message_of(self, outcome: str | None) -> str | None:
        """Return the message template for an event, or for an operation that ended with ``outcome``.

        What says that an operation went well is not said of one that did not: without a ``failure_message`` that is
        name and outcome.
        """
        if outcome in (None, "success"):
            return self.message
        if outcome == "failure" and self.failure_message is not None:
            return self.failure_message
        return f"{self.name} {outcome}"

    def facts(self) -> frozenset[str]:
        """Return the names of the envelope facts that this type has."""
        facts = frozenset(ENVELOPE_FACTS)
        return facts if self.is_operation else facts - _OPERATION_FACTS


def spec_of(cls: type[Event], given: Mapping[str, Any]) -> EventSpec:
    """Return the facts of a class with the class keywords ``given``; DefinitionError says which one is wrong."""
    owner = cls.__qualname__
    name = given["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(f"{owner}: name {name!r} must be dotted lower case, such as 'checkout.paid'")
    if not cls.__pydantic_fields_complete__:
        raise DefinitionError(f"{owner}: a field's type cannot be resolved here; define it before the event class")
    if "category" not in given:
        raise DefinitionError(f"{owner}: category is missing; give one of ec.Category: {', '.join(Category)}")
    each = given.get("each", ())
    fields = {key: FieldSpec.of(owner, key, info) for key, info in cls.model_fields.items()}
    try:
        spec = EventSpec(
            name=name,
            category=Category.parse(given["category"]),
            severity=Severity.parse(given.get("severity", Severity.INFO)),
            message=given.get("message"),
            logger=given.get("logger") or name.split(".", 1)[0],
            fields=types.MappingProxyType(fields),
            names=frozenset(fields),
            is_operation=issubclass(cls, Operation),
            span=given.get("span") or name,
            start_message=given.get("start_message"),
            failure_message=given.get("failure_message"),
            failure_severity=Severity.parse(given.get("failure_severity", Severity.ERROR)),
            each=(each,) if isinstance(each, str) else tuple(each),
            durable=bool(given.get("durable", False)),
            sensitive=frozenset(key for key, spec in fields.items() if spec.role is Sensitive),
            is_plain=all(spec.is_plain for spec in fields.values()),
            texts=tuple(key for key, spec in fields.items() if spec.may_hold_text and spec.role is not Sensitive),
            exact=exact_fields(cls) if issubclass(cls, Operation) else None,
        )
    except ValueError as error:
        raise DefinitionError(f"{owner}: {error}") from None
    _check_messages(owner, spec)
    for key in spec.each:
        if key not in fields or not fields[key].is_array or key in spec.sensitive:
            raise DefinitionError(f"{owner}: each={key!r} must name an ec.Array field that is not sensitive")
    return spec


def _check_messages(owner: str, spec: EventSpec) -> None:
    known = spec.facts() | set(spec.fields)
    for template in (spec.message, spec.start_message, spec.failure_message):
        for key in _placeholders(owner, template or ""):
            if key in spec.sensitive:
                raise DefinitionError(f"{owner}: message {template!r} shows the sensitive field {key!r}")
            if key not in known:
                raise DefinitionError(f"{owner}: message {template!r} names {key!r}{did_you_mean(key, known)}")


def _placeholders(owner: str, template: str) -> Iterable[str]:
    try:
        parts = list(_FORMATTER.parse(template))
    except ValueError as error:
        raise DefinitionError(f"{owner}: message {template!r} is no format string: {error}") from None
    keys = []
    for _, key, format_spec, _ in parts:
        if key is not None:
            keys.append(re.split(r"[.\[]", key, maxsplit=1)[0])
            keys.extend(_placeholders(owner, format_spec or ""))
    return keys
