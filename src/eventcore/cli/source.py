"""Who answers: a running process over HTTP, or a fresh emitter with the settings found here."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from eventcore.cli.address import Address
from eventcore.cli.output import fail, note, say
from eventcore.errors import ConfigurationError, EventCoreError
from eventcore.explanation import explain
from eventcore.exposition import exposition_of
from eventcore.inspection import catalog_of, full_catalog, head_of, inspect
from eventcore.instruments import Instrument
from eventcore.rehearsal import missing_secrets, rehearse
from eventcore.snapshot import snapshot_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.emitter import Emitter

__all__ = [
    "Config",
    "Import",
    "Instruments",
    "Source",
    "Url",
    "import_module",
    "instruments_at",
    "say_source",
    "source_of",
]

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Ask the process that serves there, such as http://127.0.0.1:9090."),
]
Config = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="Settings to use instead of those found here.")
]
Import = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Module of your own event types; may be repeated."),
]
Instruments = Annotated[
    list[str] | None,
    typer.Option("--instruments", metavar="MODULE:NAME", help="List given to configure(); may be repeated."),
]


class Source(ABC):
    """Answers questions; EventCoreError where it cannot.

    ``missing``: variables of secrets that are not set here, and who names them.
    """

    missing: Sequence[str] = ()

    @abstractmethod
    def inspection(self) -> dict[str, Any]:
        """Return ``inspection.inspect``."""

    @abstractmethod
    def catalog(self) -> dict[str, Any]:
        """Return ``inspection.catalog_of``."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Return ``snapshot.snapshot_of`` everything that ``catalog`` lists."""

    @abstractmethod
    def explanation(self, event: str, severity: str | None) -> dict[str, Any]:
        """Return ``explanation.explain``."""

    @abstractmethod
    def health(self) -> dict[str, Any]:
        """Return ``HealthMonitor.report``."""

    @abstractmethod
    def served(self) -> tuple[str | None, str | None, bool]:
        """Return where settings have a process serve, on which host, and whether it asks who reads; None: unknown."""


class Fresh(Source):
    """A fresh emitter, on which nothing is opened and nothing emitted."""

    def __init__(
        self,
        config: str | None,
        modules: Sequence[str] = (),
        instruments: Sequence[str] = (),
        *,
        is_for_catalog: bool = False,
    ) -> None:
        for module in modules:
            import_module(module)
        self._given = [item for path in instruments for item in instruments_at(path)]
        self._emitter: Emitter = rehearse(config, self._given, is_for_catalog=is_for_catalog)
        self.missing = missing_secrets(self._emitter)

    def inspection(self) -> dict[str, Any]:
        """Inspect the fresh emitter."""
        return {"source": "fresh", **inspect(self._emitter)}

    def catalog(self) -> dict[str, Any]:
        """List what installed plugins know."""
        return {"source": "fresh", **catalog_of(self._emitter)}

    def snapshot(self) -> dict[str, Any]:
        """Snapshot what installed plugins know."""
        catalog = full_catalog(self._emitter)
        catalog.register(self._given)
        metrics = exposition_of(catalog, self._emitter.plugins).metrics
        return snapshot_of((event.__event__ for event in catalog.events.values()), metrics.values())

    def explanation(self, event: str, severity: str | None) -> dict[str, Any]:
        """Explain by the fresh emitter."""
        try:
            return {"source": "fresh", **explain(self._emitter, event, severity)}
        except ValueError as error:
            raise EventCoreError(str(error)) from None

    def health(self) -> dict[str, Any]:
        """Run the checks on the fresh emitter."""
        return {"source": "fresh", **head_of(self._emitter), **self._emitter.health.report()}

    def served(self) -> tuple[str | None, str | None, bool]:
        """Look at the service of ``[http]``, which was made and not started."""
        http: Any = self._emitter.services.get("http")
        if http is None:
            return None, None, False
        address = http.url if http.config.serve and http.config.port else None
        return address, http.config.host if http.config.serve else None, http.is_protected


class Running(Source):
    """A process that serves eventcore's routes at ``url``."""

    def __init__(self, url: str) -> None:
        self._address = Address.parse(url)
        self.url = self._address.url

    def inspection(self) -> dict[str, Any]:
        """Ask the process to inspect itself."""
        return self._answer("/debug/eventcore", "handlers")

    def catalog(self) -> dict[str, Any]:
        """Ask the process for its catalog."""
        return self._answer("/debug/eventcore/catalog", "events")

    def snapshot(self) -> dict[str, Any]:
        """Refuse: a snapshot belongs to code, not to one process of it."""
        raise EventCoreError("a snapshot is of the code that is installed here; leave out --url")

    def explanation(self, event: str, severity: str | None) -> dict[str, Any]:
        """Ask the process to explain."""
        asked = f"?event={quote(event)}" + (f"&severity={quote(severity)}" if severity else "")
        return self._answer(f"/debug/eventcore/explain{asked}", "handlers")

    def health(self) -> dict[str, Any]:
        """Ask the process for its health; 503 is an answer."""
        return self._answer("/health", "checks")

    def served(self) -> tuple[str | None, str | None, bool]:
        """Return nothing: it serves where it was asked, and says no more of that."""
        return None, None, False

    def _answer(self, path: str, key: str) -> dict[str, Any]:
        status, body = self._get(path)
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not (key in answer or ("eventcore" in answer and "error" in answer)):
            raise EventCoreError(
                f"{self.url} answers, but not as eventcore does (status {status} for {path.partition('?')[0]}): "
                "give the address where the process serves [http], and mind that it runs this version of eventcore"
            )
        if "error" in answer:
            raise EventCoreError(f"{self.url}: {answer['error']}")
        return {"source": self.url, **answer}

    def _get(self, path: str) -> tuple[int, bytes]:
        try:
            answer = self._address.get(path)
        except EventCoreError as error:
            raise EventCoreError(
                f"{error}; start the process with [http] in its settings, or leave out --url to look at a fresh one"
            ) from None
        if answer.status == 401:
            raise EventCoreError(
                f"{self.url} asks for authentication; give the token in EVENTCORE_TOKEN, or user and password in the "
                "URL: http://user:password@host:port"
            )
        return answer.status, answer.body


def source_of(
    url: str | None,
    config: str | None = None,
    modules: Sequence[str] | None = None,
    instruments: Sequence[str] | None = None,
    *,
    is_for_catalog: bool = False,
) -> Source:
    """Return who answers; ends the command where that is impossible."""
    if url is not None and (config is not None or modules or instruments):
        fail(
            "--url asks a running process, which has its settings, modules and instruments; leave out --config, "
            "--import and --instruments"
        )
    try:
        if url is not None:
            return Running(url)
        fresh = Fresh(config, modules or (), instruments or (), is_for_catalog=is_for_catalog)
    except EventCoreError as error:
        fail(error)
    if fresh.missing:
        note(f"secrets not set here, which a process with these settings needs: {', '.join(fresh.missing)}")
    return fresh


def say_source(answer: dict[str, Any], *, is_trial: bool = False) -> None:
    """Say whom the answer speaks of; a trial never asks a running process."""
    if is_trial:
        say(f"Through the handlers of a fresh emitter; {_settings(answer['settings'])}", style="dim")
    elif answer["source"] != "fresh":
        service = answer.get("service", {}).get("name")
        who = f" (service {service}, process {answer.get('pid')})" if service else ""
        say(f"Running process at {answer['source']}{who}", style="dim")
    else:
        say(
            f"A fresh emitter, not a running one (ask that with --url); {_settings(answer.get('settings'))}",
            style="dim",
        )
    say()


def _settings(origin: dict[str, Any] | None) -> str:
    if origin is None:
        return "no settings were read"
    variables = f" and {', '.join(origin['variables'])}" if origin["variables"] else ""
    if origin["file"] is None:
        return f"settings: defaults{variables}, no file found"
    return f"settings: {origin['file']}{variables}"


def instruments_at(path: str) -> list[Instrument]:
    """Return the instruments at ``module:NAME`` of the working directory or of the path, a list or a single one.

    Raises ConfigurationError, which names the option, where there are none.
    """
    _look_here()
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # noqa: BLE001 - whatever the module does when imported
        raise ConfigurationError(
            f"--instruments {path}: {type(error).__name__}: {error}; write it as module:NAME"
        ) from None
    listed = list(found) if isinstance(found, list | tuple) else [found]
    if not listed or not all(isinstance(item, Instrument) for item in listed):
        raise ConfigurationError(f"--instruments {path}: no instruments; name a list of ec.Counter, ec.Gauge and so on")
    return listed


def _look_here() -> None:
    if "" not in sys.path:
        sys.path.insert(0, "")


def import_module(module: str) -> None:
    """Import a module of the working directory or of the path; EventCoreError names the option."""
    _look_here()
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever the module does when imported
        raise EventCoreError(f"--import {module}: {type(error).__name__}: {error}") from None
