"""The log plugin: lines as OTLP log records, decoded by opentelemetry-proto's messages."""

from __future__ import annotations

import contextlib
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

import eventcore as ec
from eventcore_log.handler import LogHandler
from eventcore_log.lines import Lines
from eventcore_log.otlp import Limits, log_record
from tests.support.log_lines import Bare, Keep, Note, Work, configure, emitting
from tests.support.otlp_receiver import Answer, GrpcReceiver, OtlpReceiver, attributes_of


def records_of(receiver):
    """Return all log records that a receiver took."""
    return [
        record
        for request in receiver.requests
        for group in request.message.resource_logs
        for scope in group.scope_logs
        for record in scope.log_records
    ]


def sent(code, **options):
    """Return the log records of ``code(emitter)``, sent to a real receiver."""
    with OtlpReceiver() as receiver:
        with configure(output="otlp", endpoint=receiver.endpoint, **options) as emitter:
            code(emitter)
        return records_of(receiver)


def test_an_event_is_a_log_record_with_its_name():
    """event_name, severity, body, time and attributes are set; resource and scope say who emits."""

    def code(emitter):
        with ec.bound(user="u-1", correlation_id="c-1"):
            emitter.emit(Note(text="hello"), severity="warning", tags=["a", "b"])

    before = time.time_ns()
    with OtlpReceiver() as receiver:
        with configure(output="otlp", endpoint=receiver.endpoint) as emitter:
            code(emitter)
        (request,) = receiver.requests
    assert request.path == "/v1/logs"
    (group,) = request.message.resource_logs
    resource = attributes_of(group.resource.attributes)
    assert (resource["service.name"], resource["service.version"], resource["process.pid"]) == (
        "shop",
        "1.2.3",
        os.getpid(),
    )
    (scope,) = group.scope_logs
    assert scope.scope.name == "eventcore"
    (record,) = scope.log_records
    assert record.event_name == "note"
    assert (record.severity_number, record.severity_text) == (13, "WARNING")
    assert record.body.string_value == "hello"
    assert before < record.time_unix_nano <= record.observed_time_unix_nano < time.time_ns()
    attributes = attributes_of(record.attributes)
    assert len(attributes.pop("log.record.uid")) == 36
    assert attributes == {
        "logger": "note",
        "category": "data",
        "text": "hello",
        "user": "u-1",
        "tags": ["a", "b"],
        "correlation_id": "c-1",
    }
    assert (record.trace_id, record.span_id) == (b"", b"")


def test_records_in_a_trace_carry_its_ids_and_whether_it_is_sampled():
    """A record is found by its trace and span, as bytes, with W3C's flag."""
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    def code(emitter):
        with ec.continue_trace(header):
            emitter.emit(Bare())
            with emitter.operation(Work):
                pass

    inside, work = sent(code)
    assert inside.trace_id.hex() == work.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert inside.span_id.hex() == "b7ad6b7169203331" != work.span_id.hex()
    assert (inside.flags, work.flags) == (1, 1)
    assert attributes_of(work.attributes)["outcome"] == "success"


def test_errors_have_opentelemetrys_names():
    """Type, message and stack of an exception stand where its conventions put them."""

    def code(emitter):
        with contextlib.suppress(LookupError), emitter.operation(Work):
            raise LookupError("no such route")
        ec.emit_error_event("failed", error=ValueError("bad"))
        with contextlib.suppress(KeyboardInterrupt), emitter.operation(Work):
            raise KeyboardInterrupt

    failed, event, cancelled = (attributes_of(record.attributes) for record in sent(code))
    assert failed["exception.type"] == "LookupError"
    assert failed["exception.stacktrace"].endswith("LookupError: no such route")
    assert (event["exception.type"], event["exception.message"]) == ("ValueError", "bad")
    assert cancelled["error.type"] == "KeyboardInterrupt"
    assert "exception.type" not in cancelled


def test_secrets_stay_out_of_records():
    """What is redacted in lines is redacted in records."""
    (record,) = sent(emitting(Note(text="Bearer abcdef1234567890")))
    assert b"abcdef1234567890" not in record.SerializeToString()
    assert attributes_of(record.attributes)["redacted"] == ["text"]


def clean(text):
    """Return text without halves of surrogate pairs, which UTF-8 has no form for."""
    return text.encode("utf-8", "replace").decode()


def any_value(value):  # noqa: PLR0911 - a table of cases
    """Return plain data as opentelemetry-proto's message."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return AnyValue(int_value=value)
    if isinstance(value, str | int):
        return AnyValue(string_value=clean(str(value)))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    if isinstance(value, dict):
        pairs = [KeyValue(key=clean(key), value=any_value(item)) for key, item in value.items()]
        return AnyValue(kvlist_value=KeyValueList(values=pairs))
    return AnyValue()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


RENAMED = {"error_type", "error_message", "exception"}
"""What errors are told by, which OpenTelemetry has names of its own for: another test's matter."""
KEYS = st.text(min_size=1).filter(lambda key: key not in RENAMED)


@given(st.text(), st.dictionaries(KEYS, VALUES, max_size=4), st.sampled_from(ec.Severity))
@settings(max_examples=150, deadline=None)
def test_the_bytes_written_are_a_log_record(text, data, severity):
    """Whatever is logged, opentelemetry-proto reads the record and finds what the line says."""
    emitter = ec.Emitter()
    keep = emitter.add_handler(Keep())
    ec.set_emitter(emitter)
    with emitter.operation(Work):
        ec.emit_event("some.event", message=text, data=data, severity=severity)
    envelope = keep.kept[0]
    (line,) = Lines(ec.Resource()).of(envelope)
    record = LogRecord.FromString(log_record(envelope, line, Limits()))
    wanted = LogRecord(
        time_unix_nano=envelope.time_ns,
        observed_time_unix_nano=record.observed_time_unix_nano,
        severity_number=int(severity),
        severity_text=severity.name,
        body=any_value(line["event"]),
        flags=int(envelope.scope.sampled),
        trace_id=envelope.scope.trace_id.to_bytes(16, "big"),
        span_id=envelope.scope.span_id.to_bytes(8, "big"),
        event_name="some.event",
    )
    ours = ("event", "level", "timestamp", "name", "app", "version", "trace_id", "span_id", "fields")
    shown = {"log.record.uid" if key == "id" else key: value for key, value in line.items() if key not in ours}
    shown |= {key: value for key, value in line.get("fields", {}).items() if key not in shown}
    wanted.attributes.extend(KeyValue(key=clean(key), value=any_value(value)) for key, value in shown.items())
    assert record.SerializeToString() == wanted.SerializeToString()  # bytes: NaN is not equal to itself


def test_records_are_bounded(monkeypatch):
    """Attributes beyond the limit are counted, long text is cut, nested too, and of a stack the end is kept."""

    def code(emitter):
        data = {"text": "x" * 9_000, "deep": [{"text": "y" * 9_000}], **{f"f{number}": number for number in range(200)}}
        ec.emit_event("some.event", message="m" * 9_000, data=data)
        with contextlib.suppress(LookupError), emitter.operation(Work):
            raise LookupError("z" * 9_000 + " end")

    event, failed = sent(code)
    attributes = attributes_of(event.attributes)
    assert (len(attributes), event.dropped_attributes_count) == (128, 202 + 3 - 128)
    assert attributes["text"] == "x" * 7_999 + "…"
    assert len(event.body.string_value) == 8_000
    assert "y" * 8_000 not in str(event)
    assert attributes_of(failed.attributes)["exception.stacktrace"] == "z" * 7_996 + " end"
    monkeypatch.setenv("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", "3")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
    event, failed = sent(code)
    assert (len(event.attributes), event.body.string_value) == (3, "mmmm…")


def test_opentelemetrys_variables_are_heeded(monkeypatch):
    """``OTEL_BLRP_*`` set the batches, unless the settings do; ``OTEL_SDK_DISABLED`` keeps all records back."""
    assert LogHandler(output="otlp").config.linger_s == 0.5
    assert LogHandler().config.linger_s == 0.05
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_BLRP_MAX_QUEUE_SIZE", "77")
    config = LogHandler(output="otlp", batch_size=5).config
    assert (config.linger_s, config.queue_size, config.batch_size) == (0.1, 77, 5)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert sent(emitting(Bare())) == []


def test_a_forked_child_is_another_resource():
    """A child sends over a connection of its own, under its own process id."""
    with OtlpReceiver() as receiver:
        with configure(output="otlp", endpoint=receiver.endpoint) as emitter:
            emitter.emit(Bare())
            assert emitter.flush()
            child = os.fork()
            if not child:
                emitter.emit(Note(text="from the child"))
                os._exit(0 if emitter.flush() else 1)
            assert os.waitpid(child, 0)[1] == 0
        pids = [
            attributes_of(group.resource.attributes)["process.pid"]
            for request in receiver.requests
            for group in request.message.resource_logs
        ]
    assert pids == [os.getpid(), child]


def test_a_handler_that_is_not_attached_describes_itself():
    """``describe`` needs no connection: it is asked of rehearsed handlers too."""
    assert LogHandler(output="otlp").describe() == {"format": "console", "output": "otlp"}


def test_a_receiver_that_is_down_costs_nobody_else():
    """Records that cannot be sent in time are counted as failed; the caller is not held."""
    with OtlpReceiver() as receiver:
        endpoint = receiver.endpoint
    with configure(output="otlp", endpoint=endpoint, timeout_s=0.2) as emitter:
        for _ in range(3):
            emitter.emit(Bare())
        assert emitter.flush()
        row = next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("log", "bare.fact"))
    assert (row.accepted, row.failed, row.delivered) == (3, 3, 0)


def test_what_a_receiver_rejects_is_counted_as_failed():
    """OTLP's partial success counts: the number rejected has failed, the rest is delivered."""
    with OtlpReceiver() as receiver:
        receiver.answers.append(Answer(rejected=2))
        with configure(output="otlp", endpoint=receiver.endpoint, linger_s=0.2) as emitter:
            for _ in range(5):
                emitter.emit(Bare())
            assert emitter.flush()
            row = next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("log", "bare.fact"))
    assert (row.failed, row.delivered) == (2, 3)


def test_a_busy_receiver_is_asked_again():
    """503 is retried, and nothing is sent twice that was taken."""
    with OtlpReceiver() as receiver:
        receiver.answers.append(Answer(503))
        with configure(output="otlp", endpoint=receiver.endpoint) as emitter:
            emitter.emit(Bare())
            assert emitter.flush()
        assert [record.event_name for record in records_of(receiver)] == ["bare.fact"]
        assert receiver.attempts == 2


def test_records_go_over_grpc_too():
    """A gRPC endpoint takes them by ``LogsService``."""
    with GrpcReceiver() as receiver:
        with configure(output="otlp", endpoint=receiver.endpoint, protocol="grpc") as emitter:
            emitter.emit(Bare())
            assert emitter.flush()
            assert emitter.handler("log").describe()["format"].startswith("OTLP/gRPC")
        assert receiver.requests[0].path == "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
        assert [record.event_name for record in records_of(receiver)] == ["bare.fact"]


def test_the_endpoint_may_come_from_opentelemetrys_variables(monkeypatch):
    """``OTEL_EXPORTER_OTLP_LOGS_ENDPOINT`` says where, when the settings do not."""
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"{receiver.endpoint}/my/logs")
        with configure(output="otlp") as emitter:
            emitter.emit(Bare())
        assert [request.path for request in receiver.requests] == ["/my/logs"]


def test_options_of_otlp_are_for_otlp_only():
    """An endpoint for a file is a mistake that is named."""
    with pytest.raises(ec.ConfigurationError, match="only output = 'otlp' takes this option, and output is 'stderr'"):
        configure(endpoint="http://localhost:4318")
