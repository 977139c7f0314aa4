"""Spans as OTLP, written as bytes in the worker.

Two ways to the same bytes. Any finished span is written field by field (``encode``). A plain operation, which most are
(scalar fields, success, nothing bound around it), does not even become a finished span: what its type says is prepared
once, and an envelope adds ids, times and values. A test holds both against opentelemetry-proto's messages
(decision 017).
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from eventcore.fields import unset
from eventcore_otlp import Frame, OtlpOptions, resource_attributes
from eventcore_otlp.wire import attributes, delimited, double, fixed64, key_value, varint
from eventcore_span.attributes import key_of, text_of
from eventcore_span.exporters import Exporter
from eventcore_span.span import FLAGS, FLAGS_OF_REMOTE, INTERNAL, SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import eventcore as ec
    from eventcore_span.builder import SpanBuilder
    from eventcore_span.held import Held
    from eventcore_span.span import FinishedSpan

__all__ = ["OtlpExporter", "SpanEncoder", "encode"]

_ATTRIBUTE = b"\x4a"
_64_BITS = (1 << 64) - 1
_READY_VALUES = 256

# trace_id, span_id (big-endian, as bytes), start and end (fixed64), flags (fixed32), each behind its tag.
_HEAD = struct.Struct("<2s16s2s8scQcQ2sI").pack


class OtlpExporter(Exporter):
    """Sends batches to an OTLP receiver."""

    def __init__(self, options: OtlpOptions, resource: ec.Resource) -> None:
        self._frame = Frame(resource_attributes(resource, os.getpid()))
        self._transport = options.open("traces")

    def form(
        self, builder: SpanBuilder
    ) -> Callable[[ec.Envelope, ec.LiveOperation[Any], Held | None], Iterable[bytes]]:
        """Return what writes an operation's spans as bytes."""
        return SpanEncoder(builder).encode

    def export(self, spans: Sequence[bytes]) -> int:
        """Send one request; TransportError says what the receiver answered, or that there was none, in time."""
        sent = self._transport.send(self._frame.request(spans))
        return min(len(spans), sent.rejected)

    def hurry(self, grace_s: float) -> None:
        """Try at once what waits for a retry, and give up on anything ``grace_s`` from now."""
        self._transport.hurry(grace_s)

    def close(self) -> None:
        """Close the connection; a retry that waits gives up."""
        self._transport.close()

    def describe(self) -> dict[str, Any]:
        """Return the URL."""
        return self._transport.describe()


class SpanEncoder:
    """Writes operations as serialised ``Span`` messages."""

    def __init__(self, builder: SpanBuilder) -> None:
        self._builder = builder
        self._plain: dict[type[ec.Event], _PlainType] = {}

    def encode(
        self, envelope: ec.Envelope, operation: ec.LiveOperation[Any], held: Held | None = None
    ) -> Iterable[bytes]:
        """Return the operation's spans; ValueError where aligned arrays differ in length."""
        is_plain = operation.outcome == "success" and operation.span_name is None and operation.span_attributes is None
        if is_plain and held is None:
            scope = envelope.scope
            if not (scope.bound or scope.correlation_id or scope.tracestate or envelope.tags or operation.links):
                event_type = operation.event_type
                plain = self._plain.get(event_type)
                if plain is None:
                    plain = self._plain[event_type] = _PlainType(event_type, self._builder)
                span = plain.encode(envelope.event.__dict__, operation)
                if span is not None:
                    return (span,)
        return [encode(span) for span in self._builder.build(envelope, operation, held)]


class _PlainType:
    """What is known of one event type before the first of its spans, as bytes."""

    __slots__ = ("_fields", "_internal", "_limit", "_server")

    def __init__(self, event_type: type[ec.Event], builder: SpanBuilder) -> None:
        spec, limits = event_type.__event__, builder.limits
        name = delimited(b"\x2a", spec.span.encode("utf-8", "replace"))
        about = key_value(_ATTRIBUTE, "event.name", text_of(spec.name, limits.text, scrub=False))
        self._internal = name + b"\x30" + varint(INTERNAL) + about
        self._server = name + b"\x30" + varint(SERVER) + about
        self._limit = limits.text
        self._fields = None
        if spec.is_plain and len(spec.fields) < limits.attributes and not builder.renames(event_type):
            self._fields = tuple((key, _PlainField(key, limits.text)) for key in spec.fields)

    def encode(self, values: dict[str, Any], operation: ec.LiveOperation[Any]) -> bytes | None:
        """Return the span of an operation without anything around it; None where it takes more to write it."""
        if self._fields is None:
            return None
        is_remote = operation.parent_is_remote
        start_ns = operation.start_ns
        parts = [
            _HEAD(
                b"\x0a\x10",
                operation.trace_id.to_bytes(16, "big"),
                b"\x12\x08",
                operation.span_id.to_bytes(8, "big"),
                b"\x39",
                start_ns,
                b"\x41",
                start_ns + operation.duration_ns,
                b"\x85\x01",
                FLAGS_OF_REMOTE if is_remote else FLAGS,
            ),
            self._server if is_remote else self._internal,
        ]
        if operation.parent_span_id:
            parts.append(b"\x22\x08" + operation.parent_span_id.to_bytes(8, "big"))
        for name, field in self._fields:
            value = values.get(name)
            if value is None or value is unset:
                continue
            kind = value.__class__
            if kind is str:
                parts.append(field[value])
            elif kind is float:
                parts.append(field.double + double(value))
            elif kind is bool:
                parts.append(field.true if value else field.false)
            elif kind is int and -_64_BITS // 2 <= value <= _64_BITS // 2:
                number = varint(value & _64_BITS)
                parts += (field.int_of[len(number)], number)
            else:
                return None
        return b"".join(parts)


class _PlainField(dict[str, bytes]):
    """One field as attribute: whole for texts that come again and again (``field["stripe"]``), parts for numbers."""

    __slots__ = ("_key", "_limit", "double", "false", "int_of", "true")

    def __init__(self, key: str, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._key = key_of(key)
        self.true = key_value(_ATTRIBUTE, self._key, value=True)
        self.false = key_value(_ATTRIBUTE, self._key, value=False)
        self.double = key_value(_ATTRIBUTE, self._key, 0.0)[:-8]
        # A number of each length, less its bytes: what stands before numbers of that length.
        samples = (1 << (7 * (length - 1)) for length in range(1, 11))
        self.int_of = (b"", *(key_value(_ATTRIBUTE, self._key, _signed(n))[: -len(varint(n))] for n in samples))

    def __missing__(self, value: str) -> bytes:
        written = key_value(_ATTRIBUTE, self._key, text_of(value, self._limit, scrub=False))
        if len(self) < _READY_VALUES and len(value) < 64:
            self[value] = written
        return written


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def encode(span: FinishedSpan) -> bytes:
    """Return ``span`` as a serialised ``Span`` message."""
    parts = [
        _HEAD(
            b"\x0a\x10",
            span.trace_id.to_bytes(16, "big"),
            b"\x12\x08",
            span.span_id.to_bytes(8, "big"),
            b"\x39",
            span.start_ns,
            b"\x41",
            span.end_ns,
            b"\x85\x01",
            span.flags,
        ),
        delimited(b"\x2a", span.name.encode()),
        b"\x30" + varint(span.kind),
        attributes(span.attributes, _ATTRIBUTE),
    ]
    if span.parent_span_id:
        parts.append(b"\x22\x08" + span.parent_span_id.to_bytes(8, "big"))
    if span.trace_state:
        parts.append(delimited(b"\x1a", span.trace_state.encode()))
    if span.dropped_attributes:
        parts.append(b"\x50" + varint(span.dropped_attributes))
    for event in span.events:
        time, name = b"\x09" + fixed64(event.time_ns), delimited(b"\x12", event.name.encode())
        dropped = b"\x20" + varint(event.dropped_attributes) if event.dropped_attributes else b""
        parts.append(delimited(b"\x5a", time + name + attributes(event.attributes, b"\x1a") + dropped))
    if span.dropped_events:
        parts.append(b"\x60" + varint(span.dropped_events))
    for trace_id, span_id in span.links:
        ids = b"\x0a\x10" + trace_id.to_bytes(16, "big") + b"\x12\x08" + span_id.to_bytes(8, "big")
        parts.append(delimited(b"\x6a", ids))
    if span.dropped_links:
        parts.append(b"\x70" + varint(span.dropped_links))
    if span.status:
        message = delimited(b"\x12", span.status_message.encode())
        parts.append(delimited(b"\x7a", message + b"\x18" + varint(span.status)))
    return b"".join(parts)
