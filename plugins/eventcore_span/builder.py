"""From envelopes to finished spans; what can be decided once per event type is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.events import Category
from eventcore.redaction import scrub_text
from eventcore.vocabulary import AdHocOperation
from eventcore_otlp.environment import flag
from eventcore_span import genai
from eventcore_span.attributes import Attributes, text_of
from eventcore_span.limits import Limits
from eventcore_span.span import CLIENT, INTERNAL, SERVER, STATUS_ERROR, STATUS_UNSET, FinishedSpan, SpanEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from traceback import TracebackException

    import eventcore as ec
    from eventcore_span.held import Held

__all__ = ["MAX_NAME", "OPEN_FIELD", "SpanBuilder", "put_around"]

OPEN_FIELD = "attributes"
"""What ``ec.span(name, **attributes)`` was given: it belongs to the span itself."""

MAX_NAME = 1_000

_64_BITS = (1 << 64) - 1


class _Plan:
    """What is known of one event type before the first of its spans."""

    __slots__ = ("each", "event_name", "is_genai", "keys", "left_out", "name", "open")

    def __init__(self, event_type: type[ec.Event], *, is_genai: bool) -> None:
        spec = event_type.__event__
        self.name = spec.span
        self.event_name = spec.name
        self.each = frozenset(spec.each)
        self.open = OPEN_FIELD if issubclass(event_type, AdHocOperation) else ""
        self.is_genai = is_genai
        self.keys: Mapping[str, str] = genai.ATTRIBUTES if is_genai else {}
        self.left_out = genai.CONTENT if is_genai and not flag(genai.CAPTURE_CONTENT) else frozenset()


class SpanBuilder:
    """Makes finished spans, within ``limits``, from the envelopes of finished operations.

    ``is_genai`` names the fields of operations of category ``model`` as ``genai`` says.
    """

    def __init__(self, limits: Limits | None = None, *, is_genai: bool = False) -> None:
        self.limits = limits or Limits()
        self._is_genai = is_genai
        self._plans: dict[type[ec.Event], _Plan] = {}

    def renames(self, event_type: type[ec.Event]) -> bool:
        """Whether spans of this type have other names than its fields have."""
        return self._is_genai and event_type.__event__.category is Category.MODEL

    def build(
        self, envelope: ec.Envelope, operation: ec.LiveOperation[Any], held: Held | None = None
    ) -> Iterator[FinishedSpan]:
        """Yield the operation's span; one per element where its type has ``each`` arrays.

        What is ``held`` happened in it: events of the span, of the first one in a batch. Raises ValueError where
        aligned arrays differ in length.
        """
        event_type = envelope.event_type
        plan = self._plans.get(event_type)
        if plan is None:
            plan = self._plans[event_type] = _Plan(event_type, is_genai=self.renames(event_type))
        payload = envelope.payload
        if not plan.each or plan.each.isdisjoint(payload):
            yield _with_events(
                self._span(plan, envelope, operation, operation.span_id, payload, is_batched=False), held
            )
            return
        rows = list(envelope.items())
        if not rows:  # an empty batch took its time too
            rows = [{key: value for key, value in payload.items() if key not in plan.each}]
        for index, row in enumerate(rows):
            span = self._span(plan, envelope, operation, _nth_id(operation.span_id, index), row, is_batched=True)
            yield span if index else _with_events(span, held)

    def _span(
        self,
        plan: _Plan,
        envelope: ec.Envelope,
        operation: ec.LiveOperation[Any],
        span_id: int,
        payload: Mapping[str, Any],
        *,
        is_batched: bool,
    ) -> FinishedSpan:
        scope = envelope.scope
        limits = self.limits
        attributes = Attributes(limits, limits.attributes)
        attributes.put("event.name", plan.event_name, scrub=False)
        attributes.put("error.type", operation.error_type or None)
        if is_batched:
            attributes.put("batched", value=True)
        for key, value in payload.items():
            if key == plan.open:
                attributes.flatten(value, scrub=False)
            elif key not in plan.left_out:
                # The bus has looked for secrets in the payload's text.
                attributes.put(plan.keys.get(key, key), value, scrub=False)
        if operation.span_attributes:
            attributes.flatten(operation.span_attributes)
        put_around(attributes, envelope)
        end_ns = operation.start_ns + operation.duration_ns
        is_remote = operation.parent_is_remote
        span = FinishedSpan(
            plan.name if operation.span_name is None else text_of(operation.span_name, MAX_NAME),
            operation.trace_id,
            span_id,
            operation.parent_span_id,
            operation.start_ns,
            end_ns,
            attributes,
            SERVER if is_remote else INTERNAL,
            is_remote,
            STATUS_UNSET,
            "",
            scope.tracestate or "",
            attributes.dropped,
        )
        if operation.links:
            span.links = operation.links[: limits.links]
            span.dropped_links = len(operation.links) - len(span.links)
        if plan.is_genai:
            _name_as_genai(span)
        if operation.outcome != "success":
            _explain(span, operation, limits)
        return span


def put_around(attributes: Attributes, envelope: ec.Envelope) -> None:
    """Add what is not the event's own: bound fields, correlation id and tags; the bus has looked for secrets there."""
    scope = envelope.scope
    if scope.bound:
        attributes.flatten(scope.bound, scrub=False)
    attributes.put("correlation_id", scope.correlation_id or None, scrub=False)
    attributes.put("tags", envelope.tags or None)


def _with_events(span: FinishedSpan, held: Held | None) -> FinishedSpan:
    """Put what happened inside an operation before its exception.

    A span ends at its start plus a monotonic duration, events are stamped by the wall clock, which was seen to be some
    10 µs ahead; what happened inside is not shown outside.
    """
    if held is not None:
        for event in held.events:
            event.time_ns = min(event.time_ns, span.end_ns)
        span.events = (*held.events, *span.events)
        span.dropped_events = held.dropped
    return span


def _name_as_genai(span: FinishedSpan) -> None:
    named = [span.attributes.get(key) for key in (genai.OPERATION, genai.MODEL)]
    if named[0]:
        span.name = " ".join(str(part) for part in named if part)
    span.kind = CLIENT if span.kind == INTERNAL else span.kind


def _explain(span: FinishedSpan, operation: ec.LiveOperation[Any], limits: Limits) -> None:
    """Say on the span why the operation did not succeed."""
    span.status = STATUS_ERROR
    span.status_message = operation.outcome or ""
    if operation.outcome == "failure" and operation.error is not None:
        happened = _exception(operation.error, span.end_ns, limits)
        span.events = (happened,)
        span.status_message = f"{happened.attributes['exception.type']}: {happened.attributes['exception.message']}"


def _exception(error: TracebackException, time_ns: int, limits: Limits) -> SpanEvent:
    """Return OpenTelemetry's ``exception`` event."""
    attributes: dict[str, str] = {
        "exception.type": text_of(_type_of(error), MAX_NAME),
        "exception.message": text_of(str(error), limits.text),
    }
    if limits.stack:
        stack = scrub_text("".join(error.format())[-2 * max(limits.stack, 1_000) :])[-limits.stack :]
        attributes["exception.stacktrace"] = stack.encode("utf-8", "replace").decode()
    return SpanEvent("exception", time_ns, attributes)


def _type_of(error: TracebackException) -> str:
    """Return the dotted name of the error's type, without ``builtins``."""
    named = getattr(error, "exc_type_str", None)  # Python 3.13; there exc_type is deprecated
    if named is not None:
        return str(named)
    kind = error.exc_type
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _nth_id(span_id: int, index: int) -> int:
    """Return the id of the span of a batch's element: its own for the first, else one mixed from it (splitmix64).

    So several span handlers give one element the same id, and the batch's id, which log lines and children carry,
    names a span that exists. The mixing (Steele et al. 2014) is a bijection: no two elements share an id.
    """
    if index == 0:
        return span_id
    mixed = (span_id + index * 0x9E3779B97F4A7C15) & _64_BITS
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return (mixed ^ (mixed >> 31)) or 1
