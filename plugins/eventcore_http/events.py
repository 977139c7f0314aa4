"""What the http plugin itself has to say."""

from __future__ import annotations

import eventcore as ec

__all__ = ["RouteFailed"]


class RouteFailed(
    ec.Event,
    name="eventcore.route_failed",
    category=ec.Category.INTEGRATION,
    severity=ec.Severity.ERROR,
    message="HTTP route {path} failed: {reason}",
):
    """A route raised; the client was told no more than that."""

    path: str
    reason: str
