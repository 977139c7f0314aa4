"""Events that happened inside operations, kept by the worker until the operation has ended and its span is made.

One thread's events come before the end of their operation; those of another thread may come later, when the span has
left. Such an event is late: it counts as failed, and is not lost in silence.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import eventcore as ec
from eventcore.vocabulary import AdHocEvent
from eventcore_span.attributes import Attributes
from eventcore_span.span import SpanEvent

if TYPE_CHECKING:
    from eventcore_span.limits import Limits

__all__ = ["Held", "HeldEvents", "LateEventError"]

MAX_OPEN = 10_000
"""Operations of which events are kept, and of which it is remembered that their span was made."""

_EXCEPTION = (("error_type", "exception.type"), ("error_message", "exception.message"))


class LateEventError(ec.EventCoreError):
    """An event came when the span that it belongs to had been made."""

    def __init__(self, name: str) -> None:
        super().__init__(f"event {name!r} came after the span that it happened in; it is not part of it")


@dataclass(slots=True)
class Held:
    """The events of one operation, in the order of their emits; ``dropped`` counts those beyond the limit."""

    events: list[SpanEvent] = field(default_factory=list)
    dropped: int = 0


class HeldEvents:
    """Keeps events by the span that they happened in; for one worker."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: OrderedDict[int, Held] = OrderedDict()
        self._made: OrderedDict[int, None] = OrderedDict()
        self.forgotten = 0
        """Events of operations that did not end in time, among too many of them."""

    def add(self, envelope: ec.Envelope) -> None:
        """Keep an event; LateEventError where its span has been made."""
        span_id = envelope.scope.span_id
        if span_id in self._made:
            raise LateEventError(envelope.name)
        held = self._held.setdefault(span_id, Held())
        if len(held.events) < self._limits.events:
            held.events.append(_span_event(envelope, self._limits))
        else:
            held.dropped += 1
        if len(self._held) > MAX_OPEN:
            self.forgotten += len(self._held.popitem(last=False)[1].events)

    def take(self, span_id: int) -> Held | None:
        """Return what happened in a span that is made now; None for nothing."""
        self._made[span_id] = None
        if len(self._made) > MAX_OPEN:
            self._made.popitem(last=False)
        return self._held.pop(span_id, None)


def _span_event(envelope: ec.Envelope, limits: Limits) -> SpanEvent:
    attributes = Attributes(limits, limits.event_attributes)
    payload = dict(envelope.payload)
    if issubclass(envelope.event_type, AdHocEvent):  # what it was given belongs to the span event itself
        for name, key in _EXCEPTION:
            attributes.put(key, payload.pop(name, None), scrub=False)
        stack = payload.pop("stack_trace", None)
        if stack and limits.stack:
            attributes["exception.stacktrace"] = stack[-limits.stack :].encode("utf-8", "replace").decode()
        text = payload.pop("text", None)
        attributes.put("message", None if text == envelope.name or "exception.message" in attributes else text)
        attributes.flatten(payload.pop("data", {}), scrub=False)
    for name, value in payload.items():
        attributes.put(name, value, scrub=False)
    return SpanEvent(envelope.name, envelope.time_ns, attributes, attributes.dropped)
