"""The metric handler: folds events into series, and shows them to Prometheus."""

from __future__ import annotations

from collections import defaultdict
from json import dumps as to_json
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry, DuplicateTimeseries
from pydantic import Field, ValidationInfo, field_validator

from eventcore.errors import ConfigurationError, PartialFailure
from eventcore.handler import Handler, HandlerConfig
from eventcore.http import HttpResponse, HttpRoute
from eventcore.timing import NOT_TIMED, TIMED_MASK
from eventcore_metric.account import BusAccount, MetricAccount
from eventcore_metric.events import SeriesOverflow
from eventcore_metric.folding import folds_of
from eventcore_metric.series import family_of, label_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventcore.catalog import Catalog
    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore.events import Event, Severity
    from eventcore.handler import Sink
    from eventcore.http import HttpRequest
    from eventcore.instruments import Instrument
    from eventcore_metric.folding import Fold
    from eventcore_metric.series import AnyFamily

__all__ = ["MetricHandler", "routes"]

FLUSH_TIMEOUT_S = 1.0
"""How long a scrape waits for the worker to catch up before it shows what there is."""

_from_packs: WeakKeyDictionary[Catalog, set[str]] = WeakKeyDictionary()
"""Names of the instruments that packs of metric handlers brought into a catalog, as against those given in code."""


class MetricHandler(Handler):
    """Turns the instruments given in code, and those of its packs, into Prometheus series.

    Instruments are compiled when the handler is attached; types that none of them observes never reach it. Values are
    folded by the handler's worker alone, so delivery is always queued.
    """

    kind: ClassVar[str] = "metric"
    delivery: ClassVar[Literal["inline", "queued"]] = "queued"

    class Config(HandlerConfig):
        """Options of the metric handler."""

        exporter: Literal["prometheus", "none"] = Field(
            "prometheus", description="'prometheus' shows the series at /metrics; 'none' switches the handler off."
        )
        packs: tuple[str, ...] = Field((), description="Metric packs, whose instruments join those given in code.")
        max_series: int = Field(
            1000, ge=1, description="Series per metric; further label values are counted in one series 'other'."
        )
        delivery: Literal["queued"] | None = Field(None, description="Always by a worker of its own.")
        queue_size: int = Field(100_000, ge=1, description="Envelopes that may wait in the queue.")

        @field_validator("sampling", "max_per_second")
        @classmethod
        def _exact(cls, value: float | None, info: ValidationInfo) -> float | None:
            if value is not None and not (info.field_name == "sampling" and value == 1):
                raise ValueError(
                    f"metrics are exact, so they take every event; remove {info.field_name!r}, or narrow the handler "
                    "with 'events', 'exclude', 'categories' or 'min_severity'"
                )
            return value

    config: Config

    def __init__(self, config: HandlerConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.registry = CollectorRegistry()
        self._emitter: Emitter | None = None
        self._families: tuple[AnyFamily, ...] = ()
        self._starts: dict[type[Event], tuple[Fold, ...]] = {}
        self._ends: dict[type[Event], tuple[Fold, ...]] = {}
        self._warned: dict[str, object] = {}

    # -- compiling ---------------------------------------------------------------------------------------------------

    def attached(self, emitter: Emitter) -> None:
        """Compile the instruments. ConfigurationError: no such pack, or two metrics that would share series names."""
        super().attached(emitter)
        instruments = self._instruments(emitter.catalog)
        if self.config.exporter == "none":
            return
        self._families = tuple(family_of(instrument, self.config.max_series) for instrument in instruments)
        self.registry = self._registered(emitter)
        starts: defaultdict[type[Event], tuple[Fold, ...]] = defaultdict(tuple)
        ends: defaultdict[type[Event], tuple[Fold, ...]] = defaultdict(tuple)
        for family in self._families:
            for event_type in family.instrument.types:
                folds = folds_of(family.instrument, event_type, family)
                starts[event_type] += (folds.start,) if folds.start else ()
                ends[event_type] += (folds.end,) if folds.end else ()
        self._starts = {event_type: folds for event_type, folds in starts.items() if folds}
        self._ends = {event_type: folds for event_type, folds in ends.items() if folds}
        self._emitter = emitter
        emitter.timed_mask = TIMED_MASK

    def _instruments(self, catalog: Catalog) -> tuple[Instrument, ...]:
        of_packs = _from_packs.setdefault(catalog, set())
        given = {name: instrument for name, instrument in catalog.instruments.items() if name not in of_packs}
        wanted = dict(given)
        for pack in self.config.packs:
            wanted.update({instrument.name: instrument for instrument in catalog.pack(pack)})
        of_packs.update(wanted.keys() - given.keys())
        return tuple(wanted.values())

    def _registered(self, emitter: Emitter) -> CollectorRegistry:
        registry = CollectorRegistry()
        for collector in (*self._families, MetricAccount(self._families), BusAccount(emitter)):
            try:
                registry.register(collector)
            except DuplicateTimeseries as error:
                names = ", ".join(sorted(error.duplicates))
                raise ConfigurationError(f"two metrics would export {names}; rename one of the instruments") from None
        return registry

    def sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - any severity
        """Take types that an instrument observes, and no others."""
        return self.handle if event_type in self._ends else None

    def start_sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - any severity
        """Take the starts of types that an instrument observes at their start."""
        return self.handle if event_type in self._starts else None

    # -- folding -----------------------------------------------------------------------------------------------------

    def handle(self, envelope: Envelope) -> None:
        """Fold one envelope."""
        self.handle_batch((envelope,))

    def handle_batch(self, envelopes: Sequence[Envelope]) -> None:
        """Fold a batch; a fold that raises costs its own observation, and its envelope counts as failed."""
        starts, ends = self._starts, self._ends
        failed: dict[int, Exception] = {}
        for index, envelope in enumerate(envelopes):
            event = envelope.event
            fields = event.__dict__
            for fold in (starts if envelope.phase == "start" else ends).get(event.__class__, ()):
                try:
                    fold(envelope, fields)
                except Exception as error:  # noqa: BLE001 - isolation is the point; it is counted and reported
                    failed.setdefault(index, error)
        if failed:
            raise PartialFailure(failed, next(iter(failed.values())))

    def close(self) -> None:
        """Keep the series as they are; they can still be read."""
        emitter, self._emitter = self._emitter, None
        if emitter is None or any(isinstance(h, MetricHandler) and h is not self for h in emitter.handlers):
            return
        emitter.timed_mask = NOT_TIMED  # nobody else shows how long emits take

    # -- reading -----------------------------------------------------------------------------------------------------

    def render(self, accept: str = "") -> bytes:
        """Return the exposition: text format 0.0.4, or OpenMetrics where the ``Accept`` header asks for it.

        What was emitted before is in it, unless the worker takes more than a second to catch up.
        """
        return self.scrape(accept)[0]

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type."""
        self._catch_up()
        encode, content_type = choose_encoder(accept)
        exposition = encode(self.registry)
        self._warn()
        return exposition, content_type

    def value(self, name: str, labels: Mapping[str, Any] | None = None) -> float | None:
        """Return one sample by its exported name (``…_total``, ``…_count``, ``…_bucket``); None: there is none."""
        self._catch_up()
        wanted = {label: label_text(value) for label, value in (labels or {}).items()}
        return self.registry.get_sample_value(name, wanted)

    def summary(self) -> dict[str, int]:
        """Return a few numbers about the series."""
        return {
            "metrics": len(self._families),
            "series": sum(len(family) for family in self._families),
            "overflowed": sum(family.overflowed for family in self._families),
            "rejected": sum(family.rejected for family in self._families),
        }

    def cardinality_stats(self) -> dict[str, dict[str, int]]:
        """Return per metric: its series, their limit, and how many observations went to the overflow series."""
        return {
            family.name: {"series": len(family), "limit": family.limit, "overflowed": family.overflowed}
            for family in self._families
        }

    def describe(self) -> dict[str, Any]:
        """Return exporter, packs, and where the series can be read."""
        facts: dict[str, Any] = {"exporter": self.config.exporter, "packs": self.config.packs, **self.summary()}
        if self._emitter is not None:
            path = next((route.path for route in routes(self._emitter) if route.respond == self._respond), None)
            url = getattr(self._emitter.services.get("http"), "url", None)
            facts |= {"path": path} | ({"url": f"{url}{path}"} if url and path else {})
        return facts

    def rehearsed(self, emitter: Emitter) -> None:
        """Compile the instruments: that opens nothing."""
        self.attached(emitter)

    def preview(self, envelope: Envelope) -> str:
        """Return the samples that one envelope makes; of histograms without their buckets."""
        registry = CollectorRegistry()
        for known in self._families:
            if envelope.event_type in known.instrument.types:
                family = type(known)(known.instrument, known.limit)  # type: ignore[arg-type]  # its own kind
                folds = folds_of(known.instrument, envelope.event_type, family)
                for fold in (folds.start, folds.end):
                    if fold is not None:
                        fold(envelope, envelope.event.__dict__)
                registry.register(family)
        samples = [sample for metric in registry.collect() for sample in metric.samples]
        return "\n".join(
            f"{sample.name}{_labels_text(sample.labels)} {sample.value}"
            for sample in samples
            if not sample.name.endswith("_bucket")
        )

    def _respond(self, request: HttpRequest) -> HttpResponse:
        body, content_type = self.scrape(request.headers.get("accept", ""))
        return HttpResponse(body, content_type)

    def _catch_up(self) -> None:
        """Wait for the worker to fold what was emitted before."""
        attachments = self._emitter.attachments if self._emitter is not None else ()
        for attachment in attachments:
            if attachment.handler is self and attachment.queue is not None:
                attachment.queue.request_flush()(FLUSH_TIMEOUT_S)

    def _warn(self) -> None:
        """Warn of metrics at their limit, once each; here and not in the worker, which must not emit while it folds."""
        for family in self._families:
            if family.overflowed and self._emitter is not None:
                mine = object()
                if self._warned.setdefault(family.name, mine) is mine:  # atomic: of several scrapes, one warns
                    self._emitter.emit(
                        SeriesOverflow(handler=self.name, metric=family.name, limit=family.limit),
                    )


def _labels_text(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{name}={to_json(value)}" for name, value in labels.items()) + "}" if labels else ""


def routes(emitter: Emitter) -> list[HttpRoute]:
    """Return the routes of the metric handlers of an emitter.

    ``/metrics`` shows the first one attached. Others have the path ``/metrics/<name>``: they may read the same events,
    so one exposition with the series of all would name some twice.
    """
    handlers = [h for h in emitter.handlers if isinstance(h, MetricHandler) and h.config.exporter == "prometheus"]
    return [
        HttpRoute(
            "/metrics" if place == 0 else f"/metrics/{handler.name}",
            handler._respond,  # noqa: SLF001 - this module's own class
            f"series of handler {handler.name!r}, for Prometheus",
        )
        for place, handler in enumerate(handlers)
    ]
