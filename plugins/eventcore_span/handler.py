"""The handler: which operations become spans, and what is counted when they cannot be exported.

The core decides sampling when an operation starts, from the largest ``sampling_ratio`` of the handlers, because
children and ``traceparent`` need the decision at once. Here unsampled operations are dropped before anything is built.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

import eventcore as ec
from eventcore_otlp import OtlpOptions
from eventcore_otlp.endpoint import DEFAULT_TIMEOUT_S
from eventcore_span.builder import SpanBuilder
from eventcore_span.exporters import ConsoleExporter, Exporter, FileExporter, MemoryExporter, giving_way
from eventcore_span.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.context import ContextProvider
    from eventcore.handler import Sink

__all__ = ["SpanHandler"]

BUILT_IN = ("console", "file", "memory", "otlp")

MAX_PER_EXPORT = 512
"""Spans in one export; expanded batches would else make requests larger than receivers take."""

_64_BITS = (1 << 64) - 1


class _Exporter(ec.HandlerConfig):
    """Which exporter; a class of its own because pydantic validates the options of bases first."""

    exporter: str = Field(
        "console",
        description="console, file, otlp, memory, the path 'package.module:Class' of any OpenTelemetry SDK "
        "SpanExporter, or the name of an installed one.",
    )


class _Config(OtlpOptions, _Exporter):
    """Options of the ``span`` handler."""

    delivery: Literal["queued"] | None = Field(None, description="Spans are always built and exported by a worker.")
    batch_size: int = Field(512, ge=1, description="Most operations exported at once.")
    linger_s: float = Field(
        0.05,
        ge=0,
        le=10,
        description="How long the worker waits for more before it exports, and what a crash loses at most; 0.5 for "
        "exporter = 'otlp', where each request costs about a millisecond of CPU.",
    )
    path: Path | None = Field(None, validate_default=True, description="The file that exporter = 'file' appends to.")
    exporter_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="Arguments for the constructor of an OpenTelemetry SDK exporter."
    )
    sampling_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of the traces that start here to record; continued ones keep their flag."
    )

    interop: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Share parents with libraries instrumented for OpenTelemetry in this process; auto: if "
        "OpenTelemetry's API is imported when the handler is added.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fewer_requests(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("exporter") == "otlp":
            return {"linger_s": 0.5, **data}
        return data

    @field_validator("path")
    @classmethod
    def _path_for_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        exporter = info.data.get("exporter")
        if exporter == "file" and value is None:
            raise ValueError("exporter = 'file' needs the path of a file to append to")
        if exporter not in (None, "file") and value is not None:
            raise ValueError(f"only exporter = 'file' takes a path, and exporter is {exporter!r}")
        return value

    @field_validator(
        "endpoint", "protocol", "headers", "compression", "certificate", "client_certificate", "client_key"
    )
    @classmethod
    def _for_otlp(cls, value: Any, info: ValidationInfo) -> Any:
        exporter = info.data.get("exporter")
        if exporter not in (None, "otlp"):
            raise ValueError(f"only exporter = 'otlp' takes this option, and exporter is {exporter!r}")
        return value

    @field_validator("exporter_options")
    @classmethod
    def _for_third_parties(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        exporter = info.data.get("exporter")
        if value and exporter in BUILT_IN:
            raise ValueError(f"only exporters of others take exporter_options, and exporter is {exporter!r}")
        return value


class SpanHandler(ec.Handler):
    """Exports each finished, sampled operation as a span."""

    kind = "span"
    delivery: ClassVar[Literal["inline", "queued"]] = "queued"
    Config: ClassVar[type[ec.HandlerConfig]] = _Config
    config: _Config

    def __init__(self, config: ec.HandlerConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sampling_ratio = self.config.sampling_ratio
        self.unsampled = 0
        self._bound = int(self.sampling_ratio * (1 << 64))
        self._builder = SpanBuilder(Limits.from_environment())
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
        """Take operations; other events are no spans."""
        return self.handle if event_type.__event__.is_operation else None

    def handle(self, envelope: ec.Envelope) -> None:
        """Export one operation."""
        self.handle_batch((envelope,))

    def handle_batch(self, envelopes: Sequence[ec.Envelope]) -> None:
        """Build and export the spans of a batch; PartialFailure names the operations that have a span not exported."""
        if os.getpid() != self._pid:  # a forked child: connections and the resource's pid are the parent's
            self._use(self._open())
            self._pid = os.getpid()
        spans, origins, failed, cause = self._build(envelopes)
        for start in range(0, len(spans), MAX_PER_EXPORT):
            chunk = spans[start : start + MAX_PER_EXPORT]
            try:
                rejected = self.exporter.export(chunk)
            except Exception as error:  # noqa: BLE001 - reported below, with what it concerns
                # The next requests would wait as long as this one did, and the queue fills meanwhile.
                failed.update(origins[start:])
                cause = error
                break
            if rejected:
                # OTLP says how many, not which.
                failed.update(origins[start : start + rejected])
                cause = cause or ExportRejectedError(rejected, len(chunk))
        if cause is not None:
            raise ec.PartialFailure(failed, cause)

    def _build(self, envelopes: Sequence[ec.Envelope]) -> tuple[list[Any], list[int], set[int], Exception | None]:
        """Return spans, the index of each one's envelope, and the indices of those that made none, with the reason."""
        make = self._make
        spans: list[Any] = []
        origins: list[int] = []
        failed: set[int] = set()
        cause: Exception | None = None
        # The core samples by the largest ratio of the span handlers; one with a smaller ratio draws again, by the same
        # bits, so that its traces are whole too.
        bound = self._bound if self.emitter.trace_bound > self._bound else None
        for index, envelope in enumerate(giving_way(envelopes)):
            operation = envelope.span
            if operation is None:  # emitted as a plain event, never run: there is no time to show
                continue
            if not operation.sampled or (bound is not None and operation.trace_id & _64_BITS >= bound):
                self.unsampled += 1
                continue
            try:
                made = list(make(envelope, operation))
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
            "unsampled": self.unsampled,
            "interop": self.context_provider is not None,
        }

    def preview(self, envelope: ec.Envelope) -> str:
        """Return the envelope's span or spans, as the console exporter writes them."""
        return ConsoleExporter.text(SpanBuilder().build(envelope, envelope.span) if envelope.span else ())

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
        if config.exporter == "memory":
            return MemoryExporter()
        if config.exporter == "file":
            assert config.path is not None  # noqa: S101 - checked by the configuration; for the type checker
            return FileExporter(config.path, resource)
        try:
            if config.exporter == "otlp":
                from eventcore_span.otlp import OtlpExporter

                return OtlpExporter(config, resource)
            from eventcore_span.third_party import SdkExporter

            return SdkExporter(
                config.exporter, config.exporter_options, resource, config.timeout_s or DEFAULT_TIMEOUT_S
            )
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


class ExportRejectedError(ec.EventCoreError):
    """The receiver took a request but rejected some of its spans."""

    def __init__(self, rejected: int, sent: int) -> None:
        super().__init__(f"the receiver rejected {rejected} of {sent} spans")
