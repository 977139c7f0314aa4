"""The span plugin: where spans go, in which form, and what happens when they cannot."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import eventcore as ec
from eventcore_span.otlp import encode
from eventcore_span.span import FinishedSpan, SpanEvent
from tests.support.otlp_receiver import Answer, GrpcReceiver, OtlpReceiver, attributes_of, spans_of
from tests.support.otlp_spans import request_of_json, span_message

MARKER = "tests.support.third_party_exporter:MarkerExporter"


class Work(ec.Operation, name="test.work", category=ec.Category.EXECUTION):
    number: int = 0
    value: Any = ec.unset


class Many(ec.Operation, name="test.many", category=ec.Category.EXECUTION, each=("item",)):
    item: ec.Array[int]


@pytest.fixture
def receiver():
    """Return a listening OTLP receiver."""
    with OtlpReceiver() as listening:
        yield listening


@pytest.fixture
def dead_endpoint():
    """Return a loopback URL on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused, and nobody else gets the port
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def otlp(endpoint, **options):
    """Return the handler table of an OTLP exporter."""
    return {"span": {"exporter": "otlp", "endpoint": endpoint, **options}}


def work(emitter, count=1, **fields):
    """Run ``count`` operations and wait until the handler has handled them; return its row of the ledger."""
    for number in range(count):
        with emitter.operation(Work, number=number, **fields):
            pass
    assert emitter.flush(30)
    return emitter.ledger().handler("span")


@contextmanager
def one_batch(emitter, receiver, *answers):
    """Make one batch of what is emitted inside: hold the worker in an export until then; ``answers`` are for it."""
    release = threading.Event()
    receiver.answers.extend([Answer(after=release), *answers])
    with emitter.operation(Work):
        pass
    while not receiver.attempts:
        time.sleep(0.005)
    yield
    release.set()
    assert emitter.flush(30)


# -- OTLP --------------------------------------------------------------------------------------------------------------


def test_otlp_carries_everything_a_span_holds(receiver):
    """Ids, parent, kind, times, typed attributes, status and exception arrive as OTLP protobuf at /v1/traces."""
    value = {"yes": True, "n": -3, "x": 0.5, "s": "é", "list": [1, 2], "empty": []}
    with ec.configure(service="shop", version="1.2", environment="test", handlers=otlp(receiver.endpoint)) as emitter:
        with emitter.operation(Work, value=value) as outer, pytest.raises(KeyError), emitter.operation(Work, number=2):
            raise KeyError("gone")
        emitter.flush()
    inner, span = receiver.wait_for(2)
    assert (span.trace_id, span.span_id) == (outer.trace_id.to_bytes(16), outer.span_id.to_bytes(8))
    assert span.parent_span_id == b""
    assert (inner.trace_id, inner.parent_span_id) == (span.trace_id, span.span_id)
    assert (span.name, span.kind, span.flags) == ("test.work", 1, 0x101)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (outer.start_ns, outer.start_ns + outer.duration_ns)
    attributes = attributes_of(span.attributes)
    assert attributes == {
        "event.name": "test.work",
        "number": 0,
        "value.yes": True,
        "value.n": -3,
        "value.x": 0.5,
        "value.s": "é",
        "value.list": [1, 2],
        "value.empty": [],
    }
    assert [type(attributes[f"value.{key}"]) for key in ("yes", "n", "x")] == [bool, int, float]
    assert span.status.code == 0
    assert (inner.status.code, inner.status.message) == (2, "KeyError: 'gone'")
    assert attributes_of(inner.attributes)["error.type"] == "KeyError"
    (event,) = inner.events
    assert event.name == "exception"
    assert "KeyError: 'gone'" in attributes_of(event.attributes)["exception.stacktrace"]
    (resource_spans,) = receiver.requests[0].message.resource_spans
    assert attributes_of(resource_spans.resource.attributes) == {
        "service.name": "shop",
        "service.version": "1.2",
        "deployment.environment.name": "test",
        "telemetry.sdk.name": "eventcore",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": ec.__version__,
        "process.pid": os.getpid(),
    }
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("eventcore", ec.__version__)
    assert {request.path for request in receiver.requests} == {"/v1/traces"}


def test_remote_parents_links_and_tracestate_arrive(receiver):
    """A continued trace arrives as a SERVER span with its tracestate, and links as links."""
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with ec.configure(handlers=otlp(receiver.endpoint)) as emitter:
        with ec.continue_trace(header, tracestate="vendor=1"), emitter.operation(Work) as op:
            op.link("1" * 32, "2" * 16)
        emitter.flush()
    (span,) = receiver.wait_for(1)
    assert (span.kind, span.flags, span.trace_state) == (2, 0x301, "vendor=1")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (header[3:35], header[36:52])
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in span.links] == [("1" * 32, "2" * 16)]


def test_otlp_sends_headers_and_gzip_to_the_path_given(receiver):
    """Configured headers and compression are used, and a path in the endpoint is kept."""
    options = {"headers": {"Authorization": "Bearer abc"}, "compression": "gzip"}
    with ec.configure(handlers=otlp(f"{receiver.endpoint}/api/traces", **options)) as emitter:
        assert work(emitter, 50).failed == 0
        assert "abc" not in repr(emitter.handler("span").describe())
    assert len(receiver.spans) == 50
    request = receiver.requests[0]
    assert request.path == "/api/traces"
    assert request.headers["authorization"] == "Bearer abc"
    assert request.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_retried(receiver, status):
    """429, 502, 503 and 504 are retried until the receiver accepts; nothing is lost or sent twice."""
    receiver.answers.extend([Answer(status, {"Retry-After": "0"}), Answer(status)])
    with ec.configure(handlers=otlp(receiver.endpoint)) as emitter:
        row = work(emitter, 3)
        assert (row.delivered, row.failed) == (3, 0)
    assert len(receiver.spans) == 3
    assert receiver.attempts == len(receiver.requests) + 2


def test_retry_after_beyond_the_timeout_gives_up_at_once(receiver):
    """A receiver that asks for more patience than timeout_s gets no second attempt; the spans count as failed."""
    receiver.answers.append(Answer(503, {"Retry-After": "3600"}, b"busy\x1b[31m password=hunter2"))
    with ec.configure(handlers={**otlp(receiver.endpoint, timeout_s=30), "seen": Seen()}) as emitter:
        assert work(emitter).failed == 1
        reason = emitter.handler("seen").reasons[0]
    assert receiver.attempts == 1
    assert "HTTP 503 busy [31m [REDACTED_SECRET]" in reason
    assert receiver.endpoint in reason


def test_a_refusal_is_not_retried(receiver):
    """A 400 means that the request will never do: one attempt, counted as failed, and reported with the answer."""
    receiver.answers.append(Answer(400, body=b"bad span"))
    with ec.configure(handlers={**otlp(receiver.endpoint), "seen": Seen()}) as emitter:
        assert work(emitter).failed == 1
        assert "HTTP 400 bad span" in emitter.handler("seen").reasons[0]
        assert work(emitter).delivered == 1
    assert receiver.attempts == 2


def test_partial_success_counts_the_rejected_ones_as_failed(receiver):
    """Where the receiver rejects two spans of a batch, two operations count as failed, the others as delivered."""
    with ec.configure(handlers={**otlp(receiver.endpoint), "seen": Seen()}) as emitter:
        with one_batch(emitter, receiver, Answer(rejected=2)):
            for _ in range(5):
                with emitter.operation(Work):
                    pass
        row = emitter.ledger().handler("span")
        assert "the receiver rejected 2 of 5 spans: too old" in emitter.handler("seen").reasons[0]
    assert [len(spans_of(request.message)) for request in receiver.requests] == [1, 5]
    assert (row.failed, row.delivered) == (2, 4)


def test_an_answer_that_is_not_otlp_is_still_a_yes(receiver):
    """2xx is acceptance, whatever the body."""
    receiver.answers.append(Answer(200, body=b"\xff\xff OK"))
    with ec.configure(handlers=otlp(receiver.endpoint)) as emitter:
        assert work(emitter).delivered == 1


def test_a_receiver_that_is_down_costs_only_its_own_spans(dead_endpoint):
    """With nobody listening the caller goes on, other handlers get everything, and the spans count as failed."""
    handlers = {**otlp(dead_endpoint, timeout_s=0.2), "memory": {"use": "span", "exporter": "memory"}, "seen": Seen()}
    with ec.configure(handlers=handlers) as emitter:
        row = work(emitter, 20)
        assert (row.failed, row.delivered) == (20, 0)
        assert len(emitter.handler("memory").exporter.spans) == 20
        assert "Connection refused" in emitter.handler("seen").reasons[0]


def test_a_receiver_that_hangs_is_given_up(receiver):
    """A receiver that takes a request and never answers is given up after timeout_s, and the spans count as failed."""
    receiver.answers.append(Answer(hang=True))
    with ec.configure(handlers=otlp(receiver.endpoint, timeout_s=0.2)) as emitter:
        assert work(emitter).failed == 1


def test_shutdown_flushes_what_waits(receiver):
    """Operations that end just before shutdown arrive."""
    emitter = ec.configure(handlers=otlp(receiver.endpoint, linger_s=1.0))
    for _ in range(600):
        with emitter.operation(Work):
            pass
    report = ec.shutdown()
    assert report.is_clean
    assert len(receiver.spans) == 600


def test_shutdown_does_not_wait_for_a_receiver_that_is_down(dead_endpoint):
    """Shutdown cuts retries short, so that spans end as failed within its time and none is left in doubt."""
    emitter = ec.configure(shutdown_timeout_s=2.0, handlers=otlp(dead_endpoint, timeout_s=600))
    with emitter.operation(Work):
        pass
    report = ec.shutdown()
    assert report.abandoned_envelopes["span"] == 0
    row = emitter.ledger().handler("span")
    assert (row.failed, row.pending) == (1, 0)


def test_large_batches_are_split(receiver):
    """Expanded batches go out in requests of at most 512 spans; one refused fails its operation, not the others."""
    with ec.configure(handlers=otlp(receiver.endpoint)) as emitter:
        with one_batch(emitter, receiver, Answer(), Answer(400)):
            for size in (500, 600):
                with emitter.operation(Many, item=list(range(size))):
                    pass
        row = emitter.ledger().handler("span")
    assert [len(spans_of(request.message)) for request in receiver.requests] == [1, 512]
    assert (row.delivered, row.failed) == (2, 1)


def test_large_spans_are_split_by_size(receiver):
    """Spans that together are larger than receivers take go out in several requests, each well under 4 MiB."""
    with ec.configure(handlers=otlp(receiver.endpoint, batch_size=512)) as emitter:
        with one_batch(emitter, receiver):
            for _ in range(60):
                with emitter.operation(Work, value={f"k{n}": "x" * 1_000 for n in range(120)}):
                    pass
        assert emitter.ledger().handler("span").delivered == 61
    sizes = [request.message.ByteSize() for request in receiver.requests]
    assert len(receiver.spans) == 61
    assert len(sizes) == 4
    assert max(sizes) < 4 * 1024 * 1024


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_exports_as_itself(receiver):
    """After a fork the child's spans carry its own pid over a connection of its own; the parent goes on unharmed."""
    with ec.configure(handlers=otlp(receiver.endpoint)) as emitter:
        work(emitter)
        child = os.fork()
        if child == 0:
            row = work(emitter, 5)
            os._exit(0 if row.failed == 0 else 1)
        assert work(emitter, 5).failed == 0
        assert os.waitpid(child, 0)[1] == 0
    pids = [
        attributes_of(request.message.resource_spans[0].resource.attributes)["process.pid"]
        for request in receiver.requests
        for _ in spans_of(request.message)
    ]
    assert (pids.count(os.getpid()), pids.count(child)) == (6, 5)


class Seen(ec.Handler):
    """Keeps what the bus reports about handlers."""

    delivery = "inline"

    def __init__(self):
        super().__init__()
        self.reasons = []

    def sink_for(self, event_type, severity):
        return self.handle if event_type.__event__.name == "eventcore.handler" else None

    def handle(self, envelope):
        self.reasons.append(envelope.payload["reason"])


# -- file, console, memory ---------------------------------------------------------------------------------------------


def test_the_file_holds_what_otlp_would_have_sent(receiver, tmp_path):
    """Each line of the file is an ExportTraceServiceRequest in OTLP JSON, equal to the protobuf of the same spans."""
    path = tmp_path / "made" / "spans.jsonl"
    handlers = {**otlp(receiver.endpoint), "file": {"use": "span", "exporter": "file", "path": str(path)}}
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    value = {"big": 2**62, "inf": math.inf, "minus": -math.inf, "list": [True, 1, 0.5, "x"], "empty": [], "s": 'é"\n'}
    with ec.configure(service="shop", handlers=handlers) as emitter:
        many = {str(n): n for n in range(200)}
        with (
            ec.continue_trace(header, tracestate="a=b"),
            emitter.operation(Work, value=value) as op,
            emitter.operation(Work, value=many) as failing,
        ):
            op.link("1" * 32, "2" * 16)
            failing.fail(OSError("x"))
        emitter.flush()
    sent, written = ExportTraceServiceRequest(), ExportTraceServiceRequest()
    for request in receiver.requests:
        sent.resource_spans.extend(request.message.resource_spans)
    for line in path.read_text(encoding="utf-8").splitlines():
        written.resource_spans.extend(request_of_json(line).resource_spans)
    assert spans_of(written) == spans_of(sent)
    assert len(spans_of(sent)) == 2
    assert written.resource_spans[0].resource == sent.resource_spans[0].resource
    assert written.resource_spans[0].scope_spans[0].scope == sent.resource_spans[0].scope_spans[0].scope


def test_the_file_is_strict_json_with_hexadecimal_ids(tmp_path):
    """Ids are hexadecimal, enums numbers, 64-bit integers text, and NaN is the text "NaN", as OTLP JSON requires."""
    path = tmp_path / "spans.jsonl"
    with ec.configure(handlers={"span": {"exporter": "file", "path": path}}) as emitter:
        with emitter.operation(Work, value={"nan": math.nan, "n": 1}) as op:
            pass
        emitter.flush()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    (line,) = path.read_text().splitlines()
    (span,) = json.loads(line, parse_constant=refuse)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert span["traceId"] == f"{op.trace_id:032x}"
    assert span["spanId"] == f"{op.span_id:016x}"
    assert "parentSpanId" not in span
    assert (span["kind"], span["startTimeUnixNano"]) == (1, str(op.start_ns))
    attributes = {item["key"]: item["value"] for item in span["attributes"]}
    assert attributes["value.nan"] == {"doubleValue": "NaN"}
    assert attributes["value.n"] == {"intValue": "1"}


def test_the_file_is_appended_to(tmp_path):
    """A second run adds its lines to those of the first."""
    path = tmp_path / "spans.jsonl"
    for _ in range(2):
        with ec.configure(handlers={"span": {"exporter": "file", "path": path}}) as emitter:
            work(emitter)
    assert len(path.read_text().splitlines()) == 2


def test_a_full_disk_fails_the_batch_and_leaves_the_next_line_whole(tmp_path):
    """A write that fails half way counts as failed; the next batch starts on a line of its own."""
    path = tmp_path / "spans.jsonl"
    with ec.configure(handlers={"span": {"exporter": "file", "path": path}}) as emitter:
        exporter = emitter.handler("span").exporter
        real = exporter._file

        class Full:
            """Stands for a disk that takes ten bytes and no more."""

            def write(self, data):
                real.write(data[:10])
                raise OSError(28, "No space left on device")

        exporter._file = Full()
        assert work(emitter).failed == 1
        exporter._file = real
        assert work(emitter).delivered == 1
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 10
    assert len(spans_of(request_of_json(whole))) == 1


def test_the_console_gets_one_line_of_json_per_span(capsys):
    """The console exporter writes one JSON object per span to standard output, control characters escaped."""
    with ec.configure(handlers={"span": {"exporter": "console"}}) as emitter:
        with pytest.raises(ValueError, match="no"), emitter.operation(Work, value="\x1b[31m\n") as op:
            raise ValueError("no")
        emitter.flush()
    (line,) = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line
    span = json.loads(line)
    assert span["span"] == "test.work"
    assert span["trace_id"] == f"{op.trace_id:032x}"
    assert span["parent_span_id"] is None
    assert (span["status"], span["status_message"]) == ("error", "ValueError: no")
    assert span["attributes"]["value"] == "\x1b[31m\n"
    assert span["duration_ms"] == round(op.duration_ns / 1e6, 3)
    assert span["events"][0]["name"] == "exception"


def test_the_memory_exporter_is_bounded():
    """It keeps the latest 10,000 spans and counts those that had to go."""
    with ec.configure(handlers={"span": {"exporter": "memory"}}) as emitter:
        for start in range(0, 10_500, 500):
            with emitter.operation(Many, item=list(range(start, start + 500))):
                pass
        emitter.flush()
        exporter = emitter.handler("span").exporter
        assert [span.attributes["item"] for span in exporter.spans] == list(range(500, 10_500))
        assert exporter.dropped == 500
        exporter.clear()
        assert exporter.spans == ()


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exporter": "file"}, "'path' is None.*needs the path of a file"),
        ({"exporter": "console", "path": "x"}, "only exporter = 'file' takes a path, and exporter is 'console'"),
        ({"exporter": "otlp", "endpoint": "http://localhost:6831"}, "6831 is Jaeger's retired agent.*port 4318"),
        ({"exporter": "otlp", "endpoint": "http://localhost:14268/api/traces"}, "14268 is Jaeger's retired.*port 4318"),
        ({"exporter": "otlp", "endpoint": "localhost:4318"}, "expected a URL such as http://localhost:4318"),
        ({"exporter": "otlp", "endpoint": "http://localhost:x"}, "endpoint"),
        ({"exporter": "otlp", "endpoint": "http://me:pw@localhost:4318"}, "credentials belong into headers"),
        ({"exporter": "memory", "endpoint": "http://localhost:4318"}, "only exporter = 'otlp' or 'zipkin' takes"),
        ({"exporter": "zipkin", "compression": "gzip"}, "only exporter = 'otlp' takes this option"),
        ({"exporter": "otlp", "headers": {"a": "b\r\nc: d"}}, "header 'a' is empty or has control characters"),
        ({"exporter": "otlp", "compression": "zstd"}, "'compression' is 'zstd'.*'none' or 'gzip'"),
        ({"exporter": "otlp", "timeout_s": 0}, "timeout_s"),
        ({"exporter": "otlp", "exporter_options": {"a": 1}}, "only exporters of others take exporter_options"),
        ({"sampling_ratio": 1.5}, "'sampling_ratio' is 1.5.*less than or equal to 1"),
        ({"sampling_rate": 0.5}, "unknown option 'sampling_rate'; did you mean 'sampling_ratio'"),
        ({"delivery": "inline"}, "'delivery' is 'inline'.*'queued'"),
        ({"exporter": "fiel"}, "'fiel' is neither built in.*did you mean 'file'"),
        (
            {"exporter": "jaeger", "endpoint": "http://localhost:14268/api/traces"},
            "14268 is Jaeger's retired.*port 4318",
        ),
        ({"exporter": "no.such.module:Class"}, "'no.such.module:Class' cannot be imported"),
        ({"exporter": "json:Missing"}, "'json:Missing' cannot be imported"),
        ({"exporter": "json:dumps"}, "not an OpenTelemetry SDK SpanExporter class"),
        ({"exporter": MARKER, "exporter_options": {"nope": 1}}, r"MarkerExporter\(nope\) failed.*exporter_options"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options, message):
    """A mistake in the settings names handler, option, what is wrong and the remedy; nothing is left running."""
    with pytest.raises(ec.ConfigurationError, match=f"(?s)handlers.span.*{message}"):
        ec.configure(handlers={"span": options})
    assert ec.get_emitter().handlers[0].kind == "last_resort"


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path):
    """A path that is a folder is an error that names it."""
    with pytest.raises(ec.ConfigurationError, match=r"path = '.*' cannot be opened|cannot be opened for appending"):
        ec.configure(handlers={"span": {"exporter": "file", "path": tmp_path}})


def test_the_endpoint_defaults_to_the_standard_port():
    """Without an endpoint OTLP goes to http://localhost:4318/v1/traces."""
    with ec.configure(handlers={"span": {"exporter": "otlp"}}) as emitter:
        assert emitter.handler("span").describe()["url"] == "http://localhost:4318/v1/traces"


def test_otlp_over_grpc_carries_spans():
    """With protocol = "grpc" (or port 4317) the same spans arrive over gRPC."""
    with GrpcReceiver() as receiver:
        with ec.configure(handlers=otlp(receiver.endpoint, protocol="grpc")) as emitter:
            assert work(emitter, 3).delivered == 3
            assert emitter.handler("span").describe()["format"] == "OTLP/gRPC"
        assert [span.name for span in receiver.spans] == ["test.work"] * 3


def test_encoding_covers_every_field_of_a_span():
    """No field of FinishedSpan is left out of the protobuf."""
    span = FinishedSpan(
        "n", 1, 2, 3, 4, 5, {"a": 1}, 2, True, 2, "m", "t=1", 6, (SpanEvent("e", 7, {"b": 2}),), ((8, 9),), 10, 11
    )
    message = Span.FromString(encode(span))
    assert message == span_message(span)
    assert {field.name for field, _ in message.ListFields()} == {field.name for field in message.DESCRIPTOR.fields}
