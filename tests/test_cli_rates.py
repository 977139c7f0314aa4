"""``eventcore debug error-rate`` and ``sampling-stats``: real figures of a running process."""

import json
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from eventcore_health import ErrorRateHealthCheck
from tests.support.handlers import Collect


class Went(ec.Event, name="trip.went", category="user"):
    pass


class Crashed(ec.Event, name="trip.crashed", category="user", severity="error"):
    pass


class Drive(ec.Operation, name="trip.drive", category="execution"):
    pass


def run(*arguments):
    """Run ``eventcore debug …``; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, ["debug", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def running(**handlers):
    """Return emitter and URL of this process, which serves."""
    emitter = ec.configure(service="trip", handlers=handlers or {"buffer": {}}, http={"port": 0})
    return emitter, emitter.services["http"].url


def meanwhile(work, monkeypatch):
    """Have ``work`` done in the middle of the command's window."""
    monkeypatch.setattr("eventcore.cli.rates._wait", lambda seconds: work())


def test_the_error_rate_is_that_of_the_window(monkeypatch):
    """Errors of the window stand beside all since the start: events of severity error, and failed operations."""
    emitter, url = running()
    emitter.emit(Crashed())

    def work():
        for _ in range(6):
            emitter.emit(Went())
        for _ in range(2):
            emitter.emit(Crashed())
        with emitter.operation(Drive) as drive:
            drive.fail(OSError("flat tyre"))
        emitter.emit(Crashed(), severity="info")  # not an error, as its emitter says

    meanwhile(work, monkeypatch)
    code, out, _ = run("error-rate", "--url", url, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["emitted"], answer["errors"], answer["error_share"]) == (10, 3, 0.3)
    assert answer["errors_per_s"] == pytest.approx(3 / answer["window_s"], rel=0.5)
    assert [(one["event"], one["severity"], one["count"]) for one in answer["errors_by_event"]] == [
        ("trip.crashed", "error", 2),
        ("trip.drive", "error", 1),
    ]
    assert answer["since_start"]["errors"] == 4
    assert answer["source"] == url


def test_a_share_may_be_a_bad_answer(monkeypatch):
    """``--fail-above`` ends it with 1 when more events of the window are errors."""
    emitter, url = running()
    meanwhile(lambda: [emitter.emit(Crashed()), emitter.emit(Went())], monkeypatch)
    assert run("error-rate", "--url", url, "--fail-above", 0.4)[0] == 1
    assert run("error-rate", "--url", url, "--fail-above", 0.5)[0] == 0
    meanwhile(lambda: None, monkeypatch)
    code, out, _ = run("error-rate", "--url", url, "--fail-above", 0)
    assert code == 0
    assert "trip.crashed" in out


@pytest.mark.slow
def test_it_watches_for_as_long_as_it_is_told():
    """Events that are emitted while it watches are counted, and no others."""
    emitter, url = running()
    over = threading.Event()
    numbers = []

    def emit():
        while not over.wait(0.005):
            emitter.emit(Crashed())
            numbers.append(1)

    thread = threading.Thread(target=emit)
    thread.start()
    answer = json.loads(run("error-rate", "--url", url, "--window", 1, "--json")[1])
    over.set()
    thread.join()
    assert answer["window_s"] >= 1.0
    assert 0 < answer["errors"] <= len(numbers)


def test_another_process_is_noticed(monkeypatch):
    """Where the process was restarted meanwhile, its figures are not taken for a difference."""
    _, url = running()
    port = int(url.rpartition(":")[2])

    def restart():
        ec.shutdown()
        ec.configure(service="another", handlers={"buffer": {}}, http={"port": port})

    meanwhile(restart, monkeypatch)
    code, _, err = run("error-rate", "--url", url)
    assert code == 1
    assert "another process answers" in err


@pytest.mark.parametrize("command", ["error-rate", "sampling-stats"])
def test_only_a_running_process_has_counts(command):
    """Without ``--url`` there is nothing to say, and that is one error."""
    code, out, err = run(command)
    assert (code, out) == (2, "")
    assert "give --url" in err


def test_sampling_stats_are_what_was_left_out():
    """Per handler: what is configured, what was offered, taken and left out."""
    emitter, url = running(
        all=Collect(delivery="inline", events=["trip.*"]),
        half=Collect(delivery="inline", events=["trip.*"], sampling=0.5),
        few=Collect(delivery="inline", events=["trip.*"], max_per_second=5),
        span={"exporter": "memory", "sampling_ratio": 0.25},
    )
    for _ in range(400):
        emitter.emit(Went())
    code, out, _ = run("sampling-stats", "--url", url, "--json")
    rows = {row["name"]: row for row in json.loads(out)["handlers"]}
    assert code == 0
    assert (rows["all"]["offered"], rows["all"]["sampled_out"], rows["all"]["taken_share"]) == (400, 0, 1.0)
    assert rows["half"]["taken"] == len(emitter.handler("half").got)
    assert 120 < rows["half"]["taken"] < 280
    assert rows["half"]["taken"] + rows["half"]["sampled_out"] == 400
    assert rows["few"]["taken"] == len(emitter.handler("few").got) < 400
    assert (rows["span"]["sampling_ratio"], rows["span"]["taken_share"]) == (0.25, None)
    text = " ".join(run("sampling-stats", "--url", url)[1].split())
    assert "0.5 by random" in text
    assert "0.25 of traces" in text


def test_the_commands_exist():
    """``debug`` has the guide's commands, and the two that its source has beside them."""
    text = subprocess.run(
        [sys.executable, "-m", "eventcore", "debug", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("inspect", "emit-event", "test-trace", "error-rate", "sampling-stats"):
        assert command in text.stdout


# -- the health check --------------------------------------------------------------------------------------------------


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now_s = 1000.0

    def time_ns(self):
        return int(self.now_s * 1e9)

    monotonic_ns = time_ns


def test_many_errors_lately_are_degraded():
    """Ten errors within the window are degraded, by name and number; when they are older, all is well again."""
    clock = Clock()
    with ec.Emitter(clock=clock) as emitter:
        emitter.add_handler(Collect(delivery="inline"))
        check = ErrorRateHealthCheck(emitter, max_errors=10, window_s=300)
        for _ in range(9):
            emitter.emit(Crashed())
        clock.now_s += 100
        assert check.run().status is ec.HealthStatus.HEALTHY
        emitter.emit(Crashed())
        emitter.emit(Went())
        found = check.run()
        assert (found.status, found.message) == (ec.HealthStatus.DEGRADED, "10 errors lately: trip.crashed 10")
        assert found.details == {"errors": 10, "window_s": 100.0, "errors_by_event": {"trip.crashed": 10}}
        clock.now_s += 301
        assert check.run().details["errors"] == 0
        clock.now_s += 301
        found = check.run()
        assert (found.status, found.details["window_s"]) == (ec.HealthStatus.HEALTHY, 300.0)


def test_the_check_is_switched_on_by_its_table():
    """``[health.errors]`` switches it on, with TinyLLM's numbers; its own alarm is no error that it counts."""
    emitter = ec.configure(handlers={"buffer": {}}, health={"interval_s": 0, "errors": {"max_errors": 2}})
    for _ in range(2):
        emitter.emit(Crashed())
    for _ in range(3):
        found = emitter.health.report()["checks"]["errors"]
    assert (found["status"], found["details"]["errors"]) == ("degraded", 2)
    assert (ErrorRateHealthCheck(emitter)._max_errors, ErrorRateHealthCheck(emitter)._window_s) == (10, 300.0)
