"""Spans as OTLP, written as bytes in the worker.

Two ways to the same bytes. Any finished span is written field by field (``encode``). An operation that went well, as
most do, does not even become a finished span: what its type says is prepared once, and an envelope adds ids, times and
values. A test holds both against opentelemetry-proto's messages (decision 017).
"""

from __future__ import annotations

import bisect
import itertools
import os
import struct
from typing import TYPE_CHECKING, Any

from eventcore.extras import NO_EXTRAS
from eventcore.fields import unset
from eventcore.vocabulary import AdHocOperation
from eventcore_otlp import Frame, OtlpOptions, resource_attributes
from eventcore_otlp.wire import attributes, delimited, double, fixed64, key_value, varint
from eventcore_span.attributes import Attributes, key_of, text_of
from eventcore_span.builder import OPEN_FIELD, put_around
from eventcore_span.exporters import Exporter
from eventcore_span.span import FLAGS, FLAGS_OF_REMOTE, INTERNAL, SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import eventcore as ec
    from eventcore_span.builder import SpanBuilder
    from eventcore_span.held import Held
    from eventcore_span.span import FinishedSpan

__all__ = ["OtlpExporter", "SpanEncoder", "encode"]

_ATTRIBUTE = b"\x4a"
_63_BITS = 1 << 63
_64_BITS = (1 << 64) - 1
_READY_VALUES = 256

MAX_REQUEST = 3_500_000
"""Bytes of spans in one request: gRPC receivers take 4 MiB unless told otherwise, the collector's HTTP 20 MiB."""

# trace_id, span_id (big-endian, as bytes), start and end (fixed64), flags (fixed32), each behind its tag.
_HEAD = struct.Struct("<2s16s2s8scQcQ2sI").pack


class OtlpExporter(Exporter):
    """Sends batches to an OTLP receiver."""

    def __init__(self, options: OtlpOptions, resource: ec.Resource) -> None:
        self._frame = Frame(resource_attributes(resource, os.getpid()))
        self._transport = options.open("traces")

    def form(
        self, builder: SpanBuilder
    ) -> Callable[[ec.Envelope, ec.LiveOperation[Any], Held | None], Sequence[bytes]]:
        """Return what writes an operation's spans as bytes."""
        return SpanEncoder(builder).encode

    def portion(self, spans: Sequence[bytes], start: int) -> int:
        """Return how many spans fit into one request, by number and by size."""
        most = super().portion(spans, start)
        sizes = [len(span) for span in spans[start : start + most]]
        if sum(sizes) <= MAX_REQUEST:
            return most
        return max(1, bisect.bisect(list(itertools.accumulate(sizes)), MAX_REQUEST))

    def export(self, spans: Sequence[bytes]) -> int:
        """Send one request; TransportError says what the receiver answered, or that there was none, in time."""
        sent = self._transport.send(self._frame.request(spans))
        self.said = sent.message
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
        self._prepared: dict[type[ec.Event], _Prepared] = {}

    def encode(
        self, envelope: ec.Envelope, operation: ec.LiveOperation[Any], held: Held | None = None
    ) -> Sequence[bytes]:
        """Return the operation's spans; ValueError where aligned arrays differ in length."""
        if operation.outcome == "success" and operation.extras is NO_EXTRAS and held is None:
            event_type = operation.event_type
            prepared = self._prepared.get(event_type)
            if prepared is None:
                prepared = self._prepared[event_type] = _Prepared(event_type, self._builder)
            span = prepared.encode(envelope, operation)
            if span is not None:
                return (span,)
        return [encode(span) for span in self._builder.build(envelope, operation, held)]


class _Prepared:
    """What is known of one event type before the first of its spans, as bytes."""

    __slots__ = ("_fields", "_internal", "_limits", "_names", "_open", "_server")

    def __init__(self, event_type: type[ec.Event], builder: SpanBuilder) -> None:
        spec, limits = event_type.__event__, builder.limits
        name = delimited(b"\x2a", spec.span.encode("utf-8", "replace"))
        about = key_value(_ATTRIBUTE, "event.name", text_of(spec.name, limits.text, scrub=False))
        self._internal = name + b"\x30" + varint(INTERNAL) + about
        self._server = name + b"\x30" + varint(SERVER) + about
        self._limits = limits
        self._names = frozenset({"event.name", *spec.fields})
        self._open = OPEN_FIELD if issubclass(event_type, AdHocOperation) else ""
        self._fields = None
        if not spec.each and len(spec.fields) < limits.attributes and not builder.renames(event_type):
            self._fields = tuple((key, _Field(key, limits.text)) for key in spec.fields)

    def encode(self, envelope: ec.Envelope, operation: ec.LiveOperation[Any]) -> bytes | None:  # noqa: C901 - the hot loop, in one piece
        """Return the span of a successful operation; None where it takes more to write it."""
        if self._fields is None:
            return None
        scope, values = envelope.scope, envelope.fields
        is_remote, start_ns = operation.parent_is_remote, operation.start_ns
        parts = [
            _head(operation.trace_id, operation.span_id, start_ns, start_ns + operation.duration_ns, is_remote),
            self._server if is_remote else self._internal,
        ]
        if operation.parent_span_id:
            parts.append(b"\x22\x08" + operation.parent_span_id.to_bytes(8, "big"))
        carried = scope.carried
        if carried.tracestate:
            parts.append(delimited(b"\x1a", carried.tracestate.encode()))
        others: list[str] = []
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
            elif kind is int and -_63_BITS <= value < _63_BITS:
                number = varint(value & _64_BITS)
                parts += (field.int_of[len(number)], number)
            else:
                others.append(name)
        if others or envelope.tags or carried.bound or carried.correlation_id:
            rest = self._rest(others, values, envelope)
            if rest is None:
                return None
            parts.append(rest)
        return b"".join(parts)

    def _rest(self, others: list[str], values: Mapping[str, Any], envelope: ec.Envelope) -> bytes | None:
        """Return the fields that are no scalars, and what is around; None where names clash or a limit is met."""
        found = Attributes(self._limits, self._limits.attributes)
        for name in others:
            if name == self._open:
                found.flatten(values[name], scrub=False)
            else:
                found.put(name, values[name], scrub=False)
        put_around(found, envelope)
        written = self._names.difference(others)
        if len(written) + len(found) > self._limits.attributes or not written.isdisjoint(found):
            return None
        return attributes(found, _ATTRIBUTE)


class _Field(dict[str, bytes]):
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


def _head(trace_id: int, span_id: int, start_ns: int, end_ns: int, is_remote: bool) -> bytes:  # noqa: FBT001 - for every span
    return _HEAD(
        b"\x0a\x10",
        trace_id.to_bytes(16, "big"),
        b"\x12\x08",
        span_id.to_bytes(8, "big"),
        b"\x39",
        start_ns,
        b"\x41",
        end_ns,
        b"\x85\x01",
        FLAGS_OF_REMOTE if is_remote else FLAGS,
    )


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def encode(span: FinishedSpan) -> bytes:
    """Return ``span`` as a serialised ``Span`` message."""
    parts = [
        _head(span.trace_id, span.span_id, span.start_ns, span.end_ns, span.is_parent_remote),
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
