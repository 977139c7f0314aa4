"""What the router contributes to eventcore: event types and metric packs, by path, so that loading it is cheap."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from eventcore.plugins import hookimpl

if TYPE_CHECKING:
    from eventcore.emitter import Emitter
    from eventcore.health import HealthCheck

__all__ = ["eventcore_events", "eventcore_health_checks", "eventcore_monitoring", "eventcore_packs"]


@hookimpl
def eventcore_events() -> list[str]:
    """Return the router's event types."""
    return ["router.events:EVENTS"]


@hookimpl
def eventcore_packs() -> dict[str, str]:
    """Return the guide's metrics, and our own, by pack."""
    return {"tiny_dancer": "router.metrics:TINY_DANCER", "router": "router.metrics:ROUTER"}


@hookimpl
def eventcore_monitoring() -> dict[str, str]:
    """Return the guides' panels and alerts, and our own, by pack."""
    return {"tiny_dancer": "router.monitoring:TINY_DANCER", "router": "router.monitoring:ROUTER"}


@hookimpl
def eventcore_health_checks(emitter: Emitter) -> list[HealthCheck]:
    """Return the check ``router`` where any router emits: its open backends and its drift."""
    in_use = sys.modules.get("router.health")
    found: list[HealthCheck] = in_use.routers_checks(emitter) if in_use is not None else []
    return found
