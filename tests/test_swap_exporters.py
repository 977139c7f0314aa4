"""Exporters swap by configuration: one unmodified program, several eventcore.toml files, each output in its place."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.otlp_receiver import OtlpReceiver, attributes_of

METRICS_AT_HTTP = """
[handlers.metric]
exporter = "prometheus"
"""
METRICS_OFF = """
[handlers.metric]
exporter = "none"
"""
SPANS_TO_FILE = """
[handlers.span]
exporter = "file"
path = "spans.jsonl"
"""
SPANS_TO_OTLP = """
[handlers.span]
exporter = "otlp"
endpoint = "{endpoint}"
"""
SPANS_TO_OTHERS = """
[handlers.span]
exporter = "tests.support.third_party_exporter:MarkerExporter"
exporter_options = {{ marker = "marker" }}
"""
LOG_TO_CONSOLE = """
[handlers.log]
format = "console"
"""
LOG_AS_JSON = """
[handlers.log]
format = "json"
"""
LOG_TO_FILE = """
[handlers.log]
format = "json"
output = "log.jsonl"
"""


@pytest.fixture
def shop(tmp_path, checkout):
    """Return what runs tests/programs/shop.py under given settings and finds its output, place by place."""

    def run(*tables):
        with OtlpReceiver() as receiver:
            port = free_port()
            settings = "".join(tables).format(endpoint=receiver.endpoint) + f"\n[http]\nport = {port}\n"
            (tmp_path / "eventcore.toml").write_text(settings)
            program = subprocess.Popen(
                [sys.executable, checkout / "tests" / "programs" / "shop.py"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(checkout)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                metrics = scrape(program, f"http://127.0.0.1:{port}/metrics")
                out, err = program.communicate(timeout=30)
            finally:
                program.kill()
            assert program.returncode == 0, err
            assert "4111" not in out + err
            return found(tmp_path, out, err, metrics, receiver)

    return run


def free_port():
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scrape(program, url):
    """Return what /metrics shows once the shop's payment is counted, or None where there is no such path."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert program.poll() is None, program.communicate()[1]
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
            return None
        except OSError:
            text = ""  # it does not listen yet
        if 'shop_charge_duration_seconds_count{provider="stripe",status="success"} 1.0' in text:
            return text
        time.sleep(0.02)
    raise AssertionError("the payment was not counted in 30 s")


def found(folder, out, err, metrics, receiver):
    """Return place -> what was found there; every trace id found must be the same one."""
    places = {}
    traces = set()
    if metrics is not None:
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(metrics)
            for sample in family.samples
        }
        assert samples["shop_paid_total", "eur"] == 1
        places["/metrics"] = "metrics"
    if receiver.spans:
        (span,) = receiver.spans
        assert attributes_of(span.attributes)["attempts"] == 2
        traces.add(span.trace_id.hex())
        places["receiver"] = "OTLP spans"
    texts = {"stdout": out, "stderr": err, **{path.name: path.read_text() for path in folder.iterdir()}}
    del texts["eventcore.toml"]
    for place, text in texts.items():
        if text:
            places[place], trace = recognised(text)
            traces.add(trace)
    assert len(traces) == 1, traces
    return places


def recognised(text):
    """Return what a text is, by a line that only this kind of output has, and the trace id in it."""
    try:
        lines = [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError:
        (line,) = (line for line in text.splitlines() if "12.5 eur paid" in line)
        return "console log", re.search(r"trace_id=\W?([0-9a-f]{32})", line)[1]
    if "resourceSpans" in lines[0]:
        (span,) = (span for line in lines for span in line["resourceSpans"][0]["scopeSpans"][0]["spans"])
        assert span["name"] == "checkout.charge_card"
        return "OTLP JSON spans", span["traceId"]
    if lines[-1] == {"shutdown": True}:
        assert (lines[0]["name"], lines[0]["service"]) == ("checkout.charge_card", "shop")
        return "third-party spans", lines[0]["trace_id"]
    (paid,) = (line for line in lines if line["event"] == "12.5 eur paid")
    return "JSON log", paid["trace_id"]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (
            (LOG_TO_CONSOLE, METRICS_AT_HTTP, SPANS_TO_FILE),
            {"stderr": "console log", "/metrics": "metrics", "spans.jsonl": "OTLP JSON spans"},
        ),
        (
            (LOG_AS_JSON, METRICS_OFF, SPANS_TO_OTLP),
            {"stderr": "JSON log", "receiver": "OTLP spans"},
        ),
        (
            (LOG_TO_FILE, METRICS_AT_HTTP, SPANS_TO_OTHERS),
            {"log.jsonl": "JSON log", "/metrics": "metrics", "marker": "third-party spans"},
        ),
        (
            (LOG_TO_CONSOLE,),
            {"stderr": "console log"},
        ),
    ],
    ids=["console-prometheus-file", "json-off-otlp", "file-prometheus-third-party", "console-only"],
)
def test_the_same_program_writes_where_its_settings_say_and_nowhere_else(shop, tables, expected):
    """Promise 6: exporters swap by an edit of eventcore.toml; each signal is found in its place, and nowhere else."""
    assert shop(*tables) == expected
