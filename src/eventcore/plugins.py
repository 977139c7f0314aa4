"""Plugins: what they may contribute, and how they are found.

A plugin is a module (or object) with ``@ec.hookimpl`` functions, found through the entry-point group
``eventcore.plugins``. pluggy registers, validates and orders them; it is not called per event. Plugin modules are
loaded when ``configure()`` runs, so they should be light: name a class as ``"package.module:Class"`` and it is
imported only when it is used.
"""

from __future__ import annotations

import importlib.metadata
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from eventcore.errors import PluginError, did_you_mean
from eventcore.handler import Handler

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from eventcore.emitter import Emitter
    from eventcore.events import Event
    from eventcore.exposition import Metric
    from eventcore.health import HealthCheck
    from eventcore.http import HttpRoute
    from eventcore.instruments import Instrument
    from eventcore.monitoring import Monitoring
    from eventcore.service import Service

__all__ = ["GROUP", "HandlerKind", "Plugins", "hookimpl"]

GROUP = "eventcore.plugins"

hookspec = pluggy.HookspecMarker("eventcore")
hookimpl = pluggy.HookimplMarker("eventcore")


class Hooks:
    """Every hook that a plugin may implement; all are optional."""

    @hookspec
    def eventcore_handlers(self) -> Mapping[str, str | type[Handler]]:
        """Return handler classes by kind, each a class or its ``"module:Class"``."""
        raise NotImplementedError

    @hookspec
    def eventcore_services(self) -> Mapping[str, str | type[Service]]:
        """Return services by the name of their settings table (``http`` for ``[http]``), each a class or its path."""
        raise NotImplementedError

    @hookspec
    def eventcore_events(self) -> Iterable[str | type[Event]]:
        """Return event types, each a class, its path, or the path of a list of them."""
        raise NotImplementedError

    @hookspec
    def eventcore_packs(self) -> Mapping[str, str | Sequence[Instrument]]:
        """Return metric packs by name, each a list of instruments or its path."""
        raise NotImplementedError

    @hookspec
    def eventcore_series(self) -> Iterable[str | Metric]:
        """Return what is exposed beside instruments, each an ``exposition.Metric`` or the path of a list of them."""
        raise NotImplementedError

    @hookspec
    def eventcore_monitoring(self) -> Mapping[str, str | Monitoring]:
        """Return panels and alerts by the metric pack they belong to, each a ``monitoring.Monitoring`` or its path."""
        raise NotImplementedError

    @hookspec
    def eventcore_health_checks(self, emitter: Emitter) -> Iterable[HealthCheck]:
        """Return health checks for a running emitter."""
        raise NotImplementedError

    @hookspec
    def eventcore_routes(self, emitter: Emitter) -> Iterable[HttpRoute]:
        """Return HTTP routes for a running emitter."""
        raise NotImplementedError

    @hookspec
    def eventcore_commands(self) -> Mapping[str, str]:
        """Return command-line applications by name, each the path of a typer application."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class HandlerKind:
    """A kind of handler that an installed plugin offers."""

    kind: str
    plugin: str
    target: str | type[Handler]

    def load(self) -> type[Handler]:
        """Import the class; PluginError names the extra or package that is missing."""
        loaded = _load(self.target, f"handler {self.kind!r} of plugin {self.plugin!r}")
        if not (isinstance(loaded, type) and issubclass(loaded, Handler)):
            raise PluginError(f"handler {self.kind!r} of plugin {self.plugin!r}: {loaded!r} is no ec.Handler class")
        return loaded


class Plugins:
    """The plugins that are installed, and what they contribute."""

    def __init__(self, *, block: Sequence[str] = (), extra: Sequence[Any] = ()) -> None:
        self.manager = pluggy.PluginManager("eventcore")
        self.manager.add_hookspecs(Hooks)
        self.broken: dict[str, Exception] = {}
        self.versions: dict[str, str] = {}
        self._load_entry_points(block)
        for plugin in extra:
            self._register(plugin, getattr(plugin, "__name__", None) or repr(plugin))
        self.handler_kinds()  # two plugins that claim one name are an error now, not when the name is used

    def _load_entry_points(self, block: Sequence[str]) -> None:
        found: dict[str, importlib.metadata.EntryPoint] = {}
        for entry_point in importlib.metadata.entry_points(group=GROUP):
            known = found.get(entry_point.name)
            if known is not None and known.value != entry_point.value:
                raise PluginError(
                    f"two installed packages offer the eventcore plugin {entry_point.name!r}: {known.value} and "
                    f"{entry_point.value}; uninstall one, or block both and register one in code"
                )
            found[entry_point.name] = entry_point
        unknown = [name for name in block if name not in found]
        if unknown:
            raise PluginError(
                f"plugins.block names {unknown[0]!r}, which is not installed{did_you_mean(unknown[0], found)}"
            )
        for name, entry_point in found.items():
            if name in block:
                continue
            try:
                plugin = entry_point.load()
            except Exception as error:  # noqa: BLE001 - one broken plugin must not take the others down; kept and reported
                self.broken[name] = error
                continue
            self.versions[name] = entry_point.dist.version if entry_point.dist else "?"
            self._register(plugin, name)

    def _register(self, plugin: Any, name: str) -> None:
        try:
            self.manager.register(plugin, name)
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            self.manager.unregister(plugin)
            self.broken[name] = error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the plugins in use."""
        return tuple(name for name, plugin in self.manager.list_name_plugin() if plugin is not None)

    def handler_kinds(self) -> dict[str, HandlerKind]:
        """Return what handlers there are, by kind."""
        return {
            kind: HandlerKind(kind, plugin, target)
            for kind, (plugin, target) in self._collect("eventcore_handlers").items()
        }

    def handler_class(self, kind: str, where: str) -> type[Handler]:
        """Return the class of a handler kind; PluginError says what there is, or why a plugin is broken."""
        kinds = self.handler_kinds()
        if kind in kinds:
            return kinds[kind].load()
        if kind in self.broken:
            raise PluginError(f"{where}: plugin {kind!r} cannot be loaded: {self.broken[kind]!r}") from self.broken[
                kind
            ]
        raise PluginError(f"{where}: no installed plugin offers a handler {kind!r}{did_you_mean(kind, kinds)}")

    def services(self) -> dict[str, Any]:
        """Return the paths or classes of services, by the name of their settings table."""
        return {name: target for name, (_, target) in self._collect("eventcore_services").items()}

    def service_class(self, name: str) -> type[Service]:
        """Import the class of a service."""
        loaded: type[Service] = _load(self.services()[name], f"service {name!r}")
        return loaded

    def packs(self) -> dict[str, Any]:
        """Return metric packs (lists, or their paths) by name."""
        return {name: target for name, (_, target) in self._collect("eventcore_packs").items()}

    def events(self) -> list[type[Event]]:
        """Import and return all event types that plugins contribute."""
        return self._listed("eventcore_events", "event types")

    def series(self) -> list[Metric]:
        """Import and return the metrics that plugins expose beside instruments."""
        return self._listed("eventcore_series", "series")

    def monitoring(self) -> dict[str, Monitoring]:
        """Import and return the panels and alerts that plugins contribute, by metric pack."""
        return {
            pack: _load(target, f"monitoring of pack {pack!r}")
            for pack, (_, target) in self._collect("eventcore_monitoring").items()
        }

    def health_checks(self, emitter: Emitter) -> list[HealthCheck]:
        """Return the health checks that plugins contribute."""
        checks: list[HealthCheck] = []
        for implementation in self.manager.hook.eventcore_health_checks.get_hookimpls():
            try:
                found: Any = implementation.function(*([emitter] if implementation.argnames else []))
                checks.extend(found or ())
            except Exception as error:  # noqa: BLE001 - one broken plugin must not hide the others' health
                checks.append(_broken_check(implementation.plugin_name, error))
        return checks

    def routes(self, emitter: Emitter) -> list[HttpRoute]:
        """Return the HTTP routes that plugins contribute."""
        return [route for routes in self.manager.hook.eventcore_routes(emitter=emitter) for route in routes]

    def commands(self) -> dict[str, Any]:
        """Return command-line applications, or their paths, by name."""
        return {name: target for name, (_, target) in self._collect("eventcore_commands").items()}

    def _listed(self, hook: str, what: str) -> list[Any]:
        """Import what plugins return from ``hook``: things, their paths, or paths of lists of them."""
        things: list[Any] = []
        for contributed in getattr(self.manager.hook, hook)():
            for item in contributed:
                loaded = _load(item, what)
                things.extend(loaded if isinstance(loaded, list | tuple) else [loaded])
        return things

    @staticmethod
    def load(target: Any, what: str) -> Any:
        """Return what a plugin offers, imported if it is a path; PluginError names the extra or package missing."""
        return _load(target, what)

    def _collect(self, hook: str) -> dict[str, tuple[str, Any]]:
        """Merge the mappings that plugins return from ``hook``; two that claim one name are an error."""
        merged: dict[str, tuple[str, Any]] = {}
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                offered = dict(implementation.function() or {})
            except Exception as error:
                raise PluginError(
                    f"plugin {implementation.plugin_name!r}: {hook} must return a mapping of names: {error!r}"
                ) from error
            for name, target in offered.items():
                if name in merged:
                    raise PluginError(
                        f"plugins {merged[name][0]!r} and {implementation.plugin_name!r} both offer {name!r} "
                        f"({hook}); block one of them in plugins.block"
                    )
                merged[name] = (implementation.plugin_name, target)
        return merged


def _broken_check(plugin: str, error: Exception) -> HealthCheck:
    from eventcore.health import HealthCheck, HealthResult, HealthStatus

    def run() -> HealthResult:
        return HealthResult(HealthStatus.UNHEALTHY, f"plugin {plugin} cannot name its checks: {error!r}")

    return HealthCheck(f"plugin_{plugin}", run, timeout_s=None, ttl_s=0.0)


def _load(target: Any, what: str) -> Any:
    if not isinstance(target, str):
        return target
    try:
        return pkgutil.resolve_name(target)
    except ModuleNotFoundError as error:
        package = target.partition(":")[0].partition(".")[0]
        extra = package.removeprefix("eventcore_")
        if package.startswith("eventcore_") and error.name and not error.name.startswith("eventcore"):
            raise PluginError(
                f"{what} needs the package {error.name!r}, which is not installed; pip install 'eventcore[{extra}]'"
            ) from error
        raise PluginError(f"{what}: {target!r} cannot be imported: {error}") from error
    except Exception as error:
        raise PluginError(f"{what}: {target!r} cannot be imported: {error!r}") from error
