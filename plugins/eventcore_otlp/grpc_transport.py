"""OTLP over gRPC. Requests are serialised already, so grpcio's generic call is enough: no stubs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]  # grpcio has no types

import eventcore as ec
from eventcore_otlp.transport import RefusedError, Transport, WorthARetryError, excerpt
from eventcore_otlp.wire import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore_otlp.endpoint import Signal

__all__ = ["GrpcTransport"]

METHODS: Mapping[Signal, str] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}

RETRIED = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that OTLP allows to retry; RESOURCE_EXHAUSTED too, where the receiver says when."""


class GrpcTransport(Transport):
    """Calls ``Export`` over one channel that is kept open."""

    verb = "gRPC"

    def _connect(self) -> None:
        endpoint = self.endpoint
        target = endpoint.url.partition("://")[2]
        options = [("grpc.enable_retries", 0), ("grpc.primary_user_agent", f"eventcore/{ec.__version__}")]
        if endpoint.is_secure:
            files = (endpoint.certificate, endpoint.client_key, endpoint.client_certificate)
            credentials = grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._export = self._channel.unary_unary(METHODS[endpoint.signal])  # bytes in, bytes out
        self._metadata = tuple((name.lower(), value) for name, value in endpoint.headers.items())
        self._compression = grpc.Compression.Gzip if endpoint.compression == "gzip" else None

    def _disconnect(self) -> None:
        self._channel.close()

    def _attempt(self, body: bytes, timeout_s: float) -> bytes:
        try:
            answer: bytes = self._export(
                body, timeout=timeout_s, metadata=self._metadata, compression=self._compression
            )
        except grpc.RpcError as error:
            code = error.code().name
            problem = f"{code} {excerpt(error.details() or '')}".rstrip()
            after_s = _retry_delay_s(error)
            if code in RETRIED or (code == "RESOURCE_EXHAUSTED" and after_s is not None):
                raise WorthARetryError(problem, after_s or 0.0) from error
            raise RefusedError(problem) from error
        except ValueError as error:  # the channel was closed meanwhile
            raise RefusedError(str(error)) from error
        return answer


def _retry_delay_s(error: Any) -> float | None:
    """Return the seconds that the receiver asks for in a ``google.rpc.RetryInfo``, if it does."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return next(map(_seconds, filter(_is_retry_info, _messages(value, 3))), None)
            except ValueError:
                return None
    return None


def _messages(message: bytes, number: int) -> list[bytes]:
    return [content for found, content in fields(message) if found == number and isinstance(content, bytes)]


def _is_retry_info(detail: bytes) -> bool:
    return any(url.endswith(b"/google.rpc.RetryInfo") for url in _messages(detail, 1))


def _seconds(detail: bytes) -> float:
    """Return ``RetryInfo.retry_delay``: a ``Duration`` of seconds and nanoseconds."""
    seconds = 0.0
    for info in _messages(detail, 2):
        for duration in _messages(info, 1):
            for number, content in fields(duration):
                if isinstance(content, int) and content < 1 << 63:
                    seconds += content if number == 1 else content / 1e9
    return seconds
