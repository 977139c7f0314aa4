"""eventcore_otlp: what the log, metric and span plugins send OTLP with."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time

import grpc
import pytest
import trustme
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import eventcore as ec
from eventcore_otlp import Endpoint, Frame, OtlpOptions, Sent, TransportError, open_transport, resource_attributes
from eventcore_otlp.environment import OtelVariableWarning
from eventcore_otlp.wire import any_value, fields, key_value
from tests.support.otlp_receiver import Answer, GrpcReceiver, OtlpReceiver, attributes_of

SPAN = Span(name="a span").SerializeToString()
LOG = LogRecord(event_name="a log").SerializeToString()
METRIC = Metric(name="a metric").SerializeToString()


def frame():
    """Return the frame of a service called shop."""
    return Frame(resource_attributes(ec.Resource("shop", "1.2"), os.getpid()))


@pytest.fixture
def receiver():
    """Return a listening OTLP/HTTP receiver."""
    with OtlpReceiver() as listening:
        yield listening


@pytest.fixture
def grpc_receiver():
    """Return a listening OTLP/gRPC receiver."""
    with GrpcReceiver() as listening:
        yield listening


# -- the wire ----------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.text(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(), st.none()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


def message_of(value):
    """Return ``value`` as opentelemetry-proto's message."""
    if value is None:
        return AnyValue()
    if isinstance(value, list):
        message = AnyValue()
        message.array_value.SetInParent()
        message.array_value.values.extend(map(message_of, value))
        return message
    if isinstance(value, dict):
        message = AnyValue()
        message.kvlist_value.SetInParent()
        message.kvlist_value.values.extend(KeyValue(key=key, value=message_of(item)) for key, item in value.items())
        return message
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue(**{kinds[type(value)]: value})


@given(VALUES)
def test_values_are_written_as_opentelemetry_proto_writes_them(value):
    """The bytes of any value parse to the very message that opentelemetry-proto builds for it."""
    assert AnyValue.FromString(any_value(value)) == message_of(value)


@given(st.text(), SCALARS)
def test_attributes_are_written_as_opentelemetry_proto_writes_them(key, value):
    """The bytes of a key and its value parse to the message that opentelemetry-proto builds."""
    (span,) = [Span.FromString(key_value(b"\x4a", key, value))]
    assert list(span.attributes) == [KeyValue(key=key, value=message_of(value))]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 2047, 2048, 16_383, 16_384, 3_000_000])
def test_lengths_of_any_size_are_written(size):
    """Contents of every size, around each length of the length itself, parse back."""
    assert AnyValue.FromString(any_value("x" * size)).string_value == "x" * size


def test_what_has_no_type_in_otlp_is_text_or_an_error():
    """Integers beyond 64 bits and lone surrogates become text; a value of no known type is a TypeError."""
    assert AnyValue.FromString(any_value(2**63)).string_value == str(2**63)
    assert AnyValue.FromString(any_value("\ud800")).string_value == "?"
    with pytest.raises(TypeError, match="OTLP has no type for 'object'"):
        any_value(object())


@given(st.binary(max_size=60))
def test_reading_foreign_bytes_never_breaks(answer):
    """Whatever a receiver answers, it is read as a response as protobuf reads it, or taken as plain acceptance."""
    sent = Sent.from_answer(answer)
    assert sent.rejected >= 0
    try:
        expected = ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans
    except Exception:  # noqa: BLE001 - protobuf's own DecodeError differs from implementation to implementation
        return
    assert sent.rejected in {max(0, expected), 0}


@given(st.integers(0, 2**63 - 1), st.text(max_size=50))
def test_a_partial_success_is_read(rejected, message):
    """The number of rejected items is read from a response, and so is what the receiver says."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    sent = Sent.from_answer(response.SerializeToString())
    assert sent.rejected == rejected
    assert bool(sent.message) == any(c.isprintable() and not c.isspace() for c in message)


def test_a_field_that_is_cut_off_is_an_error():
    """Reading stops with a ValueError where a message ends in the middle of a field."""
    with pytest.raises(ValueError, match="cut off"):
        list(fields(b"\x0a\x05abc"))
    with pytest.raises(ValueError, match="cut off"):
        list(fields(b"\x80"))


def test_the_frame_fits_all_three_signals():
    """Resource and scope stand around spans, metrics and log records alike."""
    kinds = [
        (ExportTraceServiceRequest, SPAN, "resource_spans", "scope_spans", "spans"),
        (ExportMetricsServiceRequest, METRIC, "resource_metrics", "scope_metrics", "metrics"),
        (ExportLogsServiceRequest, LOG, "resource_logs", "scope_logs", "log_records"),
    ]
    for kind, item, outer, inner, items in kinds:
        (group,) = getattr(kind.FromString(frame().request([item, item])), outer)
        assert attributes_of(group.resource.attributes)["service.name"] == "shop"
        (scope,) = getattr(group, inner)
        assert (scope.scope.name, scope.scope.version) == ("eventcore", ec.__version__)
        assert [found.SerializeToString() for found in getattr(scope, items)] == [item, item]


# -- where it goes -----------------------------------------------------------------------------------------------------


def where(signal="traces", **options):
    """Return the endpoint that ``options`` and the environment make."""
    return Endpoint.find(signal, OtlpOptions(**options))


@pytest.mark.parametrize(
    ("options", "url", "protocol"),
    [
        ({}, "http://localhost:4318/v1/logs", "http/protobuf"),
        ({"endpoint": "https://x/"}, "https://x/v1/logs", "http/protobuf"),
        ({"endpoint": "http://x/a?b=1"}, "http://x/a?b=1", "http/protobuf"),
        ({"endpoint": "http://x:4317"}, "http://x:4317", "grpc"),
        ({"endpoint": "http://x:4317", "protocol": "http/protobuf"}, "http://x:4317/v1/logs", "http/protobuf"),
        ({"protocol": "grpc"}, "http://localhost:4317", "grpc"),
        ({"endpoint": "https://x:443/", "protocol": "grpc"}, "https://x:443", "grpc"),
    ],
)
def test_the_port_says_the_protocol_and_the_signal_the_path(options, url, protocol):
    """Port 4317 means gRPC unless said otherwise; over HTTP the signal's path is added where there is none."""
    found = where("logs", **options)
    assert (found.url, found.protocol) == (url, protocol)


@pytest.mark.parametrize(
    ("variables", "url", "protocol"),
    [
        ({"ENDPOINT": "http://c:4318"}, "http://c:4318/v1/metrics", "http/protobuf"),
        ({"ENDPOINT": "http://c:4318/base/"}, "http://c:4318/base/v1/metrics", "http/protobuf"),
        ({"METRICS_ENDPOINT": "http://m:4318", "ENDPOINT": "http://c"}, "http://m:4318/", "http/protobuf"),
        ({"METRICS_ENDPOINT": "http://m/x"}, "http://m/x", "http/protobuf"),
        ({"TRACES_ENDPOINT": "http://t/x", "ENDPOINT": ""}, "http://localhost:4318/v1/metrics", "http/protobuf"),
        ({"PROTOCOL": "grpc"}, "http://localhost:4317", "grpc"),
        (
            {"PROTOCOL": "grpc", "METRICS_PROTOCOL": "http/protobuf"},
            "http://localhost:4318/v1/metrics",
            "http/protobuf",
        ),
        ({"ENDPOINT": "http://c:4317"}, "http://c:4317", "grpc"),
    ],
)
def test_otel_variables_say_where(monkeypatch, variables, url, protocol):
    """The signal's own variable is taken as it is and wins; to the common one the path is added; empty is unset."""
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    found = where("metrics")
    assert (found.url, found.protocol) == (url, protocol)
    assert where("metrics", endpoint="http://mine", protocol="http/protobuf").url == "http://mine/v1/metrics"


def test_otel_variables_say_how(monkeypatch, tmp_path):
    """Headers, timeout (milliseconds), compression and certificates are read, per signal first; options win."""
    authority = tmp_path / "ca.pem"
    authority.write_text("x")
    for name, value in {
        "HEADERS": "a=1,b=x%20y",
        "LOGS_HEADERS": "Authorization=Bearer%20t",
        "TIMEOUT": "2500",
        "COMPRESSION": "gzip",
        "LOGS_COMPRESSION": "none",
        "CERTIFICATE": str(authority),
    }.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    traces, logs = where(), where("logs", headers={"c": "3"}, timeout_s=1)
    assert (traces.headers, traces.timeout_s, traces.compression) == ({"a": "1", "b": "x y"}, 2.5, "gzip")
    assert (logs.headers, logs.timeout_s, logs.compression) == ({"Authorization": "Bearer t", "c": "3"}, 1, "none")
    assert traces.certificate == authority
    assert "Bearer" not in repr(logs)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("TIMEOUT", "ten", "is 'ten' and is ignored: expected a whole number"),
        ("COMPRESSION", "zstd", "is 'zstd' and is ignored: expected one of gzip, none"),
        ("PROTOCOL", "http/json", "is 'http/json' and is ignored: expected one of grpc, http/protobuf"),
        ("HEADERS", "secret", "is '…' and is ignored: expected a list of key=value"),
    ],
)
def test_a_bad_variable_is_warned_of_and_ignored(monkeypatch, name, value, what):
    """A bad number, word or list counts as unset, with one warning that names the variable and what was expected."""
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    with pytest.warns(OtelVariableWarning, match=what) as warned:
        found = where()
    assert (found.timeout_s, found.compression, found.protocol, found.headers) == (10.0, "none", "http/protobuf", {})
    assert len(warned) == 1


def test_a_bad_variable_is_one_line():
    """The warning stands alone: no line of our source is shown, which is not to blame."""
    done = subprocess.run(
        [sys.executable, "-c", "from eventcore_otlp import environment; environment.number('OTEL_BSP_MAX_QUEUE_SIZE')"],
        env={**os.environ, "OTEL_BSP_MAX_QUEUE_SIZE": "many"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == (
        "environment:0: OtelVariableWarning: variable OTEL_BSP_MAX_QUEUE_SIZE is 'many' and is ignored: expected "
        "a whole number that is not negative\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("ENDPOINT", "localhost:4318", "expected a URL such as"),
        ("TRACES_ENDPOINT", "http://localhost:14268", "14268 is Jaeger's retired collector"),
        ("CERTIFICATE", "/no/such.pem", "there is no such file"),
    ],
)
def test_a_variable_that_leads_nowhere_is_one_clear_error(monkeypatch, name, value, what):
    """Spans must not go to the wrong place in silence: an endpoint or file that cannot be is an error that names it."""
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    with pytest.raises(ec.ConfigurationError, match=f"OTEL_EXPORTER_OTLP_{name} is '{value}': .*{what}"):
        open_transport("traces")


def test_a_header_that_no_request_can_carry_is_an_error(monkeypatch):
    """A line break in a header of the environment is refused by name, and its value is not shown."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=hunter2%0D%0AHost:%20evil")
    with pytest.raises(ec.ConfigurationError, match="OTEL_EXPORTER_OTLP_HEADERS: header 'x-key' is empty") as raised:
        open_transport("traces")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"endpoint": "localhost:4318"}, "'endpoint' is 'localhost:4318'.*expected a URL"),
        ({"endpoint": "http://h:6831"}, "6831 is Jaeger's retired agent"),
        ({"endpoint": "localhost:6831"}, "'endpoint' is 'localhost:6831': port 6831 is Jaeger's retired agent"),
        ({"endpoint": "localhost:14268"}, "14268 is Jaeger's retired collector"),
        ({"headers": {"a": "b\nc"}}, "header 'a' is empty or has control characters"),
        ({"certificate": "/no/such.pem"}, "'certificate'"),
        ({"timeout": 3}, "unknown option 'timeout'; did you mean 'timeout_s'"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options, what):
    """A mistake in the options is an error that names option, value and remedy."""
    with pytest.raises(ec.ConfigurationError, match=f"(?s){what}"):
        open_transport("traces", **options)


def test_without_grpcio_the_error_names_the_extra(monkeypatch):
    """Port 4317 without grpcio says which extra is missing, and the way without it."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "eventcore_otlp.grpc_transport", raising=False)
    with pytest.raises(ec.PluginError, match=r"'grpc'.*pip install 'eventcore\[grpc\]'; or use .* port 4318"):
        open_transport("traces", endpoint="http://localhost:4317")


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def test_each_signal_arrives_at_its_path(receiver):
    """Requests of all three signals arrive decodable, where the specification puts them."""
    for signal, item in (("traces", SPAN), ("metrics", METRIC), ("logs", LOG)):
        transport = open_transport(signal, endpoint=receiver.endpoint)
        assert transport.send(frame().request([item])) == Sent()
        transport.close()
    assert [request.path for request in receiver.requests] == ["/v1/traces", "/v1/metrics", "/v1/logs"]
    assert receiver.requests[2].message.resource_logs[0].scope_logs[0].log_records[0].event_name == "a log"


def test_what_a_receiver_says_about_accepted_items_is_kept(receiver):
    """A partial success without rejections is a warning: nothing failed, and describe() shows it."""
    response = ExportTraceServiceResponse()
    response.partial_success.error_message = "use fewer attributes"
    receiver.answers.append(Answer(body=response.SerializeToString()))
    transport = open_transport("traces", endpoint=receiver.endpoint)
    assert transport.send(frame().request([SPAN])) == Sent(0, "use fewer attributes")
    assert transport.describe()["warning"] == "use fewer attributes"
    transport.close()


def test_https_verifies_the_receiver_and_shows_a_certificate(tmp_path):
    """With TLS the receiver is verified by ``certificate``; an unknown authority is refused; mutual TLS works."""
    authority, client_authority = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    client_authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    pems = {
        "certificate": authority.cert_pem,
        "client_certificate": (mine := client_authority.issue_cert("me")).cert_chain_pems[0],
        "client_key": mine.private_key_pem,
    }
    for name, pem in pems.items():
        pem.write_to_path(tmp_path / name)
    with OtlpReceiver(context) as receiver:
        options = {"endpoint": receiver.endpoint, "timeout_s": 2.0, **{name: tmp_path / name for name in pems}}
        transport = open_transport("traces", **options)
        assert transport.send(frame().request([SPAN])) == Sent()
        transport.close()
        stranger = open_transport("traces", **{**options, "timeout_s": 0.1, "certificate": None})
        with pytest.raises(TransportError, match="certificate verify failed"):
            stranger.send(frame().request([SPAN]))
        stranger.close()
    assert len(receiver.spans) == 1


def test_closing_cuts_a_pause_short(receiver):
    """A transport that waits to retry gives up at once when it is closed from another thread."""
    receiver.answers.append(Answer(503, {"Retry-After": "20"}))
    transport = open_transport("traces", endpoint=receiver.endpoint, timeout_s=60)
    errors = []

    def send():
        try:
            transport.send(frame().request([SPAN]))
        except TransportError as error:
            errors.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    while not receiver.attempts:
        time.sleep(0.005)
    transport.close()
    sender.join(5)
    assert not sender.is_alive()
    assert len(errors) == 1


# -- over gRPC ---------------------------------------------------------------------------------------------------------


def test_each_signal_arrives_at_its_service(grpc_receiver):
    """Over gRPC the Export of each signal's service is called, with headers as metadata, compressed if wanted."""
    options = {"endpoint": grpc_receiver.endpoint, "protocol": "grpc", "headers": {"X-Key": "abc"}}
    for signal, item in (("traces", SPAN), ("metrics", METRIC), ("logs", LOG)):
        transport = open_transport(signal, **options, compression="gzip")
        assert transport.send(frame().request([item])) == Sent()
        transport.close()
    services = [request.path for request in grpc_receiver.requests]
    assert services == [
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    ]
    assert grpc_receiver.requests[0].headers["x-key"] == "abc"
    assert grpc_receiver.requests[0].headers["user-agent"].startswith(f"eventcore/{ec.__version__}")
    assert grpc_receiver.spans[0].name == "a span"


def aborting(code, details="no", delay_ns=None):
    """Return an answer that ends a call with ``code``, and asks for a delay if one is given."""

    def answer(context):
        if delay_ns is not None:
            status = Status(code=code.value[0], message=details)
            status.details.add().Pack(RetryInfo(retry_delay=Duration(nanos=delay_ns)))
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, details)

    return answer


def test_grpc_retries_what_otlp_allows(grpc_receiver):
    """UNAVAILABLE is retried, RESOURCE_EXHAUSTED only where the receiver says when, and then not before."""
    code = grpc.StatusCode
    transport = open_transport("traces", endpoint=grpc_receiver.endpoint, protocol="grpc")
    grpc_receiver.answers.extend([aborting(code.UNAVAILABLE), aborting(code.RESOURCE_EXHAUSTED, delay_ns=300_000_000)])
    started = time.monotonic()
    assert transport.send(frame().request([SPAN])) == Sent()
    assert time.monotonic() - started > 0.3
    assert grpc_receiver.attempts == 3
    grpc_receiver.answers.append(aborting(code.RESOURCE_EXHAUSTED, "quota password=hunter2"))
    with pytest.raises(TransportError, match=r"gRPC http://127.*RESOURCE_EXHAUSTED quota \[REDACTED_SECRET\]"):
        transport.send(frame().request([SPAN]))
    grpc_receiver.answers.append(aborting(code.INVALID_ARGUMENT))
    with pytest.raises(TransportError, match="INVALID_ARGUMENT no"):
        transport.send(frame().request([SPAN]))
    assert grpc_receiver.attempts == 5
    transport.close()


def test_grpc_reports_a_partial_success(grpc_receiver):
    """What the receiver rejects of a request is reported, as over HTTP."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1
    response.partial_success.error_message = "too old"
    grpc_receiver.answers.append(lambda _: response.SerializeToString())
    transport = open_transport("traces", endpoint=grpc_receiver.endpoint, protocol="grpc")
    assert transport.send(frame().request([SPAN])) == Sent(1, "too old")
    transport.close()


def test_grpc_gives_up_in_time():
    """With nobody listening an export over gRPC ends within its time, with an error that says so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        transport = open_transport(
            "traces", endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}", protocol="grpc", timeout_s=0.4
        )
        with pytest.raises(TransportError, match=r"gRPC http://.*(UNAVAILABLE|DEADLINE_EXCEEDED).*gave up"):
            transport.send(frame().request([SPAN]))
        transport.close()
        with pytest.raises(TransportError):
            transport.send(frame().request([SPAN]))


def test_grpc_over_tls(tmp_path):
    """An https endpoint means TLS for gRPC too, verified by ``certificate``."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())])
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with GrpcReceiver(credentials) as receiver:
        transport = open_transport(
            "traces", endpoint=receiver.endpoint, protocol="grpc", certificate=tmp_path / "ca.pem"
        )
        assert transport.send(frame().request([SPAN])) == Sent()
        transport.close()
        assert len(receiver.spans) == 1


FORKING = """
import os, sys
from eventcore_otlp import open_transport
transport = open_transport("traces", endpoint=sys.argv[1], protocol=sys.argv[2], timeout_s=5)
transport.send(b"")
child = os.fork()
transport.send(b"")
if child == 0:
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("kind", "protocol"), [(OtlpReceiver, "http/protobuf"), (GrpcReceiver, "grpc")])
def test_a_forked_child_connects_anew(kind, protocol):
    """A transport goes on in a forked child, and in its parent, over connections of their own."""
    with kind() as receiver:
        command = [sys.executable, "-c", FORKING, receiver.endpoint, protocol]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        assert receiver.attempts == 3
