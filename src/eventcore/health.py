"""Health checks: what they are, what they find, and the bus's own.

Liveness never depends on anything outside the process; readiness fails only for checks marked critical. How checks are
run, side by side and each within its time, is in ``health_monitor``.
"""

from __future__ import annotations

import enum
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventcore.breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from eventcore.emitter import Emitter
    from eventcore.journal import Journal

__all__ = ["HealthCheck", "HealthResult", "HealthStatus", "ModelHealthCheck", "bus_checks"]

QUEUE_WARNING = 0.8
TIMEOUT_S = 5.0
TTL_S = 1.0


class HealthStatus(enum.StrEnum):
    """Statuses in order of gravity."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class HealthResult:
    """What a check found."""

    status: HealthStatus
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


class HealthCheck:
    """A named check: give ``run``, or derive a class that defines it; plain or async.

    ``critical`` ones decide readiness. A run that takes longer than ``timeout_s`` is unhealthy; None is for what cannot
    block, and runs in the caller's thread. A result is shown again for ``ttl_s`` seconds before the check runs anew.
    Contributed by the hook ``eventcore_health_checks``, or added with ``emitter.health.add_check``.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], HealthResult | Awaitable[HealthResult]] | None = None,
        *,
        critical: bool = False,
        timeout_s: float | None = TIMEOUT_S,
        ttl_s: float = TTL_S,
    ) -> None:
        self.name = name
        self.critical = critical
        self.timeout_s = timeout_s
        self.ttl_s = ttl_s
        self._run = run

    def run(self) -> HealthResult | Awaitable[HealthResult]:
        """Return what it finds; raising is a finding too: unhealthy."""
        if self._run is None:
            raise NotImplementedError(f"{type(self).__name__} must define run(), or be given it")
        return self._run()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{', critical' if self.critical else ''}>"


class ModelHealthCheck(HealthCheck):
    """Runs one real inference and finds it healthy, slow or broken; its name is ``model_<model_name>``.

    ``probe`` does the inference and raises where its result is unusable; a mapping that it returns is shown as details,
    anything else is the model's own. Degraded and unhealthy beyond 0.5 and 1 second, as in the MoE kit.
    """

    def __init__(
        self,
        model_name: str,
        probe: Callable[[], Any],
        *,
        warning_threshold_s: float = 0.5,
        critical_threshold_s: float = 1.0,
        critical: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        super().__init__(f"model_{model_name}", critical=critical, timeout_s=timeout_s)
        self.model_name = model_name
        self.thresholds_s = (warning_threshold_s, critical_threshold_s)
        self._probe = probe

    def run(self) -> HealthResult:
        """Run the probe and judge by the time it took."""
        started = time.perf_counter()
        found = self._probe()
        seconds = time.perf_counter() - started
        details = {"model_name": self.model_name, "inference_time_seconds": round(seconds, 6)}
        if isinstance(found, Mapping):
            details |= found
        warning_s, critical_s = self.thresholds_s
        if seconds > critical_s:
            return HealthResult(HealthStatus.UNHEALTHY, f"Model inference too slow: {seconds:.3f}s", details)
        if seconds > warning_s:
            return HealthResult(HealthStatus.DEGRADED, f"Model inference degraded: {seconds:.3f}s", details)
        return HealthResult(HealthStatus.HEALTHY, f"Model inference healthy: {seconds:.3f}s", details)


def bus_checks(emitter: Emitter) -> list[HealthCheck]:
    """Return a check per handler (quarantined or nearly full is degraded), and a critical one of the journal."""
    checks = [_inside(f"handler_{a.name}", functools.partial(_check_handler, a)) for a in emitter.attachments]
    journal = emitter.durability.journal
    if journal is not None:
        checks.append(_inside("journal", functools.partial(_check_journal, journal), critical=True))
    return checks


def _inside(name: str, run: Callable[[], HealthResult], *, critical: bool = False) -> HealthCheck:
    """Return a check that looks at memory of this process only: it cannot block, and is always fresh."""
    return HealthCheck(name, run, critical=critical, timeout_s=None, ttl_s=0.0)


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
        details |= {"queue_depth": queue.size, "queue_capacity": queue.capacity}
        if queue.size >= QUEUE_WARNING * queue.capacity:
            return HealthResult(HealthStatus.DEGRADED, "queue is nearly full", details)
    if attachment.quarantine.breaker.state is not BreakerState.CLOSED:
        return HealthResult(HealthStatus.DEGRADED, "handler is in quarantine", details)
    return HealthResult(HealthStatus.HEALTHY, "handler is working", details)
