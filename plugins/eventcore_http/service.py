"""The service behind ``[http]``."""

from __future__ import annotations

import errno

from pydantic import Field

from eventcore.errors import ConfigurationError
from eventcore.service import Service, ServiceConfig
from eventcore_http.application import Application
from eventcore_http.server import Server

__all__ = ["HttpService"]

STOP_TIMEOUT_S = 2.0


class HttpService(Service):
    """Serves ``/metrics``, ``/livez``, ``/readyz``, ``/health``, ``/debug/eventcore`` and what plugins contribute."""

    class Config(ServiceConfig):
        """Options of the table ``[http]``."""

        host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all interfaces.")
        port: int = Field(9090, ge=0, le=65535, description="Port to listen on; 0 for any that is free.")

    config: Config
    _server: Server | None = None

    def start(self) -> None:
        """Listen. ConfigurationError: the port is taken, or the address is not one of this machine."""
        host, port = self.config.host, self.config.port
        try:
            self._server = Server(host, port, Application(self.emitter, self.plugins))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationError(
                    f"port {port} on {host} is in use; choose another with [http] port = … or stop what listens there"
                ) from None
            if error.errno == errno.EACCES:
                raise ConfigurationError(
                    f"port {port} on {host} may not be opened by this user; choose one above 1023 with [http] port = …"
                ) from None
            raise ConfigurationError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}; "
                f"[http] host = … takes an address of this machine, such as 127.0.0.1"
            ) from None

    def stop(self) -> None:
        """Stop listening, within two seconds; what is being answered is cut off."""
        if self._server is not None:
            self._server.stop(STOP_TIMEOUT_S)

    @property
    def port(self) -> int:
        """The port that it listens on, also where the settings said 0."""
        return self._server.port if self._server is not None else self.config.port

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end."""
        host = self.config.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __repr__(self) -> str:
        return f"<HttpService {self.url}>"
