"""The bus's own account as series, read from the ledger at each scrape."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from eventcore.ledger import DROP_REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client.core import Metric

    from eventcore.emitter import Emitter
    from eventcore_metric.series import AnyFamily

__all__ = ["BusAccount", "MetricAccount"]


class BusAccount:
    """What became of every envelope, per handler, and how full the queues are.

    The outcomes of ``eventcore_events_total`` exclude each other: their sum is what was emitted, less what still waits
    (``eventcore_queue_size``).
    """

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter

    def describe(self) -> tuple[CounterMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        """Return the metrics without samples (prometheus_client's collector interface)."""
        return (
            CounterMetricFamily(
                "eventcore_events_total",
                "Events by handler and by what became of them; reason says why an event was dropped.",
                labels=("handler", "outcome", "reason"),
            ),
            GaugeMetricFamily("eventcore_queue_size", "Events waiting or being handled.", labels=("handler",)),
            GaugeMetricFamily("eventcore_queue_capacity", "Events that may wait.", labels=("handler",)),
        )

    def collect(self) -> Iterable[Metric]:
        """Return the metrics with their samples; every outcome of an attached handler is there from the start."""
        events, sizes, capacities = self.describe()
        totals: Counter[tuple[str, str, str]] = Counter()
        attachments = self._emitter.attachments
        for attachment in attachments:
            name = attachment.name
            for outcome in ("delivered", "failed", "filtered", "sampled"):
                totals[name, outcome, ""] = 0
            for reason in DROP_REASONS:
                totals[name, "dropped", reason] = 0
        for name, row in self._emitter.ledger().handlers.items():
            totals[name, "delivered", ""] += row.delivered
            totals[name, "failed", ""] += row.failed
            totals[name, "filtered", ""] += row.filtered
            totals[name, "sampled", ""] += row.sampled
            for reason, number in row.dropped.items():
                totals[name, "dropped", reason] += number
        for labels, number in totals.items():
            events.add_metric(labels, number)
        for attachment in attachments:
            if attachment.queue is not None:
                sizes.add_metric((attachment.name,), attachment.queue.depth)
                capacities.add_metric((attachment.name,), attachment.queue.capacity)
        return [events, sizes, capacities]


class MetricAccount:
    """What the limit of series and the check of values kept out; a metric appears when it is first concerned."""

    def __init__(self, families: Sequence[AnyFamily]) -> None:
        self._families = families

    def describe(self) -> tuple[CounterMetricFamily, CounterMetricFamily]:
        """Return the metrics without samples (prometheus_client's collector interface)."""
        return (
            CounterMetricFamily(
                "eventcore_metric_overflow_total",
                "Observations counted under label values 'other', because the metric is at its limit of series.",
                labels=("metric",),
            ),
            CounterMetricFamily(
                "eventcore_metric_rejected_total",
                "Observations left out, because their value is no number that the metric can take.",
                labels=("metric",),
            ),
        )

    def collect(self) -> Iterable[Metric]:
        """Return the metrics that have samples."""
        overflow, rejected = self.describe()
        for family in self._families:
            if family.overflowed:
                overflow.add_metric((family.name,), family.overflowed)
            if family.rejected:
                rejected.add_metric((family.name,), family.rejected)
        return [metric for metric in (overflow, rejected) if metric.samples]
