"""What the metric plugin itself has to say."""

from __future__ import annotations

from typing import Annotated, Literal

import eventcore as ec

__all__ = ["ExportChanged", "SeriesOverflow"]


class SeriesOverflow(
    ec.Event,
    name="eventcore.series_overflow",
    category=ec.Category.PERFORMANCE,
    severity=ec.Severity.WARNING,
    message="metric {metric} has reached its limit of {limit} series; further label values are counted as 'other'",
):
    """A metric has more label values than ``max_series``; emitted once per metric, by the scrape that finds it."""

    handler: str
    metric: str
    limit: int


class ExportChanged(
    ec.Event,
    name="eventcore.metric_export",
    category=ec.Category.INTEGRATION,
    severity=ec.Severity.WARNING,
    message="handler {handler}: pushing metrics {what}: {reason}",
):
    """Pushing metrics has begun to fail, or works again; emitted at the change, not for every export."""

    handler: str
    what: Annotated[Literal["failed", "recovered"], ec.Label]
    reason: str
