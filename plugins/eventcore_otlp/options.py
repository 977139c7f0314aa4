"""The options of every handler that exports OTLP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import eventcore as ec
from eventcore.errors import mistakes
from eventcore_otlp.endpoint import Endpoint, Signal, check_headers, check_url

if TYPE_CHECKING:
    from eventcore_otlp.transport import Transport

__all__ = ["OtlpOptions", "open_transport"]


class OtlpOptions(BaseModel):
    """Where OTLP goes. What is not given is taken from ``OTEL_EXPORTER_OTLP_*``, the signal's own variables first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = Field(
        None,
        description="OTLP receiver, such as http://localhost:4318; /v1/<signal> is appended where it has no path. Port "
        "4317 means gRPC.",
    )
    protocol: Literal["http/protobuf", "grpc"] | None = Field(
        None, description="HTTP with protobuf bodies, or gRPC (extra eventcore[grpc]); by the port when not given."
    )
    headers: dict[str, str] = Field(
        default_factory=dict, repr=False, description="HTTP headers (gRPC metadata), such as an authorization."
    )
    compression: Literal["none", "gzip"] | None = Field(None, description="Compression of OTLP bodies; none.")
    timeout_s: float | None = Field(
        None, gt=0, description="How long one export may take, retries included; 10 seconds when not given."
    )
    certificate: Path | None = Field(None, description="Authorities (PEM) to verify the receiver with.")
    client_certificate: Path | None = Field(None, description="Certificate (PEM) to show to the receiver.")
    client_key: Path | None = Field(None, description="Private key (PEM) of client_certificate.")

    @field_validator("endpoint")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        return value if value is None else check_url(value)

    @field_validator("headers")
    @classmethod
    def _one_line_each(cls, value: dict[str, str]) -> dict[str, str]:
        check_headers(value)
        return value

    def open(self, signal: Signal) -> Transport:
        """Return a transport for ``signal``; nothing is connected before the first request.

        Raises ConfigurationError naming the variable that is wrong, and PluginError naming the extra that is missing.
        """
        endpoint = Endpoint.find(signal, self)
        is_grpc = endpoint.protocol == "grpc"
        try:
            if is_grpc:
                from eventcore_otlp.grpc_transport import GrpcTransport

                return GrpcTransport(endpoint)
            from eventcore_otlp.http_transport import HttpTransport

            return HttpTransport(endpoint)
        except ModuleNotFoundError as error:
            what = f"OTLP over gRPC ({endpoint.url})" if is_grpc else "OTLP over HTTP"
            extra = "grpc" if is_grpc else "otlp"
            instead = "; or use OTLP over HTTP, port 4318" if is_grpc else ""
            raise ec.PluginError(
                f"{what} needs the package {error.name!r}, which is not installed; "
                f"pip install 'eventcore[{extra}]'{instead}"
            ) from error


def open_transport(signal: Signal, **options: Any) -> Transport:
    """Return a transport for ``signal`` (``traces``, ``metrics`` or ``logs``), with ``OtlpOptions`` as keywords.

    Raises ConfigurationError for an option, or a variable, that is wrong.
    """
    try:
        chosen = OtlpOptions(**options)
    except ValidationError as error:
        raise ec.ConfigurationError(mistakes(error, OtlpOptions.model_fields, lambda _: "open_transport()")) from None
    return chosen.open(signal)
