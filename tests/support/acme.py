"""A plugin of the tests: a handler with options and a service that listens, under names that others take, too."""

import socket
from typing import ClassVar

from pydantic import Field

import eventcore as ec
from tests.support.handlers import Collect

BLOCK = '[plugins]\nblock = ["log", "metric", "http"]\n'
"""Leaves the installed plugins out whose names this one takes."""


class Mine(Collect):
    """A handler with options."""

    class Config(ec.HandlerConfig):
        """Its options."""

        colour: str = Field("grey", description="Colour of the lines.")
        level: int = Field(1, ge=0, le=9, description="How loud.")
        format: str = Field("plain", description="Shape of the lines.")

    started: ClassVar[list] = []

    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        self.started.append(self)
        if self.config.colour == "refused":
            raise ec.ConfigurationError("there is no such colour; take grey")


class Server(ec.Service):
    """A service that listens."""

    class Config(ec.ServiceConfig):
        """Its settings."""

        port: int = Field(0, ge=0, le=65535, description="TCP port.")

    def start(self):
        self.socket = socket.socket()
        try:
            self.socket.bind(("127.0.0.1", self.config.port))
        except OSError as error:
            self.socket.close()
            raise ec.ConfigurationError(f"port {self.config.port} is in use; choose another") from error
        self.socket.listen()

    def stop(self):
        self.socket.close()

    @property
    def port(self):
        return self.socket.getsockname()[1]


class Acme:
    """A plugin that offers them under several names."""

    @ec.hookimpl
    def eventcore_handlers(self):
        return {"mine": Mine, "log": Mine, "metric": Mine}

    @ec.hookimpl
    def eventcore_services(self):
        return {"http": Server, "svc": Server}
