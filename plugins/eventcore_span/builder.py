"""From envelopes to finished spans; what can be decided once per event type is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.redaction import scrub_text
from eventcore.vocabulary import AdHocOperation
from eventcore_span.attributes import Attributes, text_of
from eventcore_span.span import INTERNAL, SERVER, STATUS_ERROR, STATUS_UNSET, FinishedSpan, SpanEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from traceback import TracebackException

    import eventcore as ec

__all__ = ["MAX_LINKS", "MAX_STACK", "SpanBuilder"]

MAX_LINKS = 128

MAX_STACK = 8_000
"""Characters of a stack trace that are kept: the last ones, where the error is."""

_64_BITS = (1 << 64) - 1


class _Plan:
    """What is known of one event type before the first of its spans."""

    __slots__ = ("each", "event_name", "name", "open")

    def __init__(self, event_type: type[ec.Event]) -> None:
        spec = event_type.__event__
        self.name = spec.span
        self.event_name = spec.name
        self.each = frozenset(spec.each)
        # What `ec.span(name, **attributes)` was given belongs to the span itself.
        self.open = "attributes" if issubclass(event_type, AdHocOperation) else ""


class SpanBuilder:
    """Makes finished spans from the envelopes of finished operations."""

    def __init__(self) -> None:
        self._plans: dict[type[ec.Event], _Plan] = {}

    def build(self, envelope: ec.Envelope, operation: ec.LiveOperation[Any]) -> Iterator[FinishedSpan]:
        """Yield the operation's span; one per element where its type has ``each`` arrays.

        Raises ValueError where aligned arrays differ in length.
        """
        event_type = envelope.event_type
        plan = self._plans.get(event_type)
        if plan is None:
            plan = self._plans[event_type] = _Plan(event_type)
        payload = envelope.payload
        if not plan.each or plan.each.isdisjoint(payload):
            yield self._span(plan, envelope, operation, operation.span_id, payload, is_batched=False)
            return
        rows = list(envelope.items())
        if not rows:  # an empty batch took its time too
            rows = [{key: value for key, value in payload.items() if key not in plan.each}]
        for index, row in enumerate(rows):
            yield self._span(plan, envelope, operation, _nth_id(operation.span_id, index), row, is_batched=True)

    @staticmethod
    def _span(
        plan: _Plan,
        envelope: ec.Envelope,
        operation: ec.LiveOperation[Any],
        span_id: int,
        payload: Mapping[str, Any],
        *,
        is_batched: bool,
    ) -> FinishedSpan:
        scope = envelope.scope
        attributes = Attributes()
        attributes["event.name"] = plan.event_name
        if operation.error_type:
            attributes["error.type"] = text_of(operation.error_type)
        if is_batched:
            attributes["batched"] = True
        for key, value in payload.items():
            if key == plan.open:
                attributes.flatten(value)
            else:
                attributes.put(key, value, scrub=False)  # the bus has looked for secrets in the payload's text
        for further in (operation.span_attributes, scope.bound):
            if further:
                attributes.flatten(further)
        if scope.correlation_id:
            attributes.put("correlation_id", scope.correlation_id)
        attributes.put("tags", envelope.tags or None)
        end_ns = operation.start_ns + operation.duration_ns
        is_remote = operation.parent_is_remote
        span = FinishedSpan(
            plan.name if operation.span_name is None else text_of(operation.span_name),
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
            span.links = operation.links[:MAX_LINKS]
            span.dropped_links = len(operation.links) - len(span.links)
        if operation.outcome != "success":
            _explain(span, operation)
        return span


def _explain(span: FinishedSpan, operation: ec.LiveOperation[Any]) -> None:
    """Say on the span why the operation did not succeed."""
    span.status = STATUS_ERROR
    span.status_message = operation.outcome or ""
    if operation.outcome == "failure" and operation.error is not None:
        happened = _exception(operation.error, span.end_ns)
        span.events = (happened,)
        span.status_message = f"{happened.attributes['exception.type']}: {happened.attributes['exception.message']}"


def _exception(error: TracebackException, time_ns: int) -> SpanEvent:
    """Return OpenTelemetry's ``exception`` event."""
    attributes: dict[str, str] = {
        "exception.type": text_of(_type_of(error)),
        "exception.message": text_of(str(error)),
    }
    stack = scrub_text("".join(error.format())[-2 * MAX_STACK :])[-MAX_STACK:]
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
