"""OpenTelemetry in the same process: its context knows our operations, and ours knows its spans.

While an operation is in force, OpenTelemetry's context holds a light span of ours, so libraries that are instrumented
for it find their parent. A span of theirs that is nearer than our scope becomes an operation's parent. Only the context
API is used: whatever tracer provider the application has, or has none, is left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags, TraceState

import eventcore as ec
from eventcore.adhoc import passing_event
from eventcore.context import Scope
from eventcore.vocabulary import AdHocOperation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token

    from opentelemetry.trace import Status

__all__ = ["LightSpan", "OpenTelemetryContext"]

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)
_NO_STATE = TraceState()

_SPAN = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""Under which key a context holds its span: its API takes three calls and a check of an abstract class to tell."""


class SpanStatusError(ec.EventCoreError):
    """An instrumented library set the status of an operation's span to an error."""


class LightSpan(trace.Span):
    """What OpenTelemetry sees of an operation. What is set on it is set on the operation, while that is open."""

    __slots__ = ("_context", "_operation", "_recorded")

    def __init__(self, operation: ec.LiveOperation[Any]) -> None:
        self._operation = operation
        self._context: SpanContext | None = None
        self._recorded: BaseException | None = None

    @property
    def operation(self) -> ec.LiveOperation[Any]:
        """The operation that it stands for."""
        return self._operation

    def get_span_context(self) -> SpanContext:
        """Return the operation's ids."""
        found = self._context
        if found is None:
            operation = self._operation
            self._context = found = SpanContext(
                operation.trace_id,
                operation.span_id,
                is_remote=False,
                trace_flags=_SAMPLED if operation.sampled else _NOT_SAMPLED,
                trace_state=TraceState.from_header([operation.tracestate]) if operation.tracestate else _NO_STATE,
            )
        return found

    def is_recording(self) -> bool:
        """Whether the operation is open and sampled."""
        return self._operation.is_open and self._operation.sampled

    def set_attribute(self, key: str, value: Any) -> None:
        """Set the field of that name, where the operation's type has one; else an attribute of the span alone."""
        operation = self._operation
        if not operation.is_open:
            return
        if isinstance(operation.fields.get("attributes"), dict) and issubclass(operation.event_type, AdHocOperation):
            operation.fields["attributes"][key] = value
        elif key in operation.event_type.__event__.fields:
            operation.set(**{key: value})
        else:
            extras = operation.own_extras()
            extras.span_attributes = {**(extras.span_attributes or {}), key: value}

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:  # noqa: ARG002 - the interface's; the bus stamps the time
        """Emit an event of that name inside the operation."""
        if self._operation.is_open:
            event = passing_event(name, data=attributes)
            self._operation.event(event)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,  # noqa: ARG002 - the interface's; the bus stamps the time
        escaped: bool = False,  # noqa: ARG002, FBT001, FBT002 - the interface's
    ) -> None:
        """Emit an ``exception`` event inside the operation; it fails only if the status becomes an error too."""
        if self._operation.is_open:
            self._recorded = exception
            event = passing_event("exception", data=attributes, error=exception)
            self._operation.event(event, severity=ec.Severity.WARNING)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Let the operation fail where the status is an error; the others say nothing that it does not know."""
        code = status if isinstance(status, StatusCode) else status.status_code
        if code is StatusCode.ERROR and self._operation.is_open:
            text = description or getattr(status, "description", None) or "no description"
            self._operation.fail(self._recorded or SpanStatusError(text))

    def update_name(self, name: str) -> None:
        """Give the span another name; the operation's events keep theirs."""
        if self._operation.is_open:
            self._operation.own_extras().span_name = name

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002 - the interface's; links have no attributes here
        """Link another span."""
        if self._operation.is_open and context.is_valid:
            self._operation.link(f"{context.trace_id:032x}", f"{context.span_id:016x}")

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: the operation ends where it was started."""

    def __repr__(self) -> str:
        return f"<LightSpan of {self._operation!r}>"


class OpenTelemetryContext:
    """Ties operations to OpenTelemetry's context: an emitter's ``context_provider``."""

    @staticmethod
    def parent(here: Scope) -> Scope | None:
        """Return the current OpenTelemetry span as a scope, if it is nearer than ``here``."""
        span = context.get_current().get(_SPAN)
        if span is None:
            return None
        if span.__class__ is LightSpan:
            if here.trace_id:  # one of ours: `here` is it, or was made inside it
                return None
        elif not isinstance(span, trace.Span):
            return None
        elif here.is_remote and here.trace_id != span.get_span_context().trace_id:
            return None  # our application said itself which trace it continues
        found = span.get_span_context()
        if not found.is_valid:
            return None
        state = found.trace_state.to_header() if found.trace_state else None
        return Scope(
            found.trace_id,
            found.span_id,
            bool(found.trace_flags & TraceFlags.SAMPLED),
            None,
            here.carried.with_tracestate(state),
            found.is_remote,
        )

    @staticmethod
    def enter(operation: ec.LiveOperation[Any]) -> Token[Any]:
        """Make the operation OpenTelemetry's current span."""
        return context.attach(Context({**context.get_current(), _SPAN: LightSpan(operation)}))

    @staticmethod
    def exit(token: Token[Any]) -> None:
        """Make the span before it the current one again."""
        context.detach(token)
