"""How many errors there were lately, by the bus's own account."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from eventcore.events import Severity
from eventcore.health import HealthCheck, HealthResult, HealthStatus

if TYPE_CHECKING:
    from eventcore.emitter import Emitter

__all__ = ["ErrorRateHealthCheck"]

SHOWN = 10


class ErrorRateHealthCheck(HealthCheck):
    """Degraded while there were ``max_errors`` or more in the last ``window_s`` seconds; its name is ``errors``.

    Errors are events of severity error and above. They are counted from run to run, so the window is as exact as the
    checks run often, and never shorter than said. The defaults are TinyLLM's: 10 in 300 s.
    """

    def __init__(
        self, emitter: Emitter, max_errors: int = 10, window_s: float = 300.0, *, critical: bool = False
    ) -> None:
        super().__init__("errors", critical=critical)
        self._emitter = emitter
        self._max_errors = max_errors
        self._window_s = window_s
        self._seen: deque[tuple[float, Counter[str]]] = deque([(self._now_s(), self._count())])

    def run(self) -> HealthResult:
        """Compare the account with the one at the beginning of the window."""
        now_s, count = self._now_s(), self._count()
        self._seen.append((now_s, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - self._window_s:
            self._seen.popleft()
        began_s, before = self._seen[0]
        lately = count - before
        errors = lately.total()
        details = {
            "errors": errors,
            "window_s": round(min(now_s - began_s, self._window_s), 3),
            "errors_by_event": dict(lately.most_common(SHOWN)),
        }
        if errors >= self._max_errors:
            most = ", ".join(f"{name} {number}" for name, number in lately.most_common(3))
            return HealthResult(HealthStatus.DEGRADED, f"{errors} errors lately: {most}", details)
        return HealthResult(HealthStatus.HEALTHY, f"{errors} errors lately", details)

    def _now_s(self) -> float:
        return self._emitter.monotonic_ns() / 1e9

    def _count(self) -> Counter[str]:
        count: Counter[str] = Counter()
        for (event, _, severity), number in self._emitter.ledger().emitted_by.items():
            if Severity.parse(severity) >= Severity.ERROR and event != "eventcore.health":  # its own alarm is no error
                count[event] += number
        return count
