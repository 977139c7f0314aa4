"""Where ``eventcore metrics`` takes its metrics from: a running process, a folder of workers, a stream of events."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eventcore.catalog import Catalog
from eventcore.cli.source import import_module, instruments_at
from eventcore.emitter import Emitter
from eventcore.errors import ConfigurationError, EventCoreError
from eventcore.event_lines import EventLines, UnknownName, WrongLine
from eventcore.health import HealthCheck, HealthResult, HealthStatus
from eventcore.http import HttpResponse, HttpRoute
from eventcore.inspection import known_events
from eventcore.plugins import Plugins, hookimpl
from eventcore.settings import Sources, load_settings
from eventcore.setup import _add_handlers, _make_service

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from eventcore.cli.address import Address
    from eventcore.http import HttpRequest

__all__ = ["Folder", "MetricSource", "PassedOn", "Stream"]

FLUSH_EVERY = 10_000
"""Lines between which the worker is waited for, so that none meets a full queue."""

FLUSH_TIMEOUT_S = 60.0
FOLLOW_S = 0.2
UPSTREAM_TIMEOUT_S = 8.0
"""Less than Prometheus waits by default, so that it learns the reason."""


class MetricSource:
    """Metrics of somebody else's; ``emitter`` is what a server shows."""

    emitter: Emitter
    wrong = 0
    """Lines that were no events."""

    def render(self) -> bytes:
        """Return the exposition."""
        raise NotImplementedError

    def feed(self, stop: threading.Event) -> None:
        """Read what there is to read, until it ends or ``stop`` is set."""

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[str]:
        """Serve it while the block runs, with the settings ``[http]`` for the rest; yield the URL."""
        emitter = self.emitter
        settings, plugins = emitter.settings, emitter.plugins
        if settings is None or plugins is None or "http" not in plugins.services():
            raise ConfigurationError("the plugin 'http' serves; it is not installed, or blocked in plugins.block")
        table = {**settings.services.get("http", {}), "host": host, "port": port, "serve": True, "health_port": None}
        service = _make_service(emitter, plugins, settings, "http", table)
        service.start()
        emitter.services["http"] = service
        try:
            yield str(getattr(service, "url", ""))
        finally:
            service.stop()


class PassedOn(MetricSource):
    """The metrics of a running process, asked for at each scrape."""

    def __init__(self, address: Address, config: str | Path | None) -> None:
        self._address = address
        self.emitter = _emitter(config, {}, extra=[self])
        self.emitter.health.add_check(HealthCheck("upstream", self._check, critical=True))

    @hookimpl
    def eventcore_routes(self) -> list[HttpRoute]:
        """Return the route that passes on."""
        return [HttpRoute("/metrics", self._respond, f"metrics of {self._address.url}")]

    def render(self) -> bytes:
        """Ask once; EventCoreError where nothing answers, or nothing that has metrics."""
        answer = self._address.get("/metrics", accept="text/plain", timeout_s=UPSTREAM_TIMEOUT_S)
        if answer.status == 401:
            raise EventCoreError(f"{self._address.url} asks for authentication; give the token in EVENTCORE_TOKEN")
        if answer.status != 200 or not answer.content_type.startswith(("text/plain", "application/openmetrics-text")):
            raise EventCoreError(
                f"{self._address.url}/metrics answers with status {answer.status} and no metrics; give the address "
                "where the process serves [http], and mind that it needs [handlers.metric]"
            )
        return answer.body

    def _respond(self, request: HttpRequest) -> HttpResponse:
        accept = request.headers.get("accept", "text/plain")
        try:
            answer = self._address.get("/metrics", accept=accept, timeout_s=UPSTREAM_TIMEOUT_S)
        except EventCoreError as error:
            return HttpResponse(f"{error}\n".encode(), status=502)
        return HttpResponse(answer.body, answer.content_type or "text/plain", answer.status)

    def _check(self) -> HealthResult:
        try:
            self.render()
        except EventCoreError as error:
            return HealthResult(HealthStatus.UNHEALTHY, str(error))
        return HealthResult(HealthStatus.HEALTHY, f"{self._address.url} serves metrics")


class Folder(MetricSource):
    """The multiprocess folder of a prefork server, summed over its workers, dead ones included, at each scrape."""

    def __init__(self, folder: Path, name: str, config: str | Path | None) -> None:
        self._folder = folder
        self._name = name
        self.emitter = _emitter(config, {}, extra=[self])
        plugins = cast("Plugins", self.emitter.plugins)
        self._exposition = cast("Any", plugins.handler_class("metric", "--dir")).directory_exposition
        self.emitter.health.add_check(HealthCheck("folder", self._check, critical=True))

    @hookimpl
    def eventcore_routes(self) -> list[HttpRoute]:
        """Return the route that sums up."""
        return [HttpRoute("/metrics", self._respond, f"metrics of the processes that share {self._folder}")]

    def render(self) -> bytes:
        """Sum up once; EventCoreError where there is nothing to sum up."""
        exposition: bytes = self._exposition(self._folder, self._name, "text/plain")[0]
        return exposition

    def _respond(self, request: HttpRequest) -> HttpResponse:
        try:
            body, content_type = self._exposition(self._folder, self._name, request.headers.get("accept", "text/plain"))
        except EventCoreError as error:
            return HttpResponse(f"{error}\n".encode(), status=503)
        return HttpResponse(body, content_type)

    def _check(self) -> HealthResult:
        try:
            self.render()
        except EventCoreError as error:
            return HealthResult(HealthStatus.UNHEALTHY, str(error))
        return HealthResult(HealthStatus.HEALTHY, f"{self._folder} can be read")


class _Folded(MetricSource):
    """The metrics of a metric handler here, which gets its counts from elsewhere."""

    def __init__(
        self,
        config: str | Path | None,
        *,
        packs: Sequence[str] = (),
        instruments: Sequence[str] = (),
        modules: Sequence[str] = (),
    ) -> None:
        for module in modules:
            import_module(module)
        given = [item for path in instruments for item in instruments_at(path)]
        self.emitter = _emitter(config, {"packs": tuple(packs)}, given)
        self._handler = cast("Any", next(h for h in self.emitter.handlers if h.kind == "metric"))
        if not self._handler.config.packs and not given:
            self.emitter.shutdown()
            raise ConfigurationError(
                "no instruments, so nothing would be counted: name a pack with --pack or in [handlers.metric], or a "
                "list of your own with --instruments package.module:NAME"
            )

    def render(self) -> bytes:
        """Return the exposition of what has been counted so far."""
        exposition: bytes = self._handler.render()
        return exposition


class Stream(_Folded):
    """Events as lines of JSON, folded as they come; ``-`` is standard input."""

    def __init__(self, path: str, config: str | Path | None, *, follow: bool = False, **more: Any) -> None:
        super().__init__(config, **more)
        self._path = path
        self._follow = follow
        self._lines = EventLines(known_events(self.emitter, load=True))
        self.read = self.events = self.unknown = self.wrong = 0
        self.problem = ""
        self.is_over = False
        self.emitter.health.add_check(HealthCheck("stream", self._check, timeout_s=None, ttl_s=0.0))
        try:
            self._file = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115 - feed() closes it
        except OSError as error:
            self.emitter.shutdown()
            raise ConfigurationError(f"--stream {path}: {error.strerror}") from None

    def feed(self, stop: threading.Event) -> None:
        """Fold every line; one that is no event is counted, and the first reason kept."""
        with self._file as file:
            part = b""
            while not stop.is_set():
                line = file.readline()
                if line.endswith(b"\n") or (line and not self._follow):
                    self._fold(part + line)
                    part = b""
                elif not self._follow:
                    break
                else:
                    part += line
                    stop.wait(FOLLOW_S)
        self.is_over = True
        self.emitter.flush(FLUSH_TIMEOUT_S)

    def _fold(self, line: bytes) -> None:
        if not line.strip():
            return
        self.read += 1
        try:
            envelope = self._lines.envelope(line)
        except UnknownName as error:
            self.unknown += 1
            self.problem = self.problem or f"line {self.read}: {error}"
            return
        except WrongLine as error:
            self.wrong += 1
            self.problem = self.problem or f"line {self.read}: {error}"
            return
        if envelope is not None:
            self.emitter.replay(envelope)
            self.events += 1
            if self.events % FLUSH_EVERY == 0:
                self.emitter.flush(FLUSH_TIMEOUT_S)

    def summary(self) -> str:
        """Return what was read, in one line."""
        said = f"{self._path}: {self.read} lines, {self.events} events"
        if self.unknown or self.wrong:
            said += f", {self.unknown} of unknown types, {self.wrong} no events; first: {self.problem}"
        return said

    def _check(self) -> HealthResult:
        details = {
            "lines": self.read,
            "events": self.events,
            "unknown": self.unknown,
            "wrong": self.wrong,
            "is_over": self.is_over,
        }
        status = HealthStatus.DEGRADED if self.wrong or (self.unknown and not self.events) else HealthStatus.HEALTHY
        return HealthResult(status, self.summary(), details)


def _emitter(
    config: str | Path | None, metric: dict[str, Any], instruments: Sequence[Any] = (), extra: Sequence[Any] = ()
) -> Emitter:
    """Return an emitter with the metric handler of the settings alone (none without ``metric`` options for it).

    What is counted here happened elsewhere and was logged and sent there: no other handler must see it again.
    """
    sources = Sources.find(config, {})
    plugins = Plugins(block=sources.blocked_plugins(), extra=extra)
    settings = load_settings(sources, plugins.services(), {})
    frame = settings.frame
    emitter = Emitter(
        resource=settings.resource,
        catalog=Catalog(instruments=instruments, packs=plugins.packs(), contributed=plugins.events),
    )
    emitter.plugins = plugins
    emitter.settings = settings
    if metric:
        tables = {n: dict(t) for n, t in frame.handlers.items() if t.get("use", n) == "metric"}
        name, table = next(iter(tables.items()), ("metric", {}))
        packs = (*table.get("packs", ()), *(pack for pack in metric["packs"] if pack not in table.get("packs", ())))
        # This process and its disks are not theirs.
        table |= {**metric, "packs": packs, "exporter": "prometheus", "process": False, "disks": ()}
        handlers = frame.model_copy(update={"handlers": {name: table}})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is for another exporter may stand beside this one
            _add_handlers(emitter, plugins, replace(settings, frame=handlers), {})
    return emitter
