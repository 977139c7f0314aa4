"""A span exporter as somebody else would write it: against the OpenTelemetry SDK, without a thought of eventcore."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["FailingExporter", "MarkerExporter", "StuckExporter"]


class MarkerExporter(SpanExporter):
    """Appends one line of JSON per span, and one when it is shut down, to the file ``marker``."""

    def __init__(self, marker: str) -> None:
        self._marker = Path(marker)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write what the SDK's own interface shows of each span."""
        with self._marker.open("a", encoding="utf-8") as file:
            for span in spans:
                context = span.get_span_context()
                assert context is not None
                line = {
                    "name": span.name,
                    "trace_id": f"{context.trace_id:032x}",
                    "span_id": f"{context.span_id:016x}",
                    "parent": span.parent and f"{span.parent.span_id:016x}",
                    "kind": span.kind.name,
                    "status": span.status.status_code.name,
                    "attributes": dict(span.attributes or {}),
                    "events": [event.name for event in span.events],
                    "service": span.resource.attributes["service.name"],
                }
                file.write(f"{json.dumps(line)}\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Leave a mark."""
        with self._marker.open("a", encoding="utf-8") as file:
            file.write('{"shutdown": true}\n')


class FailingExporter(SpanExporter):
    """Never manages to export anything."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Fail."""
        return SpanExportResult.FAILURE


class StuckExporter(SpanExporter):
    """Does not come back from its shutdown until it is released."""

    release = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Succeed."""
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Wait."""
        self.release.wait(30)
