"""What the bus itself has to say, as event types like any others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from eventcore.events import Category, Event, Operation, Severity
from eventcore.fields import Label

__all__ = [
    "EVENTS",
    "AdHocEvent",
    "AdHocOperation",
    "HandlerChanged",
    "HealthChanged",
    "InvalidResult",
    "LogRecord",
    "Misuse",
    "PluginBroken",
    "Started",
    "Stopped",
]


HealthWord = Literal["healthy", "unknown", "degraded", "unhealthy"]


class Started(Event, name="eventcore.started", category=Category.SYSTEM, message="{service} started"):
    """``configure()`` has finished."""

    service: str
    service_version: str
    handlers: list[str]


class Stopped(Event, name="eventcore.stopped", category=Category.SYSTEM, message="{service} stopped"):
    """``shutdown()`` has begun."""

    service: str


class PluginBroken(
    Event,
    name="eventcore.plugin_broken",
    category=Category.INTEGRATION,
    severity=Severity.WARNING,
    message="plugin {plugin} cannot be loaded and is left out: {reason}",
):
    """An installed plugin could not be imported or registered."""

    plugin: str
    reason: str


class HandlerChanged(
    Event,
    name="eventcore.handler",
    category=Category.INTEGRATION,
    severity=Severity.ERROR,
    message="handler {handler} {what}: {reason}",
):
    """A handler failed for the first time in a while, was put in quarantine, came back, or had an event set aside."""

    handler: str
    what: Annotated[Literal["failed", "quarantined", "recovered", "set_aside"], Label]
    reason: str


class HealthChanged(
    Event,
    name="eventcore.health",
    category=Category.SYSTEM,
    severity=Severity.WARNING,
    message="health check {check} is {status}, was {before}: {reason}",
):
    """A health check found another status than the time before."""

    check: str
    status: Annotated[HealthWord, Label]
    before: Annotated[HealthWord, Label]
    reason: str


class InvalidResult(
    Event,
    name="eventcore.invalid_result",
    category=Category.DATA,
    severity=Severity.WARNING,
    message="{operation} was given results that do not fit: {reason}",
):
    """An operation was delivered without some results, because they do not validate."""

    operation: str
    fields: list[str]
    reason: str


class Misuse(
    Event,
    name="eventcore.misuse",
    category=Category.EXECUTION,
    severity=Severity.WARNING,
    message="{operation} {what}: {remedy}",
):
    """An operation was used against its life cycle; the first time that this happens to operations of its name."""

    operation: str
    what: Annotated[
        Literal["ended_twice", "ended_before_start", "ended_elsewhere", "never_ended", "used_after_end"], Label
    ]
    remedy: str


class LogRecord(Event, name="log.record", category=Category.EXECUTION, message="{text}"):
    """A line written through ``ec.get_logger`` or ``ec.log_request``."""

    text: str
    logger_name: str
    data: dict[str, Any] = Field(default_factory=dict)


class AdHocEvent(Event):
    """Base of the types that ``ec.emit_event`` makes, one per name."""

    text: str
    data: dict[str, Any] = Field(default_factory=dict)
    error_type: str | None = None
    error_message: str | None = None
    stack_trace: str | None = None


class AdHocOperation(Operation):
    """Base of the types that ``ec.span`` makes, one per name."""

    attributes: dict[str, Any] = Field(default_factory=dict)


EVENTS = (Started, Stopped, PluginBroken, HandlerChanged, HealthChanged, InvalidResult, Misuse, LogRecord)
"""The concrete ones, for the catalog."""
