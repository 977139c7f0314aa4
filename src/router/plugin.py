"""What the router contributes to eventcore: event types and metric packs, by path, so that loading it is cheap."""

from __future__ import annotations

from eventcore.plugins import hookimpl

__all__ = ["eventcore_events", "eventcore_monitoring", "eventcore_packs"]


@hookimpl
def eventcore_events() -> list[str]:
    """Return the router's event types."""
    return ["router.events:EVENTS"]


@hookimpl
def eventcore_packs() -> dict[str, str]:
    """Return the guides' metrics, by pack."""
    return {"tiny_dancer": "router.metrics:TINY_DANCER"}


@hookimpl
def eventcore_monitoring() -> dict[str, str]:
    """Return the guides' panels and alerts, by pack."""
    return {"tiny_dancer": "router.monitoring:TINY_DANCER"}
