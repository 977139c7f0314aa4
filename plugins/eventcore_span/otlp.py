"""Spans as OTLP: opentelemetry-proto messages, built in the worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import eventcore as ec
from eventcore_otlp import SCOPE_NAME, OtlpOptions, resource_attributes
from eventcore_span.exporters import Exporter, giving_way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from eventcore_span.span import AttributeValue, FinishedSpan

__all__ = ["OtlpExporter", "encode"]


class OtlpExporter(Exporter):
    """Sends batches to an OTLP receiver."""

    def __init__(self, options: OtlpOptions, resource: ec.Resource) -> None:
        self._resource = resource_attributes(resource, os.getpid())
        self._transport = options.open("traces")

    def export(self, spans: Sequence[FinishedSpan]) -> int:
        """Send one request; TransportError says what the receiver answered, or that there was none, in time."""
        sent = self._transport.send(encode(spans, self._resource).SerializeToString())
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


def encode(spans: Sequence[FinishedSpan], resource: Mapping[str, AttributeValue]) -> ExportTraceServiceRequest:
    """Return ``spans`` of one resource as an OTLP message."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    _set_attributes(resource_spans.resource.attributes, resource)
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = SCOPE_NAME
    scope_spans.scope.version = ec.__version__
    add = scope_spans.spans.add
    for span in giving_way(spans):
        _set_span(add(), span)
    return request


def _set_span(message: Span, span: FinishedSpan) -> None:
    # Field by field: keyword arguments to the constructor take twice as long.
    message.trace_id = span.trace_id.to_bytes(16, "big")
    message.span_id = span.span_id.to_bytes(8, "big")
    if span.parent_span_id:
        message.parent_span_id = span.parent_span_id.to_bytes(8, "big")
    if span.trace_state:
        message.trace_state = span.trace_state
    message.flags = span.flags
    message.name = span.name
    message.kind = span.kind  # type: ignore[assignment]  # the enum's number, as on the wire
    message.start_time_unix_nano = span.start_ns
    message.end_time_unix_nano = span.end_ns
    _set_attributes(message.attributes, span.attributes)
    if span.dropped_attributes:
        message.dropped_attributes_count = span.dropped_attributes
    if span.status:
        message.status.code = span.status  # type: ignore[assignment]  # likewise
        message.status.message = span.status_message
    for happened in span.events:
        event = message.events.add()
        event.time_unix_nano = happened.time_ns
        event.name = happened.name
        _set_attributes(event.attributes, happened.attributes)
    for trace_id, span_id in span.links:
        link = message.links.add()
        link.trace_id = trace_id.to_bytes(16, "big")
        link.span_id = span_id.to_bytes(8, "big")
    if span.dropped_links:
        message.dropped_links_count = span.dropped_links


def _set_attributes(target: Any, attributes: Mapping[str, AttributeValue]) -> None:
    for key, value in attributes.items():
        item: KeyValue = target.add()
        item.key = key
        kind = value.__class__
        if kind is str:
            item.value.string_value = value  # type: ignore[assignment]  # the class says so
        else:
            _set_value(item.value, value)


def _set_value(target: AnyValue, value: AttributeValue) -> None:
    if isinstance(value, str):
        target.string_value = value
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        target.int_value = value
    elif isinstance(value, float):
        target.double_value = value
    else:
        target.array_value.SetInParent()  # an empty array is an array too
        for item in value:
            _set_value(target.array_value.values.add(), item)
