"""The service behind ``[http]``."""

from __future__ import annotations

import errno
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, SecretStr, model_validator

from eventcore.errors import ConfigurationError
from eventcore.service import Service, ServiceConfig, secret_of, unset_secrets
from eventcore_http.access import PUBLIC, Access
from eventcore_http.application import HEALTH, Application
from eventcore_http.server import Server
from eventcore_http.tls import Certificate

if TYPE_CHECKING:
    from eventcore.emitter import Emitter
    from eventcore.plugins import Plugins

__all__ = ["HttpService"]

STOP_TIMEOUT_S = 2.0


class HttpService(Service):
    """Serves ``/metrics``, ``/livez``, ``/readyz``, ``/health``, ``/debug/eventcore`` and what plugins contribute."""

    class Config(ServiceConfig):
        """Options of the table ``[http]``."""

        host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all interfaces.")
        port: int = Field(9090, ge=0, le=65535, description="Port to listen on; 0 for any that is free.")
        health_port: int | None = Field(
            None, ge=0, le=65535, description="A further port, with /livez, /readyz, /health and /healthz alone."
        )
        serve: bool = Field(
            default=True, description="False: no server; mounted applications take authentication from here."
        )
        token: SecretStr | None = Field(
            None, repr=False, description="Bearer token that readers must send, or 'env:NAME' for a variable with it."
        )
        username: str = Field("", description="User of basic authentication.")
        password: SecretStr | None = Field(
            None, repr=False, description="Password of basic authentication, or 'env:NAME' for a variable with it."
        )
        public: tuple[str, ...] = Field(
            PUBLIC, description="Paths, or patterns with *, that need neither token nor password."
        )
        certfile: Path | None = Field(None, description="Certificate chain (PEM); with it the server speaks TLS alone.")
        keyfile: Path | None = Field(None, description="Its private key (PEM), where it is not in certfile.")
        keyfile_password: SecretStr | None = Field(
            None, repr=False, description="Password of the private key, or 'env:NAME' for a variable with it."
        )

        @model_validator(mode="after")
        def _belong_together(self) -> Self:
            if self.certfile is None and (self.keyfile or self.keyfile_password):
                raise ValueError("'keyfile' needs 'certfile' beside it")
            if self.health_port and self.health_port == self.port:
                raise ValueError(f"'health_port' is {self.health_port}, as 'port' is: it is a further port")
            return self

    config: Config

    def __init__(self, config: ServiceConfig, emitter: Emitter, plugins: Plugins) -> None:
        super().__init__(config, emitter, plugins)
        self._servers: list[Server] = []
        if not any(unset_secrets(self.config)):
            _ = self.access  # a mistake shows now, and not only where it starts

    @cached_property
    def access(self) -> Access:
        """Who may read. ConfigurationError: a secret is not there, or is half of what it takes."""
        return Access(
            token=secret_of(self.config.token, "option 'token'"),
            username=self.config.username,
            password=secret_of(self.config.password, "option 'password'"),
            public=self.config.public,
        )

    @property
    def is_protected(self) -> bool:
        """Whether it asks who reads."""
        return self.config.token is not None or self.config.password is not None

    def start(self) -> None:
        """Listen.

        ConfigurationError: a secret is missing, a port is taken, the address is not one of this machine, no such
        certificate.
        """
        config, access = self.config, self.access
        if not config.serve:
            return
        password = secret_of(config.keyfile_password, "option 'keyfile_password'")
        tls = Certificate(config.certfile, config.keyfile, password) if config.certfile else None
        try:
            self._listen("port", config.port, Application(self.emitter, self.plugins, access), tls)
            if config.health_port is not None:
                application = Application(self.emitter, self.plugins, access, only=HEALTH)
                self._listen("health_port", config.health_port, application, tls)
        except ConfigurationError:
            self.stop()
            raise

    def _listen(self, option: str, port: int, application: Application, tls: Certificate | None) -> None:
        host = self.config.host
        try:
            self._servers.append(Server(host, port, application, tls))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationError(
                    f"port {port} on {host} is in use; choose another with [http] {option} = … or stop what listens "
                    "there"
                ) from None
            if error.errno == errno.EACCES:
                raise ConfigurationError(
                    f"port {port} on {host} may not be opened by this user; choose one above 1023 with [http] "
                    f"{option} = …"
                ) from None
            raise ConfigurationError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}; "
                f"[http] host = … takes an address of this machine, such as 127.0.0.1"
            ) from None

    def stop(self) -> None:
        """Stop listening, within two seconds; what is being answered is cut off."""
        for server in self._servers:
            server.stop(STOP_TIMEOUT_S / 2)

    @property
    def port(self) -> int:
        """The port that it listens on, also where the settings said 0."""
        return self._servers[0].port if self._servers else self.config.port

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end."""
        return self._url(self.port)

    @property
    def health_url(self) -> str | None:
        """Where it serves health alone; None without a port for it."""
        if self.config.health_port is None:
            return None
        return self._url(self._servers[1].port if len(self._servers) > 1 else self.config.health_port)

    def _url(self, port: int) -> str:
        host = self.config.host
        return f"http{'s' if self.config.certfile else ''}://{f'[{host}]' if ':' in host else host}:{port}"

    def __repr__(self) -> str:
        return f"<HttpService {self.url if self.config.serve else 'mounted'}>"
