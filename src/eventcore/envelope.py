"""What handlers receive: the event and the facts that the bus stamped on it.

Made on the caller's path, so it only takes references and numbers. Whatever costs (the text of an id, a message, the
payload as a dictionary) is computed once on first use, shared by all handlers, and idempotent: two workers that compute
it at the same time get equal values.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, TypeVar, cast

from eventcore.fields import unset
from eventcore.messages import filled_in
from eventcore.redacting import redact
from eventcore.redaction import scrub_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from eventcore.context import Scope
    from eventcore.event_spec import EventSpec
    from eventcore.events import Category, Event, Severity
    from eventcore.ids import Ids
    from eventcore.operation import LiveOperation

__all__ = ["Envelope"]

T = TypeVar("T")


class Envelope:
    """An event on its way, with time, severity, tags and scope.

    ``span`` is the operation it is the end (or, in phase ``start``, the start) of; None for plain events. It has
    ``trace_id``, ``span_id`` and ``parent_span_id`` (integers), ``sampled``, ``start_ns`` (wall time), ``duration_ns``
    (monotonic clock), ``outcome``, ``error_type``, ``error`` (a TracebackException without locals), ``links`` (pairs of
    ids) and ``invalid`` (names of results left out). ``is_redacted``: ``redact`` was here; ``redacted`` says what it
    has changed.
    """

    __slots__ = (
        "_cache",
        "_event",
        "_fields",
        "_id",
        "_ids",
        "_sequence",
        "event_type",
        "is_redacted",
        "phase",
        "redacted",
        "scope",
        "severity",
        "span",
        "tags",
        "takers",
        "thread",
        "time_ns",
    )
    thread: str
    """The name of the thread that emitted it; only there where a handler has ``wants_thread``."""
    takers: int
    """How many workers have yet to take it; only there where it was made by the first of them."""

    def __init__(  # noqa: PLR0917 - made once per emit
        self,
        event: Event | None,
        severity: Severity,
        tags: Sequence[str],
        time_ns: int,
        sequence: int,
        ids: Ids,
        scope: Scope,
        span: LiveOperation[Any] | None = None,
        phase: str = "end",
    ) -> None:
        self._event = event
        self.event_type: type[Event] = span.lane.event_type if event is None else type(event)  # type: ignore[union-attr]  # one of the two
        self._fields: Mapping[str, Any] | None = None
        self.severity = severity
        self.tags = tags
        self.time_ns = time_ns
        self._sequence = sequence
        self._ids = ids
        self.scope = scope
        self.span = span
        self.phase = phase
        self._cache: dict[str, Any] | None = None
        self._id: str | None = None
        self.is_redacted = False

    @property
    def event(self) -> Event:
        """The event; an operation of plain values is validated on first use, which is in a worker if all are queued."""
        event = self._event
        if event is None:
            assert self.span is not None  # noqa: S101 - only operations come without their event; for the type checker
            built = self.span.build()
            if self._event is None:  # another worker may have built it meanwhile, and redacted it
                self._event = built
            event = self._event
        return event

    @property
    def fields(self) -> Mapping[str, Any]:
        """All payload fields by name, validated, those that were not set as ``ec.unset``: for handlers that only read.

        Unlike ``event`` it makes none of an operation whose values are all of their declared types.
        """
        fields = self._fields
        if fields is None:
            span, read = self.span, None
            if self._event is None and span is not None and (exact := span.lane.spec.exact) is not None:
                read = exact.read(span.fields)
            if read is None:
                read = self.event.__dict__
            if self._fields is None:  # as in event
                self._fields = read
            fields = self._fields
        return fields

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> EventSpec:
        """The facts of the event's class."""
        event = self._event  # not its class: pydantic's metaclass takes 0.1 µs for an attribute
        if event is None:
            assert self.span is not None  # noqa: S101 - as in event
            return self.span.lane.spec
        return event.__event__

    @property
    def name(self) -> str:
        """The event's dotted name."""
        return self.spec.name

    @property
    def category(self) -> Category:
        """The event's category."""
        return self.spec.category

    @property
    def is_start(self) -> bool:
        """Whether this announces the start of an operation (the end follows in an envelope of its own)."""
        return self.phase == "start"

    @property
    def sequence(self) -> int:
        """The number of this envelope among those of its process."""
        return self._sequence

    @property
    def id(self) -> str:
        """UUIDv7 of this envelope."""
        text = self._id
        if text is None:
            text = self._id = self._ids.uuid7(self.time_ns, self._sequence)
        return text

    @property
    def time(self) -> dt.datetime:
        """When it was emitted (for an operation: when it ended), UTC."""
        seconds, rest = divmod(self.time_ns, 1_000_000_000)
        return dt.datetime.fromtimestamp(seconds, dt.UTC).replace(microsecond=rest // 1000)

    @property
    def trace_id(self) -> str | None:
        """32 hex digits, or None outside a trace."""
        number = self.span.trace_id if self.span else self.scope.trace_id
        return f"{number:032x}" if number else None

    @property
    def span_id(self) -> str | None:
        """16 hex digits: the operation's own span, or the span that an event happened in."""
        number = self.span.span_id if self.span else self.scope.span_id
        return f"{number:016x}" if number else None

    @property
    def correlation_id(self) -> str | None:
        """The correlation id bound around the emit."""
        return self.scope.correlation_id

    @property
    def duration_s(self) -> float | None:
        """How long the operation took, in seconds; None for plain events and at its start."""
        return self.span.duration_ns / 1e9 if self.span and not self.is_start else None

    @property
    def outcome(self) -> str | None:
        """``success``, ``failure``, ``cancelled`` or ``abandoned``; None for plain events and at the start."""
        return self.span.outcome if self.span and not self.is_start else None

    @property
    def error_type(self) -> str | None:
        """The type of the error that an operation ended with."""
        return self.span.error_type if self.span and not self.is_start else None

    def keys_for(self, _handler: str) -> tuple[tuple[str, str]]:
        """Return what each handler counts it under."""
        return ((self.name, self.phase),)

    # -- payload -----------------------------------------------------------------------------------------------------

    @property
    def payload(self) -> Mapping[str, Any]:
        """The payload fields that are set, by name; values as they were emitted (arrays stay arrays)."""
        return self._once("payload", lambda: {k: v for k, v in self.fields.items() if v is not unset})

    @property
    def message(self) -> str | None:
        """The class's message template, filled in; None where the class has none."""
        return self._once("message", self._message)

    def get(self, name: str) -> Any:
        """Return the payload field or envelope fact called ``name`` (``ec.unset`` where it has no value)."""
        value = self.fields.get(name, _NOT_A_FIELD)
        if value is not _NOT_A_FIELD:
            return value
        fact = _FACTS.get(name)
        value = None if fact is None else fact(self)
        return unset if value is None else value

    def items(self) -> Iterator[Mapping[str, Any]]:
        """Yield the payload once per element of the class's ``each`` arrays, or once as it is if it has none.

        Raises ValueError where the arrays differ in length.
        """
        payload = self.payload
        arrays = {key: payload[key] for key in self.spec.each if key in payload}
        if not arrays:
            yield payload
            return
        if len({len(array) for array in arrays.values()}) > 1:
            lengths = {key: len(array) for key, array in arrays.items()}
            raise ValueError(f"{self.name}: aligned array fields differ in length: {lengths}")
        rest = {key: value for key, value in payload.items() if key not in arrays}
        for row in zip(*(a.tolist() if hasattr(a, "tolist") else a for a in arrays.values()), strict=True):
            yield {**rest, **dict(zip(arrays, row, strict=True))}

    def redact(self) -> Envelope:
        """Replace secrets in place: values of sensitive fields by a mark, and what looks like a secret in free text.

        The bus calls it before a handler sees the envelope; ``redacted`` names what it has changed: payload fields,
        bound fields, ``tags``, ``correlation_id``, ``baggage``, ``exception`` for its text, ``span_name`` and
        ``span_attributes`` for what instrumented libraries gave the span.
        """
        if not self.is_redacted:
            redact(self)
        return self

    def changed(self, names: Sequence[str], event: Event | None = None) -> None:
        """Take note that ``names`` were redacted, the payload in ``event`` (called by the redaction)."""
        before = getattr(self, "redacted", ())  # another worker may be at it at the same time
        self.redacted: tuple[str, ...] = (*before, *(name for name in names if name not in before))
        if event is not None:
            self._event, self._fields = event, event.__dict__
        self._cache = None

    def hide_sensitive(self) -> None:
        """Replace values of sensitive fields, and secrets in an exception: inline handlers run in the caller."""
        if self.spec.sensitive:
            self.redact()
        elif self.span is not None and self.span.error is not None:
            scrub_error(self.span.error)

    def _message(self) -> str | None:
        template = self.spec.start_message if self.is_start else self.spec.message_of(self.outcome)
        if template is None or "{" not in template:
            return template
        return filled_in(template, self)

    def _once(self, key: str, make: Callable[[], T]) -> T:
        cache = self._cache
        if cache is None:
            cache = self._cache = {}
        elif key in cache:
            return cast("T", cache[key])
        value = cache[key] = make()
        return value

    def __repr__(self) -> str:
        facts = f"{self.name} {self.severity.name}"
        if self.span:
            facts += f" {self.outcome or 'started'}"
        return f"<Envelope {facts} {dict(self.payload)!r}>"


_NOT_A_FIELD = object()

_FACTS: Mapping[str, Any] = {
    "category": lambda e: e.category.value,
    "correlation_id": lambda e: e.scope.correlation_id,
    "duration_s": lambda e: e.duration_s,
    "error_type": lambda e: e.error_type,
    "event": lambda e: e.name,
    "id": lambda e: e.id,
    "outcome": lambda e: e.outcome,
    "severity": lambda e: e.severity.name.lower(),
    "span_id": lambda e: e.span_id,
    "time": lambda e: e.time_ns / 1e9,
    "trace_id": lambda e: e.trace_id,
}
