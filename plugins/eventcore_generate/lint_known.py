"""What queries are held against: the catalog's exposition, Prometheus' own series, and what the linted files define."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from eventcore_generate.promql import check
from eventcore_generate.promql_problems import Problem, closest
from eventcore_generate.promql_vectors import OPEN, KnownSeries, Role, Values, Vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from eventcore.exposition import Exposition, Series
    from eventcore_generate.lint_files import Recorded, Targets

__all__ = ["KnownSeries", "Vocabulary", "read_exposition"]

_OF_TARGETS = (
    "scrape_body_size_bytes",
    "scrape_duration_seconds",
    "scrape_sample_limit",
    "scrape_samples_post_metric_relabeling",
    "scrape_samples_scraped",
    "scrape_series_added",
    "scrape_timeout_seconds",
    "up",
)
"""Series that Prometheus makes for each target (https://prometheus.io/docs/concepts/jobs_instances/)."""

_OF_ALERTS = ("ALERTS", "ALERTS_FOR_STATE")
_STATES = frozenset({"pending", "firing"})
_HISTOGRAM = ("bucket", "sum", "count")


class Vocabulary:
    """All series that a query may name, with the labels they have in Prometheus: their own and the target's.

    ``elsewhere``: names that installed plugins could expose and the settings do not enable, with what enables them.
    """

    def __init__(
        self,
        exposition: Exposition,
        *,
        others: Mapping[str, KnownSeries] | None = None,
        recorded: Sequence[Recorded] = (),
        targets: Targets | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self._target = _target(targets)
        self._elsewhere = dict(elsewhere or {})
        self._histograms = {name: m for name, m in exposition.metrics.items() if m.kind == "histogram"}
        self._recorded: defaultdict[str, list[Recorded]] = defaultdict(list)
        for rule in recorded:
            self._recorded[rule.name].append(rule)
        self._inferring: set[str] = set()
        self._series = {
            name: self._known(series, exposition.metrics[series.metric].states)
            for name, series in exposition.series.items()
        }
        self._series |= {name: self._scraped(series) for name, series in (others or {}).items()}
        for name in _OF_TARGETS:
            self._series[name] = KnownSeries(name, "gauge", self._on_target(name, "gauge", {}, frozenset()))
        for name in _OF_ALERTS:
            labels: dict[str, Values] = {"alertname": None, "alertstate": _STATES}
            vector = Vector(labels, frozenset({"alertname"}), is_open=True, made_of={name: "gauge"})
            self._series[name] = KnownSeries(name, "gauge", vector)

    def names(self) -> Iterable[str]:
        """Return the names of all series."""
        return [*self._series, *self._recorded]

    def get(self, name: str) -> KnownSeries | None:
        """Return a series; one that a recording rule makes has the labels of the rule's expression."""
        if name in self._series or name not in self._recorded:
            return self._series.get(name)
        if name in self._inferring:
            return KnownSeries(name, "unknown", OPEN)
        self._inferring.add(name)
        try:
            known = KnownSeries(name, "unknown", self._recorded_as(name))
        finally:
            self._inferring.discard(name)
        self._series[name] = known
        return known

    def missing(self, name: str) -> Problem:
        """Say that no such series exists, and what to do about it."""
        metric = self._histograms.get(name)
        if metric is not None:
            series = [one.name for one in metric.series]
            return Problem(
                "histogram-by-bare-name",
                f"{name!r} is a histogram, which has no series of that name",
                f"query {series[0]} (with histogram_quantile), or one of {', '.join(series[1:])}",
                name,
            )
        remedy = self._elsewhere.get(name) or self._closest(name)
        return Problem(
            "unknown-series",
            f"no series {name!r} is in the catalog",
            remedy or "name one that is (eventcore catalog), or give a scrape of what exposes it with --known",
            name,
        )

    def _closest(self, name: str) -> str:
        """Suggest a name of the same system (first word), or one that is all but equal."""
        names = [*self.names(), *self._histograms, *self._elsewhere]
        system = re.split("[_:]", name)[0]
        related = [each for each in names if re.split("[_:]", each)[0] == system]
        return closest(name, related) or closest(name, names, likeness=0.9)

    # -- what a series looks like where it is queried ------------------------------------------------------------------

    def _on_target(self, name: str, role: Role, labels: Mapping[str, Values], certain: frozenset[str]) -> Vector:
        return Vector(
            {**self._target.labels, **labels}, self._target.certain | certain, self._target.is_open, {name: role}
        )

    def _known(self, series: Series, states: tuple[float, ...]) -> KnownSeries:
        role: Role = series.part if series.kind == "histogram" and series.part != "value" else _role(series.kind)
        certain = frozenset(label for label, values in series.labels.items() if values is None or "" not in values)
        return KnownSeries(series.name, role, self._on_target(series.name, role, series.labels, certain), states)

    def _scraped(self, series: KnownSeries) -> KnownSeries:
        own = series.vector
        vector = self._on_target(series.name, series.role, own.labels, own.certain)
        return KnownSeries(series.name, series.role, replace(vector, is_open=vector.is_open or own.is_open))

    def _recorded_as(self, name: str) -> Vector:
        vectors = []
        for rule in self._recorded[name]:
            vector, _ = check(rule.expression, self)
            for label, value in rule.labels.items():
                vector = vector.with_label(label, frozenset({value})) if value else vector.without((label,))
            vectors.append(vector)
        labels = set().union(*(vector.labels for vector in vectors))
        merged = {
            label: None
            if any(vector.values(label) is None for vector in vectors)
            else frozenset(value for vector in vectors for value in vector.values(label) or ())
            for label in labels
        }
        certain = frozenset.intersection(*(vector.certain for vector in vectors))
        is_open = any(vector.is_open for vector in vectors)
        return Vector(merged, certain, is_open, {name: "unknown"})


def _role(kind: str) -> Role:
    return "counter" if kind == "counter" else "gauge"


def _target(targets: Targets | None) -> Vector:
    """Return the labels that every target has: job and instance, and what the scrape configurations add."""
    jobs = targets.jobs if targets is not None else None
    labels: dict[str, Values] = {"job": jobs, "instance": None}
    certain = frozenset(labels)
    if targets is not None:
        labels |= dict.fromkeys(targets.labels)
    return Vector(labels, certain, targets is not None and targets.is_open)


# -- scrapes of other exporters ----------------------------------------------------------------------------------------

_TYPE = re.compile(r"# TYPE (\S+) (\w+)\s*$")
_SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+[^\s"]+(?:\s+\S+)*$')
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


def read_exposition(text: str) -> dict[str, KnownSeries]:
    """Return the series of a scrape (text format or OpenMetrics), with the labels seen and any value.

    A metric that has a ``# TYPE`` and no sample counts as a series of unknown labels.
    """
    kinds: dict[str, str] = {}
    samples: defaultdict[str, list[set[str]]] = defaultdict(list)
    for line in text.splitlines():
        declared = _TYPE.match(line)
        if declared:
            kinds[declared[1]] = declared[2]
            continue
        sample = None if line.startswith("#") else _SAMPLE.match(line)
        if sample:
            samples[sample[1]].append({name for name, value in _LABEL.findall(sample[2] or "") if value})
    known = {name: _as_seen(name, _scraped_role(name, kinds), seen) for name, seen in samples.items()}
    for name, kind in kinds.items():
        if kind in ("counter", "gauge", "unknown", "untyped") and not {name, f"{name}_total"} & known.keys():
            known[name] = KnownSeries(name, "unknown", Vector(is_open=True, made_of={name: "unknown"}))
    return known


def _as_seen(name: str, role: Role, seen: list[set[str]]) -> KnownSeries:
    labels = dict.fromkeys(sorted(set().union(*seen)))
    return KnownSeries(name, role, Vector(labels, frozenset(set.intersection(*seen)), made_of={name: role}))


def _scraped_role(name: str, kinds: Mapping[str, str]) -> Role:
    for suffix in _HISTOGRAM:
        if name.endswith(f"_{suffix}") and kinds.get(name.removesuffix(f"_{suffix}")) == "histogram":
            return suffix  # type: ignore[return-value]  # each of the three is a role
    kind = kinds.get(name) or kinds.get(name.removesuffix("_total"))
    return kind if kind in ("counter", "gauge") else "unknown"  # type: ignore[return-value]  # both are roles
