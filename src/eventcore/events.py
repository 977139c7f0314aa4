"""Typed events and operations: what happened, said once.

The facts about a class (its dotted name, category, default severity, message) are class keywords, checked when the
class is made and kept in one ``__event__`` spec. They are no fields, so payload fields may bear any name, ``name``
and ``id`` included.
"""

from __future__ import annotations

import enum
import types
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from eventcore.base_class import BaseClass
from eventcore.errors import DefinitionError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.event_spec import EventSpec

__all__ = ["ENVELOPE_FACTS", "OUTCOMES", "Category", "Event", "Operation", "Severity"]


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

_EVENT_KEYWORDS = frozenset({"name", "category", "severity", "message", "logger", "each", "durable"})
_OPERATION_KEYWORDS = _EVENT_KEYWORDS | {"span", "start_message", "failure_message", "failure_severity"}


class Event(BaseModel, metaclass=BaseClass):
    """An immutable typed fact.

    Class keywords: ``name`` (dotted, lower case; a subclass without it is abstract), ``category``, ``severity``
    (default INFO), ``message`` (a ``str.format`` template over fields and envelope facts), ``logger`` (the name log
    lines carry; default: the first part of the event's name), ``each`` (names of aligned array fields: logs and
    spans are expanded, one per element) and ``durable`` (audit-class: its emit waits until it is in the journal).
    """

    # The validator of this very class is made on first use, if ever; importing it does not wait for that.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    if TYPE_CHECKING:
        __event__: ClassVar[EventSpec]
        __event_keywords__: ClassVar[Mapping[str, Any]]
        __allowed_keywords__: ClassVar[frozenset[str]]

        def __init_subclass__(
            cls,
            *,
            name: str = ...,
            category: Category | str = ...,
            severity: Severity | str | int = ...,
            message: str = ...,
            logger: str = ...,
            each: str | tuple[str, ...] = ...,
            durable: bool = ...,
        ) -> None: ...

    else:  # without annotations, which pydantic would evaluate at each import
        __event_keywords__ = types.MappingProxyType({})
        __allowed_keywords__ = _EVENT_KEYWORDS

        def __init_subclass__(cls, **keywords: Any) -> None:
            """Let class keywords pass: pydantic hands them on to ``__pydantic_init_subclass__``."""
            super().__init_subclass__()
            if keywords.get("each") and cls.__allowed_keywords__ is _EVENT_KEYWORDS:
                from eventcore.arrays import validator_of_aligned

                cls._each_is_aligned = validator_of_aligned()  # before pydantic looks for validators

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
            from eventcore.event_spec import spec_of  # only making event classes needs it

            cls.__event__ = spec_of(cls, given)
            if cls.__event__.sensitive and not cls.model_config.get("hide_input_in_errors"):
                cls.model_config["hide_input_in_errors"] = True  # pydantic's message would quote the whole input
                cls.model_rebuild(force=True)
        elif hasattr(cls, "__event__"):
            cls.__event__ = None  # type: ignore[assignment]  # abstract again: it must not pass for its parent

    @classmethod
    def is_abstract(cls) -> bool:
        """Whether the class has no name of its own and so cannot be emitted."""
        return getattr(cls, "__event__", None) is None


class Operation(Event, metaclass=BaseClass):
    """An event that lasts: it starts with typed fields, may be given results, and is emitted once when it ends.

    Further class keywords: ``span`` (name of its span; default: the event's name), ``start_message`` (asks for a log
    line at its start), ``failure_message`` and ``failure_severity`` (default ERROR).
    """

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
            each: str | tuple[str, ...] = ...,
            durable: bool = ...,
        ) -> None: ...

    else:
        __allowed_keywords__ = _OPERATION_KEYWORDS


for _base in (Event, Operation):
    del _base.model_config["defer_build"]  # classes made from them are built, and so checked, at once
