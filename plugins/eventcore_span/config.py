"""The options of the ``span`` handler, and the ``OTEL_*`` variables that stand in for those not given.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

import eventcore as ec
from eventcore_otlp import OtlpOptions, environment

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BUILT_IN", "SpanConfig"]

BUILT_IN = ("console", "file", "jaeger", "memory", "none", "otlp", "zipkin")

_OTLP = ("otlp", "jaeger")
_LONGEST_LINGER_S = 10.0
_SAMPLERS: Mapping[str, tuple[float | None, bool]] = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}
"""Ratio (None: ``OTEL_TRACES_SAMPLER_ARG``), and whether a caller's decision is heeded."""


class _Exporter(ec.HandlerConfig):
    """Which exporter; a class of its own because pydantic validates the options of bases first."""

    exporter: str = Field(
        "console",
        description="console, file, memory, none, otlp, jaeger (means otlp), zipkin (extra eventcore[zipkin]), the "
        "path 'package.module:Class' of any OpenTelemetry SDK SpanExporter, or the name of an installed one.",
    )


class SpanConfig(OtlpOptions, _Exporter):
    """Options of the ``span`` handler."""

    delivery: Literal["queued"] | None = Field(None, description="Spans are always built and exported by a worker.")
    batch_size: int = Field(512, ge=1, description="Most operations exported at once.")
    linger_s: float = Field(
        0.05,
        ge=0,
        le=_LONGEST_LINGER_S,
        description="How long the worker waits for more before it exports, and what a crash loses at most; 0.5 where "
        "each batch is a request over the network (otlp, jaeger, zipkin).",
    )
    path: Path | None = Field(None, validate_default=True, description="The file that exporter = 'file' appends to.")
    exporter_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="Arguments for the constructor of an OpenTelemetry SDK exporter."
    )
    sampling_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the traces to record; OTEL_TRACES_SAMPLER, or all of them, when not given.",
    )
    parent_based: bool = Field(
        default=True,
        description="Whether traces that are continued keep their caller's decision; if no span handler says so, the "
        "ratio decides on them too.",
    )
    span_events: bool = Field(
        default=False,
        description="Whether events inside an operation become events of its span; else they are correlated logs only.",
    )
    conventions: Literal["none", "genai"] = Field(
        "none", description="'genai': operations of category 'model' under OpenTelemetry's names for generative AI."
    )
    interop: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Share parents with libraries instrumented for OpenTelemetry in this process; auto: if "
        "OpenTelemetry's API is imported when the handler is added.",
    )

    @model_validator(mode="before")
    @classmethod
    def _stand_ins(cls, data: Any) -> Any:
        """Take what is not given from the variables, and wait longer where an export is a request."""
        if not isinstance(data, dict):
            return data
        asked = {**_of_variables(), **data}
        if asked.get("exporter") in {*_OTLP, "zipkin"}:
            asked.setdefault("linger_s", 0.5)
        return asked

    @field_validator("path")
    @classmethod
    def _path_for_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        exporter = info.data.get("exporter")
        if exporter == "file" and value is None:
            raise ValueError("exporter = 'file' needs the path of a file to append to")
        if exporter not in (None, "file") and value is not None:
            raise ValueError(f"only exporter = 'file' takes a path, and exporter is {exporter!r}")
        return value

    @field_validator("protocol", "headers", "compression", "certificate", "client_certificate", "client_key")
    @classmethod
    def _for_otlp(cls, value: Any, info: ValidationInfo) -> Any:
        exporter = info.data.get("exporter")
        if exporter not in (None, *_OTLP):
            raise ValueError(f"only exporter = 'otlp' takes this option, and exporter is {exporter!r}")
        return value

    @field_validator("endpoint")
    @classmethod
    def _for_receivers(cls, value: Any, info: ValidationInfo) -> Any:
        exporter = info.data.get("exporter")
        if exporter not in (None, *_OTLP, "zipkin"):
            raise ValueError(f"only exporter = 'otlp' or 'zipkin' takes this option, and exporter is {exporter!r}")
        return value

    @field_validator("exporter_options")
    @classmethod
    def _for_third_parties(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        exporter = info.data.get("exporter")
        if value and exporter in BUILT_IN and exporter != "zipkin":
            raise ValueError(f"only exporters of others take exporter_options, and exporter is {exporter!r}")
        return value

    @property
    def is_otlp(self) -> bool:
        """Whether spans go out as OTLP."""
        return self.exporter in _OTLP

    def sampler(self) -> tuple[float, bool]:
        """Return the share of traces to record, and whether a caller's decision is heeded."""
        if self.sampling_ratio is not None:
            return self.sampling_ratio, self.parent_based
        named = environment.choice(_SAMPLERS, "OTEL_TRACES_SAMPLER")
        if named is None:
            return 1.0, self.parent_based
        ratio, heeds_parent = _SAMPLERS[named]
        if ratio is None:
            ratio = environment.ratio("OTEL_TRACES_SAMPLER_ARG", 1.0)
        return ratio, self.parent_based and heeds_parent


def _of_variables() -> dict[str, Any]:
    """Return the options that ``OTEL_TRACES_EXPORTER`` and ``OTEL_BSP_*`` ask for."""
    delay_ms = environment.number("OTEL_BSP_SCHEDULE_DELAY")
    asked = {
        "exporter": environment.choice(BUILT_IN, "OTEL_TRACES_EXPORTER"),
        "queue_size": environment.number("OTEL_BSP_MAX_QUEUE_SIZE") or None,
        "batch_size": environment.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") or None,
        "linger_s": None if delay_ms is None else min(delay_ms / 1000, _LONGEST_LINGER_S),
    }
    return {name: value for name, value in asked.items() if value is not None}
