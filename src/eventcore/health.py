"""Health checks: what they return, and the bus's own.

Liveness never depends on anything outside the process; readiness fails only for checks marked critical.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventcore.breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from eventcore.emitter import Emitter
    from eventcore.journal import Journal

__all__ = ["HealthCheck", "HealthResult", "HealthStatus", "bus_checks", "run_checks"]

QUEUE_WARNING = 0.8


class HealthStatus(enum.StrEnum):
    """Statuses in order of gravity."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


_GRAVITY = {status: place for place, status in enumerate(HealthStatus)}


@dataclass(frozen=True, slots=True)
class HealthResult:
    """What a check found."""

    status: HealthStatus
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A named check; ``critical`` ones decide readiness. Contributed by the hook ``eventcore_health_checks``."""

    name: str
    run: Callable[[], HealthResult]
    critical: bool = False


def bus_checks(emitter: Emitter) -> list[HealthCheck]:
    """Return a check per handler (quarantined or nearly full is degraded), and a critical one of the journal."""
    checks = [HealthCheck(f"handler_{a.name}", lambda a=a: _check_handler(a)) for a in emitter.attachments]  # type: ignore[misc]
    journal = emitter.durability.journal
    if journal is not None:
        checks.append(HealthCheck("journal", lambda: _check_journal(journal), critical=True))
    return checks


def _check_journal(journal: Journal) -> HealthResult:
    details = {"rows": journal.rows, "bytes": journal.bytes}
    if journal.problem is not None:  # its text, which names paths, is in the log
        return HealthResult(HealthStatus.UNHEALTHY, "journal cannot be written", details)
    if journal.fill >= QUEUE_WARNING:
        return HealthResult(HealthStatus.DEGRADED, "journal is nearly full", details)
    return HealthResult(HealthStatus.HEALTHY, "journal is working", details)


def _check_handler(attachment: Any) -> HealthResult:
    details: dict[str, Any] = {"breaker": attachment.quarantine.breaker.state.value}
    queue = attachment.queue
    if queue is not None:
        details |= {"queue_depth": queue.depth, "queue_capacity": queue.capacity}
        if queue.depth >= QUEUE_WARNING * queue.capacity:
            return HealthResult(HealthStatus.DEGRADED, "queue is nearly full", details)
    if attachment.quarantine.breaker.state is not BreakerState.CLOSED:
        return HealthResult(HealthStatus.DEGRADED, "handler is in quarantine", details)
    return HealthResult(HealthStatus.HEALTHY, "handler is working", details)


def run_checks(checks: Iterable[HealthCheck]) -> dict[str, Any]:
    """Run the checks and return the report: overall status, summary, and each check's result.

    A check that raises is unhealthy. ``ready`` is False when a critical check is unhealthy.
    """
    results: dict[str, dict[str, Any]] = {}
    worst = HealthStatus.HEALTHY
    ready = True
    for check in checks:
        started = time.perf_counter()
        try:
            result = check.run()
        except Exception as error:  # noqa: BLE001 - a check that fails is a finding, not an error of the report
            result = HealthResult(HealthStatus.UNHEALTHY, f"check failed: {type(error).__name__}")
        results[check.name] = {
            "status": result.status.value,
            "message": result.message,
            "duration_ms": round((time.perf_counter() - started) * 1000, 3),
            "details": dict(result.details),
        }
        worst = max(worst, result.status, key=_GRAVITY.__getitem__)
        ready = ready and not (check.critical and result.status is HealthStatus.UNHEALTHY)
    statuses = [result["status"] for result in results.values()]
    summary = {"total_checks": len(results), **{s.value: statuses.count(s.value) for s in HealthStatus}}
    return {"status": worst.value, "ready": ready, "timestamp": time.time(), "summary": summary, "checks": results}
