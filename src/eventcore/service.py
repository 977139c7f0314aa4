"""Services: what a plugin runs beside the handlers, such as a server; configured by a settings table of its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, SecretStr

from eventcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventcore.emitter import Emitter
    from eventcore.plugins import Plugins

__all__ = ["Service", "ServiceConfig", "secret_of", "unset_secrets"]

_OF_VARIABLE = "env:"


class ServiceConfig(BaseModel):
    """Base of a service's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Service:
    """Something that runs from ``configure()`` to ``shutdown()``.

    It may be made and never started, where somebody asks what the settings come to: what only running needs, such as
    a secret, is looked for by ``start``.
    """

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
    if text.startswith(_OF_VARIABLE):
        name = text.removeprefix(_OF_VARIABLE)
        text = os.environ.get(name, "")
        if not text:
            raise ConfigurationError(f"{option} names the environment variable {name!r}, which is not set")
    if not text:
        raise ConfigurationError(f"{option} is empty; give a secret, or 'env:NAME' for a variable that holds it")
    return text


def unset_secrets(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each option of a configuration that says ``env:NAME`` of a variable that is not set here, and the name."""
    if isinstance(config, BaseModel):
        config = {name: getattr(config, name) for name in type(config).model_fields}
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from unset_secrets(value, f"{path}.{name}" if path else str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from unset_secrets(value, path)
    elif isinstance(config, SecretStr) and config.get_secret_value().startswith(_OF_VARIABLE):
        name = config.get_secret_value().removeprefix(_OF_VARIABLE)
        if not os.environ.get(name):
            yield path, name
