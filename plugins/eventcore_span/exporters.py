"""Where finished spans go: the seam that every exporter implements, and those that need no library."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import eventcore as ec
from eventcore_otlp import SCOPE_NAME, resource_attributes
from eventcore_span.span import CLIENT, INTERNAL, SERVER, STATUS_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from eventcore_span.builder import SpanBuilder
    from eventcore_span.held import Held
    from eventcore_span.span import AttributeValue, FinishedSpan

__all__ = ["ConsoleExporter", "ExportError", "Exporter", "FileExporter", "MemoryExporter", "giving_way"]

T = TypeVar("T")

MAX_PER_EXPORT = 512
"""Spans in one export; expanded batches would else make requests larger than receivers take."""

MAX_KEPT = 10_000
"""Spans that the memory exporter keeps; the oldest go first."""

_SOME = 256  # half a millisecond, as spans take 2 µs each to make; at 64, giving way cost 0.3 µs a span


class ExportError(ec.EventCoreError):
    """Spans could not be exported; the message says where to and why."""


class Exporter:
    """Takes finished spans in batches, in the handler's worker."""

    said = ""
    """What the other side said about the spans that it rejected last."""

    def form(self, builder: SpanBuilder) -> Callable[[ec.Envelope, ec.LiveOperation[Any], Held | None], Sequence[Any]]:
        """Return what makes of an operation what ``export`` takes: finished spans, unless overridden."""
        return lambda envelope, operation, held: list(builder.build(envelope, operation, held))

    def portion(self, spans: Sequence[Any], start: int) -> int:
        """Return how many of ``spans``, from ``start`` on, make one export; at least one."""
        return min(MAX_PER_EXPORT, len(spans) - start)

    def export(self, spans: Sequence[Any]) -> int:
        """Export ``spans`` and return how many of them the other side rejected; raise where none could be exported."""
        raise NotImplementedError

    def flush(self) -> None:
        """Pass on what is held back."""

    def hurry(self, grace_s: float) -> None:
        """Note that shutdown has begun: no export may take longer than until ``grace_s`` from now."""

    def close(self) -> None:
        """Release what is held; may be called from another thread, and twice."""

    def describe(self) -> dict[str, Any]:
        """Return where the spans go, for people."""
        return {}


class MemoryExporter(Exporter):
    """Keeps the latest spans in memory, for tests: ``emitter.handler("span").exporter.spans``."""

    def __init__(self) -> None:
        self._spans: deque[FinishedSpan] = deque(maxlen=MAX_KEPT)
        self.dropped = 0

    @property
    def spans(self) -> tuple[FinishedSpan, ...]:
        """The spans kept, oldest first."""
        return tuple(self._spans)

    def export(self, spans: Sequence[FinishedSpan]) -> int:
        """Keep ``spans``; ``dropped`` counts what had to go for them."""
        self.dropped += max(0, len(self._spans) + len(spans) - MAX_KEPT)
        self._spans.extend(spans)
        return 0

    def clear(self) -> None:
        """Forget all spans."""
        self._spans.clear()

    def describe(self) -> dict[str, Any]:
        """Return how many spans are kept."""
        return {"kept": len(self._spans), "dropped": self.dropped}


class ConsoleExporter(Exporter):
    """Writes one line of JSON per span to standard output: OpenTelemetry's console exporter, made compact."""

    def export(self, spans: Sequence[FinishedSpan]) -> int:
        """Write and flush; control characters are escaped by JSON."""
        sys.stdout.write(self.text(giving_way(spans)))
        sys.stdout.flush()
        return 0

    @staticmethod
    def text(spans: Iterable[FinishedSpan]) -> str:
        """Return a line per span."""
        return "".join(f"{json.dumps(_for_people(span))}\n" for span in spans)

    def describe(self) -> dict[str, Any]:
        """Return the stream."""
        return {"output": "stdout", "format": "one JSON object per span"}


class FileExporter(Exporter):
    """Appends OTLP JSON lines, one ``ExportTraceServiceRequest`` per batch.

    As the OTLP specification has it: names in lowerCamelCase, ids in hexadecimal, enums as numbers, 64-bit integers as
    text.
    """

    def __init__(self, path: Path, resource: ec.Resource) -> None:
        self.path = path
        self._resource = _attributes_json(resource_attributes(resource, os.getpid()))
        self._scope = {"name": SCOPE_NAME, "version": ec.__version__}
        self._is_torn = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a fork in mid-stream must not leave the same lines in two buffers.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ec.ConfigurationError(
                f"path = {str(path)!r}: cannot be opened for appending ({error.strerror}); name a writable file"
            ) from error

    def export(self, spans: Sequence[FinishedSpan]) -> int:
        """Append one line."""
        scope_spans = {"scope": self._scope, "spans": [_span_json(span) for span in giving_way(spans)]}
        line = {
            "resourceSpans": [{"resource": {"attributes": self._resource}, "scopeSpans": [scope_spans]}],
        }
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        # A line that a full disk cut off must not spoil the next one.
        prefix = "\n" if self._is_torn else ""
        data = memoryview(f"{prefix}{text}\n".encode())
        self._is_torn = True
        while data:
            data = data[self._file.write(data) or 0 :]
        self._is_torn = False
        return 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path), "format": "OTLP JSON lines"}


def giving_way(items: Iterable[T]) -> Iterator[T]:
    """Yield ``items``, and let other threads run now and then: a worker's long turn is felt by those who emit."""
    for number, item in enumerate(items, 1):
        yield item
        if not number % _SOME:
            time.sleep(0)


def _for_people(span: FinishedSpan) -> dict[str, Any]:
    seconds, rest = divmod(span.start_ns, 1_000_000_000)
    start = dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    line: dict[str, Any] = {
        "span": span.name,
        "start": f"{start}.{rest // 1000:06d}Z",
        "duration_ms": round((span.end_ns - span.start_ns) / 1e6, 3),
        "status": "error" if span.status == STATUS_ERROR else "unset",
        "trace_id": f"{span.trace_id:032x}",
        "span_id": f"{span.span_id:016x}",
        "parent_span_id": f"{span.parent_span_id:016x}" if span.parent_span_id else None,
    }
    if span.status_message:
        line["status_message"] = span.status_message
    if span.kind != INTERNAL:
        line["kind"] = {SERVER: "server", CLIENT: "client"}[span.kind]
    line["attributes"] = span.attributes
    if span.events:
        line["events"] = [{"name": event.name, **event.attributes} for event in span.events]
    if span.links:
        line["links"] = [f"{trace_id:032x}-{span_id:016x}" for trace_id, span_id in span.links]
    return line


def _span_json(span: FinishedSpan) -> dict[str, Any]:
    data: dict[str, Any] = {
        "traceId": f"{span.trace_id:032x}",
        "spanId": f"{span.span_id:016x}",
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes_json(span.attributes),
    }
    if span.status:
        data["status"] = {"code": span.status, "message": span.status_message}
    if span.parent_span_id:
        data["parentSpanId"] = f"{span.parent_span_id:016x}"
    if span.trace_state:
        data["traceState"] = span.trace_state
    if span.dropped_attributes:
        data["droppedAttributesCount"] = span.dropped_attributes
    if span.events:
        data["events"] = [
            {
                "timeUnixNano": str(event.time_ns),
                "name": event.name,
                "attributes": _attributes_json(event.attributes),
                **({"droppedAttributesCount": event.dropped_attributes} if event.dropped_attributes else {}),
            }
            for event in span.events
        ]
    if span.links:
        data["links"] = [
            {"traceId": f"{trace_id:032x}", "spanId": f"{span_id:016x}"} for trace_id, span_id in span.links
        ]
    if span.dropped_events:
        data["droppedEventsCount"] = span.dropped_events
    if span.dropped_links:
        data["droppedLinksCount"] = span.dropped_links
    return data


def _attributes_json(attributes: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value_json(value)} for key, value in attributes.items()]


def _value_json(value: AttributeValue) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
    return {"arrayValue": {"values": [_value_json(item) for item in value]}}


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
