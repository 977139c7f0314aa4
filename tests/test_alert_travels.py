"""An alert travels: application, Prometheus, rule, Alertmanager, webhook; all real, configured as we generate it."""

from __future__ import annotations

import json
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from typer.testing import CliRunner

from eventcore.cli import app
from tests.support.live import JOB, answers, eventually, needs, process, prometheus
from tests.support.webhook_receiver import unused_port

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(180)]

AT_ONCE = {"for": "0s", "group_wait": "100ms", "group_interval": "1s"}
"""Waiting that a test has no time for; nothing else of the generated files is changed."""


def generated(what, *options):
    """Return what ``eventcore generate`` makes for the live application, without the waiting."""
    result = CliRunner().invoke(app, ["generate", what, "--config", "eventcore.toml", *options])
    assert result.exit_code == 0, result.output
    return yaml.safe_dump(_hurried(yaml.safe_load(result.stdout)))


def _hurried(node):
    if isinstance(node, list):
        return [_hurried(each) for each in node]
    if isinstance(node, dict):
        return {key: AT_ONCE.get(key) or _hurried(value) for key, value in node.items()}
    return node


@contextmanager
def pager():
    """Run a web server as Alertmanager posts to; yield its URL and the alerts that have arrived."""
    alerts = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            alerts.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/alerts", alerts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def alertmanager(folder, config):
    """Run an Alertmanager; yield its address."""
    program = needs("prometheus-alertmanager", "prometheus-alertmanager")
    (folder / "alertmanager.yml").write_text(config)
    address = f"127.0.0.1:{unused_port()}"
    command = [
        program,
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with process(command, folder, "alertmanager") as running:
        is_up = eventually(lambda: running.poll() is None and answers(f"http://{address}/-/ready"), 30)
        assert is_up, f"alertmanager did not start: {(folder / 'alertmanager.txt').read_text()[-2000:]}"
        yield address


def test_an_alert_travels_from_the_application_to_a_webhook(live, tmp_path):
    """The breaker opens in the application; a webhook hears of it by way of rule and Alertmanager, and of its end.

    So does an alert of the bus itself, about events that it had to drop.
    """
    (tmp_path / "eventcore.toml").write_text((live.application.folder / "eventcore.toml").read_text())
    target = urllib.parse.urlsplit(live.application.url).netloc
    with (
        pager() as (url, alerts),
        alertmanager(tmp_path, generated("alertmanager", "--webhook", url)) as address,
        prometheus(tmp_path, {JOB: target}, rules=generated("prometheus-rules"), alertmanager=address),
    ):

        def heard(name, status):
            return [each for each in alerts if (each["labels"]["alertname"], each["status"]) == (name, status)]

        opened = eventually(lambda: heard("CircuitBreakerOpen", "firing"), 60)
        assert opened, alerts
        assert opened[0]["labels"] == {
            "alertname": "CircuitBreakerOpen",
            "instance": target,
            "job": JOB,
            "pack": "tiny_dancer",
            "severity": "critical",
        }
        assert opened[0]["annotations"]["summary"] == "Circuit breaker is open"
        assert eventually(lambda: heard("CircuitBreakerOpen", "resolved"), 60), alerts
        dropped = eventually(lambda: heard("EventsDropped", "firing"), 60)
        assert {each["labels"]["reason"] for each in dropped} & {"full", "quarantined", "recursion"}
