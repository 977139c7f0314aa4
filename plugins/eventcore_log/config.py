"""The options of a log handler."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from eventcore.events import Category, Severity
from eventcore.handler import HandlerConfig
from eventcore_log.levels import Levels
from eventcore_log.schemas import SchemaName
from eventcore_otlp import OtlpOptions, environment

if TYPE_CHECKING:
    from eventcore.event_spec import EventSpec

__all__ = ["STREAMS", "LogConfig"]

STREAMS = ("stderr", "stdout")
NO_FILES = (*STREAMS, "otlp", "logging")
RECORD = "log.record"
"""The name of the events that ``ec.get_logger`` emits; their loggers' names are known only when they are written."""

_ALIASES = {"sample_rate": "sampling", "hash_based": "sampling_by"}
_BY = {"true": "trace", "1": "trace", "false": "random", "0": "random"}


class _Output(HandlerConfig):
    """Where lines go; a class of its own because pydantic validates the options of bases first."""

    output: str = Field(
        "stderr",
        min_length=1,
        description="'stderr', 'stdout', 'otlp' (log records to an OTLP receiver), 'logging' (the standard library's "
        "loggers), or the path of a file to append to; missing folders are made.",
    )

    @field_validator("output", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value


class LogConfig(OtlpOptions, _Output):
    """Options of a log handler.

    Sampling has the names of the TinyLLM guide too: ``sample_rate`` is ``sampling``, ``hash_based = true`` is
    ``sampling_by = "trace"``; ``max_per_second`` is the same in both.
    """

    format: Literal["console", "json"] = Field(
        "console", description="Lines for people ('console'), or one JSON object per line ('json')."
    )
    schema_: SchemaName = Field(
        "tinyllm",
        alias="schema",
        description="Whose field names JSON lines have: 'tinyllm', 'moe' (dynamic-moe-router-kit's record), 'tracing' "
        "(tracing-subscriber's JSON, as Tiny Dancer's guide) or 'ecs' (Elastic Common Schema).",
    )
    min_severity: Severity = Field(Severity.INFO, description="Nothing below this severity.")
    levels: dict[str, Severity] = Field(
        default_factory=dict,
        description="Severities from which on, by name of event or logger: 'router' for all below it, or a glob. The "
        "longest that fits counts, before 'category_levels' and 'min_severity'.",
    )
    category_levels: dict[Category, Severity] = Field(
        default_factory=dict, description="Severities from which on, by category; they count before 'min_severity'."
    )
    max_bytes: int | None = Field(
        None, ge=1, description="Start a new file before one grows beyond so many bytes; no limit when not given."
    )
    rotate_every_s: float | None = Field(
        None,
        ge=1,
        allow_inf_nan=False,
        description="Start a new file every so many seconds, counted from 1970 (86400: at midnight UTC).",
    )
    backups: int = Field(
        5, ge=1, description="Files kept beside the one in use, as <path>.1 (the latest), <path>.2 and so on."
    )

    @model_validator(mode="before")
    @classmethod
    def _names_of_the_guide(cls, options: Any) -> Any:
        if not isinstance(options, Mapping):
            return options
        options = dict(options)
        for alias, name in _ALIASES.items():
            if alias in options:
                if name in options:
                    raise ValueError(f"{alias!r} and {name!r} are two names of one option; give one of them")
                options[name] = options.pop(alias)
                if alias == "hash_based":
                    options[name] = _BY.get(str(options[name]).lower(), options[name])
        return {**_for_requests(), **options} if options.get("output") == "otlp" else options

    @field_validator("levels", "category_levels", mode="before")
    @classmethod
    def _severities_by_name(cls, value: Any) -> Any:
        return {key: Severity.parse(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    @field_validator("max_bytes", "rotate_every_s")
    @classmethod
    def _for_files(cls, value: Any, info: ValidationInfo) -> Any:
        output = info.data.get("output")
        if value is not None and output in NO_FILES:
            raise ValueError(f"only a file is rotated, and output is {output!r}")
        return value

    @field_validator(
        "endpoint",
        "protocol",
        "headers",
        "compression",
        "timeout_s",
        "certificate",
        "client_certificate",
        "client_key",
    )
    @classmethod
    def _for_otlp(cls, value: Any, info: ValidationInfo) -> Any:
        output = info.data.get("output")
        if output not in (None, "otlp"):
            raise ValueError(f"only output = 'otlp' takes this option, and output is {output!r}")
        return value

    @field_validator("schema_")
    @classmethod
    def _for_lines(cls, value: Any, info: ValidationInfo) -> Any:
        output = info.data.get("output")
        if output in ("otlp", "logging"):
            raise ValueError(f"only JSON lines have a schema, and output is {output!r}")
        return value

    @model_validator(mode="after")
    def _schema_of_json(self) -> Self:
        if self.is_schema_idle and "format" not in self.model_fields_set:  # else somebody else may have said "console"
            raise ValueError(f"'schema' is {self.schema_!r}, and only JSON lines have one; add format = 'json'")
        return self

    @property
    def is_schema_idle(self) -> bool:
        """Whether a schema was asked for that no line can have."""
        return "schema_" in self.model_fields_set and self.format == "console"

    @property
    def severities(self) -> Levels:
        """All levels together."""
        return Levels(self.min_severity, self.category_levels, self.levels)

    def least_severity(self, spec: EventSpec) -> Severity:
        """Return the severity from which on events of this type pass, by name, category or for all."""
        levels = self.severities
        if spec.name == RECORD and levels.by_name:
            return levels.least(spec.category, spec.name)
        return levels.of(spec.category, spec.name, spec.logger)


def _for_requests() -> dict[str, Any]:
    """Return what suits a request per batch (decision 018), or what ``OTEL_BLRP_*`` ask for."""
    delay_ms = environment.number("OTEL_BLRP_SCHEDULE_DELAY")
    asked = {
        "linger_s": 0.5 if delay_ms is None else min(delay_ms / 1000, 1.0),
        "queue_size": environment.number("OTEL_BLRP_MAX_QUEUE_SIZE") or None,
        "batch_size": environment.number("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE") or 512,
    }
    return {name: value for name, value in asked.items() if value is not None}
