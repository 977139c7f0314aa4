"""OTLP over HTTP with protobuf bodies: encoding, and a client with bounded retries.

Spans are written into opentelemetry-proto messages in the worker. A failed attempt is retried with exponential backoff
where OTLP allows it (429, 502, 503, 504, connection errors), heeding Retry-After, until ``timeout_s`` is used up.
"""

from __future__ import annotations

import email.utils
import gzip
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import urllib3
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

import eventcore as ec
from eventcore.redaction import scrub_text
from eventcore_span.exporters import Exporter, ExportError, giving_way
from eventcore_span.span import SCOPE_NAME, resource_attributes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from eventcore_span.span import AttributeValue, FinishedSpan

__all__ = ["OtlpExporter", "encode"]

RETRIED = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SHORTEST_ATTEMPT_S = 0.1  # so that the last batches of a shutdown get at least one try
MAX_RESPONSE = 64 * 1024


class OtlpExporter(Exporter):
    """POSTs batches to an OTLP/HTTP receiver."""

    def __init__(
        self,
        url: str,
        resource: ec.Resource,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        compression: str,
    ) -> None:
        self.url = url
        self._resource = resource_attributes(resource, os.getpid())
        self._timeout_s = timeout_s
        self._gzip = compression == "gzip"
        self._headers = {
            "User-Agent": f"eventcore/{ec.__version__}",
            **headers,
            "Content-Type": "application/x-protobuf",
            **({"Content-Encoding": "gzip"} if self._gzip else {}),
        }
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False)
        self._stop_by = float("inf")
        self._stopping = threading.Event()
        self._closed = threading.Event()

    def export(self, spans: Sequence[FinishedSpan]) -> int:
        """Send one request; ExportError says what the receiver answered, or that there was none, in time."""
        body = encode(spans, self._resource).SerializeToString()
        answer = self._post(gzip.compress(body, compresslevel=5) if self._gzip else body)
        try:
            partial = ExportTraceServiceResponse.FromString(answer).partial_success
        except DecodeError:  # it was accepted (2xx); what else the receiver says is not OTLP
            return 0
        return min(len(spans), max(0, partial.rejected_spans))

    def hurry(self, grace_s: float) -> None:
        """Try at once what waits for a retry, and give up on anything ``grace_s`` from now."""
        self._stop_by = time.monotonic() + grace_s
        self._stopping.set()

    def close(self) -> None:
        """Close the connection; a retry that waits gives up."""
        self._stop_by = 0.0
        self._stopping.set()
        self._closed.set()
        self._pool.clear()

    def describe(self) -> dict[str, Any]:
        """Return the URL."""
        return {"url": self.url, "format": "OTLP/HTTP protobuf" + (", gzip" if self._gzip else "")}

    def _post(self, body: bytes) -> bytes:
        started = time.monotonic()
        attempt = 0
        while True:
            deadline = min(started + self._timeout_s, self._stop_by)
            retry_after_s = 0.0
            try:
                status, headers, answer = self._attempt(body, max(deadline - time.monotonic(), SHORTEST_ATTEMPT_S))
            except urllib3.exceptions.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if 200 <= status < 300:
                    return answer
                problem = f"HTTP {status} {_excerpt(answer)}".rstrip()
                if status not in RETRIED:
                    raise ExportError(f"POST {self.url}: {problem}")
                retry_after_s = _retry_after_s(headers.get("Retry-After"))
            attempt += 1
            backoff_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
            pause_s = max(retry_after_s, backoff_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
            if time.monotonic() + pause_s >= min(started + self._timeout_s, self._stop_by):
                raise ExportError(
                    f"POST {self.url}: {problem} (attempt {attempt}, gave up after {time.monotonic() - started:.1f} s)"
                )
            # While stopping, only close() cuts a pause short: one early retry is enough.
            (self._closed if self._stopping.is_set() else self._stopping).wait(pause_s)

    def _attempt(self, body: bytes, timeout_s: float) -> tuple[int, Mapping[str, str], bytes]:
        response = self._pool.request(
            "POST",
            self.url,
            body=body,
            headers=self._headers,
            timeout=urllib3.Timeout(total=timeout_s),
            redirect=False,
            preload_content=False,
        )
        try:
            answer = response.read(MAX_RESPONSE)
            if len(answer) >= MAX_RESPONSE:
                response.close()  # whatever this is, it is not worth reading to the end
        finally:
            response.release_conn()
        return response.status, response.headers, answer


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


def _excerpt(answer: bytes) -> str:
    """Return the readable part of an error's body: text, JSON, or the text inside a protobuf message."""
    text = "".join(c if c.isprintable() else " " for c in answer[:1000].decode("utf-8", "replace"))
    return " ".join(scrub_text(text).split())[:200]


def _retry_after_s(header: str | None) -> float:
    """Return the seconds that a ``Retry-After`` header asks for, be it a number or a date; 0 where it says nothing."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
