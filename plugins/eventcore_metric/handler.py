"""The metric handler: folds events into series, shows them to Prometheus and pushes them over OTLP."""

from __future__ import annotations

import os
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from weakref import WeakKeyDictionary, WeakSet

from eventcore import by_hand
from eventcore.errors import ConfigurationError, InstrumentError, PartialFailure
from eventcore.exposition import Exposition
from eventcore.handler import Handler, HandlerConfig
from eventcore.http import HttpResponse, HttpRoute
from eventcore.timing import NOT_TIMED, TIMED_MASK
from eventcore_metric.account import BusAccount, limit_readings
from eventcore_metric.adapting import Adapted
from eventcore_metric.compiled import Compiled
from eventcore_metric.config import MetricConfig
from eventcore_metric.declared import OWN
from eventcore_metric.events import SeriesOverflow
from eventcore_metric.folding import folds_of
from eventcore_metric.multiprocess import read_directory
from eventcore_metric.process import host_readings, process_readings
from eventcore_metric.prometheus import exposition, sample_value, samples_text
from eventcore_metric.pushing import Pusher
from eventcore_metric.recorded import Recorded
from eventcore_metric.series import MEMORY, ExemplarFilter, family_of, label_text
from eventcore_metric.shared import Publisher, Shared
from eventcore_metric.summing import Summary, summary_of
from eventcore_otlp import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from eventcore.by_hand import HandMade
    from eventcore.catalog import Catalog
    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore.events import Event, Severity
    from eventcore.handler import DirectSink, Sink
    from eventcore.http import HttpRequest
    from eventcore.instruments import Instrument
    from eventcore_metric.folding import Fold
    from eventcore_metric.readings import Limit, Reading
    from eventcore_metric.series import AnyFamily, Store

    _Folds = defaultdict[type[Event], list[tuple[Instrument, AnyFamily, Fold]]]

__all__ = ["MetricHandler", "routes"]

DEFAULT_INTERVAL_S = 60.0
"""How often OTLP pushes, as OpenTelemetry has it."""

FLUSH_TIMEOUT_S = 1.0
"""How long a scrape waits for the worker to catch up before it shows what there is."""

_from_packs: WeakKeyDictionary[Catalog, set[str]] = WeakKeyDictionary()
"""Names of the instruments that packs of metric handlers brought into a catalog, as against those given in code."""


class MetricHandler(Handler):
    """Turns the instruments given in code, and those of its packs, into series, for Prometheus and OTLP.

    Instruments are compiled when the handler is attached; types that none of them observes never reach it. Values are
    folded by the handler's worker alone, so delivery is always queued.
    """

    kind: ClassVar[str] = "metric"
    delivery: ClassVar[Literal["inline", "queued"]] = "queued"

    Config: ClassVar[type[HandlerConfig]] = MetricConfig
    config: MetricConfig

    def __init__(self, config: HandlerConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._emitter: Emitter | None = None
        self._store: Store = MEMORY
        self._account: BusAccount | None = None
        self._compiled: tuple[tuple[Instrument, AnyFamily], ...] = ()
        self._pusher: Pusher | None = None
        self._shared: Shared | None = None
        self._publisher: Publisher | None = None
        self._by_hand: tuple[Recorded, ...] = ()
        self._folds = Compiled({}, {})
        self._warned: dict[str, object] = {}

    @property
    def _families(self) -> tuple[AnyFamily, ...]:
        """Of instruments and of metrics by hand."""
        return (*(family for _, family in self._compiled), *(one.family for one in self._by_hand))

    # -- compiling ---------------------------------------------------------------------------------------------------

    def attached(self, emitter: Emitter) -> None:
        """Compile the instruments.

        ConfigurationError: no such pack, two metrics that would share series names, no such path in ``disks``, or an
        option of the exporter ``otlp`` where nobody asks for that.
        """
        for path in self.config.disks if self.config.host else ():
            if not os.path.exists(path):  # noqa: PTH110 - it is no Path in the settings, and need not be one
                raise ConfigurationError(f"option 'disks' names {path!r}: there is no such path on this machine")
        if "none" not in self.config.exporter and self.config.multiprocess_dir is not None:
            self._shared = Shared(self.config.multiprocess_dir, self.name, self.config.max_series)
            self._store = self._shared
        self._compile(emitter, is_rehearsal=False)
        if idle := self.config.idle:
            self.warn_of_idle(idle, "exporter is 'prometheus'")
        if "none" in self.config.exporter:
            return
        by_hand.record(self, MetricHandler._record)
        _ATTACHED.add(self)
        _follow_forks()
        self._account = BusAccount(emitter, self.config.max_series)
        self._emitter = emitter
        emitter.timed_mask = TIMED_MASK
        if self._shared is not None:
            self._publisher = Publisher(self.name, self._publish)
        if "otlp" in self.config.exporter and not environment.flag("OTEL_SDK_DISABLED"):
            self._pusher = self._started_pusher(emitter)

    def _started_pusher(self, emitter: Emitter) -> Pusher:
        config = self.config
        preference = environment.choice(
            ("cumulative", "delta", "lowmemory"), "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
        )
        return Pusher(
            self.name,
            emitter,
            self.read_own,
            config.open("metrics"),
            interval_s=config.interval_s
            or environment.milliseconds("OTEL_METRIC_EXPORT_INTERVAL")
            or DEFAULT_INTERVAL_S,
            is_delta=(config.temporality or preference or "cumulative") != "cumulative",
        )

    def rehearsed(self, emitter: Emitter) -> None:
        """Compile the instruments: that opens nothing."""
        self._compile(emitter, is_rehearsal=True)

    def _compile(self, emitter: Emitter, *, is_rehearsal: bool) -> None:
        super().attached(emitter)
        if (idle := self.config.idle) and not self.config.says_exporter:
            raise ConfigurationError(f"option {idle[0]!r} is for exporter = 'otlp'; add that, or take {idle[0]!r} out")
        instruments = self._instruments(emitter.catalog, is_rehearsal=is_rehearsal)
        if "none" in self.config.exporter:
            return
        self._by_hand = ()
        self._compiled = tuple(
            (instrument, family_of(instrument, self.config.max_series, self._store)) for instrument in instruments
        )
        try:
            Exposition(
                [*(family.metric for family in self._families), *OWN, *(one.metric for one in by_hand.declared())]
            )
        except InstrumentError as error:
            raise ConfigurationError(str(error)) from None
        starts: _Folds = defaultdict(list)
        ends: _Folds = defaultdict(list)
        chosen = environment.choice(get_args(ExemplarFilter), "OTEL_METRICS_EXEMPLAR_FILTER")
        for instrument, family in self._compiled:
            family.exemplars = self.config.exemplars or chosen or "trace_based"  # type: ignore[assignment]  # one of these
            family.initialise(instrument)
            for event_type in instrument.types:
                folds = folds_of(instrument, event_type, family)
                for phase, fold in ((starts, folds.start), (ends, folds.end)):
                    if fold is not None:
                        phase[event_type].append((instrument, family, fold))
        self._folds = Compiled(starts, ends, emitter.time_ns if self._store is MEMORY else None)

    def _instruments(self, catalog: Catalog, *, is_rehearsal: bool) -> tuple[Instrument, ...]:
        of_packs = _from_packs.setdefault(catalog, set())
        given = {name: instrument for name, instrument in catalog.instruments.items() if name not in of_packs}
        adapted = Adapted(self.config.buckets, self.config.rename)
        for name, instrument in given.items():
            other = given[name] = adapted.with_buckets(instrument)
            if other is not instrument:
                catalog.replace(other)
        wanted = dict(given)
        for pack in self.config.packs:
            wanted.update({instrument.name: instrument for instrument in catalog.pack(pack, adapted.of_pack)})
        of_packs.update(wanted.keys() - given.keys())
        adapted.check_used(knows_code=not is_rehearsal)
        return tuple(wanted.values())

    def _record(self, hand: HandMade) -> Recorded:
        """Make a recorder for a metric by hand; InstrumentError where its series exist already."""
        Exposition([*(family.metric for family in self._families), *OWN, hand.metric])
        recorded = Recorded(hand, self.config.max_series, self._store)
        self._by_hand = (*self._by_hand, recorded)
        return recorded

    def sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - any severity
        """Take types that an instrument observes, and no others."""
        return self.handle if event_type in self._folds.ends else None

    def direct_sink_for(self, event_type: type[Event], severity: Severity) -> DirectSink | None:  # noqa: ARG002 - any severity
        """Take events that are only counted and measured in the caller: that is less work than queueing them."""
        return self._folds.direct.get(event_type)

    def start_sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - any severity
        """Take the starts of types that an instrument observes at their start."""
        return self.handle if event_type in self._folds.starts else None

    # -- folding -----------------------------------------------------------------------------------------------------

    def handle(self, envelope: Envelope) -> None:
        """Fold one envelope."""
        self.handle_batch((envelope,))

    def handle_batch(self, envelopes: Sequence[Envelope]) -> None:
        """Fold a batch; a fold that raises costs its own observation, and its envelope counts as failed."""
        starts, ends = self._folds.starts, self._folds.ends
        failed: dict[int, Exception] = {}
        for index, envelope in enumerate(envelopes):
            fold = (starts if envelope.phase == "start" else ends).get(envelope.event_type)
            if fold is not None and (error := fold(envelope, envelope.fields)) is not None:
                failed[index] = error
        if failed:
            raise PartialFailure(failed, next(iter(failed.values())))

    def closing(self) -> None:
        """Give a push that is under way, and the last one, half of the time there is."""
        if self._pusher is not None:
            self._pusher.hurry(self.emitter.shutdown_timeout_s / 2)

    def close(self) -> None:
        """Keep the series as they are; they can still be read."""
        by_hand.forget(self, self._by_hand)
        pusher, self._pusher = self._pusher, None
        if pusher is not None:
            pusher.close()
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.stop()
        if self._shared is not None:
            self._publish()
            self._shared.close()
        emitter, self._emitter = self._emitter, None
        if emitter is None or any(isinstance(h, MetricHandler) and h is not self for h in emitter.handlers):
            return
        emitter.timed_mask = NOT_TIMED  # nobody else shows how long emits take

    def after_fork(self) -> None:
        """In a forked child: what was counted so far is the parent's; every series starts at zero."""
        self._folds.renew_lock()
        if self._shared is not None:
            self._shared.after_fork()
        for _, family in self._compiled:
            family.after_fork()
        for recorded in self._by_hand:
            recorded.after_fork()
        if self._publisher is not None:
            self._publisher.start()
        if self._pusher is not None:
            self._pusher.start()

    # -- reading -----------------------------------------------------------------------------------------------------

    def render(self, accept: str = "") -> bytes:
        """Return the exposition: text format 0.0.4, or OpenMetrics where the ``Accept`` header asks for it.

        What was emitted before is in it, unless the worker takes more than a second to catch up.
        """
        return self.scrape(accept)[0]

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type."""
        return exposition(self.read(), accept)

    @staticmethod
    def directory_exposition(folder: Path, name: str, accept: str) -> tuple[bytes, str]:
        """Return the exposition of what handlers called ``name`` of the processes that share a folder have counted.

        For who is none of these processes. EventCoreError: no such folder, or it has no files of such a handler.
        """
        return exposition(read_directory(folder, name), accept)

    def read(self) -> list[Reading]:
        """Return every metric as it is now, with ``multiprocess_dir`` over all processes.

        Instruments, metrics by hand, the bus's account, the limits, the process and the host. EventCoreError: another
        process has held the lock of the folder for too long.
        """
        if self._shared is None:
            return self.read_own()
        if self._account is not None:
            self._catch_up()
            self._publish()
            self._warn()
        return self._shared.read()

    def read_own(self) -> list[Reading]:
        """Return every metric as it is now in this process."""
        if self._account is None:
            return []
        self._catch_up()
        readings = [*(family.read() for family in self._families), *self._elsewhere(self._account)]
        self._warn()
        return readings

    def _elsewhere(self, account: BusAccount) -> list[Reading]:
        """Return the readings of what is not kept here, as far as there are any."""
        readings = account.read() + limit_readings(self._families, self._limits)
        readings += process_readings() if self.config.process else ()
        readings += host_readings(self.config.disks) if self.config.host else ()
        return [reading for reading in readings if reading.points]

    def _publish(self) -> None:
        account = self._account
        if self._shared is not None and account is not None:
            self._shared.publish(lambda: self._elsewhere(account))

    def push(self) -> bool:
        """Push everything over OTLP now, not at the next interval; False if there is no such exporter, or it failed."""
        return self._pusher is not None and self._pusher.push()

    @property
    def _limits(self) -> tuple[Limit, ...]:
        return () if self._account is None else (self._account.emitted, self._account.events)

    def value(self, name: str, labels: Mapping[str, Any] | None = None) -> float | None:
        """Return one sample by its exported name (``…_total``, ``…_count``, ``…_bucket``); None: there is none."""
        wanted = {label: label_text(value) for label, value in (labels or {}).items()}
        return sample_value(self.read(), name, wanted)

    def summary(self) -> Summary:
        """Return requests, shed requests and errors so far, as the orchestrator's guide has them."""
        return summary_of(self.read())

    def size(self) -> dict[str, int]:
        """Return a few numbers about the series of instruments."""
        return {
            "metrics": len(self._families),
            "series": sum(len(family) for family in self._families),
            "overflowed": sum(family.overflowed for family in self._families),
            "rejected": sum(family.rejected for family in self._families),
        }

    def get_cardinality_stats(self) -> dict[str, Any]:
        """Return how many series there are, as the TinyLLM guide has it.

        ``total_combinations``, ``max_cardinality`` (per metric), and ``metrics``: name to ``cardinality`` (label
        combinations, the overflow series among them) and ``dropped`` (observations that went to the overflow series).
        """
        metrics = {
            name: {"cardinality": one["series"], "dropped": one["overflowed"]}
            for name, one in self.cardinality_stats().items()
        }
        return {
            "total_combinations": sum(one["cardinality"] for one in metrics.values()),
            "max_cardinality": self.config.max_series,
            "metrics": metrics,
        }

    def cardinality_stats(self) -> dict[str, dict[str, int]]:
        """Return per metric: its series, their limit, and how many observations went to the overflow series."""
        return {
            one.name: {"series": len(one), "limit": one.limit, "overflowed": one.overflowed}
            for one in (*self._families, *self._limits)
        }

    def describe(self) -> dict[str, Any]:
        """Return exporter, packs, and where the series can be read."""
        facts: dict[str, Any] = {"exporter": ", ".join(self.config.exporter), "packs": self.config.packs, **self.size()}
        if self._emitter is not None:
            path = next((route.path for route in routes(self._emitter) if route.respond == self._respond), None)
            url = getattr(self._emitter.services.get("http"), "url", None)
            facts |= {"path": path} if path else {}
            facts |= {"url": f"{url}{path}"} if url and path else {}
        if self._pusher is not None:
            facts["push"] = self._pusher.describe()
        if self._shared is not None:
            facts |= self._shared.describe()
        return facts

    def preview(self, envelope: Envelope) -> str:
        """Return the samples that one envelope makes; of histograms without their buckets."""
        readings = []
        for instrument, known in self._compiled:
            if envelope.event_type in instrument.types:
                family = family_of(instrument, known.limit)
                folds = folds_of(instrument, envelope.event_type, family)
                for fold in (folds.start, folds.end):
                    if fold is not None:
                        fold(envelope, envelope.fields)
                readings.append(family.read())
        return samples_text(readings)

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
        for family in (*self._families, *self._limits):
            if family.overflowed and self._emitter is not None:
                mine = object()
                if self._warned.setdefault(family.name, mine) is mine:  # atomic: of several scrapes, one warns
                    self._emitter.emit(
                        SeriesOverflow(handler=self.name, metric=family.name, limit=family.limit),
                    )


def routes(emitter: Emitter) -> list[HttpRoute]:
    """Return the routes of the metric handlers of an emitter.

    ``/metrics`` shows the first one attached. Others have the path ``/metrics/<name>``: they may read the same events,
    so one exposition with the series of all would name some twice.
    """
    handlers = [h for h in emitter.handlers if isinstance(h, MetricHandler) and "prometheus" in h.config.exporter]
    return [
        HttpRoute(
            "/metrics" if place == 0 else f"/metrics/{handler.name}",
            handler._respond,  # noqa: SLF001 - this module's own class
            f"series of handler {handler.name!r}, for Prometheus",
        )
        for place, handler in enumerate(handlers)
    ]


_ATTACHED: WeakSet[MetricHandler] = WeakSet()


def _after_fork() -> None:
    for handler in list(_ATTACHED):
        handler.after_fork()


@cache
def _follow_forks() -> None:
    """Begin to act in forked children, once; after the emitter has: a pusher that starts there reads its account."""
    os.register_at_fork(after_in_child=_after_fork)
