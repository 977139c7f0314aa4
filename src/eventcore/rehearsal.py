"""An emitter as the settings describe it, on which nothing happens: no file, connection, thread or server is opened.

For questions about what would be: its handlers are rehearsed, not attached, its services are not started, and its
journal is not opened. A handler that opens something when it is made, and not when it is attached, does so here too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from eventcore.catalog import Catalog
from eventcore.delivery import Queue
from eventcore.emitter import Emitter
from eventcore.inspection import known_events
from eventcore.plugins import Plugins
from eventcore.service import unset_secrets
from eventcore.settings import Sources, load_settings
from eventcore.setup import _add_handlers, _handler_config, _has_structlog, _make_service, _with_debug

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from eventcore.events import Event, Severity
    from eventcore.handler import Handler
    from eventcore.instruments import Instrument
    from eventcore.journal_config import JournalConfig
    from eventcore.resource import Resource

__all__ = ["missing_secrets", "rehearse"]


class _IdleQueue(Queue):
    """Stands in for a durable handler's queue, which would open the journal."""

    is_durable = True


class _Rehearsal(Emitter):
    def __init__(self, *, resource: Resource, catalog: Catalog, journal: JournalConfig) -> None:
        super().__init__(resource=resource, catalog=catalog, journal=journal)
        self.durability.queue = lambda time_ns: _IdleQueue(self._ledger, time_ns)  # type: ignore[method-assign, assignment, return-value]  # see there

    def emit(self, event: Event, *, severity: Severity | str | None = None, tags: Sequence[str] = ()) -> None:
        """Emit nothing, such as that a check has changed: no handler is attached, and no worker must start."""

    def announce(self, event: Event, *, severity: Severity | None = None) -> None:
        """Say nothing likewise."""

    def add_handler(self, handler: Handler, *, name: str | None = None) -> Handler:
        def rehearse_instead(emitter: Emitter) -> None:
            del handler.attached  # so that rehearsed() may call it
            handler.rehearsed(emitter)

        handler.attached = rehearse_instead  # type: ignore[method-assign]  # what rehearsing is
        return super().add_handler(handler, name=name)


def rehearse(
    config: str | Path | None = None, instruments: Iterable[Instrument] = (), *, is_for_catalog: bool = False
) -> Emitter:
    """Return an emitter with the handlers that ``configure(config=…, instruments=…)`` would attach; emit nothing on it.

    ``is_for_catalog``: with its metric handlers alone, and without services, so that no secret of the place where the
    settings belong is needed.

    Raises ConfigurationError as ``configure`` does, except for what only shows when something is opened.
    """
    sources = Sources.find(config, {})
    plugins = Plugins(block=sources.blocked_plugins())
    settings = load_settings(sources, plugins.services(), {"log": {}} if _has_structlog() else {})
    settings, more = _with_debug(settings, plugins, ())
    if is_for_catalog:
        for name, table in settings.frame.handlers.items():  # a mistake is a mistake, whether it is made here or not
            _handler_config(plugins, settings, name, table)
        metric = {name: table for name, table in settings.frame.handlers.items() if table.get("use", name) == "metric"}
        frame = settings.frame.model_copy(update={"handlers": metric})
        settings = replace(settings, frame=frame, services={})
    frame = settings.frame
    emitter = _Rehearsal(
        resource=settings.resource,
        catalog=Catalog(instruments=(*instruments, *more), packs=plugins.packs(), contributed=plugins.events),
        journal=frame.journal,
    )
    emitter.plugins = plugins
    emitter.settings = settings
    _add_handlers(emitter, plugins, settings, {})
    for name, table in settings.services.items():
        emitter.services[name] = _make_service(emitter, plugins, settings, name, table)  # made, not started
    if not is_for_catalog:
        emitter.check_durable_types()
    known_events(emitter, load=True)
    return emitter


def missing_secrets(emitter: Emitter) -> list[str]:
    """Return the variables, not set here, that a rehearsed emitter's settings name for secrets; and where they do."""
    settings = emitter.settings
    assert settings is not None  # noqa: S101 - rehearse() has read them; for the type checker
    configs = [
        *((("handlers", handler.name), handler.config) for handler in emitter.handlers),
        *(((name,), service.config) for name, service in emitter.services.items()),
    ]
    return [
        f"{variable} ({settings.where(*path, *option.split('.'))}, option {option!r})"
        for path, config in configs
        for option, variable in unset_secrets(config)
    ]
