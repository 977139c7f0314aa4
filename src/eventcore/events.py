"""Typed events and operations: what happened, said once.

The facts about a class (its dotted name, category, default severity, message) are class keywords, checked when the
class is made and kept in one ``__event__`` spec. They are no fields, so payload fields may bear any name, ``name``
and ``id`` included.
"""

from __future__ import annotations

import enum
import re
import string
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from eventcore.errors import DefinitionError, did_you_mean
from eventcore.fields import FieldSpec, Sensitive

__all__ = ["ENVELOPE_FACTS", "OUTCOMES", "Category", "Event", "EventSpec", "Operation", "Severity"]


class Severity(enum.IntEnum):
    """How much an event matters; the numbers are OpenTelemetry's severity numbers."""

    TRACE = 1
    DEBUG = 5
    INFO = 9
    WARNING = 13
    ERROR = 17
    CRITICAL = 21

    @classmethod
    def parse(cls, value: Severity | int | str) -> Severity:
        """Return the severity meant by a member, its number or its name in any case."""
        if isinstance(value, str):
            try:
                return cls[value.upper()]
            except KeyError:
                raise ValueError(
                    f"unknown severity {value!r}{did_you_mean(value.lower(), (s.name.lower() for s in cls))}"
                ) from None
        return cls(value)


class Category(enum.StrEnum):
    """What part of a system an event speaks of."""

    SYSTEM = "system"
    EXECUTION = "execution"
    MODEL = "model"
    CACHE = "cache"
    SECURITY = "security"
    PERFORMANCE = "performance"
    USER = "user"
    INTEGRATION = "integration"
    DATA = "data"

    @classmethod
    def parse(cls, value: Category | str) -> Category:
        """Return the category meant by a member or its value."""
        try:
            return cls(value)
        except ValueError:
            raise ValueError(f"unknown category {value!r}{did_you_mean(str(value), (c.value for c in cls))}") from None


OUTCOMES = ("success", "failure", "cancelled", "abandoned")

ENVELOPE_FACTS: Mapping[str, tuple[Any, ...] | None] = types.MappingProxyType(
    {
        "category": tuple(Category),
        "correlation_id": None,
        "duration_s": None,
        "error_type": None,
        "event": None,
        "id": None,
        "outcome": OUTCOMES,
        "severity": tuple(s.name.lower() for s in Severity),
        "span_id": None,
        "time": None,
        "trace_id": None,
    }
)
"""Facts stamped by the bus that instruments, filters and messages may name like fields, with their finite values."""

_OPERATION_FACTS = frozenset({"duration_s", "outcome", "error_type"})
_EVENT_KEYWORDS = frozenset({"name", "category", "severity", "message", "logger", "each", "durable"})
_OPERATION_KEYWORDS = _EVENT_KEYWORDS | {"span", "start_message", "failure_message", "failure_severity"}
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_FORMATTER = string.Formatter()


@dataclass(frozen=True, slots=True)
class EventSpec:
    """The facts of one event class.

    ``is_plain``: all fields hold immutable scalars, so an operation may be validated after its end, in a worker.
    ``names``: those of the fields, for a quick look.
    ``texts``: the fields that may hold free text, in which secrets are looked for.
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


class Event(BaseModel):
    """An immutable typed fact.

    Class keywords: ``name`` (dotted, lower case; a subclass without it is abstract), ``category``, ``severity``
    (default INFO), ``message`` (a ``str.format`` template over fields and envelope facts), ``logger`` (the name log
    lines carry; default: the first part of the event's name), ``each`` (names of aligned array fields: logs and
    spans are expanded, one per element) and ``durable`` (audit-class: its emit waits until it is in the journal).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    __event__: ClassVar[EventSpec]
    __event_keywords__: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})
    __allowed_keywords__: ClassVar[frozenset[str]] = _EVENT_KEYWORDS

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            name: str = ...,
            category: Category | str = ...,
            severity: Severity | str | int = ...,
            message: str = ...,
            logger: str = ...,
            each: tuple[str, ...] = ...,
            durable: bool = ...,
        ) -> None: ...

    else:

        def __init_subclass__(cls, **_keywords: Any) -> None:
            """Let class keywords pass: pydantic hands them on to ``__pydantic_init_subclass__``."""
            super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        """Check the class keywords and keep them in ``__event__``."""
        inherited = {key: value for key, value in cls.__event_keywords__.items() if key not in ("name", "span")}
        given = {**inherited, **keywords}
        cls.__event_keywords__ = types.MappingProxyType(given)
        allowed = cls.__allowed_keywords__
        for keyword in keywords:
            if keyword not in allowed:
                raise DefinitionError(
                    f"{cls.__qualname__}: {keyword!r} is no class keyword of an "
                    f"{'operation' if allowed is _OPERATION_KEYWORDS else 'event'}{did_you_mean(keyword, allowed)}"
                )
        if not cls.model_config.get("frozen"):
            raise DefinitionError(f"{cls.__qualname__}: events are immutable; remove frozen=False")
        if given.get("name") is not None:
            cls.__event__ = _spec_of(cls, given)
            if cls.__event__.sensitive and not cls.model_config.get("hide_input_in_errors"):
                cls.model_config["hide_input_in_errors"] = True  # pydantic's message would quote the whole input
                cls.model_rebuild(force=True)
        elif hasattr(cls, "__event__"):
            cls.__event__ = None  # type: ignore[assignment]  # abstract again: it must not pass for its parent

    @classmethod
    def is_abstract(cls) -> bool:
        """Whether the class has no name of its own and so cannot be emitted."""
        return getattr(cls, "__event__", None) is None


class Operation(Event):
    """An event that lasts: it starts with typed fields, may be given results, and is emitted once when it ends.

    Further class keywords: ``span`` (name of its span; default: the event's name), ``start_message`` (asks for a log
    line at its start), ``failure_message`` and ``failure_severity`` (default ERROR).
    """

    __allowed_keywords__: ClassVar[frozenset[str]] = _OPERATION_KEYWORDS

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            name: str = ...,
            category: Category | str = ...,
            severity: Severity | str | int = ...,
            message: str = ...,
            logger: str = ...,
            span: str = ...,
            start_message: str = ...,
            failure_message: str = ...,
            failure_severity: Severity | str | int = ...,
            each: tuple[str, ...] = ...,
            durable: bool = ...,
        ) -> None: ...


def _spec_of(cls: type[Event], given: Mapping[str, Any]) -> EventSpec:
    owner = cls.__qualname__
    name = given["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(f"{owner}: name {name!r} must be dotted lower case, such as 'checkout.paid'")
    if not cls.__pydantic_fields_complete__:
        raise DefinitionError(f"{owner}: a field's type cannot be resolved here; define it before the event class")
    if "category" not in given:
        raise DefinitionError(f"{owner}: category is missing; give one of ec.Category: {', '.join(Category)}")
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
            is_operation=cls.__allowed_keywords__ is _OPERATION_KEYWORDS,
            span=given.get("span") or name,
            start_message=given.get("start_message"),
            failure_message=given.get("failure_message"),
            failure_severity=Severity.parse(given.get("failure_severity", Severity.ERROR)),
            each=tuple(given.get("each", ())),
            durable=bool(given.get("durable", False)),
            sensitive=frozenset(key for key, spec in fields.items() if spec.role is Sensitive),
            is_plain=all(spec.is_plain for spec in fields.values()),
            texts=tuple(key for key, spec in fields.items() if spec.may_hold_text and spec.role is not Sensitive),
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
