"""The ``health`` plugin: checks of memory, disk space and external services, run on a schedule.

``[health]`` in the settings switches it on. The same checks can be added in code, with ``emitter.health.add_check``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eventcore.plugins import hookimpl

if TYPE_CHECKING:
    from eventcore.emitter import Emitter
    from eventcore.health import HealthCheck
    from eventcore_health.error_rate import ErrorRateHealthCheck as ErrorRateHealthCheck
    from eventcore_health.external import ExternalServiceHealthCheck as ExternalServiceHealthCheck
    from eventcore_health.system import DiskSpaceHealthCheck as DiskSpaceHealthCheck
    from eventcore_health.system import MemoryHealthCheck as MemoryHealthCheck

__all__ = [
    "DiskSpaceHealthCheck",
    "ErrorRateHealthCheck",
    "ExternalServiceHealthCheck",
    "MemoryHealthCheck",
    "eventcore_events",
    "eventcore_health_checks",
    "eventcore_services",
]

_HOME = {
    "DiskSpaceHealthCheck": "system",
    "ErrorRateHealthCheck": "error_rate",
    "ExternalServiceHealthCheck": "external",
    "MemoryHealthCheck": "system",
}


@hookimpl
def eventcore_events() -> list[str]:
    """Return the operation that a profiled section is."""
    return ["eventcore.profiling:Profile"]


@hookimpl
def eventcore_services() -> dict[str, str]:
    """Return the service behind the settings table ``[health]``."""
    return {"health": "eventcore_health.service:HealthService"}


@hookimpl
def eventcore_health_checks(emitter: Emitter) -> list[HealthCheck]:
    """Return the checks that ``[health]`` describes."""
    checks: list[HealthCheck] = getattr(emitter.services.get("health"), "checks", [])
    return checks


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eventcore_health' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eventcore_health.{_HOME[name]}"), name)
