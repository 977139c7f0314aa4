"""Readings in OpenTelemetry's terms: one canonical name becomes what its conventions ask for.

``shop_paid_total`` is the monotonic sum ``shop_paid``; ``shop_charge_duration_seconds`` the histogram
``shop_charge_duration`` with unit ``s`` (UCUM); a gauge of which several processes show the sum (what is in flight) is
a sum that may fall. Prometheus, when it receives OTLP, puts unit and ``_total`` back, so that queries hold either way.
Messages are written as bytes, see ``eventcore_otlp.wire``; the tests hold them against opentelemetry-proto.
https://opentelemetry.io/docs/specs/otel/metrics/data-model/
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from eventcore_metric.declared import OTEL_NAMES
from eventcore_otlp.wire import attributes, delimited, double, fixed64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.exposition import Metric
    from eventcore_metric.readings import Exemplar, Point, Reading

__all__ = ["Encoder", "otel_name", "otel_unit"]

_UCUM = {
    "seconds": "s",
    "milliseconds": "ms",
    "microseconds": "us",
    "nanoseconds": "ns",
    "minutes": "min",
    "hours": "h",
    "days": "d",
    "bytes": "By",
    "kilobytes": "kBy",
    "megabytes": "MBy",
    "ratio": "1",
    "percent": "%",
    "celsius": "Cel",
    "meters": "m",
    "grams": "g",
    "joules": "J",
    "volts": "V",
    "amperes": "A",
}

_DELTA, _CUMULATIVE = b"\x10\x01", b"\x10\x02"
_MONOTONIC = b"\x18\x01"


def otel_unit(metric: Metric) -> str:
    """Return the unit in UCUM; empty where there is none, in braces where UCUM has no word for it."""
    unit = metric.unit
    if not unit or unit in _UCUM.values() or unit.startswith("{"):
        return unit
    return _UCUM.get(unit) or f"{{{unit}}}"


def otel_name(metric: Metric) -> str:
    """Return the name without what the kind and the unit say already."""
    known = OTEL_NAMES.get(metric.name)
    if known is not None:
        return known
    bare = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
    return bare.removesuffix(f"_{metric.unit}") if metric.unit in _UCUM and bare != metric.unit else bare


class Encoder:
    """Turns readings into serialised ``Metric`` messages; with ``is_delta`` remembers what was sent before."""

    def __init__(self, *, is_delta: bool, start_ns: int) -> None:
        self._is_delta = is_delta
        self._start_ns = start_ns
        self._sent: dict[tuple[str, tuple[str, ...]], Point] = {}
        self._sending = self._sent
        self._sending_ns = start_ns
        self._names: dict[str, str] = {}

    def encode(self, readings: Sequence[Reading], now_ns: int) -> list[bytes]:
        """Return one message per metric that has series."""
        for reading in readings:
            self._name(reading.metric)  # in the order of declaration, whichever has series first
        self._sending = {}
        self._sending_ns = now_ns
        return [self._metric(reading, now_ns) for reading in readings if reading.points]

    def sent(self) -> None:
        """Learn that what was encoded last has arrived: the next deltas begin there."""
        if self._is_delta:
            self._sent = self._sending
            self._start_ns = self._sending_ns

    def _name(self, metric: Metric) -> str:
        """Return the name, once chosen for good; where it is taken (``paid``, ``paid_bytes``) the unit stays in it."""
        name = self._names.get(metric.name)
        if name is None:
            taken = self._names.values()
            name = next(
                n for n in (otel_name(metric), metric.name.removesuffix("_total"), metric.name) if n not in taken
            )
            self._names[metric.name] = name
        return name

    def _metric(self, reading: Reading, now_ns: int) -> bytes:
        metric = reading.metric
        head = delimited(b"\x0a", self._name(metric).encode()) + delimited(
            b"\x12", metric.help.encode("utf-8", "replace")
        )
        unit = otel_unit(metric)
        if unit:
            head += delimited(b"\x1a", unit.encode("utf-8", "replace"))
        names = tuple(metric.labels)
        now = b"\x19" + fixed64(now_ns)
        if metric.kind == "gauge":
            is_sum = reading.across == "sum"
            times = (b"\x11" + fixed64(self._start_ns) if is_sum and not self._is_delta else b"") + now
            points = b"".join(delimited(b"\x0a", _number(names, point, times)) for point in reading.points)
            # A sum that may fall is always cumulative, whatever the preference: its changes alone say nothing.
            return head + (delimited(b"\x3a", points + _CUMULATIVE) if is_sum else delimited(b"\x2a", points))
        times = b"\x11" + fixed64(self._start_ns) + now
        temporality = _DELTA if self._is_delta else _CUMULATIVE
        own = [self._since(metric.name, point) for point in reading.points] if self._is_delta else reading.points
        if metric.kind == "counter":
            points = b"".join(delimited(b"\x0a", _number(names, point, times)) for point in own)
            return head + delimited(b"\x3a", points + temporality + _MONOTONIC)
        bounds = metric.buckets
        explicit = delimited(b"\x3a", struct.pack(f"<{len(bounds)}d", *bounds))
        points = b"".join(delimited(b"\x0a", _distribution(names, point, times, explicit)) for point in own)
        return head + delimited(b"\x4a", points + temporality)

    def _since(self, name: str, point: Point) -> Point:
        """Return what has been added since the last export that arrived."""
        key = (name, point.labels)
        self._sending[key] = point
        before = self._sent.get(key)
        if before is None:
            return point
        counts = tuple(now - then for now, then in zip(point.counts, before.counts, strict=True))
        return point._replace(value=point.value - before.value, counts=counts)


def _number(names: Sequence[str], point: Point, times: bytes) -> bytes:
    """Return a ``NumberDataPoint``."""
    written = times + b"\x21" + double(point.value) + _labels(names, point, b"\x3a")
    return written + _exemplars(point.exemplars, b"\x2a")


def _distribution(names: Sequence[str], point: Point, times: bytes, bounds: bytes) -> bytes:
    """Return a ``HistogramDataPoint``."""
    counts = tuple(map(int, point.counts))
    written = times + b"\x21" + fixed64(sum(counts)) + b"\x29" + double(point.value)
    written += delimited(b"\x32", struct.pack(f"<{len(counts)}Q", *counts)) + bounds
    return written + _labels(names, point, b"\x4a") + _exemplars(point.exemplars, b"\x42")


def _labels(names: Sequence[str], point: Point, tag: bytes) -> bytes:
    """Return the attributes; an empty label is none, as in Prometheus."""
    return attributes({name: text for name, text in zip(names, point.labels, strict=True) if text}, tag)


def _exemplars(exemplars: Sequence[Exemplar | None], tag: bytes) -> bytes:
    return b"".join(
        delimited(
            tag,
            b"\x11"
            + fixed64(one.time_ns)
            + b"\x19"
            + double(one.value)
            + delimited(b"\x22", one.span_id.to_bytes(8, "big"))
            + delimited(b"\x2a", one.trace_id.to_bytes(16, "big")),
        )
        for one in exemplars
        if one is not None
    )
