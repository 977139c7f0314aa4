"""Settings: code > environment (``EVENTCORE_``) > ``.env`` > ``eventcore.toml`` or ``pyproject.toml`` > defaults.

Only the frame is known here; each ``[handlers.<name>]`` table and each service's table (``[http]``) is validated by the
model of the plugin that it configures. Every mistake says where it was made: which file or variable, and which key.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from eventcore.errors import ConfigurationError, did_you_mean, mistakes
from eventcore.journal_config import JournalConfig
from eventcore.resource import NAMED, Resource, otel_resource

__all__ = ["PluginSettings", "Settings", "Sources", "load_settings"]

PREFIX = "EVENTCORE_"
NOT_SETTINGS = frozenset({"EVENTCORE_CONFIG", "EVENTCORE_DATA", "EVENTCORE_REQUIRE_SERVERS", "EVENTCORE_TOKEN"})
_YES = ("true", "1", "yes", "on")
_ALIASES = {"LOG_LEVEL": ("handlers", "log", "min_severity"), "LOG_FORMAT": ("handlers", "log", "format")}


class PluginSettings(BaseModel):
    """Which plugins to leave alone."""

    model_config = ConfigDict(extra="forbid")

    block: tuple[str, ...] = Field((), description="Names of installed plugins that are not loaded.")


class Frame(BaseSettings):
    """The settings of the bus itself."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_file=".env", extra="ignore", hide_input_in_errors=True
    )

    service: str = Field("unknown_service", min_length=1, description="Name of the service, on every signal.")
    version: str = Field("0", description="Version of the service.")
    environment: str = Field("", description="Deployment environment, such as 'production'.")
    strict: bool = Field(
        default=False, description="Raise on results that do not validate (for tests) instead of leaving them out."
    )
    debug: bool = Field(
        default=False, description="DEBUG lines in every log, spans on the console, and the series eventcore_debug_…"
    )
    shutdown_timeout_s: float = Field(5.0, gt=0, description="How long shutdown may take.")
    journal: JournalConfig = Field(
        default_factory=lambda: JournalConfig.model_validate({}), description="The journal of durable handlers."
    )
    handlers: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Handlers by name.")
    plugins: PluginSettings = Field(PluginSettings(block=()), description="Which plugins to load.")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where settings come from: what code gave, variables (of the environment and of ``.env``), and the file."""

    given: Mapping[str, Any]
    variables: Mapping[str, str]
    dotenv: frozenset[str]
    file: Path | None
    table: Mapping[str, Any]

    @classmethod
    def find(cls, config: str | Path | None, given: Mapping[str, Any]) -> Sources:
        """Read the file and the variables; ConfigurationError for a file that is missing or no TOML."""
        file, table = _read_file(config)
        dotenv = {name.upper(): value for name, value in dotenv_values(".env").items() if value is not None}
        environment = {name.upper(): value for name, value in os.environ.items()}
        return cls(given, {**dotenv, **environment}, frozenset(dotenv) - frozenset(environment), file, table)

    def where(self, *path: str) -> str:
        """Say where the setting at ``path`` was made, or where its table was."""
        for length in range(len(path), 0, -1):
            part = path[:length]
            if _within(self.given, part):
                return f"configure(): {'.'.join(part)}"
            variable = next((name for leaf, name in self._leaves() if leaf[:length] == part), None)
            if variable is not None:
                return self.variable(variable)
            if _within(self.table, part):
                prefix = "tool.eventcore." if self.file and self.file.name == "pyproject.toml" else ""
                table = part[:-1] if length == len(path) and not isinstance(_at(self.table, part), Mapping) else part
                return f"{self.file}: [{prefix}{'.'.join(table)}]" if table else f"{self.file}: {part[0]}"
        return f"configure(): {'.'.join(path)}"

    def _leaves(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the path of every setting that a variable makes, JSON inside its value included, and its name."""
        for name, text in self.variables.items():
            if not name.startswith(PREFIX) or name in NOT_SETTINGS:
                continue
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            try:
                value = json.loads(text) if text.lstrip().startswith("{") else None
            except ValueError:
                value = None
            yield from ((leaf, name) for leaf in _leaves_of(path, value))

    def variable(self, name: str) -> str:
        """Name a variable, and ``.env`` if it is set there."""
        return f"variable {name} in .env" if name in self.dotenv else f"environment variable {name}"

    def blocked_plugins(self) -> tuple[str, ...]:
        """Read ``plugins.block`` alone: it must be known before plugins, and so the names of their tables, are."""
        where, table = self.where("plugins", "block"), self.table.get("plugins", {})
        variable = self.variables.get(f"{PREFIX}PLUGINS__BLOCK")
        if "plugins" in self.given:
            table = self.given["plugins"]
        elif variable is not None:
            try:
                table = {"block": json.loads(variable)}
            except ValueError:
                raise ConfigurationError(f'{where} is {variable!r}: expected a JSON list, such as ["log"]') from None
        try:
            return PluginSettings.model_validate(table).block
        except ValidationError as error:
            raise ConfigurationError(explain(self, ("plugins",), error, PluginSettings)) from None

    def check_keys(self, known: set[str]) -> None:
        """Refuse keys that are no settings, in any source."""
        for key in self.table:
            _check_key(key, known, str(self.file))
        for key in self.given:
            _check_key(key, known, "configure()")
        for name in self.variables:
            if name.startswith(PREFIX) and name not in NOT_SETTINGS:
                _check_key(name.removeprefix(PREFIX).lower().partition("__")[0], known, self.variable(name))


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings as read, and where they were read from."""

    frame: Frame
    services: Mapping[str, dict[str, Any]]
    sources: Sources
    aliased: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    resource_attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def resource(self) -> Resource:
        """Who emits."""
        frame = self.frame
        return Resource(frame.service, frame.version, frame.environment, self.resource_attributes)

    def where(self, *path: str) -> str:
        """Say where the setting at ``path`` was made."""
        return self.aliased.get(path) or self.sources.where(*path)


def load_settings(
    sources: Sources, service_names: Iterable[str], default_handlers: Mapping[str, dict[str, Any]]
) -> Settings:
    """Merge all sources; ``service_names`` are the tables that services accept. Raises ConfigurationError.

    ``default_handlers`` are taken where no source names any.
    """
    names = tuple(service_names)
    sources.check_keys({*Frame.model_fields, *names})
    sections: dict[str, Any] = dict.fromkeys(names, (dict[str, Any] | None, None))

    class WithFile(Frame):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings passes it by name
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = InitSettingsSource(settings_cls, init_kwargs=dict(sources.table))
            return init_settings, env_settings, dotenv_settings, file

    model = create_model("Settings", __base__=WithFile, **sections)
    try:
        merged: Any = model(**sources.given)
    except ValidationError as error:
        raise ConfigurationError(explain(sources, (), error, model)) from None
    except SettingsError as error:
        raise ConfigurationError(f"{_unreadable(sources)}: expected JSON ({error.__cause__ or error})") from None
    services = {name: value for name in names if (value := getattr(merged, name)) is not None}
    handlers = merged.handlers or default_handlers
    return _with_aliases(Settings(merged.model_copy(update={"handlers": handlers}), services, sources))


def explain(
    settings: Sources | Settings, table: tuple[str, ...], error: ValidationError, config: type[BaseModel]
) -> str:
    """Say what is wrong in the table at ``table``: where each mistake is, which key, what was expected."""
    return mistakes(error, config.model_fields, lambda path: settings.where(*table, *path))


def _unreadable(sources: Sources) -> str:
    for name, text in sources.variables.items():
        if name.startswith(PREFIX) and name not in NOT_SETTINGS and text.lstrip()[:1] in ("{", "["):
            try:
                json.loads(text)
            except ValueError:
                return sources.variable(name)
    return "environment"


def _leaves_of(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves_of((*path, str(key)), inner)
    else:
        yield path


def _at(table: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        table = table[part]
    return table


def _within(table: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True


def _read_file(config: str | Path | None) -> tuple[Path | None, dict[str, Any]]:
    chosen = config or os.environ.get("EVENTCORE_CONFIG")
    if chosen:
        path = Path(chosen)
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such configuration file")
        return path, _table_of(path) or {}
    for path in (Path("eventcore.toml"), Path("pyproject.toml")):
        table = _table_of(path) if path.is_file() else None
        if table is not None:
            return path, table
    return None, {}


def _table_of(path: Path) -> dict[str, Any] | None:
    """Return the settings in a TOML file; None where a ``pyproject.toml`` has none."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if path.name != "pyproject.toml":
        return content
    tool = content.get("tool")
    table = tool.get("eventcore") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigurationError(f"{path}: [tool.eventcore] must be a table")
    return table


def _check_key(key: str, known: set[str], where: str) -> None:
    if key not in known:
        raise ConfigurationError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")


def _with_aliases(settings: Settings) -> Settings:
    """Apply the guides' variables where neither code nor ``EVENTCORE_`` says otherwise.

    ``LOG_LEVEL`` and ``LOG_FORMAT`` set the log handler's options if there is one (or none at all is configured);
    ``ENABLE_METRICS=true`` adds a metric handler and the HTTP server, ``METRICS_PORT`` sets its port. OpenTelemetry's
    ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say who emits.
    """
    sources = settings.sources
    variables = sources.variables
    handlers = {name: dict(options) for name, options in settings.frame.handlers.items()}
    services = {name: dict(options) for name, options in settings.services.items()}
    aliased: dict[tuple[str, ...], str] = {}

    def is_said(path: tuple[str, ...]) -> bool:
        return _within(sources.given, path) or PREFIX + "__".join(path).upper() in variables

    if "log" in handlers:
        for variable, path in _ALIASES.items():
            if variables.get(variable) and not is_said(path):
                handlers["log"][path[-1]] = variables[variable].lower()
                aliased[path] = sources.variable(variable)
    if variables.get("ENABLE_METRICS", "").lower() in _YES:
        if not any(options.get("use", name) == "metric" for name, options in handlers.items()):
            handlers["metric"] = {}
        services.setdefault("http", {})
    if variables.get("METRICS_PORT") and "http" in services and not is_said(("http", "port")):
        services["http"]["port"] = variables["METRICS_PORT"]
        aliased["http", "port"] = sources.variable("METRICS_PORT")
    attributes = otel_resource(variables)
    named = {key: attributes.pop(name) for name, key in NAMED.items() if name in attributes}
    named = {key: value for key, value in named.items() if not is_said((key,))}
    frame = settings.frame.model_copy(update={"handlers": handlers, **named})
    return Settings(frame, services, sources, aliased, attributes)
