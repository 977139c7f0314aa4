"""What the metric plugin itself has to say."""

from __future__ import annotations

import eventcore as ec

__all__ = ["SeriesOverflow"]


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
