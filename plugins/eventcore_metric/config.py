"""The options of the metric handler."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from eventcore.exposition import MAX_SERIES
from eventcore.handler import HandlerConfig
from eventcore_metric.series import ExemplarFilter
from eventcore_otlp import OtlpOptions, environment

__all__ = ["Exporter", "MetricConfig"]

Exporter = Literal["prometheus", "otlp", "none"]


def _folder_of_variable() -> Path | None:
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "").strip()
    return Path(folder) if folder else None


def _exporters_of_variable() -> tuple[Exporter, ...]:
    named = (environment.text("OTEL_METRICS_EXPORTER") or "").lower().replace(" ", "").split(",")
    found: tuple[Exporter, ...] = tuple(name for name in get_args(Exporter) if name in named)
    return found if found and (found == ("none",) or "none" not in found) else ("prometheus",)


class MetricConfig(OtlpOptions, HandlerConfig):
    """Options of the metric handler; ``endpoint`` and what belongs to it are those of the exporter ``otlp``."""

    exporter: tuple[Exporter, ...] = Field(
        default_factory=_exporters_of_variable,
        description="'prometheus' shows the series at /metrics, 'otlp' pushes them, 'none' switches the handler "
        "off; one or several. OTEL_METRICS_EXPORTER when not given, else 'prometheus'.",
    )
    interval_s: float | None = Field(
        None,
        gt=0,
        description="How often 'otlp' pushes; OTEL_METRIC_EXPORT_INTERVAL (milliseconds) when not given, else 60.",
    )
    temporality: Literal["cumulative", "delta"] | None = Field(
        None,
        description="Whether 'otlp' pushes totals or what was added since the last push; "
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE when not given, else totals.",
    )
    packs: tuple[str, ...] = Field((), description="Metric packs, whose instruments join those given in code.")
    buckets: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="Other buckets for histograms, by metric name: upper bounds, increasing; +Inf is added.",
    )
    rename: dict[str, str] = Field(
        default_factory=dict, description="Other names for metrics of packs, by the name they have there."
    )
    max_series: int = Field(
        MAX_SERIES, ge=1, description="Series per metric; further label values are counted in one series 'other'."
    )
    multiprocess_dir: Path | None = Field(
        default_factory=_folder_of_variable,
        description="Folder shared by all processes of the service: each shows what all of them have counted, "
        "those that are gone included. PROMETHEUS_MULTIPROC_DIR when not given, else each process shows its own.",
    )
    exemplars: ExemplarFilter | None = Field(
        None,
        description="Which observations are kept with their trace id: those of sampled traces, of all traces, or "
        "none; OTEL_METRICS_EXEMPLAR_FILTER when not given, else sampled ones.",
    )
    process: bool = Field(
        default=True, description="Show CPU time, memory, threads and file descriptors of the process."
    )
    host: bool = Field(default=True, description="Show CPU time and memory of the host, and the space on 'disks'.")
    disks: tuple[str, ...] = Field(("/",), description="Paths whose file systems are shown with 'host'.")
    delivery: Literal["queued"] | None = Field(None, description="Always by a worker of its own.")
    queue_size: int = Field(
        100_000, ge=1, description="Envelopes that may wait in the queue; all of a recorded operation takes one place."
    )

    @field_validator("exporter", mode="before")
    @classmethod
    def _known_exporters(cls, value: Any) -> Any:
        given = (value,) if isinstance(value, str) else tuple(value)
        if not given or not set(given) <= set(get_args(Exporter)) or ("none" in given and len(given) > 1):
            raise ValueError("expected 'prometheus', 'otlp', both in a list, or 'none'")
        return tuple(dict.fromkeys(given))

    @field_validator("sampling", "max_per_second")
    @classmethod
    def _exact(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and not (info.field_name == "sampling" and value == 1):
            raise ValueError(
                f"metrics are exact, so they take every event; remove {info.field_name!r}, or narrow the handler "
                "with 'events', 'exclude', 'categories' or 'min_severity'"
            )
        return value

    @property
    def idle(self) -> list[str]:
        """The options that were given for the exporter ``otlp``, where there is only ``prometheus``."""
        for_otlp = (*OtlpOptions.model_fields, "interval_s", "temporality")
        return [name for name in for_otlp if name in self.model_fields_set] if self.exporter == ("prometheus",) else []

    @property
    def says_exporter(self) -> bool:
        """Whether somebody has chosen an exporter, in the settings or by OpenTelemetry's variable."""
        return "exporter" in self.model_fields_set or environment.text("OTEL_METRICS_EXPORTER") is not None
