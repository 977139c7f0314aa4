import asyncio
import json
import os
import sys
import threading
import time

import pytest

import eventcore as ec
from eventcore.health_monitor import HealthMonitor
from tests.support.handlers import Collect

HEALTHY, DEGRADED, UNHEALTHY = ec.HealthStatus.HEALTHY, ec.HealthStatus.DEGRADED, ec.HealthStatus.UNHEALTHY


@pytest.fixture
def emitter():
    """Return an emitter of the test's own."""
    with ec.Emitter() as emitter:
        yield emitter


@pytest.fixture
def release():
    """Return an event that checks may hang on; it is set at the end, so that their threads end."""
    event = threading.Event()
    yield event
    event.set()


def finding(status, message="so it is"):
    """Return a function that finds this."""
    return lambda: ec.HealthResult(status, message)


def test_checks_may_be_added_and_removed_in_code(emitter):
    """A check added in code is part of every report until it is removed; a taken name or no check is an error."""
    check = emitter.health.add_check(ec.HealthCheck("stock", finding(DEGRADED, "running low")))
    assert emitter.health.report()["checks"]["stock"]["message"] == "running low"
    with pytest.raises(ec.ConfigurationError, match="'stock' was added already"):
        emitter.health.add_check(ec.HealthCheck("stock", finding(HEALTHY)))
    with pytest.raises(TypeError, match=r"takes an ec\.HealthCheck"):
        emitter.health.add_check(check.run)
    emitter.health.remove_check("stock")
    assert emitter.health.report()["checks"] == {}
    with pytest.raises(KeyError, match="there are: none"):
        emitter.health.remove_check("stock")


def test_a_check_may_be_a_class_with_an_async_run(emitter):
    """A derived class may define ``run`` as a coroutine; one that defines none is unhealthy, and says so."""

    class Balance(ec.HealthCheck):
        async def run(self):
            await asyncio.sleep(0)
            return ec.HealthResult(DEGRADED, "Expert load imbalance: 0.41", {"balance_score": 0.41})

    emitter.health.add_check(Balance("expert_balance"))
    emitter.health.add_check(ec.HealthCheck("nothing"))
    checks = asyncio.run(emitter.health.get_overall_health())["checks"]
    assert checks["expert_balance"]["details"] == {"balance_score": 0.41}
    assert checks["nothing"]["message"] == "check failed: NotImplementedError"


def test_a_check_that_hangs_is_unhealthy_and_costs_one_thread(emitter, release):
    """A hanging check is unhealthy after its own time, others are as ever, and asking again begins no second run."""
    begun = []

    def hang():
        begun.append(threading.get_ident())
        release.wait()
        return ec.HealthResult(HEALTHY, "at last")

    emitter.health.add_check(ec.HealthCheck("stuck", hang, timeout_s=0.05, critical=True))
    emitter.health.add_check(ec.HealthCheck("fine", finding(HEALTHY)))
    for _ in range(3):
        report = emitter.health.report()
        assert (report["status"], report["ready"]) == ("unhealthy", False)
        assert report["checks"]["stuck"]["message"] == "check timed out after 0.05 s and is still running"
        assert report["checks"]["stuck"]["duration_ms"] >= 50
        assert report["checks"]["fine"]["status"] == "healthy"
    assert len(begun) == 1


def test_checks_run_side_by_side(emitter):
    """Checks run at the same time: two that wait for each other both come back."""
    meet = threading.Barrier(2, timeout=10)

    def meeting():
        meet.wait()
        return ec.HealthResult(HEALTHY, "met")

    for name in ("left", "right"):
        emitter.health.add_check(ec.HealthCheck(name, meeting))
    assert emitter.health.report()["status"] == "healthy"


def test_a_result_is_shown_again_for_a_while(emitter):
    """Within ``ttl_s`` the result is shown again, with its age; after it, the check runs anew."""
    runs = []

    def count():
        runs.append(1)
        return ec.HealthResult(HEALTHY, f"run {len(runs)}")

    emitter.health.add_check(ec.HealthCheck("kept", count, ttl_s=1000))
    first, again = (emitter.health.report()["checks"]["kept"] for _ in range(2))
    assert (first["message"], again["message"], len(runs)) == ("run 1", "run 1", 1)
    assert again["age_s"] >= first["age_s"] >= 0
    emitter.health.remove_check("kept")
    emitter.health.add_check(ec.HealthCheck("kept", count, ttl_s=0))
    assert [emitter.health.report()["checks"]["kept"]["message"] for _ in range(2)] == ["run 2", "run 3"]


def test_many_who_ask_at_once_share_one_run(emitter, release):
    """Reports asked for at the same time wait for the same run."""
    entered = threading.Semaphore(0)
    runs = []

    def slow():
        runs.append(1)
        entered.release()
        release.wait()
        return ec.HealthResult(HEALTHY, "done")

    emitter.health.add_check(ec.HealthCheck("slow", slow, timeout_s=20))
    found = []
    asking = [threading.Thread(target=lambda: found.append(emitter.health.report()["status"])) for _ in range(5)]
    for thread in asking:
        thread.start()
    assert entered.acquire(timeout=10)
    time.sleep(0.05)
    release.set()
    for thread in asking:
        thread.join(20)
    assert (found, runs) == (["healthy"] * 5, [1])


def test_a_changed_status_is_an_event(emitter):
    """What changes is emitted once, with its severity; a check that is healthy from the start is no news."""
    handler = emitter.add_handler(Collect(events=["eventcore.health"], delivery="inline"))
    statuses = [HEALTHY, DEGRADED, DEGRADED, UNHEALTHY, HEALTHY]
    emitter.health.add_check(ec.HealthCheck("db", lambda: ec.HealthResult(statuses.pop(0), "it is"), ttl_s=0))
    while statuses:
        emitter.health.report()
    assert [(e.payload["before"], e.payload["status"], e.severity.name) for e in handler.got] == [
        ("healthy", "degraded", "WARNING"),
        ("degraded", "unhealthy", "ERROR"),
        ("unhealthy", "healthy", "INFO"),
    ]
    assert handler.got[0].message == "health check db is degraded, was healthy: it is"


def test_the_report_has_the_guides_fields(emitter):
    """The report has every field of the MoE guide and of TinyLLM's command, as plain JSON."""
    emitter.health.add_check(ec.HealthCheck("a", finding(HEALTHY), critical=True))
    report = json.loads(json.dumps(emitter.health.report()))
    assert report.keys() == {"status", "ready", "timestamp", "summary", "total_latency_ms", "checks"}
    assert report["summary"].keys() == {"total_checks", "healthy", "degraded", "unhealthy", "unknown"}
    assert report["checks"]["a"].keys() == {"status", "message", "duration_ms", "details", "critical", "age_s"}
    assert abs(report["timestamp"] - time.time()) < 60


def test_secrets_are_not_shown(emitter):
    """What a check says is searched for secrets before it is shown or emitted."""
    handler = emitter.add_handler(Collect(events=["eventcore.health"], delivery="inline"))
    said = ec.HealthResult(DEGRADED, "Authorization: Bearer abcdefghijklmnop123456", {"password": "hunter2"})
    emitter.health.add_check(ec.HealthCheck("db", lambda: said))
    assert "hunter2" not in str(report := emitter.health.report())
    assert "abcdefghijklmnop" not in str(report)
    assert "abcdefghijklmnop" not in handler.got[0].message


@pytest.mark.parametrize("wrong", [None, True, {"status": "healthy"}])
def test_what_is_no_result_is_unhealthy(emitter, wrong):
    """A check that returns something else is unhealthy, not a report that fails."""
    emitter.health.add_check(ec.HealthCheck("odd", lambda: wrong))
    assert emitter.health.report()["checks"]["odd"]["message"] == "check failed: TypeError"


def test_even_one_that_exits_is_a_finding(emitter):
    """SystemExit and the like end neither the report nor the process."""
    emitter.health.add_check(ec.HealthCheck("exits", lambda: sys.exit(3)))
    assert emitter.health.report()["checks"]["exits"]["message"] == "check failed: SystemExit"


def test_checks_of_one_name_are_all_shown():
    """Where two plugins name their checks alike, both are shown."""
    report = HealthMonitor().run([ec.HealthCheck("db", finding(HEALTHY)), ec.HealthCheck("db", finding(DEGRADED))])
    assert {name: check["status"] for name, check in report["checks"].items()} == {"db": "healthy", "db_2": "degraded"}


def test_a_plugin_that_cannot_name_its_checks_is_a_finding():
    """A plugin whose hook raises is an unhealthy check of its own; the others' checks are there."""

    class Broken:
        @ec.hookimpl
        def eventcore_health_checks(self, emitter):
            raise RuntimeError("no")

    class Fine:
        @ec.hookimpl
        def eventcore_health_checks(self):
            return [ec.HealthCheck("fine", finding(HEALTHY))]

    emitter = ec.configure(plugins=[Broken(), Fine()], handlers={"buffer": {}})
    checks = emitter.health.report()["checks"]
    (broken,) = [check for name, check in checks.items() if name.startswith("plugin_")]
    assert (broken["status"], checks["fine"]["status"]) == ("unhealthy", "healthy")
    assert "RuntimeError('no')" in broken["message"]


def test_a_forked_child_runs_its_checks_itself(emitter, release):
    """A run under way in the parent is not waited for in a child, which has none of its threads."""
    parent = os.getpid()

    def hang_in_parent():
        if os.getpid() == parent:
            release.wait()
        return ec.HealthResult(HEALTHY, "child")

    emitter.health.add_check(ec.HealthCheck("stuck", hang_in_parent, timeout_s=0.05))
    assert emitter.health.report()["status"] == "unhealthy"
    child = os.fork()
    if child == 0:
        os._exit(0 if emitter.health.report()["status"] == "healthy" else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("took_s", "status", "words"),
    [(0.0, "healthy", "healthy"), (0.02, "degraded", "degraded"), (0.06, "unhealthy", "too slow")],
)
def test_a_models_health_is_the_time_of_a_real_inference(emitter, took_s, status, words):
    """The model check runs the probe, and judges by the time that it took."""

    def infer():
        time.sleep(took_s)
        return {"test_input_shape": [1, 5]}

    # Both limits are far from what the probe takes on the side that could fail on a slow machine.
    limits = {0.0: (5, 10), 0.02: (0.01, 10), 0.06: (0.01, 0.05)}[took_s]
    check = ec.ModelHealthCheck("mine", infer, warning_threshold_s=limits[0], critical_threshold_s=limits[1])
    emitter.health.add_check(check)
    found = emitter.health.report()["checks"]["model_mine"]
    assert (found["status"], found["details"]["test_input_shape"]) == (status, [1, 5])
    assert words in found["message"]
    assert found["details"]["inference_time_seconds"] >= took_s


@pytest.mark.parametrize("result", [None, [0.25, 0.75], "positive"])
def test_a_probe_may_be_the_inference_itself(emitter, result):
    """What the probe returns, a model's own output for example, is neither shown nor a mistake."""
    emitter.health.add_check(ec.ModelHealthCheck("mine", lambda: result))
    found = emitter.health.report()["checks"]["model_mine"]
    assert (found["status"], found["details"].keys()) == ("healthy", {"model_name", "inference_time_seconds"})
