"""Services: what a plugin runs beside the handlers, such as a server; configured by a settings table of its name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from eventcore.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from eventcore.emitter import Emitter
    from eventcore.plugins import Plugins

__all__ = ["Service", "ServiceConfig", "secret_of"]


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


def secret_of(secret: SecretStr | None, option: str) -> str:
    """Return a secret, from the environment where it says ``env:NAME``; "" for None.

    ConfigurationError, which never quotes it: the variable is not set, or the secret is empty.
    """
    if secret is None:
        return ""
    text = secret.get_secret_value()
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        text = os.environ.get(name, "")
        if not text:
            raise ConfigurationError(f"{option} names the environment variable {name!r}, which is not set")
    if not text:
        raise ConfigurationError(f"{option} is empty; give a secret, or 'env:NAME' for a variable that holds it")
    return text
