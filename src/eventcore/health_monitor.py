"""Runs health checks: side by side, each within its time, and no more often than it asks for.

A check runs in a thread of its own, so one that hangs costs the others nothing. A report waits for it until its time is
over, calls it unhealthy, and goes on; while it hangs no second run of it is begun, so a check that never returns holds
one thread, however often somebody asks. Several who ask at once share one run.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from eventcore.errors import ConfigurationError
from eventcore.health import TIMEOUT_S, HealthCheck, HealthResult, HealthStatus, bus_checks
from eventcore.redaction import scrub, scrub_mapping
from eventcore.vocabulary import HealthChanged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.emitter import Emitter
    from eventcore.plugins import Plugins

__all__ = ["HealthMonitor", "run_checks"]

_GRAVITY = {status: place for place, status in enumerate(HealthStatus)}


class _Run:
    """One run of one check; ``result`` is there when ``done`` is set."""

    def __init__(self, check: HealthCheck) -> None:
        self.check = check
        self.started = time.monotonic()
        self.duration_s = 0.0
        self.done = threading.Event()
        self.result: HealthResult | None = None

    def run(self) -> None:
        """Run the check, whatever it does; one that fails is a finding, not an error of the report."""
        try:
            found = self.check.run()
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
            if not isinstance(found, HealthResult):
                raise TypeError("a health check returns an ec.HealthResult")  # noqa: TRY301 - a finding like others
        except BaseException as error:  # noqa: BLE001 - even SystemExit: in a thread it would be lost
            found = HealthResult(HealthStatus.UNHEALTHY, f"check failed: {type(error).__name__}")
        self.duration_s = time.monotonic() - self.started
        self.result = found
        self.done.set()

    @property
    def is_fresh(self) -> bool:
        """Whether it is under way, or its result may still be shown."""
        return not self.done.is_set() or time.monotonic() < self.started + self.duration_s + self.check.ttl_s

    def wait(self) -> HealthResult:
        """Return the result; unhealthy when the check's time is over before there is one."""
        limit_s = TIMEOUT_S if self.check.timeout_s is None else self.check.timeout_s
        self.done.wait(max(0.0, self.started + limit_s - time.monotonic()))
        return self.result or HealthResult(
            HealthStatus.UNHEALTHY,
            f"check timed out after {limit_s:g} s and is still running",
            {"running_s": round(time.monotonic() - self.started, 3)},
        )

    def as_reported(self, result: HealthResult) -> dict[str, Any]:
        """Return what the report says of it."""
        now = time.monotonic()
        duration_s = self.duration_s if self.result is result else now - self.started
        return {
            "status": result.status.value,
            "message": scrub(result.message),
            "duration_ms": round(duration_s * 1000, 3),
            "details": scrub_mapping(dict(result.details)),
            "critical": self.check.critical,
            "age_s": round(max(0.0, now - self.started - duration_s), 3),
        }


async def _awaited(found: Any) -> Any:
    return await found


class HealthMonitor:
    """The health of one emitter: the bus's own checks, those of plugins, and those that were added."""

    def __init__(self, emitter: Emitter | None = None) -> None:
        self._emitter = weakref.ref(emitter) if emitter is not None else None
        self._added: dict[str, HealthCheck] = {}
        self._runs: dict[str, _Run] = {}
        self._statuses: dict[str, HealthStatus] = {}
        self._lock = threading.Lock()

    def add_check(self, check: HealthCheck) -> HealthCheck:
        """Add a check; it is part of every report from now on. ConfigurationError: its name is taken."""
        if not isinstance(check, HealthCheck):
            raise TypeError(f"add_check takes an ec.HealthCheck, not {check!r}")
        with self._lock:
            if check.name in self._added:
                raise ConfigurationError(f"a health check named {check.name!r} was added already; remove it first")
            self._added[check.name] = check
        return check

    def remove_check(self, name: str) -> None:
        """Remove a check that was added; KeyError names those there are."""
        with self._lock:
            if name not in self._added:
                raise KeyError(f"no health check {name!r} was added; there are: {', '.join(self._added) or 'none'}")
            del self._added[name]
            self._runs.pop(name, None)
            self._statuses.pop(name, None)

    def checks(self, plugins: Plugins | None = None) -> list[HealthCheck]:
        """Return all checks; ``plugins`` are asked for theirs instead of the emitter's own."""
        emitter = self._emitter() if self._emitter is not None else None
        if emitter is None:
            return list(self._added.values())
        asked = plugins or emitter.plugins
        return [*bus_checks(emitter), *(asked.health_checks(emitter) if asked else ()), *self._added.values()]

    def report(self, plugins: Plugins | None = None, *, only_critical: bool = False) -> dict[str, Any]:
        """Run the checks and return the report, fit for JSON: overall status, summary, and each check's result.

        Keys: ``status``, ``ready`` (False when a critical check is unhealthy), ``timestamp`` (Unix seconds),
        ``summary`` (``total_checks`` and the number of each status), ``total_latency_ms``, ``checks`` by name:
        ``status``, ``message``, ``duration_ms``, ``details``, ``critical``, ``age_s`` (of a result shown again).
        A changed status is emitted as ``eventcore.health``.
        """
        return self.run([check for check in self.checks(plugins) if check.critical or not only_critical])

    async def get_overall_health(self) -> dict[str, Any]:
        """Return the report without blocking the event loop."""
        return await asyncio.to_thread(self.report)

    def run(self, checks: Iterable[HealthCheck]) -> dict[str, Any]:
        """Run these checks and return their report."""
        asked = time.time()
        began = time.monotonic()
        named = _named(checks)
        runs = {name: self._begin(name, check) for name, check in named.items()}
        results = {name: run.wait() for name, run in runs.items()}
        for name, result in results.items():
            self._note(name, result)
        worst = max(
            (result.status for result in results.values()), key=_GRAVITY.__getitem__, default=HealthStatus.HEALTHY
        )
        statuses = [result.status for result in results.values()]
        return {
            "status": worst.value,
            "ready": not any(named[n].critical and r.status is HealthStatus.UNHEALTHY for n, r in results.items()),
            "timestamp": asked,
            "summary": {"total_checks": len(results), **{s.value: statuses.count(s) for s in HealthStatus}},
            "total_latency_ms": round((time.monotonic() - began) * 1000, 3),
            "checks": {name: runs[name].as_reported(result) for name, result in results.items()},
        }

    def _begin(self, name: str, check: HealthCheck) -> _Run:
        with self._lock:
            known = self._runs.get(name)
            if known is not None and known.is_fresh:
                return known
            run = self._runs[name] = _Run(check)
        if check.timeout_s is None:
            run.run()
        else:
            try:
                threading.Thread(target=run.run, name=f"eventcore-health-{name}", daemon=True).start()
            except RuntimeError:  # the system has no thread left: that is worth knowing too
                run.result = HealthResult(HealthStatus.UNKNOWN, "no thread could be started to run the check")
                run.done.set()
        return run

    def _note(self, name: str, result: HealthResult) -> None:
        """Tell handlers of a status that is not what it was; a check is taken to be healthy before its first run."""
        with self._lock:
            before = self._statuses.get(name, HealthStatus.HEALTHY)
            self._statuses[name] = result.status
        emitter = self._emitter() if self._emitter is not None else None
        if before is result.status or emitter is None:
            return
        emitter.emit(
            HealthChanged(check=name, status=result.status.value, before=before.value, reason=scrub(result.message)),
            severity=_SEVERITIES[result.status],
        )

    def after_fork(self) -> None:
        """Start anew in a forked child: the threads of runs under way are the parent's."""
        self._lock = threading.Lock()
        self._runs = {}

    def __repr__(self) -> str:
        return (
            f"<HealthMonitor: {', '.join(f'{name} {status}' for name, status in self._statuses.items()) or 'no runs'}>"
        )


_SEVERITIES = {
    HealthStatus.HEALTHY: "info",
    HealthStatus.UNKNOWN: "warning",
    HealthStatus.DEGRADED: "warning",
    HealthStatus.UNHEALTHY: "error",
}


def _named(checks: Iterable[HealthCheck]) -> dict[str, HealthCheck]:
    """Return checks by name; of several that share one, the later ones get a number."""
    named: dict[str, HealthCheck] = {}
    for check in checks:
        name, number = check.name, 2
        while name in named:
            name, number = f"{check.name}_{number}", number + 1
        named[name] = check
    return named


def run_checks(checks: Iterable[HealthCheck]) -> dict[str, Any]:
    """Run checks for themselves, afresh, and return their report (see ``HealthMonitor.report``)."""
    return HealthMonitor().run(checks)
