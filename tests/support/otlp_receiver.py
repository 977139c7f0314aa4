"""Small OTLP receivers, over HTTP and gRPC: they decode what arrives, keep it, and misbehave when told to."""

from __future__ import annotations

import gzip
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import TracebackType

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Answer", "GrpcReceiver", "OtlpReceiver", "Received", "attributes_of", "plain"]

MESSAGES = {"logs": ExportLogsServiceRequest, "metrics": ExportMetricsServiceRequest}
"""What is posted to a path that ends so; spans to all others."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer instead of 200; ``rejected`` is OTLP's partial success, ``after`` holds the answer back."""

    status: int = 200
    headers: Mapping[str, str] | None = None
    body: bytes = b""
    rejected: int = 0
    hang: bool = False
    after: threading.Event | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """One request that was accepted; ``message`` is of the type that belongs to the path."""

    path: str
    headers: Mapping[str, str]
    message: Any


class OtlpReceiver:
    """Listens on a free loopback port from ``with`` to its end.

    ``answers`` are used up one by one, before anything else is accepted; ``attempts`` counts all requests. ``tls`` is
    an ``ssl.SSLContext`` to listen with.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: deque[Answer] = deque()
        self.requests: list[Received] = []
        self.attempts = 0
        self._released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def endpoint(self) -> str:
        """The URL without a path."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spans(self) -> list[Span]:
        """All spans accepted so far."""
        return _all_spans(self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def wait_for(self, number: int, timeout_s: float = 10.0) -> list[Span]:
        """Wait until ``number`` spans have arrived and return them."""
        deadline = time.monotonic() + timeout_s
        while len(self.spans) < number:
            assert time.monotonic() < deadline, f"{len(self.spans)} of {number} spans arrived in {timeout_s} s"
            time.sleep(0.01)
        return self.spans

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        self.attempts += 1
        body = request.rfile.read(int(request.headers["Content-Length"]))
        answer = self.answers.popleft() if self.answers else Answer()
        if answer.hang:
            self._released.wait(30)
            request.close_connection = True
            return
        if answer.after is not None:
            answer.after.wait(30)
        data = answer.body
        if 200 <= answer.status < 300:
            assert request.headers["Content-Type"] == "application/x-protobuf"
            decoded = gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body
            headers = {name.lower(): value for name, value in request.headers.items()}
            message = MESSAGES.get(request.path.rpartition("/")[2], ExportTraceServiceRequest)
            self.requests.append(Received(request.path, headers, message.FromString(decoded)))
            if answer.rejected:
                response = ExportTraceServiceResponse()
                response.partial_success.rejected_spans = answer.rejected
                response.partial_success.error_message = "too old"
                data = response.SerializeToString()
        request.send_response(answer.status)
        for name, value in (answer.headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Type", "application/x-protobuf")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


class GrpcReceiver:
    """The same over gRPC, on a free loopback port from ``with`` to its end.

    ``answers`` are callables that get the ``grpc.ServicerContext`` and return the serialised response.
    """

    def __init__(self, credentials: Any = None) -> None:
        import grpc

        self.answers: deque[Any] = deque()
        self.requests: list[Received] = []
        self.attempts = 0
        receiver = self

        class Exports(grpc.GenericRpcHandler):
            def service(self, call: Any) -> Any:
                def take(body: bytes, context: Any) -> bytes:
                    return receiver._take(call, body, context)

                return grpc.unary_unary_rpc_method_handler(take)

        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[Exports()])
        if credentials is None:
            self._port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self._port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._scheme = "http" if credentials is None else "https"

    @property
    def endpoint(self) -> str:
        """The URL."""
        return f"{self._scheme}://127.0.0.1:{self._port}"

    @property
    def spans(self) -> list[Span]:
        """All spans accepted so far."""
        return _all_spans(self.requests)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop(0).wait(5)

    def _take(self, call: Any, body: bytes, context: Any) -> bytes:
        self.attempts += 1
        answer = self.answers.popleft()(context) if self.answers else b""
        message = {"LogsService": "logs", "MetricsService": "metrics"}.get(call.method.split("/")[1].split(".")[-1])
        decoded = MESSAGES.get(message, ExportTraceServiceRequest).FromString(body)
        self.requests.append(Received(call.method, dict(call.invocation_metadata), decoded))
        return answer


def _all_spans(requests: list[Received]) -> list[Span]:
    traces = [request.message for request in requests if isinstance(request.message, ExportTraceServiceRequest)]
    return [span for message in traces for span in spans_of(message)]


def spans_of(message: ExportTraceServiceRequest) -> list[Span]:
    """Return all spans of a request."""
    return [span for group in message.resource_spans for scope in group.scope_spans for span in scope.spans]


def attributes_of(attributes: Any) -> dict[str, Any]:
    """Return OTLP attributes as plain values; a key that comes twice is a failure."""
    pairs: list[KeyValue] = list(attributes)
    plains = {pair.key: plain(pair.value) for pair in pairs}
    assert len(plains) == len(pairs), [pair.key for pair in pairs]
    return plains


def plain(value: AnyValue) -> Any:
    """Return one OTLP value; arrays as lists."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
