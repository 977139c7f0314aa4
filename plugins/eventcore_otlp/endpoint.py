"""Where one signal goes: what the options say, and where they say nothing, ``OTEL_EXPORTER_OTLP_*``, then the defaults.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import eventcore as ec
from eventcore_otlp import environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore_otlp.options import OtlpOptions

__all__ = ["Endpoint", "Protocol", "Signal", "check_headers", "check_url"]

Signal = Literal["traces", "metrics", "logs"]
Protocol = Literal["http/protobuf", "grpc"]

GRPC_PORT = 4317
DEFAULTS: Mapping[Protocol, str] = {"http/protobuf": "http://localhost:4318", "grpc": f"http://localhost:{GRPC_PORT}"}
DEFAULT_TIMEOUT_S = 10.0

_RETIRED = {
    6831: "is Jaeger's retired agent (UDP); Jaeger takes OTLP over HTTP on port 4318",
    6832: "is Jaeger's retired agent (UDP); Jaeger takes OTLP over HTTP on port 4318",
    14268: "is Jaeger's retired collector protocol; Jaeger takes OTLP over HTTP on port 4318",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one signal goes, and how; ``url`` has the path of the signal, and none for gRPC."""

    signal: Signal
    url: str
    protocol: Protocol
    headers: Mapping[str, str] = field(repr=False)  # an authorization may be among them
    compression: str
    timeout_s: float
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None

    @classmethod
    def find(cls, signal: Signal, options: OtlpOptions) -> Endpoint:
        """Return where ``signal`` goes; ConfigurationError names the variable that is wrong."""
        protocol = options.protocol or _protocol(signal)
        url = options.endpoint
        if url is not None:
            path = f"/v1/{signal}" if urlsplit(url).path in ("", "/") else urlsplit(url).path
        else:
            url, path = _url_of_variables(signal, DEFAULTS[protocol or "http/protobuf"])
        parts = urlsplit(url)
        if protocol is None:
            protocol = "grpc" if parts.port == GRPC_PORT else "http/protobuf"
        return cls(
            signal,
            parts._replace(path="" if protocol == "grpc" else path).geturl(),
            protocol,
            {**_headers_of_variables(signal), **options.headers},
            options.compression or environment.choice({"none", "gzip"}, *_names(signal, "COMPRESSION")) or "none",
            options.timeout_s or environment.milliseconds(*_names(signal, "TIMEOUT")) or DEFAULT_TIMEOUT_S,
            _given("certificate", options.certificate) or _file(*_names(signal, "CERTIFICATE")),
            _given("client_certificate", options.client_certificate) or _file(*_names(signal, "CLIENT_CERTIFICATE")),
            _given("client_key", options.client_key) or _file(*_names(signal, "CLIENT_KEY")),
        )

    @property
    def is_secure(self) -> bool:
        """Whether TLS is used."""
        return self.url.startswith("https:")


def check_url(value: str) -> str:
    """Return ``value`` if OTLP can be sent there; ValueError says what is wrong with it."""
    parts = urlsplit(value if "//" in value else f"//{value}")  # the guides give Jaeger's agent as host:port
    if parts.port in _RETIRED:
        raise ValueError(f"port {parts.port} {_RETIRED[parts.port]}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL such as http://localhost:4318")
    if parts.username or parts.password:
        raise ValueError("credentials belong into headers, not into the URL")
    return value


def check_headers(value: Mapping[str, str]) -> None:
    """Raise ValueError for a header that no request can carry."""
    for name, text in value.items():
        if not name or not f"{name}{text}".isprintable():
            raise ValueError(f"header {name!r} is empty or has control characters")


def _given(option: str, path: Path | None) -> Path | None:
    """Return a file of the options; it is looked for here, where it is needed, and not where options are read."""
    if path is not None and not path.is_file():
        raise ec.ConfigurationError(f"option {option!r} is {str(path)!r}: there is no such file")
    return path


def _names(signal: str, what: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}"


def _protocol(signal: str) -> Protocol | None:
    found = environment.choice(DEFAULTS, *_names(signal, "PROTOCOL"))
    return next((protocol for protocol in DEFAULTS if protocol == found), None)


def _url_of_variables(signal: str, default: str) -> tuple[str, str]:
    """Return URL and path: the signal's own variable is taken as it is, to the common one ``v1/<signal>`` is added."""
    own, common = _names(signal, "ENDPOINT")
    for name in (own, common):
        url = environment.text(name)
        if url is not None:
            try:
                path = urlsplit(check_url(url)).path
            except ValueError as error:
                raise ec.ConfigurationError(f"environment variable {name} is {url!r}: {error}") from None
            return url, (path or "/") if name == own else f"{path.rstrip('/')}/v1/{signal}"
    return default, f"/v1/{signal}"


def _headers_of_variables(signal: str) -> dict[str, str]:
    names = _names(signal, "HEADERS")
    headers = environment.pairs(*names)
    try:
        check_headers(headers)
    except ValueError as error:
        raise ec.ConfigurationError(f"environment variable {' or '.join(names)}: {error}") from None
    return headers


def _file(*names: str) -> Path | None:
    for name in names:
        value = environment.text(name)
        if value is not None:
            if not Path(value).is_file():
                raise ec.ConfigurationError(f"environment variable {name} is {value!r}: there is no such file")
            return Path(value)
    return None
