"""The bus's own account as series, read at each scrape from the ledger, the queues and the breakers."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from eventcore.breaker import BreakerState
from eventcore.ledger import DROP_REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client.core import Metric

    from eventcore.emitter import Emitter
    from eventcore.ledger import LedgerSnapshot
    from eventcore.timing import Times
    from eventcore_metric.series import AnyFamily

__all__ = ["BusAccount", "MetricAccount"]


_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class BusAccount:
    """What became of every envelope and operation, how full the queues are, and how long the bus takes.

    The outcomes of ``eventcore_events_total`` exclude each other: their sum is what was emitted, less what still waits
    (``eventcore_queue_size``). Operations started are those ended, abandoned and open. Series of a handler are there
    from the start; those of ``eventcore_emitted_total`` come with the first event of a type and severity, and types
    that no handler wants are not counted at all.
    """

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter

    def describe(self) -> list[Metric]:
        """Return the metrics without samples (prometheus_client's collector interface)."""
        return list(_families().values())

    def collect(self) -> list[Metric]:
        """Return the metrics with their samples."""
        families = _families()
        ledger = self._emitter.ledger()
        for labels, number in ledger.emitted_by.items():
            families["emitted"].add_metric(labels, number)
        for labels, number in self._outcomes(ledger).items():
            families["events"].add_metric(labels, number)
        for what in ("started", "ended", "abandoned"):
            families[what].add_metric((), ledger.operations.get(what, 0))
        families["open"].add_metric((), ledger.open_operations)
        for attachment in self._emitter.attachments:
            label = (attachment.name,)
            families["breaker"].add_metric(label, _STATES[attachment.quarantine.breaker.state])
            queue = attachment.queue
            if queue is not None:
                families["size"].add_metric(label, queue.depth)
                families["capacity"].add_metric(label, queue.capacity)
                _add_times(families["waits"], label, queue.waits)
                _add_times(families["batches"], label, queue.batch_times)
        _add_times(families["emits"], (), self._emitter.emit_times.read())
        return list(families.values())

    def _outcomes(self, ledger: LedgerSnapshot) -> Counter[tuple[str, str, str]]:
        totals: Counter[tuple[str, str, str]] = Counter()
        for attachment in self._emitter.attachments:
            name = attachment.name
            for outcome in ("delivered", "failed", "filtered", "sampled"):
                totals[name, outcome, ""] = 0
            for reason in DROP_REASONS:
                totals[name, "dropped", reason] = 0
        for name, row in ledger.handlers.items():
            totals[name, "delivered", ""] += row.delivered
            totals[name, "failed", ""] += row.failed
            totals[name, "filtered", ""] += row.filtered
            totals[name, "sampled", ""] += row.sampled
            for reason, number in row.dropped.items():
                totals[name, "dropped", reason] += number
        return totals


def _families() -> dict[str, Any]:
    """Return the metrics of the bus without samples, by a short name each."""
    handler = ("handler",)
    return {
        "emitted": CounterMetricFamily(
            "eventcore_emitted_total",
            "Events emitted and operations ended, of types and severities that at least one handler takes.",
            labels=("event", "category", "severity"),
        ),
        "events": CounterMetricFamily(
            "eventcore_events_total",
            "Events by handler and by what became of them; reason says why an event was dropped.",
            labels=("handler", "outcome", "reason"),
        ),
        "started": CounterMetricFamily("eventcore_operations_started_total", "Operations started."),
        "ended": CounterMetricFamily("eventcore_operations_ended_total", "Operations ended, whatever their outcome."),
        "abandoned": CounterMetricFamily(
            "eventcore_operations_abandoned_total", "Operations given up: open at shutdown, or too many open."
        ),
        "open": GaugeMetricFamily("eventcore_operations_open", "Operations started and not ended."),
        "breaker": GaugeMetricFamily(
            "eventcore_handler_breaker_state",
            "State of a handler's breaker: 0 closed, 1 half-open, 2 open (in quarantine).",
            labels=handler,
        ),
        "size": GaugeMetricFamily("eventcore_queue_size", "Events waiting or being handled.", labels=handler),
        "capacity": GaugeMetricFamily("eventcore_queue_capacity", "Events that may wait.", labels=handler),
        "waits": HistogramMetricFamily(
            "eventcore_queue_wait_seconds", "How long the first event of each batch had waited.", labels=handler
        ),
        "batches": HistogramMetricFamily(
            "eventcore_batch_duration_seconds", "How long a handler took for a batch.", labels=handler
        ),
        "emits": HistogramMetricFamily(
            "eventcore_emit_duration_seconds", "How long an emit held its caller; one of 1,024 is timed."
        ),
    }


def _add_times(family: HistogramMetricFamily, labels: Sequence[str], times: Times) -> None:
    bounds = [floatToGoString(bound) for bound in (*times.bounds_s, float("inf"))]  # type: ignore[no-untyped-call]
    family.add_metric(labels, list(zip(bounds, accumulate(times.counts), strict=True)), times.sum_s)


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
