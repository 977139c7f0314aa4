"""Finished spans as opentelemetry-proto's messages: what our own bytes are held against."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore_span.span import FinishedSpan

__all__ = ["request_of_json", "span_message"]


def span_message(span: FinishedSpan) -> Span:
    """Return ``span`` as a message."""
    return Span(
        trace_id=span.trace_id.to_bytes(16, "big"),
        span_id=span.span_id.to_bytes(8, "big"),
        parent_span_id=span.parent_span_id.to_bytes(8, "big") if span.parent_span_id else b"",
        trace_state=span.trace_state,
        flags=span.flags,
        name=span.name,
        kind=span.kind,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=_attributes(span.attributes),
        dropped_attributes_count=span.dropped_attributes,
        status=Status(code=span.status, message=span.status_message) if span.status else None,
        events=[
            Span.Event(
                name=event.name,
                time_unix_nano=event.time_ns,
                attributes=_attributes(event.attributes),
                dropped_attributes_count=event.dropped_attributes,
            )
            for event in span.events
        ],
        links=[
            Span.Link(trace_id=trace_id.to_bytes(16, "big"), span_id=span_id.to_bytes(8, "big"))
            for trace_id, span_id in span.links
        ],
        dropped_links_count=span.dropped_links,
        dropped_events_count=span.dropped_events,
    )


def request_of_json(line: str) -> ExportTraceServiceRequest:
    """Read OTLP JSON: JSON as protobuf has it, except that ids are hexadecimal."""
    return json_format.ParseDict(_base64_ids(json.loads(line)), ExportTraceServiceRequest())


def _base64_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_base64_ids(item) for item in node]
    if not isinstance(node, dict):
        return node
    ids = {"traceId", "spanId", "parentSpanId"}
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode() if key in ids else _base64_ids(value)
        for key, value in node.items()
    }


def _attributes(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in attributes.items()]


def _value(value: Any) -> AnyValue:
    if isinstance(value, tuple):
        message = AnyValue()
        message.array_value.SetInParent()
        message.array_value.values.extend(_value(item) for item in value)
        return message
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
    return AnyValue(**{kinds[type(value)]: value})
