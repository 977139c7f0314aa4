"""Readings in Prometheus' terms: text format 0.0.4, or OpenMetrics with exemplars where the scraper asks for it."""

from __future__ import annotations

import itertools
import math
from json import dumps
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily, Timestamp
from prometheus_client.exposition import choose_encoder

from eventcore.exposition import bound_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client.core import Metric as PrometheusMetric

    from eventcore_metric import readings
    from eventcore_metric.readings import Point, Reading

__all__ = ["exposition", "families_of", "sample_value", "samples_text"]


def exposition(readings: Iterable[Reading], accept: str) -> tuple[bytes, str]:
    """Return the exposition in the format that an ``Accept`` header asks for, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(_Collected(readings)), content_type


def sample_value(readings: Iterable[Reading], name: str, labels: Mapping[str, str]) -> float | None:
    """Return one sample by its exported name (``…_total``, ``…_count``, ``…_bucket``); None: there is none."""
    for metric in families_of(readings):
        for sample in metric.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def samples_text(readings: Iterable[Reading]) -> str:
    """Return the samples for people, one per line; of histograms without their buckets."""
    samples = [sample for metric in families_of(readings) for sample in metric.samples]
    return "\n".join(
        f"{sample.name}{_labels_text(sample.labels)} {sample.value}"
        for sample in samples
        if not sample.name.endswith("_bucket")
    )


def _labels_text(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{name}={dumps(value)}" for name, value in labels.items()) + "}" if labels else ""


class _Collected:
    """Readings behind prometheus_client's collector interface."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = readings

    def collect(self) -> list[PrometheusMetric]:
        return families_of(self._readings)


def families_of(readings: Iterable[Reading]) -> list[PrometheusMetric]:
    """Return readings as prometheus_client has them: metric families with samples."""
    return [_family(reading) for reading in readings]


def _family(reading: Reading) -> PrometheusMetric:
    metric = reading.metric
    labels = tuple(metric.labels)
    # Not passed on unless the name ends with it: prometheus_client would append it to the name.
    unit = metric.unit if metric.unit and metric.name.removesuffix("_total").endswith(f"_{metric.unit}") else ""
    if metric.kind == "counter":
        counter = CounterMetricFamily(metric.name, metric.help, labels=labels, unit=unit)
        for point in reading.points:
            exemplar = _exemplar(point.exemplars[0]) if point.exemplars else None
            counter.add_metric(point.labels, point.value, exemplar=exemplar)
        return counter
    if metric.kind == "gauge":
        gauge = GaugeMetricFamily(metric.name, metric.help, labels=labels, unit=unit)
        for point in reading.points:
            gauge.add_metric(point.labels, point.value)
        return gauge
    histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels, unit=unit)
    les = [bound_text(bound) for bound in (*metric.buckets, math.inf)]
    for point in reading.points:
        histogram.add_metric(point.labels, _buckets(les, point), point.value)
    return histogram


def _buckets(les: Sequence[str], point: Point) -> list[Any]:
    """Return cumulative buckets; one that has an exemplar is a triple, as prometheus_client has it."""
    cumulative = itertools.accumulate(point.counts)
    if not point.exemplars:
        return list(zip(les, cumulative, strict=True))
    return [
        (le, count) if exemplar is None else (le, count, _exemplar(exemplar))
        for le, count, exemplar in zip(les, cumulative, point.exemplars, strict=True)
    ]


def _exemplar(exemplar: readings.Exemplar | None) -> Exemplar | None:
    if exemplar is None:
        return None
    seconds, rest = divmod(exemplar.time_ns, 1_000_000_000)
    labels = {"trace_id": f"{exemplar.trace_id:032x}", "span_id": f"{exemplar.span_id:016x}"}
    return Exemplar(labels, exemplar.value, Timestamp(seconds, rest))
