"""Envelopes as journal rows, and back.

What is written is JSON of the envelope's facts and payload, after redaction. What is read becomes an envelope that
handlers use like a fresh one. Its event is of its own class where that is known and the stored fields still fit; fields
that the class does not know (an older or newer shape) are kept beside them. Where no class fits, the payload is the
stored mapping as it is.
"""

from __future__ import annotations

import functools
from traceback import StackSummary, TracebackException
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from eventcore.context import Carried, Scope, parse_id
from eventcore.envelope import Envelope
from eventcore.events import Category, Event, Operation, Severity
from eventcore.extras import Extras
from eventcore.fields import unset
from eventcore.ids import Ids
from eventcore.journal import JournalRow
from eventcore.journal_json import decode, encode
from eventcore.redaction import scrub_mapping, scrub_text
from eventcore.vocabulary import AdHocEvent, AdHocOperation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventcore.catalog import Catalog

__all__ = ["Replay", "record"]

MAX_STAND_INS = 1000
_BASES = {base.__name__: base for base in (AdHocEvent, AdHocOperation, Operation, Event)}


def record(envelope: Envelope) -> JournalRow:
    """Return an envelope as a journal row, redacted; raises what a field's own serializer raises."""
    envelope.redact()
    event, spec, scope, span = envelope.event, envelope.spec, envelope.scope, envelope.span
    dumped = event.__pydantic_serializer__.to_python(
        event,
        include=set(envelope.payload),
        warnings=False,  # a redacted value need not be of its field's type
        fallback=_plain,
    )
    facts: dict[str, Any] = {
        "type": f"{type(event).__module__}.{type(event).__qualname__}",
        "base": next(name for name, base in _BASES.items() if isinstance(event, base)),
        "category": spec.category.value,
        "message": envelope.message,
        "payload": dumped,
        "tags": list(envelope.tags),
        "redacted": list(envelope.redacted) if hasattr(envelope, "redacted") else [],
        "scope": {
            "trace_id": envelope.trace_id,
            "span_id": f"{scope.span_id:016x}" if scope.span_id else None,
            "sampled": scope.sampled,
            "bound": scrub_mapping(scope.bound),
            "correlation_id": scope.correlation_id,
            "baggage": scrub_mapping(scope.baggage),
            "tracestate": scope.tracestate,
            "is_remote": scope.is_remote,
        },
    }
    if span is not None:
        facts["operation"] = {
            "span_id": f"{span.span_id:016x}",
            "parent_span_id": f"{span.parent_span_id:016x}" if span.parent_span_id else None,
            "parent_is_remote": span.parent_is_remote,
            "start_ns": span.start_ns,
            "duration_ns": span.duration_ns,
            "outcome": span.outcome,
            "error_type": span.error_type,
            "error": None if span.error is None else _error(span.error),
            "links": [[f"{trace:032x}", f"{own:016x}"] for trace, own in span.links],
            "invalid": list(span.invalid),
        }
    body = encode(facts, _plain)
    return JournalRow(envelope.name, envelope.phase, envelope.time_ns, int(envelope.severity), envelope.id, body)


def _plain(value: Any) -> Any:
    """Return what JSON can hold for a value that it cannot: a list for an array, else its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return scrub_text(str(value)).encode("utf-8", "backslashreplace").decode()


def _error(error: TracebackException) -> dict[str, str]:
    kind: Any = error.exc_type
    return {
        "type": kind.__qualname__ if kind is not None else "",
        "module": kind.__module__ if kind is not None else "",
        "text": str(error),
        "stack": "".join(error.format()),
    }


class ReplayedOperation(Scope):
    """What an envelope of a replayed operation refers to; has the facts that a live one has after its end."""

    is_open = False
    extras = Extras()
    event_type: type[Event]
    fields: Mapping[str, Any]
    tags: Sequence[str]
    parent_span_id: int
    parent_is_remote: bool
    start_ns: int
    duration_ns: int
    outcome: str | None
    error_type: str | None
    error: TracebackException | None
    links: Sequence[tuple[int, int]]
    invalid: Sequence[str]


class ReplayedError(TracebackException):
    """An exception as it was stored: its type's name, its text and its formatted stack."""

    def __init__(self, stored: Mapping[str, str]) -> None:
        self.exc_type = type(stored["type"], (Exception,), {"__module__": stored["module"]})
        self.exc_type_str = stored["type"]
        self._str = stored["text"]
        self._stack = stored["stack"]
        self.stack = StackSummary()
        self.exceptions = self.__notes__ = self.__cause__ = self.__context__ = None  # all are in its formatted stack
        self.__suppress_context__ = True

    def __str__(self) -> str:
        return self._str

    def format(self, *, chain: bool = True, _ctx: Any = None) -> Any:  # noqa: ARG002 - the base's
        """Yield the lines as they were formatted when it was stored."""
        yield from self._stack.splitlines(keepends=True)

    def format_exception_only(self, **_options: Any) -> Any:
        """Yield its type and text."""
        yield f"{self.exc_type_str}: {self._str}\n"


class ReplayedEnvelope(Envelope):
    """An envelope that was stored: redacted already, with the id and message it had."""

    __slots__ = ()

    def __init__(  # noqa: PLR0917 - as its base
        self,
        row: JournalRow,
        facts: Mapping[str, Any],
        event: Event,
        scope: Scope,
        span: ReplayedOperation | None,
        ids: Ids,
    ) -> None:
        tags = tuple(facts["tags"])
        operation: Any = span  # it has the facts of a live one, and none of its life
        super().__init__(
            event, Severity(row.severity), tags, row.time_ns, row.position, ids, span or scope, operation, row.phase
        )
        self.is_redacted = True
        self._id = row.id
        self._cache = {"message": facts["message"]}
        self.redacted = tuple(facts["redacted"])


class Replay:
    """Makes envelopes of journal rows; knows the catalog's event types and those of loaded modules."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._found: dict[tuple[str, str], type[Event]] = {}
        self._stand_ins: dict[tuple[str, str, str], type[Event]] = {}
        self._ids = Ids()

    def envelope(self, row: JournalRow) -> Envelope:
        """Return a row as an envelope."""
        facts = decode(row.envelope)
        event = self._event(row, facts)
        scope = _scope(facts["scope"])
        span = _operation(facts, event, scope) if "operation" in facts else None
        return ReplayedEnvelope(row, facts, event, scope, span, self._ids)

    def _event(self, row: JournalRow, facts: Mapping[str, Any]) -> Event:
        payload: dict[str, Any] = facts["payload"]
        event_type = self._type(row.event, facts["type"]) or self._stand_in(row.event, facts)
        known = {key: value for key, value in payload.items() if key in event_type.model_fields}
        try:
            event = event_type(**known)
        except Exception as error:  # noqa: BLE001 - a validator of the type's own may raise anything; nothing is lost
            event = _salvaged(event_type, known, facts["redacted"], error)
        if known.keys() != payload.keys():
            event.__dict__.update((key, value) for key, value in payload.items() if key not in known)
        return event

    def _type(self, name: str, qualified: str) -> type[Event] | None:
        found = self._found.get((name, qualified))
        if found is None:
            same_name = [t for t in _loaded(Event) if t.__event__.name == name]
            exact = [t for t in same_name if f"{t.__module__}.{t.__qualname__}" == qualified]
            found = self._catalog.registered.get(name) or next(iter((*exact[-1:], *same_name[-1:])), None)
            found = found or self._catalog.events.get(name)  # last: it imports the types of plugins
            if found is not None:
                self._found[name, qualified] = found
        return found

    def _stand_in(self, name: str, facts: Mapping[str, Any]) -> type[Event]:
        """Make a class for a name that no loaded class has, with the facts that were stored."""
        key = (name, facts["base"], facts["category"])
        made = self._stand_ins.get(key)
        if made is None:
            if len(self._stand_ins) >= MAX_STAND_INS:
                self._stand_ins.clear()
            base: Any = _BASES.get(facts["base"], Event)
            made = type(base)(
                "Replayed",
                (base,),
                {"__module__": __name__, "__qualname__": f"Replayed[{name}]", "__doc__": "Stands in for its class."},
                name=name,
                category=Category(facts["category"]),
            )
            self._stand_ins[key] = made
        return made


def _loaded(base: type[Event]) -> list[type[Event]]:
    found = []
    for event_type in base.__subclasses__():
        if not event_type.is_abstract() and event_type.__module__ != __name__:
            found.append(event_type)
        found.extend(_loaded(event_type))
    return found


def _salvaged(event_type: type[Event], known: Mapping[str, Any], redacted: Sequence[str], error: Exception) -> Event:
    """Keep the values as they were stored; where only redacted ones do not fit, the others are still validated."""
    values: dict[str, Any] = {key: known.get(key, unset) for key in event_type.model_fields}
    if isinstance(error, ValidationError):
        wrong = {str(problem["loc"][0]) for problem in error.errors(include_url=False) if problem["loc"]}
        for key in known.keys() - wrong - set(redacted):
            values[key] = _adapter(event_type, key).validate_python(known[key])
    return event_type.model_construct(**values)


@functools.lru_cache(maxsize=1000)
def _adapter(event_type: type[Event], key: str) -> TypeAdapter[Any]:
    return TypeAdapter(event_type.model_fields[key].rebuild_annotation())


def _scope(stored: Mapping[str, Any]) -> Scope:
    return Scope(
        _number(stored["trace_id"], 32),
        _number(stored["span_id"], 16),
        stored["sampled"],
        None,
        Carried(stored["bound"], stored["correlation_id"], stored["baggage"], stored["tracestate"]),
        stored["is_remote"],
    )


def _operation(facts: Mapping[str, Any], event: Event, scope: Scope) -> ReplayedOperation:
    stored = facts["operation"]
    operation = ReplayedOperation()
    for slot in Scope.__slots__:
        setattr(operation, slot, getattr(scope, slot))
    operation.span_id = _number(stored["span_id"], 16)
    operation.parent_span_id = _number(stored["parent_span_id"], 16)
    operation.parent_is_remote = stored["parent_is_remote"]
    operation.start_ns = stored["start_ns"]
    operation.duration_ns = stored["duration_ns"]
    operation.outcome = stored["outcome"]
    operation.error_type = stored["error_type"]
    operation.error = None if stored["error"] is None else ReplayedError(stored["error"])
    operation.links = tuple((_number(trace, 32), _number(own, 16)) for trace, own in stored["links"])
    operation.invalid = tuple(stored["invalid"])
    operation.event_type = type(event)
    operation.fields = dict(event.__dict__)
    operation.tags = tuple(facts["tags"])
    return operation


def _number(text: str | None, digits: int) -> int:
    return parse_id(text, digits) if text else 0
