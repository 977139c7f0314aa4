"""Whose field names a JSON line has: TinyLLM's, the MoE kit's, those of Rust's ``tracing``, or ECS.

A line is made with TinyLLM's names (see ``lines``); the others are put together from it. ``moe`` is the record of
dynamic-moe-router-kit. ``tracing`` is what tracing-subscriber's JSON formatter writes, which the guides of Tiny Dancer
and tokio-prompt-orchestrator use. ``ecs`` follows ecs-logging
(https://github.com/elastic/ecs-logging/blob/main/spec/spec.json) and the Elastic Common Schema's field reference; what
ECS has no field for, which is the payload, stands in an object of its own, ``eventcore``, with its types.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventcore_log.line import Line

    Schema = Callable[[Line], dict[str, Any]]

__all__ = ["ECS_VERSION", "SCHEMAS", "SchemaName"]

SchemaName = Literal["tinyllm", "moe", "tracing", "ecs"]

ECS_VERSION = "8.11.0"

_TRACING_LEVELS = {"warning": "WARN", "critical": "ERROR"}
_ECS_NAMES = {"environment": "service.environment", "trace_id": "trace.id", "span_id": "span.id", "tags": "tags"}
_ECS_OUTCOMES = {"success": "success", "failure": "failure"}
_ERROR = ("error_type", "error_message", "exception")
_ECS_ERROR = {"error_type": "error.type", "error_message": "error.message", "exception": "error.stack_trace"}
_MOE_ERROR = {"error_type": "type", "error_message": "message", "exception": "traceback"}
_MOE_METADATA = ("id", "logger", "category", "tags", "trace_id", "span_id", "redacted")


def _moe(line: Line) -> dict[str, Any]:
    """Return a line as the record of dynamic-moe-router-kit."""
    service = {"name": line["app"], "version": line["version"], "environment": line.get("environment", "")}
    process: dict[str, Any] = {"pid": os.getpid()}
    if line.thread:
        process["thread"] = line.thread
    record: dict[str, Any] = {
        "timestamp": line["timestamp"],
        "level": line["level"].upper(),
        "service": service,
        "event": {"type": line["name"], "message": line["event"]},
        "process": process,
    }
    if "correlation_id" in line:
        record["correlation_id"] = line["correlation_id"]
    record["data"] = _payload(line)
    for key in ("duration_ms", "outcome"):
        if key in line.reserved and key in line:
            record["data"][key] = line[key]
    error = {name: text for key, name in _MOE_ERROR.items() if (text := _error(line, key)) is not None}
    if error:
        record["exception"] = error
    record["metadata"] = {key: line[key] for key in _MOE_METADATA if key in line}
    return record


def _tracing(line: Line) -> dict[str, Any]:
    """Return a line as tracing-subscriber writes it, with the level's name in upper case."""
    level = line["level"]
    fields = {"message": line["event"]}
    taken = {}
    for key, value in line.items():
        if key == "message":  # a field of the payload: the message itself is under ``event``
            taken[key] = value
        elif key not in {"timestamp", "level", "logger", "event", "fields"}:
            fields[key] = value
    taken |= line.get("fields", {})
    if taken:
        fields["fields"] = taken
    return {
        "timestamp": line["timestamp"],
        "level": _TRACING_LEVELS.get(level, level.upper()),
        "fields": fields,
        "target": line["logger"],
    }


def _ecs(line: Line) -> dict[str, Any]:
    """Return a line with the field names of the Elastic Common Schema, the first three in ecs-logging's order."""
    record: dict[str, Any] = {
        "@timestamp": line["timestamp"],
        "log.level": line["level"],
        "message": line["event"],
        "ecs.version": ECS_VERSION,
        "log.logger": line["logger"],
        "service.name": line["app"],
        "service.version": line["version"],
        "event.action": line["name"],
        "event.dataset": f"{line['app']}.log",
        "event.id": line["id"],
        "process.pid": os.getpid(),
    }
    labels = {"category": line["category"]}
    for key, name in _ECS_NAMES.items():
        if key in line:
            record[name] = line[key]
    if line.thread:
        record["process.thread.name"] = line.thread
    if "correlation_id" in line:
        labels["correlation_id"] = line["correlation_id"]
    if "redacted" in line:
        labels["redacted"] = ",".join(line["redacted"])
    if "outcome" in line.reserved and "outcome" in line:
        outcome = line["outcome"]
        record["event.duration"] = round(line["duration_ms"] * 1e6)
        record["event.outcome"] = _ECS_OUTCOMES.get(outcome, "unknown")
        labels["outcome"] = outcome
    for key, name in _ECS_ERROR.items():
        text = _error(line, key)
        if text is not None:
            record[name] = text
    record["labels"] = labels
    payload = _payload(line)
    if payload:
        record["eventcore"] = payload
    return record


def _error(line: Line, key: str) -> str | None:
    value = line.get(key)
    return value if isinstance(value, str) else None


def _payload(line: Line) -> dict[str, Any]:
    """Return the fields that are the event's own, those whose names are taken among TinyLLM's included."""
    payload = {
        key: value
        for key, value in line.items()
        if key not in line.reserved and (key not in _ERROR or not isinstance(value, str))
    }
    payload.update(line.get("fields", {}))
    return payload


SCHEMAS: Mapping[str, Schema | None] = {"tinyllm": None, "moe": _moe, "tracing": _tracing, "ecs": _ecs}
"""What makes a record of a line, by the schema's name; None where the line is the record."""
