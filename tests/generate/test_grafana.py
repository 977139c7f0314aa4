"""Dashboards: what Grafana expects of them, and which panels a metric gets."""

from __future__ import annotations

import itertools
import json

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import eventcore as ec
from eventcore.exposition import Metric, metric_of
from eventcore.monitoring import Correction, Monitoring, Panel, Query
from eventcore_generate.grafana import grafana
from eventcore_generate.panels import panel_of
from eventcore_generate.source import Part, Source


class Painted(ec.Operation, name="desk.paint", category="execution"):
    colour: str = "red"


@pytest.fixture
def dashboards(settings):
    """Return the dashboards of the Tiny Dancer pack and of the bus, by file name."""
    return {name: json.loads(text) for name, text in grafana(Source(settings)).items()}


def test_there_is_one_for_each_pack(dashboards):
    """Each enabled pack has a dashboard, and so has the bus."""
    assert {name: board["title"] for name, board in dashboards.items()} == {
        "tiny_dancer.json": "Tiny Dancer Routing",
        "router.json": "Router in service",
        "eventcore.json": "eventcore",
    }


def test_grafanas_schema_reads_them(dashboards):
    """A dashboard decoded into Grafana's own types and encoded again is the same: nothing in it is unknown to them."""
    register_default_plugins()
    for board in dashboards.values():
        again = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
        assert again == board


def test_grafana_can_show_them(dashboards):
    """Ids are unique, panels lie side by side on the grid, and each query asks the dashboard's data source."""
    for board in dashboards.values():
        assert 0 < len(board["uid"]) <= 40
        assert board["schemaVersion"] >= 36
        assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource"]
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        places = [panel["gridPos"] for panel in board["panels"]]
        assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
        for one, other in itertools.combinations(places, 2):
            assert (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            )
        for panel in board["panels"]:
            if panel["type"] == "row":
                continue
            assert panel["title"]
            references = [target["refId"] for target in panel["targets"]]
            assert references
            assert len(references) == len(set(references))
            for part in (panel, *panel["targets"]):
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_guides_panels_are_there(dashboards):
    """The Tiny Dancer guide's four panels come first, with its titles and queries."""
    panels = [panel for panel in dashboards["tiny_dancer.json"]["panels"] if panel["type"] != "row"]
    assert [(panel["title"], panel["targets"][0]["expr"]) for panel in panels[:4]] == [
        ("Request Rate", "rate(tiny_dancer_routing_requests_total[5m])"),
        ("P95 Latency", "histogram_quantile(0.95, rate(tiny_dancer_routing_latency_seconds_bucket[5m]))"),
        ("Circuit Breaker State", "tiny_dancer_circuit_breaker_state"),
        ("Lightweight vs Powerful Routing", "rate(tiny_dancer_routing_decisions_total[5m])"),
    ]


def test_every_metric_has_a_panel(settings, dashboards):
    """No declared metric is without a panel, and no panel asks for one that is not declared."""
    for part in Source(settings).parts:
        queries = " ".join(
            target["expr"] for panel in dashboards[f"{part.name}.json"]["panels"] for target in panel.get("targets", ())
        )
        for metric in part.metrics:
            assert metric.name in queries


def test_states_have_names(dashboards):
    """A gauge of states is a time line that shows their names, in colours, from the instrument's codes."""
    for panel in dashboards["tiny_dancer.json"]["panels"]:
        if panel.get("targets", [{}])[0].get("expr") != "tiny_dancer_circuit_breaker_state":
            continue
        assert panel["type"] == "state-timeline"
        [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
        assert {code: shown["text"].replace("_", "-") for code, shown in mapping["options"].items()} == {
            "0": "closed",
            "1": "half-open",
            "2": "open",
        }


@pytest.mark.parametrize(
    ("metric", "queries", "unit"),
    [
        (Metric(name="x_total", kind="counter", help="h"), ["sum (rate(x_total[5m]))"], "ops"),
        (
            Metric(name="x_total", kind="counter", help="h", labels={"a": None, "one": frozenset({"b"})}),
            ["sum by (a) (rate(x_total[5m]))"],
            "ops",
        ),
        (Metric(name="x_bytes_total", kind="counter", help="h"), ["sum (rate(x_bytes_total[5m]))"], "Bps"),
        (Metric(name="x_seconds_total", kind="counter", help="h"), ["sum (rate(x_seconds_total[5m]))"], "percentunit"),
        (Metric(name="x_bytes", kind="gauge", help="h"), ["x_bytes"], "bytes"),
        (Metric(name="x", kind="gauge", help="h"), ["x"], "short"),
        (
            Metric(name="x_seconds", kind="histogram", help="h", buckets=(1.0,), labels={"a": None}),
            [f"histogram_quantile({q}, sum by (le, a) (rate(x_seconds_bucket[5m])))" for q in (0.5, 0.95, 0.99)],
            "s",
        ),
    ],
)
def test_a_panel_follows_from_kind_unit_and_labels(metric, queries, unit):
    """Counters are shown as rates by label, histograms as quantiles, gauges as they are, each in its unit."""
    panel = panel_of(metric)
    assert ([query.expr for query in panel.queries], panel.unit) == (queries, unit)


def test_codes_of_an_instrument_become_states():
    """A gauge over ``ec.codes`` gets the names of its codes."""
    gauge = ec.Gauge("x_state", on=Painted, value=ec.codes("colour", red=1, blue=2), help="h")
    assert panel_of(metric_of(gauge), gauge).states == {1: "red", 2: "blue"}


def test_a_corrected_panel_shows_the_original(settings):
    """Where a query is not the guide's, the panel's description has the guide's and the reason."""
    panel = Panel(title="T", queries=(Query("x"),), correction=Correction("rate(x[5m])", "x is a gauge."))
    source = Source(settings)
    source.__dict__["parts"] = (Part("desk", (), {}, Monitoring(title="Desk", panels=(panel,))),)
    board = json.loads(grafana(source)["desk.json"])
    assert board["panels"][1]["description"] == "The guide has `rate(x[5m])`: x is a gauge."


def test_many_queries_have_letters(settings):
    """Queries of one panel are told apart by letters, as in Grafana."""
    panel = Panel(title="T", queries=tuple(Query(f"x{number}") for number in range(3)), kind="stat")
    source = Source(settings)
    source.__dict__["parts"] = (Part("desk", (), {}, Monitoring(title="Desk", panels=(panel,))),)
    board = json.loads(grafana(source)["desk.json"])
    register_default_plugins()
    assert json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder)) == board
    shown = board["panels"][1]
    assert shown["type"] == "stat"
    assert [target["refId"] for target in shown["targets"]] == ["A", "B", "C"]
