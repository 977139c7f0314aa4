"""What files are generated from: the settings found here, the catalog they make, and what plugins say is watched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eventcore.by_hand import declared
from eventcore.catalog import Catalog
from eventcore.cli.source import import_module, instruments_at
from eventcore.debugging import detailed
from eventcore.errors import ConfigurationError
from eventcore.exposition import exposition_of, metric_of
from eventcore.inspection import made_events
from eventcore.instruments import Histogram, Instrument
from eventcore.plugins import Plugins
from eventcore.settings import Settings, Sources, load_settings
from eventcore_generate.bus import BUS
from eventcore_generate.renaming import renamed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from eventcore.events import Event
    from eventcore.exposition import Metric
    from eventcore.monitoring import Monitoring

__all__ = ["BUS_PACK", "GIVEN_PACK", "Part", "Source"]

BUS_PACK = "eventcore"
"""The name under which the bus's own series go."""

GIVEN_PACK = "application"
"""The name under which goes what an application declares in code."""

DEFAULT_PORT = 9090


@dataclass(frozen=True, slots=True)
class Part:
    """The metrics of one pack, with the instruments behind them where there are any, and what is watched of it."""

    name: str
    metrics: tuple[Metric, ...]
    instruments: Mapping[str, Instrument]
    monitoring: Monitoring | None

    @property
    def title(self) -> str:
        """What a dashboard of it is called."""
        return self.monitoring.title if self.monitoring else self.name.replace("_", " ").title()


class Source:
    """Settings, event types, and the packs that are enabled (or asked for).

    ``packs``: names of packs instead of the enabled ones; ``modules``: names of modules with event types of an
    application; ``instruments``: paths (``module:NAME``) of lists of instruments that its code gives to
    ``configure()``. Raises EventCoreError for settings, packs, modules and paths that are none.
    """

    def __init__(
        self,
        config: str | Path | None = None,
        *,
        packs: Sequence[str] = (),
        modules: Sequence[str] = (),
        instruments: Sequence[str] = (),
    ) -> None:
        for module in modules:
            import_module(module)
        # Handlers and services are not made: they would want the secrets of the place where they are to run.
        sources = Sources.find(config, {})
        self.plugins = Plugins(block=sources.blocked_plugins())
        self.settings = load_settings(sources, self.plugins.services(), {})
        self.resource = self.settings.resource
        frame = self.settings.frame
        self.catalog = Catalog(packs=self.plugins.packs(), contributed=self.plugins.events)
        self._packs = tuple(packs) or _enabled(self.settings)
        metric = self.handlers("metric")
        self._buckets = {name: bounds for options in metric for name, bounds in options.get("buckets", {}).items()}
        self._rename = {name: other for options in metric for name, other in options.get("rename", {}).items()}
        self._new_names: dict[str, str] = {}
        given = [self._with_buckets(instrument) for path in instruments for instrument in instruments_at(path)]
        self.catalog.register(given)
        self.catalog.register_events(_made_in(modules))
        self._given = {instrument.name: instrument for instrument in given}
        self._debug = detailed(self.catalog.events.values()) if frame.debug else []
        self.catalog.register(self._debug)
        self._of_packs = {name: self.catalog.pack(name, self._adapted) for name in self._packs if name != BUS_PACK}
        self._metrics = exposition_of(self.catalog, self.plugins).metrics

    @property
    def service(self) -> str:
        """Name of the service, which is also that of its scrape job."""
        return self.resource.service

    @property
    def slug(self) -> str:
        """The service's name as file names, images and Kubernetes take it: lower case, digits, hyphens."""
        slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in self.service.lower())
        slug = slug.strip("-0123456789")[:50].strip("-")  # Kubernetes' names of services begin with a letter
        return slug or "app"

    @property
    def events(self) -> Mapping[str, type[Event]]:
        """All event types, by name."""
        return self.catalog.events

    @property
    def port(self) -> int:
        """Where the application serves ``/metrics`` and its health."""
        port = (self.settings.services.get("http") or {}).get("port", DEFAULT_PORT)
        return int(port) or DEFAULT_PORT

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The packs in use, then what code declares (instruments, metrics by hand), then the bus itself."""
        watched = {name: renamed(one, self._new_names) for name, one in self.plugins.monitoring().items()}
        parts = [self._part(name, self._of_packs[name], watched.get(name)) for name in self._of_packs]
        by_hand = tuple(hand.metric for hand in declared())
        if self._given or by_hand:
            given = self._part(GIVEN_PACK, tuple(self._given.values()), watched.get(GIVEN_PACK))
            parts.append(replace(given, metrics=(*given.metrics, *by_hand)))
        known = {metric.name for part in parts for metric in part.metrics}
        rest = {name: metric for name, metric in self._metrics.items() if name not in known}
        bus = self._part(BUS_PACK, tuple(self._debug), BUS)
        return (*parts, replace(bus, metrics=tuple(rest.values())))

    def handlers(self, kind: str) -> list[dict[str, Any]]:
        """Return the options of the configured handlers of one kind."""
        return [
            dict(options) for name, options in self.settings.frame.handlers.items() if options.get("use", name) == kind
        ]

    def _with_buckets(self, instrument: Instrument) -> Instrument:
        """Return an instrument with the buckets that the settings give it."""
        bounds = self._buckets.get(instrument.name)
        if bounds is None:
            return instrument
        if not isinstance(instrument, Histogram) or not isinstance(bounds, list | tuple):
            raise ConfigurationError(
                f"[handlers.metric] option 'buckets': {instrument.name!r} is a {instrument.kind}, and its buckets are "
                f"{bounds!r}: give histograms a list of upper bounds"
            )
        return replace(instrument, buckets=tuple(bounds))

    def _adapted(self, instrument: Instrument) -> Instrument:
        """Return an instrument of a pack as the settings have it, and keep under which names its series go."""
        made = self._with_buckets(instrument)
        made = replace(made, name=self._rename.get(instrument.name, instrument.name))
        new = {series.part: series.name for series in metric_of(made).series}
        old = {series.part: series.name for series in metric_of(instrument).series}
        self._new_names |= {name: new[part] for part, name in old.items() if part in new and new[part] != name}
        return made

    @staticmethod
    def _part(name: str, instruments: tuple[Instrument, ...], monitoring: Monitoring | None) -> Part:
        metrics = tuple(metric_of(instrument) for instrument in instruments)
        by_metric = {metric.name: item for metric, item in zip(metrics, instruments, strict=True)}
        return Part(name, metrics, by_metric, monitoring)


def _enabled(settings: Settings) -> tuple[str, ...]:
    """Return the packs that handlers are configured with, each once."""
    packs: list[str] = []
    for name, options in settings.frame.handlers.items():
        given = options.get("packs", ())
        if not isinstance(given, list | tuple):
            where = settings.where("handlers", name, "packs")
            raise ConfigurationError(f"{where}: expected a list of metric packs, not {given!r}")
        packs += map(str, given)
    return tuple(dict.fromkeys(packs))


def _made_in(modules: Sequence[str]) -> list[type[Event]]:
    """Return the event types of modules and of what lies below them."""
    inside = tuple(f"{module}." for module in modules)
    return [event_type for event_type in made_events() if f"{event_type.__module__}.".startswith(inside)]
