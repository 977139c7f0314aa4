"""The span plugin: span exporters written for the OpenTelemetry SDK, by anybody."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import eventcore as ec
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.otlp_spans import span_message
from tests.support.third_party_exporter import StuckExporter

SUPPORT = "tests.support.third_party_exporter"


class Work(ec.Operation, name="test.work", category=ec.Category.EXECUTION):
    number: int = 0
    value: Any = ec.unset


@pytest.fixture
def receiver():
    """Return a listening OTLP receiver."""
    with OtlpReceiver() as listening:
        yield listening


def work(emitter, count=1):
    """Run ``count`` operations and wait until the handler has handled them; return its row of the ledger."""
    for number in range(count):
        with emitter.operation(Work, number=number):
            pass
    assert emitter.flush(30)
    return emitter.ledger().handler("span")


def test_an_sdk_exporter_given_by_path_gets_readable_spans():
    """Any SDK SpanExporter named 'module:Class' receives ReadableSpans equal to what happened."""
    path = "opentelemetry.sdk.trace.export.in_memory_span_exporter:InMemorySpanExporter"
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with ec.configure(service="shop", handlers={"span": {"exporter": path}}) as emitter:
        with ec.continue_trace(header, tracestate="a=b"), emitter.operation(Work, number=5) as op:
            op.link("1" * 32, "2" * 16)
            op.fail(ValueError("no"))
        emitter.flush()
        (span,) = emitter.handler("span").exporter.exporter.get_finished_spans()
    assert (span.context.trace_id, span.context.span_id) == (op.trace_id, op.span_id)
    assert (span.parent.span_id, span.parent.is_remote) == (0xB7AD6B7169203331, True)
    assert span.context.trace_state["a"] == "b"
    assert (span.kind.name, span.status.status_code.name, span.status.description) == (
        "SERVER",
        "ERROR",
        "ValueError: no",
    )
    assert (span.start_time, span.end_time) == (op.start_ns, op.start_ns + op.duration_ns)
    assert span.attributes == {"event.name": "test.work", "error.type": "ValueError", "number": 5}
    assert span.events[0].attributes["exception.type"] == "ValueError"
    assert span.links[0].context.span_id == 0x2222222222222222
    assert span.resource.attributes["service.name"] == "shop"
    assert span.instrumentation_scope.name == "eventcore"


def test_an_installed_exporter_is_found_by_its_entry_point_name(receiver):
    """OpenTelemetry's own OTLP exporter, by its entry-point name and options, sends the same spans as ours."""
    options = {"endpoint": f"{receiver.endpoint}/v1/traces"}
    handlers = {
        "theirs": {"use": "span", "exporter": "otlp_proto_http", "exporter_options": options},
        "memory": {"use": "span", "exporter": "memory"},
    }
    with ec.configure(service="shop", handlers=handlers) as emitter:
        with pytest.raises(ValueError, match="no"), emitter.operation(Work, value=[1, 2]), emitter.operation(Work):
            raise ValueError("no")
        emitter.flush()
        ours = [span_message(span) for span in emitter.handler("memory").exporter.spans]
    theirs = receiver.wait_for(2)
    for span in theirs:
        span.flags |= 1  # their encoder leaves the sampled bit out
    assert theirs == ours


def test_a_third_party_is_flushed_and_shut_down(tmp_path):
    """Its options reach the constructor, and it is shut down once, after its last span."""
    marker = tmp_path / "marker"
    table = {"exporter": f"{SUPPORT}:MarkerExporter", "exporter_options": {"marker": str(marker)}}
    with ec.configure(service="shop", handlers={"span": table}) as emitter:
        work(emitter, 3)
    lines = [json.loads(line) for line in marker.read_text().splitlines()]
    assert [line.get("name") for line in lines] == ["test.work"] * 3 + [None]
    assert lines[-1] == {"shutdown": True}


def test_the_failure_of_a_third_party_is_counted():
    """An exporter that reports FAILURE has not delivered, and the ledger says so."""
    with ec.configure(handlers={"span": {"exporter": f"{SUPPORT}:FailingExporter"}}) as emitter:
        row = work(emitter, 4)
        assert (row.failed, row.delivered) == (4, 0)


def test_a_third_party_that_hangs_at_its_end_is_not_waited_for():
    """A shutdown that never returns is left behind in time, and reported."""
    emitter = ec.configure(shutdown_timeout_s=0.2, handlers={"span": {"exporter": f"{SUPPORT}:StuckExporter"}})
    report = ec.shutdown()
    StuckExporter.release.set()
    assert any("span: did not return" in error for error in report.errors), report
    assert emitter.ledger().handler("span").pending == 0


def test_no_global_of_opentelemetry_is_touched_and_no_sdk_is_imported():
    """Our own exporters import nothing of OpenTelemetry, and others' leave the global provider alone."""
    program = """
import sys, eventcore as ec
import eventcore_span
assert not any(name.startswith(("opentelemetry", "urllib3", "eventcore_span.")) for name in sys.modules)
class Work(ec.Operation, name="test.work", category="system"): pass
own = {
    "a": {"use": "span", "exporter": "otlp", "endpoint": "http://127.0.0.1:9", "timeout_s": 0.1},
    "b": {"use": "span", "exporter": "file", "path": "spans.jsonl"},
    "c": {"use": "span", "exporter": "console"},
    "d": {"use": "span", "exporter": "memory"},
}
with ec.configure(shutdown_timeout_s=0.5, handlers=own) as emitter, emitter.operation(Work): pass
assert "urllib3" in sys.modules
assert not any(name.startswith(("opentelemetry", "google.protobuf")) for name in sys.modules), sys.modules
theirs = {"span": {"exporter": "opentelemetry.sdk.trace.export.in_memory_span_exporter:InMemorySpanExporter"}}
with ec.configure(handlers=theirs) as emitter, emitter.operation(Work): pass
import opentelemetry.trace
assert opentelemetry.trace._TRACER_PROVIDER is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def zipkin():
    """Return the URL of a receiver of Zipkin's JSON, and what it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api/v2/spans", got
        server.shutdown()
        thread.join()


def test_zipkin_gets_its_own_json(zipkin):
    """With exporter = "zipkin" Zipkin's JSON arrives: ids, parent, times in microseconds, tags, the service's name."""
    url, got = zipkin
    with ec.configure(service="shop", handlers={"span": {"exporter": "zipkin", "endpoint": url}}) as emitter:
        with emitter.operation(Work, number=1) as outer, emitter.operation(Work, value="x") as inner:
            inner.fail(ValueError("no"))
        assert emitter.flush()
        assert emitter.ledger().handler("span").delivered == 2
    child, parent = got
    assert (parent["traceId"], parent["id"]) == (f"{outer.trace_id:032x}", f"{outer.span_id:016x}")
    assert (child["traceId"], child["parentId"]) == (parent["traceId"], parent["id"])
    assert (parent["name"], parent["localEndpoint"]["serviceName"]) == ("test.work", "shop")
    assert abs(parent["timestamp"] - outer.start_ns / 1000) <= 1
    assert parent["tags"]["number"] == "1"
    assert child["tags"]["error"] == "ValueError: no"


def test_zipkin_without_its_package_names_the_extra(monkeypatch):
    """Without the exporter's package the error says which extra brings it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.zipkin.json", None)
    with pytest.raises(ec.PluginError, match=r"exporter = 'zipkin'.*pip install 'eventcore\[zipkin\]'"):
        ec.configure(handlers={"span": {"exporter": "zipkin"}})


def test_jaeger_means_otlp(receiver):
    """With exporter = "jaeger" OTLP is sent, which Jaeger takes."""
    with ec.configure(handlers={"span": {"exporter": "jaeger", "endpoint": receiver.endpoint}}) as emitter:
        assert work(emitter, 2).delivered == 2
    assert len(receiver.spans) == 2
