"""The bus's own account as readings, taken at each scrape or push from the ledger, the queues and the breakers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from eventcore.breaker import BreakerState
from eventcore.ledger import DROP_REASONS
from eventcore_metric.declared import ACROSS, BUS, LIMITS
from eventcore_metric.readings import Limit, Point, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.emitter import Emitter
    from eventcore.ledger import LedgerSnapshot
    from eventcore.timing import Times
    from eventcore_metric.series import AnyFamily

__all__ = ["BusAccount", "limit_readings"]


_OUTCOMES = ("delivered", "failed", "filtered", "sampled")
_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class BusAccount:
    """What became of every envelope and operation, how full the queues are, and how long the bus takes.

    The outcomes of ``eventcore_events_total`` exclude each other: their sum is what was emitted, less what still waits
    (``eventcore_queue_size``). Operations started are those ended, abandoned and open. Series of a handler are there
    from the start; those of ``eventcore_emitted_total`` come with the first event of a type and severity, and types
    that no handler wants are not counted at all. ``limit`` bounds what their open labels can make of them: that many
    series of what was emitted, and that many handlers.
    """

    def __init__(self, emitter: Emitter, limit: int) -> None:
        self._emitter = emitter
        self.emitted = Limit("eventcore_emitted_total", limit)
        self.events = Limit("eventcore_events_total", limit, leading=1)

    def read(self) -> list[Reading]:
        """Return all of them, those without series too."""
        ledger = self._emitter.ledger()
        points: dict[str, list[Point]] = {metric.name: [] for metric in BUS}
        points["eventcore_emitted_total"] = self.emitted.points(ledger.emitted_by)
        points["eventcore_events_total"] = self.events.points(self._outcomes(ledger))
        for what in ("started", "ended", "abandoned"):
            points[f"eventcore_operations_{what}_total"] = [Point((), ledger.operations.get(what, 0))]
        points["eventcore_operations_open"] = [Point((), ledger.open_operations)]
        for attachment in self._emitter.attachments:
            label = (attachment.name,)
            state = _STATES[attachment.quarantine.breaker.state]
            points["eventcore_handler_breaker_state"].append(Point(label, state))
            queue = attachment.queue
            if queue is not None:
                points["eventcore_queue_size"].append(Point(label, queue.size))
                points["eventcore_queue_capacity"].append(Point(label, queue.capacity))
                points["eventcore_queue_wait_seconds"].append(_times(label, queue.waits))
                points["eventcore_batch_duration_seconds"].append(_times(label, queue.batch_times))
        points["eventcore_emit_duration_seconds"] = [_times((), self._emitter.emit_times.read())]
        return [Reading(metric, points[metric.name], ACROSS.get(metric.name, "sum")) for metric in BUS]

    def _outcomes(self, ledger: LedgerSnapshot) -> Counter[tuple[str, ...]]:
        totals: Counter[tuple[str, ...]] = Counter()
        for attachment in self._emitter.attachments:
            name = attachment.name
            for outcome in _OUTCOMES:
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


def _times(labels: tuple[str, ...], times: Times) -> Point:
    return Point(labels, times.sum_s, tuple(times.counts))


def limit_readings(families: Iterable[AnyFamily], limits: Iterable[Limit]) -> list[Reading]:
    """Return what the limit of series and the check of values kept out; a series appears when it is first concerned."""
    overflowed, rejected = LIMITS
    families = tuple(families)
    return [
        Reading(overflowed, [Point((one.name,), one.overflowed) for one in (*families, *limits) if one.overflowed]),
        Reading(rejected, [Point((family.name,), family.rejected) for family in families if family.rejected]),
    ]
