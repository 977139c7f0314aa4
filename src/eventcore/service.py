"""Services: what a plugin runs beside the handlers, such as a server; configured by a settings table of its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from eventcore.emitter import Emitter
    from eventcore.plugins import Plugins

__all__ = ["Service", "ServiceConfig"]


class ServiceConfig(BaseModel):
    """Base of a service's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Service:
    """Something that runs from ``configure()`` to ``shutdown()``."""

    Config: ClassVar[type[ServiceConfig]] = ServiceConfig

    def __init__(self, config: ServiceConfig, emitter: Emitter, plugins: Plugins) -> None:
        self.config = config
        self.emitter = emitter
        self.plugins = plugins

    def start(self) -> None:
        """Start; raise ConfigurationError with what is wrong and the remedy where that is impossible."""

    def stop(self) -> None:
        """Stop, in bounded time."""
