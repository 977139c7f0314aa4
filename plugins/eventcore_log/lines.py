"""From an envelope to lines: dictionaries of plain values in the order in which they are shown.

What is the same for all events of a type (its logger, which of its fields collide with a name of ours, which hold
secrets) is decided once, in a ``Shape``. The names are those of the TinyLLM guide: ``event`` (the message, else the
event's name), ``level``, ``timestamp``, ``logger``, ``trace_id``, ``span_id``, ``app``, ``version``; beside them
``name``, ``category``, ``tags``, ``id``, ``correlation_id`` and ``environment``, and for operations ``duration_ms``,
``outcome``, ``error_type`` and ``exception``. Payload fields stand flat beside them; one whose name is taken stands in
the object ``fields``. Fields without a value (``ec.unset`` or None) are left out. Where a payload field and a bound
field have one name, the payload's is shown. ``redacted`` names the fields in which a secret was found and replaced.

What queued handlers get was searched for secrets by the bus; it is not searched again.
"""

from __future__ import annotations

import string
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from eventcore.events import Severity
from eventcore.fields import unset
from eventcore.redaction import REDACTED, scrub_text
from eventcore.vocabulary import AdHocEvent, AdHocOperation, LogRecord
from eventcore_log.values import NUMBERS, is_numeric_array, is_secret, plain, scrubbed

if TYPE_CHECKING:
    from eventcore.envelope import Envelope
    from eventcore.events import Event
    from eventcore.operation import LiveOperation
    from eventcore.resource import Resource

__all__ = ["RESERVED", "RESERVED_BY_OPERATIONS", "Line", "Lines"]


class Line(dict[str, Any]):
    """What one line shows, by name and in order.

    ``said`` are the fields whose values its message shows already, ``redacted`` those that held secrets.
    """

    __slots__ = ("redacted", "said")

    said: frozenset[str]
    redacted: tuple[str, ...]


RESERVED = frozenset(
    {
        "app",
        "category",
        "correlation_id",
        "environment",
        "event",
        "fields",
        "id",
        "level",
        "logger",
        "name",
        "redacted",
        "span_id",
        "tags",
        "timestamp",
        "trace_id",
        "version",
        # structlog's renderers give these two a meaning of their own.
        "exc_info",
        "stack",
    }
)
"""Names that a payload field cannot have in a line; it is found under ``fields`` instead."""

RESERVED_BY_OPERATIONS = RESERVED | {"duration_ms", "error_type", "exception", "outcome"}
"""The same, for the fields of operations."""

_Texts = list[tuple[dict[str, Any], str]]
"""Where the free texts of one line stand that must be searched: in which dictionary, under which key."""

_Place = tuple[str, bool, bool, bool]
"""Under which name a field stands, whether in ``fields``, whether it is a secret, whether its text is searched."""

_NONE: frozenset[str] = frozenset()
_LEVELS = {severity: severity.name.lower() for severity in Severity}


class Lines:
    """Turns envelopes into lines, for one emitter's resource."""

    def __init__(self, resource: Resource) -> None:
        self._shapes: dict[type[Event], Shape] = {}
        self._who = {"app": resource.service, "version": resource.version}
        if resource.environment:
            self._who["environment"] = resource.environment
        self._second = (-1, "")

    def of(self, envelope: Envelope) -> list[Line]:
        """Return the lines of one envelope: one, or one per element of its type's ``each`` arrays.

        The start of a batch and a batch that did not succeed are one line, with the arrays as they are. An operation
        whose type has a message for its start only has no line for a successful end.
        """
        event_type = type(envelope.event)
        shape = self._shapes.get(event_type)
        if shape is None:
            shape = self._shapes[event_type] = Shape(event_type)
        if shape.is_start_only and envelope.outcome == "success":
            return []
        if not shape.each or envelope.is_start or envelope.outcome not in (None, "success"):
            return [self._line(shape, envelope, envelope.payload)]
        try:
            rows = list(envelope.items())
        except (TypeError, ValueError):  # the arrays are not aligned: better one odd line than none
            rows = [envelope.payload]
        return [self._line(shape, envelope, row) for row in rows]

    def _line(self, shape: Shape, envelope: Envelope, payload: Mapping[str, Any]) -> Line:
        scope, span = envelope.scope, envelope.span
        message, said = shape.message(envelope, payload)
        line = Line(
            event=message,
            level=_LEVELS[envelope.severity],
            timestamp=self._timestamp(envelope.time_ns),
            logger=shape.logger or payload["logger_name"],
            name=shape.name,
            category=shape.category,
        )
        texts: _Texts = []
        if said is not None:
            texts.append((line, "event"))
        line.said = said or _NONE
        is_searched = envelope.is_redacted
        line.redacted = envelope.redacted if is_searched else ()
        shape.put_payload(line, texts, payload, is_searched=is_searched)
        for key, value in scope.bound.items():
            shape.put(line, texts, key, value, is_searched=is_searched)
        if envelope.tags:
            _put(line, texts, list(envelope.tags), "tags")
        if scope.correlation_id:
            _put(line, texts, scope.correlation_id, "correlation_id", is_free=not is_searched)
        if span and not envelope.is_start:  # when a start is written, the end may be known already
            _put_end(line, texts, span)
        where = span or scope
        if where.trace_id:
            line["trace_id"] = f"{where.trace_id:032x}"
        if where.span_id:
            line["span_id"] = f"{where.span_id:016x}"
        line.update(self._who)
        line["id"] = envelope.id
        _scrub(line, texts)
        if line.redacted:
            line["redacted"] = list(dict.fromkeys(line.redacted))
        return line

    def _timestamp(self, time_ns: int) -> str:
        second, rest = divmod(time_ns, 1_000_000_000)
        known, text = self._second
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{rest // 1000:06d}Z"


class Shape:
    """What the lines of one event type have in common."""

    __slots__ = (
        "_open",
        "_places",
        "_reserved",
        "_said",
        "_searched_places",
        "_spec",
        "category",
        "each",
        "is_start_only",
        "logger",
        "name",
    )

    def __init__(self, event_type: type[Event]) -> None:
        spec = self._spec = event_type.__event__
        self.name = spec.name
        self.category = spec.category.value
        self.logger: str | None = spec.logger
        self.each = spec.each
        self.is_start_only = spec.start_message is not None and spec.message is None
        self._reserved = RESERVED_BY_OPERATIONS if spec.is_operation else RESERVED
        self._said: dict[str, frozenset[str]] = {}
        self._open: str | None = None  # the field that holds what was given without a class; its items stand flat
        shown = {key: key for key in spec.fields}
        if issubclass(event_type, LogRecord):
            self.logger, self._open, shown = None, "data", {}
        elif issubclass(event_type, AdHocEvent):
            self._open = "data"
            shown = {"error_type": "error_type", "error_message": "error_message", "stack_trace": "exception"}
        elif issubclass(event_type, AdHocOperation):
            self._open, shown = "attributes", {}
        self._places = self._places_of(shown, frozenset(spec.texts))
        self._searched_places = self._places_of(shown, frozenset(spec.each))

    def _places_of(self, shown: Mapping[str, str], searched: frozenset[str]) -> Mapping[str, _Place | None]:
        """Return where declared fields stand; in the text of those in ``searched`` secrets are looked for."""
        return {
            **dict.fromkeys(self._spec.fields),
            **{k: (as_, as_ in self._reserved, is_secret(as_), k in searched) for k, as_ in shown.items()},
        }

    def message(self, envelope: Envelope, payload: Mapping[str, Any]) -> tuple[str, frozenset[str] | None]:
        """Return what the line says, and the names of the fields that it shows (None: it shows no values at all)."""
        spec = self._spec
        template = spec.start_message if envelope.is_start else spec.message_of(envelope.outcome)
        if not template:
            return self.name, None
        if "{" not in template:
            return template, None
        said = self._said.get(template)
        if said is None:
            said = self._said[template] = frozenset(key for key in _placeholders(template) if self._places.get(key))
        is_plain = not self.each and not any(is_secret(key) or _holds_more(payload.get(key)) for key in said)
        try:
            text = envelope.message if is_plain else template.format_map(_Spoken(envelope, payload, said))
        except Exception:  # noqa: BLE001 - such as a number's format for a result that was never set
            text = _forgiving(template, envelope, payload, said)
            if text is None:
                return template, None
        return (text, said) if text else (self.name, None)

    def put_payload(self, line: Line, texts: _Texts, payload: Mapping[str, Any], *, is_searched: bool) -> None:
        """Put the payload's fields into the line; ``is_searched`` says that the bus has found the secrets in texts.

        It sees text, and text in lists and mappings. Elements of arrays and what becomes text only here are searched
        in any case.
        """
        places = self._searched_places if is_searched else self._places
        for key, value in payload.items():
            if key not in places:  # of a newer or older shape of the type
                self.put(line, texts, key, value)
            elif value is not None and (place := places[key]) is not None:
                _put(line, texts, value, *place)
        if self._open:
            for key, value in payload.get(self._open, {}).items():
                self.put(line, texts, key, value, is_searched=is_searched)

    def put(self, line: Line, texts: _Texts, key: str, value: Any, *, is_searched: bool = False) -> None:
        """Put a field that the type does not declare into the line, where no more specific one is there."""
        is_reserved = key in self._reserved
        if key not in (line.get("fields", ()) if is_reserved else line):
            _put(line, texts, value, key, is_reserved, is_secret(key), not is_searched)


def _put(  # noqa: PLR0917 - called for every field
    line: Line,
    texts: _Texts,
    value: Any,
    key: str,
    is_reserved: bool = False,  # noqa: FBT001, FBT002 - as above
    holds_secret: bool = False,  # noqa: FBT001, FBT002 - as above
    is_free: bool = True,  # noqa: FBT001, FBT002 - as above
) -> None:
    into = line.setdefault("fields", {}) if is_reserved else line
    kind = type(value)
    if kind is str and not holds_secret:
        into[key] = value
        if is_free:
            texts.append((into, key))
    elif kind in NUMBERS and not holds_secret:
        into[key] = value
    elif is_numeric_array(value) and not holds_secret:
        into[key] = value.tolist()
    else:
        shown = plain(value)
        clean = into[key] = REDACTED if holds_secret and shown else scrubbed(key, shown)
        if clean is not shown and clean != shown:
            line.redacted += (key,)


def _put_end(line: Line, texts: _Texts, span: LiveOperation[Any]) -> None:
    line["duration_ms"] = span.duration_ns / 1e6
    line["outcome"] = span.outcome
    if span.error_type:
        line["error_type"] = span.error_type
    if span.error is not None and span.outcome == "failure":
        line["exception"] = "".join(span.error.format()).rstrip()
        texts.append((line, "exception"))


def _scrub(line: Line, texts: _Texts) -> None:
    """Take secrets out of the free texts of a line; almost no line has any, so they are searched in one go.

    What the patterns leave unchanged in all texts, joined by newlines, they leave unchanged in each.
    """
    whole = "\n".join([into[key] for into, key in texts])
    if scrub_text(whole) != whole:
        for into, key in texts:
            text = into[key]
            into[key] = scrub_text(text)
            if into[key] != text:
                line.redacted += (key,)


def _placeholders(template: str) -> list[str]:
    return [key for _, key, _, _ in string.Formatter().parse(template) if key]


def _forgiving(template: str, envelope: Envelope, payload: Mapping[str, Any], said: frozenset[str]) -> str | None:
    try:
        return template.format_map(_Spoken(envelope, payload, said))
    except Exception:  # noqa: BLE001 - the template and a value do not fit; the fields still tell all
        return None


def _holds_more(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | AbstractSet | BaseModel)


class _Spoken(dict[str, Any]):
    """Values as a message shows them: those of one element of a batch, without secrets, ``-`` where there is none."""

    def __init__(self, envelope: Envelope, row: Mapping[str, Any], said: frozenset[str]) -> None:
        super().__init__(row)
        self._envelope = envelope
        for key in said & row.keys():
            value = row[key]
            if value is None or value is unset:
                self[key] = _DASH
            elif is_secret(key):
                self[key] = REDACTED
            elif _holds_more(value):
                self[key] = scrubbed(key, plain(value))

    def __missing__(self, key: str) -> Any:
        value = self._envelope.get(key)
        return _DASH if value is unset or value is None else value


class _Dash:
    """Stands for a value that is not there, whatever the format asked for."""

    def __format__(self, _spec: str) -> str:
        return "-"


_DASH = _Dash()
