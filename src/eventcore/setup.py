"""``configure()`` and ``shutdown()``: from settings to a running emitter, and back."""

from __future__ import annotations

import atexit
import importlib.util
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eventcore.catalog import Catalog
from eventcore.emitter import Emitter
from eventcore.errors import ConfigurationError, InstrumentError
from eventcore.events import Event, Severity
from eventcore.handler import Handler, HandlerConfig
from eventcore.in_use import get_emitter, set_emitter, unconfigured
from eventcore.last_resort import LastResort
from eventcore.plugins import Plugins
from eventcore.settings import Settings, Sources, explain, load_settings
from eventcore.shutdown_report import ShutdownReport
from eventcore.vocabulary import PluginBroken, Started, Stopped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import FrameType

    from eventcore.ids import Clock, Ids
    from eventcore.instruments import Instrument
    from eventcore.service import Service

__all__ = ["configure", "shutdown", "shutdown_on_signals"]


def configure(
    *,
    service: str | None = None,
    instruments: Iterable[Instrument] = (),
    events: Iterable[type[Event]] = (),
    handlers: Mapping[str, Mapping[str, Any] | Handler] | None = None,
    config: str | Path | None = None,
    plugins: Sequence[Any] = (),
    block_plugins: Sequence[str] = (),
    replace: bool = False,
    clock: Clock | None = None,
    ids: Ids | None = None,
    **settings: Any,
) -> Emitter:
    """Read the settings, start handlers and services, and make the result the emitter in use.

    ``handlers`` gives handlers by name, as options or as ready objects; ``plugins`` are plugin modules that are not
    installed, ``block_plugins`` names of installed ones to leave alone; ``settings`` are further settings
    (``http={"port": 9090}``). Use it as a context manager, or call ``shutdown()``; at interpreter exit it is shut down
    anyway. A second call is an error unless ``replace=True``. Raises ConfigurationError with file or variable, key and
    remedy; then nothing is left running.
    """
    before = get_emitter()
    if before is not unconfigured and not replace:
        raise ConfigurationError(
            "eventcore is configured already; call ec.shutdown() first, or configure(replace=True)"
        )
    ready, options = _sorted_out(handlers or {})
    given: dict[str, Any] = {**settings, **({"service": service} if service is not None else {})}
    if options:
        given["handlers"] = options
    if block_plugins:
        given["plugins"] = {"block": tuple(block_plugins)}
    sources = Sources.find(config, given)
    found = Plugins(block=sources.blocked_plugins(), extra=plugins)
    read = load_settings(sources, found.services(), {} if ready or not _has_structlog() else {"log": {}})
    events, instruments = tuple(events), tuple(instruments)
    read, more = _with_debug(read, found, (*events, *(t for one in instruments for t in one.types)))
    frame = read.frame
    emitter = Emitter(
        resource=read.resource,
        catalog=Catalog(
            events=events, instruments=(*instruments, *more), packs=found.packs(), contributed=found.events
        ),
        clock=clock,
        ids=ids,
        strict=frame.strict,
        shutdown_timeout_s=frame.shutdown_timeout_s,
        journal=frame.journal,
    )
    emitter.plugins = found
    emitter.settings = read
    if before.durability.uses(frame.journal):
        before.shutdown()  # already here: a journal belongs to one emitter
    try:
        _add_handlers(emitter, found, read, ready)
        emitter.check_durable_types()
        if before is not unconfigured:
            before.shutdown()  # only now: a mistake in the settings of handlers leaves the old one running
        for name, table in read.services.items():
            _start_service(emitter, found, read, name, table)
    except BaseException:
        emitter.shutdown(1.0)
        raise
    set_emitter(emitter)
    emitter.on_shutdown.insert(0, lambda: _retire(emitter))
    atexit.register(emitter.shutdown)
    emitter.emit(
        Started(service=frame.service, service_version=frame.version, handlers=[h.name for h in emitter.handlers])
    )
    for name, error in found.broken.items():
        emitter.announce(PluginBroken(plugin=name, reason=repr(error)))
    return emitter


def shutdown(timeout_s: float | None = None) -> ShutdownReport:
    """Shut the emitter in use down and go back to the unconfigured one; does nothing when nothing is configured."""
    emitter = get_emitter()
    if emitter is unconfigured:
        return ShutdownReport({}, 0, ())
    return emitter.shutdown(timeout_s)


def shutdown_on_signals(*numbers: int, timeout_s: float | None = None) -> None:
    """Have SIGTERM (or these signals) shut the emitter in use down before they do what they did before.

    Offered, never imposed: without it, SIGTERM ends a process without delivering what waits. Raises ValueError outside
    the main thread, as ``signal.signal`` does.
    """
    for number in numbers or (signal.SIGTERM,):
        before = signal.getsignal(number)

        def stop(received: int, frame: FrameType | None, before: Any = before) -> None:
            shutdown(timeout_s)
            if callable(before):
                before(received, frame)
            elif before is signal.SIG_DFL:
                signal.signal(received, signal.SIG_DFL)
                signal.raise_signal(received)  # so that the exit status is the signal's

        signal.signal(number, stop)


def _retire(emitter: Emitter) -> None:
    emitter.emit(Stopped(service=emitter.resource.service))
    atexit.unregister(emitter.shutdown)
    if get_emitter() is emitter:
        set_emitter(None)


def _with_debug(read: Settings, found: Plugins, given: Iterable[type[Event]]) -> tuple[Settings, list[Instrument]]:
    """Apply the setting ``debug``: return settings and the instruments that it adds."""
    if not read.frame.debug:
        return read, []
    from eventcore.debugging import debugged, detailed
    from eventcore.inspection import made_events

    try:
        contributed = found.events()
    except ConfigurationError:  # a plugin whose library is missing: its operations are not known here
        contributed = []
    known = {t.__event__.name: t for t in (*made_events(), *contributed, *given)}
    return debugged(read, found), detailed(known.values())


def _has_structlog() -> bool:
    """Whether the log handler, the default where none is configured, can be used."""
    return importlib.util.find_spec("structlog") is not None


def _sorted_out(
    handlers: Mapping[str, Mapping[str, Any] | Handler],
) -> tuple[dict[str, Handler], dict[str, dict[str, Any]]]:
    """Part ready handlers from tables of options."""
    ready: dict[str, Handler] = {}
    options: dict[str, dict[str, Any]] = {}
    for name, given in handlers.items():
        if isinstance(given, Handler):
            ready[name] = given
        elif isinstance(given, Mapping):
            options[name] = dict(given)
        else:
            raise ConfigurationError(
                f"configure(): handlers[{name!r}] is {given!r}: give a table of options or an instance of ec.Handler"
            )
    return ready, options


def _add_handlers(emitter: Emitter, found: Plugins, read: Settings, ready: Mapping[str, Handler]) -> None:
    if not read.frame.handlers and not ready:
        emitter.add_handler(LastResort(min_severity=Severity.INFO), name="stderr")
    for name, table in read.frame.handlers.items():
        handler_class, config = _handler_config(found, read, name, table)
        try:
            emitter.add_handler(handler_class(config), name=name)
        except (ConfigurationError, InstrumentError) as error:
            raise type(error)(f"{read.where('handlers', name)}: {error}") from None
    for name, handler in ready.items():
        emitter.add_handler(handler, name=name)


def _handler_config(
    found: Plugins, read: Settings, name: str, table: Mapping[str, Any]
) -> tuple[type[Handler], HandlerConfig]:
    """Return the class and the options of a handler; ConfigurationError for options that are wrong."""
    options = dict(table)
    handler_class = found.handler_class(str(options.pop("use", name)), read.where("handlers", name))
    try:
        return handler_class, handler_class.Config(**options)
    except ValidationError as error:
        raise ConfigurationError(explain(read, ("handlers", name), error, handler_class.Config)) from None


def _make_service(emitter: Emitter, found: Plugins, read: Settings, name: str, table: Mapping[str, Any]) -> Service:
    service_class = found.service_class(name)
    try:
        config = service_class.Config(**table)
    except ValidationError as error:
        raise ConfigurationError(explain(read, (name,), error, service_class.Config)) from None
    try:
        return service_class(config, emitter, found)
    except ConfigurationError as error:
        raise ConfigurationError(f"{read.where(name)}: {error}") from None


def _start_service(emitter: Emitter, found: Plugins, read: Settings, name: str, table: Mapping[str, Any]) -> None:
    service = _make_service(emitter, found, read, name, table)
    try:
        service.start()
    except ConfigurationError as error:
        raise ConfigurationError(f"{read.where(name)}: {error}") from None
    emitter.services[name] = service
    emitter.on_shutdown.append(service.stop)
