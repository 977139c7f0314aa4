"""The live application with real servers around it: a Prometheus that scrapes it, receivers of its spans and webhooks.

``tests/programs/live.py`` routes the demo's requests for ever, with every handler on and everything going wrong in
turns; so every series, span and log line that is declared is emitted for real.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from eventcore.plugins import Plugins
from tests.support.otlp_receiver import Answer, OtlpReceiver
from tests.support.webhook_receiver import Receiver, unused_port, webhook_receiver

PROGRAM = Path(__file__).parents[1] / "programs" / "live.py"
JOB = "tiny-dancer"
SECRET = "whsec_" + base64.b64encode(b"the secret of the live tests....").decode()


@dataclass
class Application:
    """A run of the program: where it serves, and what it has done; ``log`` is its JSON log, of all runs in a folder."""

    folder: Path
    process: subprocess.Popen
    url: str
    rounds: queue.Queue = field(default_factory=queue.Queue)

    @property
    def log(self):
        """Return the lines of the JSON log, of all runs in this folder."""
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def finish_round(self, timeout_s=40.0):
        """Wait until the program has been through everything once more."""
        try:
            return self.rounds.get(timeout=timeout_s)
        except queue.Empty:
            pytest.fail(f"the live application finished no round in {timeout_s} s: {self.errors}")

    @property
    def errors(self):
        """Return what it wrote to stderr."""
        return (self.folder / "stderr.txt").read_text(encoding="utf-8")[-2000:]


@dataclass
class Prometheus:
    """A running Prometheus server."""

    url: str

    def get(self, path, **query):
        """Return the ``data`` of an answer of its HTTP interface; AssertionError with its reason for an error."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query, doseq=True)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query or path}: {json.load(error)['error']}") from None

    def query(self, expression, **at):
        """Return the samples of an instant query: label sets with their values; ``time=`` asks for another moment."""
        data = self.get("query", query=expression, **at)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]

    def answer(self, expression, **at):
        """Return the samples of a query and nothing, or none and why it was refused."""
        try:
            return self.query(expression, **at), ""
        except AssertionError as refusal:
            return [], str(refusal)

    def eventually(self, expression, timeout_s=20.0):
        """Return the samples of a query as soon as there are any; none where there are none in time."""
        return eventually(lambda: self.query(expression), timeout_s)


@dataclass
class Live:
    """The application, the server that scrapes it, and what receives its spans and webhooks."""

    application: Application
    prometheus: Prometheus
    otlp: OtlpReceiver
    webhooks: Receiver


def eventually(ask, timeout_s=20.0, pause_s=0.1):
    """Return the first answer that is true, or the last one."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(pause_s)
    return answer


def needs(program, package):
    """Return the path of a server's program, or skip."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian package {package})")
    return path


@contextmanager
def process(command, folder, name, **options):
    """Run a server in ``folder`` until the block ends; its output goes to ``<name>.txt``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTCORE_", "OTEL_"))}
    environment["PYTHONPATH"] = str(folder)
    with (folder / f"{name}.txt").open("ab") as output:
        running = subprocess.Popen(command, cwd=folder, env=environment, stderr=output, **{"stdout": output} | options)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()
        running.wait()
        if running.stdout:
            running.stdout.close()


@contextmanager
def application(folder, otlp, pushed, webhooks):
    """Run the live application in ``folder``; what it writes there is added to what an earlier run wrote."""
    _write_settings(folder, otlp, pushed, webhooks)
    command = [sys.executable, str(PROGRAM)]
    with process(command, folder, "stderr", stdout=subprocess.PIPE, text=True) as running:
        first = running.stdout.readline()
        assert first, f"the live application did not start: {(folder / 'stderr.txt').read_text()[-2000:]}"
        live = Application(folder, running, json.loads(first)["url"])
        reader = threading.Thread(target=_count_rounds, args=(running.stdout, live.rounds), daemon=True)
        reader.start()
        yield live
    reader.join(5)


def _count_rounds(stdout, rounds):
    try:
        for line in stdout:
            rounds.put(json.loads(line)["round"])
    except ValueError:
        pass  # closed at the end


def _write_settings(folder, otlp, pushed, webhooks):
    """Write settings that switch on every handler and every metric pack, and a plugin that is broken."""
    packs = ", ".join(f'"{pack}"' for pack in sorted(Plugins().packs()))
    (folder / "eventcore.toml").write_text(
        f"""
service = "{JOB}"
version = "0.1.0"
environment = "test"

[handlers.log]
format = "json"
output = "log.jsonl"
min_severity = "trace"
exclude = ["live.mishap"]

[handlers.metric]
packs = [{packs}]
exporter = ["prometheus", "otlp"]
endpoint = "{pushed.endpoint}"
interval_s = 1.0

[handlers.span]
exporter = "otlp"
endpoint = "{otlp.endpoint}"

[handlers.buffer]
max_size = 1000
sampling = 0.5

[handlers.oncall]
use = "webhook"
url = "{webhooks.url}"
secret = "{SECRET}"
allow_private = true
events = ["circuit.*"]
min_severity = "error"

[journal]
path = "journal.db"
max_event_bytes = 100_000
max_attempts = 1
give_up_after_s = 1.0

[http]
port = 0
"""
    )
    (folder / "damaged.safetensors").write_bytes(b"not a model")
    installed = folder / "acme-1.0.dist-info"
    installed.mkdir(exist_ok=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[eventcore.plugins]\nacme = acme_that_is_missing\n")


@contextmanager
def prometheus(folder, targets, *, rules=None, alertmanager=None):
    """Run a Prometheus that scrapes ``targets`` (``host:port`` by job) twice a second."""
    program = needs("prometheus", "prometheus")
    port = unused_port()
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [at]}]} for job, at in targets.items()],
    }
    if rules is not None:
        (folder / "rules.yml").write_text(rules)
        config["rule_files"] = ["rules.yml"]
    if alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with process(command, folder, "prometheus") as running:
        server = Prometheus(f"http://127.0.0.1:{port}")
        is_up = eventually(lambda: running.poll() is None and answers(f"{server.url}/-/ready"), 30)
        assert is_up, f"prometheus did not start: {(folder / 'prometheus.txt').read_text()[-2000:]}"
        for job in targets:
            assert server.eventually(f'up{{job="{job}"}} == 1'), (
                f"prometheus cannot scrape {job}: {server.get('targets')}"
            )
        yield server


def answers(url):
    """Whether something answers there with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@contextmanager
def live(folder):
    """Run everything: a short first life of the application, so that its end is in the log, then one that goes on."""
    needs("prometheus", "prometheus")
    with OtlpReceiver() as otlp, OtlpReceiver() as pushed, webhook_receiver(SECRET) as webhooks:
        with application(folder, otlp, pushed, webhooks):
            pass
        pushed.answers.append(Answer(status=400))  # the first push of metrics fails
        with (
            application(folder, otlp, pushed, webhooks) as app,
            prometheus(folder, {JOB: urllib.parse.urlsplit(app.url).netloc}) as server,
        ):
            yield Live(app, server, otlp, webhooks)
