import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from eventcore_health import DiskSpaceHealthCheck, ExternalServiceHealthCheck, MemoryHealthCheck
from tests.support.handlers import Collect

HEALTHY, DEGRADED, UNHEALTHY = ec.HealthStatus.HEALTHY, ec.HealthStatus.DEGRADED, ec.HealthStatus.UNHEALTHY


@contextmanager
def service(status=200, *, delay_s=0.0, seen=None):
    """Run a service that answers like this; yield its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            if seen is not None:
                seen.append((self.path, self.headers.get("Authorization")))
            time.sleep(delay_s)
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/health"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configured(**health):
    """Return the emitter of these settings."""
    return ec.configure(handlers={"seen": Collect(events=["eventcore.health"], delivery="inline")}, health=health)


# -- memory and disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [MemoryHealthCheck, DiskSpaceHealthCheck])
@pytest.mark.parametrize(
    ("thresholds", "status"),
    [((1.0, 1.0), HEALTHY), ((1e-9, 1.0), DEGRADED), ((1e-9, 1e-9), UNHEALTHY)],
)
def test_shares_are_judged_by_two_thresholds(check, thresholds, status):
    """What this machine really uses is healthy, degraded or unhealthy by the thresholds; details say the figures."""
    found = check(warning_threshold=thresholds[0], critical_threshold=thresholds[1]).run()
    assert found.status is status
    assert 0 < found.details["usage_percent"] < 1
    assert found.details["used_bytes"] < found.details["total_bytes"]
    assert f"{found.details['usage_percent']:.1%}"[:2] in found.message


def test_the_guides_thresholds_are_the_defaults():
    """Without thresholds, 80 % is degraded and 95 % unhealthy, as in the MoE guide."""
    assert MemoryHealthCheck().thresholds == DiskSpaceHealthCheck().thresholds == (0.8, 0.95)


@pytest.mark.parametrize("thresholds", [(0.9, 0.8), (0, 0.5), (0.5, 1.5)])
def test_thresholds_that_make_no_sense_are_refused(thresholds):
    """Thresholds are shares in order."""
    with pytest.raises(ValueError, match="0 < warning_threshold <= critical_threshold <= 1"):
        MemoryHealthCheck(*thresholds)


def test_disk_space_agrees_with_df():
    """The share in use is the one that ``df`` shows."""
    line = subprocess.run(["df", "--output=pcent", "/"], capture_output=True, text=True, check=True).stdout.split()[1]
    share = DiskSpaceHealthCheck("/").run().details["usage_percent"]
    assert abs(share * 100 - int(line.rstrip("%"))) <= 1.01


def test_a_path_that_is_not_there_is_unhealthy(tmp_path):
    """A path that cannot be read is unhealthy, and the message says which and why."""
    found = DiskSpaceHealthCheck(tmp_path / "gone").run()
    assert (found.status, found.message) == (
        UNHEALTHY,
        f"Disk check failed: {tmp_path / 'gone'}: No such file or directory",
    )


@pytest.mark.parametrize(
    ("names", "cache"),
    [
        (("memory.max", "memory.current", "memory.stat"), "inactive_file"),
        (
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
            "total_inactive_file",
        ),
    ],
)
def test_in_a_container_its_limit_counts(tmp_path, names, cache):
    """Memory is what the control group allows, of version 2 or 1, and cache that can be dropped is not in use."""
    (tmp_path / "memory").mkdir()
    for name, text in zip(names, ("100000000", "95000000", f"anon 1\n{cache} 10000000\n"), strict=True):
        (tmp_path / name).write_text(text)
    found = MemoryHealthCheck(cgroup=tmp_path).run()
    assert (found.status, found.details["usage_percent"], found.details["of"]) == (DEGRADED, 0.85, "control group")
    (tmp_path / names[0]).write_text("max")
    found = MemoryHealthCheck(cgroup=tmp_path).run()
    assert (found.details["of"], found.details["total_bytes"]) == ("machine", psutil.virtual_memory().total)


# -- external services -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"), [(200, HEALTHY), (204, DEGRADED), (404, DEGRADED), (500, DEGRADED), (302, DEGRADED)]
)
def test_an_external_service_is_healthy_at_200(status, expected):
    """200 is healthy; whatever else a service answers is degraded, with the status code."""
    with service(status) as url:
        found = ExternalServiceHealthCheck("model-service", url).run()
    assert (found.status, found.details["status_code"]) == (expected, status)
    assert found.details["service_name"] == "model-service"


@pytest.mark.parametrize(("critical", "expected"), [(False, DEGRADED), (True, UNHEALTHY)])
def test_a_service_that_does_not_answer(critical, expected):
    """Nobody there, or too slow: degraded, and unhealthy where the service is critical; with the reason."""
    check = ExternalServiceHealthCheck("db", "http://127.0.0.1:1/", critical=critical)
    assert (check.name, check.run().status) == ("external_db", expected)
    with service(delay_s=1.0) as url:
        found = ExternalServiceHealthCheck("db", url, critical=critical, timeout_s=0.05).run()
    assert found.status is expected
    assert "db service unavailable: ReadTimeout" in found.message


def test_what_is_secret_in_an_address_is_not_shown():
    """User, password and query of the address are sent where they belong, and shown nowhere."""
    seen = []
    with service(seen=seen) as url:
        check = ExternalServiceHealthCheck("api", f"{url}?key=s3cret", headers={"Authorization": "Bearer t0ken"})
        found = check.run()
    assert seen == [("/health?key=s3cret", "Bearer t0ken")]
    assert found.details["endpoint"] == url
    assert "s3cret" not in f"{found}{check!r}"
    with pytest.raises(ValueError, match="is a URL, such as"):
        ExternalServiceHealthCheck("api", "localhost:80")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_describe_checks(monkeypatch, tmp_path):
    """``[health]`` has memory and disk space by default, services by name, and checks of one's own."""
    (tmp_path / "own_checks.py").write_text(
        "import eventcore as ec\n"
        "def stock():\n    return ec.HealthResult(ec.HealthStatus.DEGRADED, 'running low')\n"
        "ready = ec.HealthCheck('x', stock)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MODEL_TOKEN", "t0ken")
    seen = []
    with service(seen=seen) as url:
        emitter = configured(
            interval_s=0,
            disk_space={"path": "/", "paths": [str(tmp_path)]},
            external={"model": {"url": url, "token": "env:MODEL_TOKEN", "critical": True}},
            checks={"stock": {"use": "own_checks:stock"}, "ready": {"use": "own_checks:ready", "critical": True}},
        )
        report = emitter.health.report()
    assert list(report["checks"]) == [
        "handler_seen",
        "memory",
        "disk_space",
        f"disk_space_{tmp_path}",
        "external_model",
        "stock",
        "ready",
    ]
    assert seen == [("/health", "Bearer t0ken")]
    assert report["checks"]["stock"]["message"] == "running low"
    assert [name for name, check in report["checks"].items() if check["critical"]] == ["external_model", "ready"]
    assert "t0ken" not in repr(emitter.services["health"])


def test_memory_and_disk_space_can_be_left_out():
    """``false`` leaves a check out."""
    emitter = configured(interval_s=0, memory=False, disk_space=False)
    assert list(emitter.health.report()["checks"]) == ["handler_seen"]


def test_a_check_without_options_is_switched_on_by_true():
    """``errors = true`` is the check with its defaults."""
    emitter = configured(interval_s=0, memory=True, disk_space=False, errors=True)
    assert sorted(emitter.health.report()["checks"]) == ["errors", "handler_seen", "memory"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"memory": {"warning_threshold": 0.99}},
            "option 'memory' is {'warning_threshold': 0.99}: warning_threshold 0.99 is above critical_threshold 0.95",
        ),
        ({"disk_space": {"warning_treshold": 0.9}}, "unknown option 'disk_space.warning_treshold'"),
        ({"errors": 3}, "option 'errors' is 3: Input should be a valid dictionary"),
        ({"memori": False}, "unknown option 'memori'; did you mean 'memory'?"),
        ({"external": {"db": {"url": "nonsense"}}}, "option 'external.db.url': the address of an external service"),
        ({"external": {"db": {"url": "http://x", "token": "env:NO_SUCH"}}}, "variable 'NO_SUCH', which is not set"),
        ({"checks": {"x": {"use": "no.such:thing"}}}, "option 'checks.x.use': 'no.such:thing' cannot be imported"),
        ({"checks": {"x": {"use": "os:sep"}}}, "expected an ec.HealthCheck or a function"),
    ],
)
def test_mistakes_in_settings_are_one_clear_error(options, message):
    """A wrong option of ``[health]`` names the option and what was expected."""
    with pytest.raises(ec.ConfigurationError, match="health") as caught:
        configured(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("option", [{"path": "/no/such"}, {"paths": ["/", "/no/such"]}])
def test_a_disk_that_is_not_there_is_refused(option):
    """A path to be checked that this machine does not have is an error that names it, and nothing is left running."""
    with pytest.raises(ec.ConfigurationError, match=r"health: disk_space names '/no/such': there is no such path"):
        configured(disk_space=option)
    assert not any("health" in thread.name for thread in threading.enumerate())


def test_checks_run_on_schedule():
    """Without anybody asking, a change is noticed and emitted; nothing runs after shutdown."""
    emitter = configured(
        interval_s=0.01, memory={"warning_threshold": 1e-9, "critical_threshold": 1e-9}, disk_space=False
    )
    seen = emitter.handler("seen")
    deadline = time.monotonic() + 20
    while not seen.got and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen.got[0].payload["check"] == "memory"
    assert ec.shutdown().is_clean
    assert not [thread for thread in threading.enumerate() if thread.name == "eventcore-health"]


def test_a_forked_child_goes_on_checking():
    """A child has a thread of its own that runs the checks on schedule."""
    configured(interval_s=30, disk_space=False)
    child = os.fork()
    if child == 0:
        names = [thread.name for thread in threading.enumerate() if thread.is_alive()]
        os._exit(0 if names.count("eventcore-health") == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_command_runs_the_configured_checks(tmp_path):
    """``eventcore health`` runs them without a running process, and ends with 1 when one is unhealthy."""
    (tmp_path / "eventcore.toml").write_text(
        "[handlers.buffer]\n[health.memory]\nwarning_threshold = 1e-9\ncritical_threshold = 1e-9\ncritical = true\n"
    )
    result = CliRunner().invoke(app, ["health"])
    assert result.exit_code == 1
    assert "Critical memory usage" in result.stdout
    assert "unhealthy, not ready" in result.stdout
    assert "disk_space" in result.stdout


def test_importing_the_plugin_imports_no_library():
    """The plugin's module is light: psutil and urllib3 come with the service."""
    code = "import eventcore_health, sys; sys.exit('psutil' in sys.modules or 'urllib3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
