"""Any OpenTelemetry SDK ``SpanExporter``, fed with ``ReadableSpan`` objects; the only module that imports the SDK."""

from __future__ import annotations

import importlib.metadata
import os
import pkgutil
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

import eventcore as ec
from eventcore.bounded_call import call_bounded
from eventcore.errors import did_you_mean
from eventcore_otlp import SCOPE_NAME, resource_attributes
from eventcore_span.config import BUILT_IN
from eventcore_span.exporters import Exporter, ExportError, giving_way
from eventcore_span.span import CLIENT, INTERNAL, SERVER, STATUS_ERROR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventcore_span.span import FinishedSpan

__all__ = ["GROUP", "SdkExporter", "load_exporter"]

GROUP = "opentelemetry_traces_exporter"
ZIPKIN = "opentelemetry.exporter.zipkin.json:ZipkinExporter"

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS = {INTERNAL: SpanKind.INTERNAL, SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT}


class SdkExporter(Exporter):
    """Hands spans to an exporter of the OpenTelemetry SDK."""

    def __init__(self, target: str, options: Mapping[str, Any], resource: ec.Resource, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        # Not Resource.create(): it runs detectors and reads variables that are not ours to interpret.
        self._resource = Resource(resource_attributes(resource, os.getpid()))
        self._scope = InstrumentationScope(SCOPE_NAME, ec.__version__)
        exporter_class = load_exporter(target)
        try:
            self.exporter: SpanExporter = exporter_class(**options)
        except Exception as error:
            raise ec.ConfigurationError(
                f"exporter = {target!r}: {exporter_class.__qualname__}({', '.join(options)}) failed: "
                f"{type(error).__name__}: {error}; its arguments are given in exporter_options"
            ) from error

    def export(self, spans: Sequence[FinishedSpan]) -> int:
        """Convert and export; ExportError where the exporter reports a failure."""
        result = self.exporter.export([self._readable(span) for span in giving_way(spans)])
        if result is SpanExportResult.FAILURE:
            raise ExportError(f"{self._target} reported that it could not export {len(spans)} spans")
        return 0

    def flush(self) -> None:
        """Ask the exporter to flush, and wait for ``timeout_s`` at most: not every exporter heeds the timeout."""
        problem = call_bounded(self._force_flush, self._timeout_s)
        if problem:
            raise ExportError(f"{self._target}: force_flush {problem}")

    def close(self) -> None:
        """Shut the exporter down."""
        self.exporter.shutdown()

    def describe(self) -> dict[str, Any]:
        """Return the exporter's class."""
        kind = type(self.exporter)
        return {"exporter_class": f"{kind.__module__}:{kind.__qualname__}"}

    def _force_flush(self) -> None:
        if self.exporter.force_flush(int(self._timeout_s * 1000)) is False:
            raise ExportError(f"not done within {self._timeout_s} s")

    def _readable(self, span: FinishedSpan) -> ReadableSpan:
        state = TraceState.from_header([span.trace_state]) if span.trace_state else None
        parent = None
        if span.parent_span_id:
            parent = SpanContext(span.trace_id, span.parent_span_id, span.is_parent_remote, _SAMPLED, state)
        return ReadableSpan(
            name=span.name,
            context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(event.name, event.attributes, event.time_ns) for event in span.events],
            links=[
                Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=_SAMPLED))
                for trace_id, span_id in span.links
            ],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.status_message) if span.status == STATUS_ERROR else Status(),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def load_exporter(target: str) -> type[SpanExporter]:
    """Return the exporter class at ``"package.module:Class"``, or the installed one of that entry-point name.

    Raises PluginError naming what was looked for and what there is.
    """
    if ":" in target or target == "zipkin":
        try:
            loaded = pkgutil.resolve_name(ZIPKIN if target == "zipkin" else target)
        except (ImportError, AttributeError, ValueError) as error:
            remedy = (
                "pip install 'eventcore[zipkin]'" if target == "zipkin" else "install its package, or correct the path"
            )
            raise ec.PluginError(f"exporter = {target!r} cannot be imported ({error}); {remedy}") from error
    else:
        found = {entry_point.name: entry_point for entry_point in importlib.metadata.entry_points(group=GROUP)}
        if target not in found:
            known = (*BUILT_IN, *found)
            hint = did_you_mean(target, known)
            raise ec.PluginError(
                f"exporter = {target!r} is neither built in, nor an installed exporter (entry points "
                f"{GROUP}), nor a path 'package.module:Class'{hint}"
            )
        try:
            loaded = found[target].load()
        except Exception as error:
            raise ec.PluginError(
                f"exporter = {target!r} ({found[target].value}) cannot be loaded: {error!r}"
            ) from error
    if not (isinstance(loaded, type) and callable(getattr(loaded, "export", None))):
        raise ec.PluginError(f"exporter = {target!r} is {loaded!r}, not an OpenTelemetry SDK SpanExporter class")
    return loaded
