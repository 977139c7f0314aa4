"""The handler: which operations become spans, and what is counted when they cannot be exported.

The core decides sampling when an operation starts, from the largest ``sampling_ratio`` of the handlers, because
children and ``traceparent`` need the decision at once. Unsampled operations take no place in the queue.
"""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import eventcore as ec
from eventcore_otlp.endpoint import DEFAULT_TIMEOUT_S
from eventcore_otlp.environment import flag
from eventcore_span.builder import SpanBuilder
from eventcore_span.config import SpanConfig
from eventcore_span.exporters import ConsoleExporter, Exporter, FileExporter, MemoryExporter, giving_way
from eventcore_span.held import HeldEvents
from eventcore_span.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventcore.context import ContextProvider, Scope
    from eventcore.handler import Sink

__all__ = ["SpanHandler"]

_64_BITS = (1 << 64) - 1


class SpanHandler(ec.Handler):
    """Exports each finished, sampled operation as a span."""

    kind = "span"
    delivery: ClassVar[Literal["inline", "queued"]] = "queued"
    takes_unsampled: ClassVar[bool] = False
    Config: ClassVar[type[ec.HandlerConfig]] = SpanConfig
    config: SpanConfig

    def __init__(self, config: ec.HandlerConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.is_disabled = flag("OTEL_SDK_DISABLED")
        ratio, parent_based = self.config.sampler()
        self._bound = int(ratio * (1 << 64))
        # The emitter asks for these two; one that is disabled has no say.
        self.sampling_ratio = None if self.is_disabled else ratio
        self.parent_based = None if self.is_disabled else parent_based
        limits = Limits.from_environment()
        self._builder = SpanBuilder(limits, is_genai=self.config.conventions == "genai")
        self._held = HeldEvents(limits) if self.config.span_events else None
        self._exporter: Exporter | None = None
        self._pid = os.getpid()
        self.context_provider: ContextProvider | None = None

    @property
    def exporter(self) -> Exporter:
        """The exporter in use; for 'memory' it has ``spans``."""
        if self._exporter is None:
            raise RuntimeError(f"{self!r} has no exporter until it is added to an emitter")
        return self._exporter

    def attached(self, emitter: ec.Emitter) -> None:
        """Open the exporter; ConfigurationError says what is wrong with it."""
        super().attached(emitter)
        # Before the exporter, which may import the API itself.
        wanted = self.config.interop == "on" or (self.config.interop == "auto" and "opentelemetry.trace" in sys.modules)
        self._use(self._open())
        if wanted:
            self.context_provider = _opentelemetry()
            emitter.context_provider = emitter.context_provider or self.context_provider

    def sink_for(self, event_type: type[ec.Event], severity: ec.Severity) -> Sink | None:  # noqa: ARG002 - as overridden
        """Take operations; other events only where they become events of the span that they happen in."""
        if self.is_disabled or self.config.exporter == "none":
            return None
        return self.handle if event_type.__event__.is_operation or self.config.span_events else None

    def draw_for(self, event_type: type[ec.Event], severity: ec.Severity) -> Callable[[ec.Envelope], bool] | None:  # noqa: ARG002 - as overridden
        """Leave out events outside operations that are recorded; and draw again where another ratio is larger.

        By the same bits as the emitter, so that traces are whole.
        """
        bound = self._bound if self.emitter.trace_bound > self._bound else 1 << 64
        if not event_type.__event__.is_operation:
            return lambda envelope: _is_recorded(envelope.scope, bound)
        if bound > _64_BITS:
            return None
        return lambda envelope: envelope.scope.trace_id & _64_BITS < bound

    def handle(self, envelope: ec.Envelope) -> None:
        """Export one operation."""
        self.handle_batch((envelope,))

    def handle_batch(self, envelopes: Sequence[ec.Envelope]) -> None:
        """Build and export the spans of a batch; PartialFailure names the operations that have a span not exported."""
        if os.getpid() != self._pid:  # a forked child: connections and the resource's pid are the parent's
            self._use(self._open())
            self._held = HeldEvents(self._builder.limits) if self._held else None
            self._pid = os.getpid()
        spans, origins, failed, cause = self._build(envelopes)
        exporter, start = self.exporter, 0
        while start < len(spans):
            chunk = spans[start : start + exporter.portion(spans, start)]
            try:
                rejected = exporter.export(chunk)
            except Exception as error:  # noqa: BLE001 - reported below, with what it concerns
                # The next requests would wait as long as this one did, and the queue fills meanwhile.
                failed.update(origins[start:])
                cause = error
                break
            if rejected:
                # OTLP says how many, not which.
                failed.update(origins[start : start + rejected])
                cause = cause or ExportRejectedError(rejected, len(chunk), exporter.said)
            start += len(chunk)
        if cause is not None:
            raise ec.PartialFailure(failed, cause)

    def _build(self, envelopes: Sequence[ec.Envelope]) -> tuple[list[Any], list[int], set[int], Exception | None]:
        """Return spans, the index of each one's envelope, and the indices of those that made none, with the reason."""
        make, held = self._make, self._held
        spans: list[Any] = []
        origins: list[int] = []
        failed: set[int] = set()
        cause: Exception | None = None
        for index, envelope in enumerate(giving_way(envelopes)):
            operation = envelope.span
            try:
                if operation is not None:
                    made = make(envelope, operation, held.take(operation.span_id) if held else None)
                elif held is not None:
                    held.add(envelope)
                    continue
                else:  # an operation that was emitted as a plain event, and never ran: there is no time to show
                    continue
            except Exception as error:  # noqa: BLE001 - one bad payload must not take the others down; counted below
                failed.add(index)
                cause = cause or error
            else:
                spans += made
                origins += [index] * len(made)
        return spans, origins, failed, cause

    def flush(self) -> None:
        """Flush the exporter."""
        self.exporter.flush()

    def close(self) -> None:
        """Close the exporter; another span handler takes over what there is to share with OpenTelemetry."""
        if self.context_provider is not None and self.emitter.context_provider is self.context_provider:
            others = (handler for handler in self.emitter.handlers if isinstance(handler, SpanHandler))
            providers = (handler.context_provider for handler in others if handler is not self)
            self.emitter.context_provider = next((provider for provider in providers if provider is not None), None)
        if self._exporter is not None:
            self._exporter.close()

    def describe(self) -> dict[str, Any]:
        """Return the exporter, where it writes, and how much is sampled."""
        return {
            "exporter": self.config.exporter,
            **(self._exporter.describe() if self._exporter else {}),
            "sampling_ratio": self.sampling_ratio,
            "parent_based": self.parent_based,
            **({"held_events_forgotten": self._held.forgotten} if self._held else {}),
            **({"disabled": "by OTEL_SDK_DISABLED"} if self.is_disabled else {}),
            "interop": self.context_provider is not None,
        }

    def preview(self, envelope: ec.Envelope) -> str:
        """Return the envelope's span or spans, as the console exporter writes them."""
        return ConsoleExporter.text(self._builder.build(envelope, envelope.span) if envelope.span else ())

    def closing(self) -> None:
        """Leave half of the time for shutdown to what still waits in the queue."""
        self.exporter.hurry(self.emitter.shutdown_timeout_s / 2)

    def _use(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._make = exporter.form(self._builder)

    def _open(self) -> Exporter:
        config, resource = self.config, self.emitter.resource
        if config.exporter == "console":
            return ConsoleExporter()
        if config.exporter in {"memory", "none"} or self.is_disabled:
            return MemoryExporter()  # it keeps what it gets, which for the others is nothing
        if config.exporter == "file":
            assert config.path is not None  # noqa: S101 - checked by the configuration; for the type checker
            return FileExporter(config.path, resource)
        try:
            if config.is_otlp:
                from eventcore_span.otlp import OtlpExporter

                return OtlpExporter(config, resource)
            from eventcore_span.third_party import SdkExporter

            options = config.exporter_options
            if config.exporter == "zipkin":
                asked = {"endpoint": config.endpoint, "timeout": config.timeout_s and math.ceil(config.timeout_s)}
                options = {**{name: value for name, value in asked.items() if value}, **options}
            return SdkExporter(config.exporter, options, resource, config.timeout_s or DEFAULT_TIMEOUT_S)
        except ModuleNotFoundError as error:
            raise ec.PluginError(
                f"exporter = {config.exporter!r} needs the package {error.name!r}, which is not installed; "
                "pip install 'eventcore[span]'"
            ) from error


def _opentelemetry() -> ContextProvider:
    try:
        from eventcore_span.interop import OpenTelemetryContext
    except ModuleNotFoundError as error:
        raise ec.PluginError(
            f"interop = 'on' needs the package {error.name!r}, which is not installed; pip install 'eventcore[span]'"
        ) from error
    return OpenTelemetryContext()


def _is_recorded(scope: Scope, bound: int) -> bool:
    """Whether a scope is that of an operation whose trace is recorded."""
    return scope.operation is not None and scope.sampled and scope.trace_id & _64_BITS < bound


class ExportRejectedError(ec.EventCoreError):
    """The receiver took a request but rejected some of its spans."""

    def __init__(self, rejected: int, sent: int, said: str) -> None:
        super().__init__(f"the receiver rejected {rejected} of {sent} spans{f': {said}' if said else ''}")
