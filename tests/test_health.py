import json

import pytest

import eventcore as ec
from eventcore.health import bus_checks
from eventcore.health_monitor import run_checks
from tests.support.handlers import Collect, Held

HEALTHY, DEGRADED, UNHEALTHY = ec.HealthStatus.HEALTHY, ec.HealthStatus.DEGRADED, ec.HealthStatus.UNHEALTHY


class Said(ec.Event, name="said", category="data"):
    pass


@pytest.fixture
def emitter():
    """Return an emitter of the test's own."""
    with ec.Emitter() as emitter:
        yield emitter


def check(name, status, *, critical=False):
    """Return a check that finds this status."""
    return ec.HealthCheck(name, lambda: ec.HealthResult(status, f"{name} is {status}", {"n": 1}), critical=critical)


def test_a_report_holds_each_checks_result():
    """The report holds status, message, details and duration of each check, and is plain JSON."""
    report = run_checks([check("db", HEALTHY)])
    result = report["checks"]["db"]
    assert (result["status"], result["message"], result["details"]) == ("healthy", "db is healthy", {"n": 1})
    assert result["duration_ms"] >= 0
    assert report["summary"] == {"total_checks": 1, "healthy": 1, "unknown": 0, "degraded": 0, "unhealthy": 0}
    json.dumps(report)


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ([], "healthy"),
        (["healthy", "healthy"], "healthy"),
        (["healthy", "unknown"], "unknown"),
        (["degraded", "unknown"], "degraded"),
        (["degraded", "unhealthy", "healthy"], "unhealthy"),
    ],
)
def test_the_worst_status_is_the_whole(statuses, worst):
    """The report's status is the gravest of all checks: healthy, unknown, degraded, unhealthy."""
    report = run_checks([check(f"c{n}", ec.HealthStatus(status)) for n, status in enumerate(statuses)])
    assert report["status"] == worst


@pytest.mark.parametrize(
    ("status", "critical", "ready"),
    [(UNHEALTHY, True, False), (UNHEALTHY, False, True), (DEGRADED, True, True), (HEALTHY, True, True)],
)
def test_readiness_fails_only_for_critical_checks(status, critical, ready):
    """Readiness fails only for checks marked critical that are unhealthy."""
    assert run_checks([check("a", HEALTHY), check("db", status, critical=critical)])["ready"] is ready


def test_a_check_that_raises_is_unhealthy():
    """A check that raises is a finding, not an error of the report; its message does not leak what it raised with."""

    def fails():
        raise OSError("password=hunter2")

    report = run_checks([ec.HealthCheck("db", fails, critical=True), check("cache", HEALTHY)])
    assert report["checks"]["db"]["status"] == "unhealthy"
    assert "OSError" in report["checks"]["db"]["message"]
    assert "hunter2" not in str(report)
    assert report["ready"] is False
    assert report["checks"]["cache"]["status"] == "healthy"


def test_every_handler_has_a_check(emitter):
    """The bus has a check per handler: a working one is healthy, with depth and capacity of its queue."""
    emitter.add_handler(Collect(queue_size=50), name="queued")
    emitter.add_handler(Collect(delivery="inline"), name="inline")
    report = run_checks(bus_checks(emitter))
    assert list(report["checks"]) == ["handler_queued", "handler_inline"]
    assert report["status"] == "healthy"
    assert report["checks"]["handler_queued"]["details"] == {
        "breaker": "closed",
        "queue_depth": 0,
        "queue_capacity": 50,
    }


def test_a_nearly_full_queue_is_degraded(emitter):
    """A handler whose queue is nearly full is degraded, and healthy again once it has worked it off."""
    handler = emitter.add_handler(Held(queue_size=10, linger_s=0, batch_size=1))
    emitter.emit(Said())
    assert handler.entered.wait(10)
    for _ in range(6):
        emitter.emit(Said())
    assert run_checks(bus_checks(emitter))["status"] == "healthy"
    emitter.emit(Said())
    report = run_checks(bus_checks(emitter))
    assert report["status"] == "degraded"
    assert "full" in report["checks"]["handler_held"]["message"]
    handler.release.set()
    assert emitter.flush()
    assert run_checks(bus_checks(emitter))["status"] == "healthy"


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_handler_in_quarantine_is_degraded(emitter, delivery):
    """A handler in quarantine is degraded; the bus stays ready, for the others work on."""

    def fails(envelope):
        raise OSError("refused")

    emitter.add_handler(Collect(act=fails, delivery=delivery, linger_s=0), name="ill")
    for _ in range(10):
        emitter.emit(Said())
        assert emitter.flush()
    report = run_checks(bus_checks(emitter))
    assert report["status"] == "degraded"
    assert "quarantine" in report["checks"]["handler_ill"]["message"]
    assert report["checks"]["handler_ill"]["details"]["breaker"] == "open"
    assert report["ready"] is True
