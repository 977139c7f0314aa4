"""What the catalog says is exposed is what a scrape shows, and nothing else."""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

import eventcore as ec
from eventcore.exposition import Exposition, Metric, bound_text, exposition_of, metric_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Painted(ec.Event, name="paint.painted", category=ec.Category.DATA):
    colour: Colour
    is_dry: bool
    coats: Annotated[int, ec.Measure(unit="1")]
    room: Annotated[str, ec.Label]
    finish: Literal["matt", "gloss"] | None = None
    score: Annotated[float, ec.Measure(unit="1")] = 0.5


class Scraped(ec.Event, name="paint.scraped", category=ec.Category.DATA):
    colour: Literal["red", "green"]


class Drying(ec.Operation, name="paint.drying", category=ec.Category.DATA):
    colour: Colour


INSTRUMENTS = (
    ec.Counter("paint_total", on=Painted, labels={"colour": "colour", "dry": "is_dry"}, help="?"),
    ec.Counter("paint_bare", on=Painted, value="coats", help="a counter that is not called _total"),
    ec.Counter("paint_rooms_total", on=Painted, labels={"room": "room"}, help="?"),
    ec.Counter("paint_touched_total", on=(Painted, Scraped), labels={"colour": "colour", "event": "event"}, help="?"),
    ec.Counter(
        "paint_dark_total",
        on=Painted,
        where={"colour": "blue"},
        labels={"colour": "colour", "kind": ec.const("dark"), "finish": "finish"},
        help="?",
    ),
    ec.Gauge("paint_state", on=Painted, value=ec.codes("colour", red=0, blue=1, initial="red"), help="?"),
    ec.Gauge("paint_drying", on=Drying, phase="start", labels={"colour": "colour"}, help="?"),
    ec.Histogram(
        "paint_coats",
        on=Painted,
        value="coats",
        labels={"coats": ec.bins("coats", [1, 3]), "finish": ec.rename("finish", {"matt": "dull"}, other="other")},
        buckets=(0.0, 1, 2.5, 1_000_000, 12_500_000),
        help="?",
    ),
    ec.Histogram("paint_score", on=Painted, value="score", buckets=(-1.0, 0.0, 1.0), help="may be negative"),
    ec.Histogram(
        "paint_drying_seconds",
        on=Drying,
        value="duration_s",
        labels={"outcome": "outcome", "why": ec.rename("error_type", {"OSError": "disk"}, other="unknown")},
        help="?",
    ),
)


def live() -> tuple[ec.Emitter, dict[str, list[dict[str, str]]]]:
    """Emit every value of every label, and return what a scrape then shows: label sets by sample name."""
    emitter = ec.configure(service="paint", instruments=INSTRUMENTS, handlers={"metric": {}})
    for colour in Colour:
        for is_dry in (True, False):
            for coats in (1, 3, 9):
                for finish in ("matt", "gloss", None):
                    emitter.emit(Painted(colour=colour, is_dry=is_dry, coats=coats, room="hall", finish=finish))
        with emitter.operation(Drying, colour=colour):
            pass
        with pytest.raises(OSError), emitter.operation(Drying, colour=colour):
            raise OSError
        with pytest.raises(RuntimeError), emitter.operation(Drying, colour=colour):
            raise RuntimeError
    for colour in ("red", "green"):
        emitter.emit(Scraped(colour=colour))
    shown = defaultdict(list)
    for family in text_string_to_metric_families(emitter.handler("metric").render().decode()):
        for sample in family.samples:
            if sample.name.startswith("paint"):
                shown[sample.name].append(sample.labels)
    return emitter, shown


def test_a_scrape_shows_what_is_declared_and_nothing_else():
    """Sample names, label names and label values of a scrape are those of the exposition, both ways."""
    emitter, shown = live()
    declared = exposition_of(emitter.catalog).series
    assert set(shown) == set(declared)
    for name, series in declared.items():
        assert {frozenset(labels) for labels in shown[name]} == {frozenset(series.labels)}, name
        for label, values in series.labels.items():
            seen = {labels[label] for labels in shown[name]}
            assert values is None or seen == values, (name, label)


def test_the_number_of_series_stays_within_the_worst_case():
    """No metric shows more series than its worst case, and one with an open label has none."""
    emitter, shown = live()
    metrics = exposition_of(emitter.catalog).metrics
    for metric in metrics.values():
        number = sum(len(shown[series.name]) for series in metric.series)
        assert metric.worst_case is None or number <= metric.worst_case, metric.name
    assert metrics["paint_rooms_total"].worst_case is None
    assert metrics["paint_total"].worst_case == 4
    assert metrics["paint_state"].worst_case == 1
    assert metrics["paint_score"].worst_case == 4, "four buckets, neither sum nor count"
    assert metrics["paint_coats"].worst_case == 3 * 2 * (6 + 2)


def test_several_types_count_together():
    """Over several types the worst case is no more than the sum of theirs, nor than all values together."""
    labels = {"colour": "colour", "event": "event"}
    metric = metric_of(ec.Counter("x_total", on=(Painted, Scraped), labels=labels, help="?"))
    assert metric.labels == {"colour": {"red", "blue", "green"}, "event": {"paint.painted", "paint.scraped"}}
    assert metric.combinations == 4


@given(st.floats(allow_nan=False) | st.integers(-(10**9), 10**9))
def test_bounds_read_as_prometheus_client_writes_them(bound):
    """The texts of ``le`` are those of prometheus_client, which writes them as Go does."""
    assert bound_text(bound) == floatToGoString(bound)


def test_plugins_declare_what_is_no_instrument():
    """A plugin's declarations, also by path, join the instruments; a histogram among them has its three series."""

    class Extra:
        @ec.hookimpl
        def eventcore_series(self):
            return [Metric(name="paint_stock", kind="gauge", help="?"), f"{__name__}:DECLARED"]

    emitter = ec.configure(service="paint", instruments=INSTRUMENTS[:1], plugins=[Extra()], handlers={"metric": {}})
    series = exposition_of(emitter.catalog, emitter.plugins).series
    assert {"paint_total", "paint_stock", "paint_seconds_bucket", "paint_seconds_sum", "paint_seconds_count"} <= set(
        series
    )
    assert series["paint_seconds_bucket"].labels == {"room": None, "le": {"1.0", "+Inf"}}
    assert (series["paint_seconds_sum"].unit, series["paint_seconds_count"].unit) == ("seconds", "")


DECLARED = [Metric(name="paint_seconds", kind="histogram", help="?", labels={"room": None}, buckets=(1, math.inf))]


def test_two_metrics_of_one_series_name_are_an_error():
    """A declaration that collides with an instrument's series is refused, with both origins."""
    mine = metric_of(ec.Histogram("x", on=Painted, value="coats", help="?"))
    with pytest.raises(
        ec.InstrumentError, match=r"'x_count' would be exposed twice.*'x_count' \(a plugin\).*'x' \(ins"
    ):
        Exposition([mine, Metric(name="x_count", kind="gauge", help="?", origin="a plugin")])


def test_a_histogram_needs_buckets():
    """A declared histogram without bounds is refused where it is declared."""
    with pytest.raises(ec.InstrumentError, match="'x' is declared a histogram without buckets"):
        Metric(name="x", kind="histogram", help="?")
