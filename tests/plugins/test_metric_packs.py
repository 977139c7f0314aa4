"""Packs: several vocabularies over the same events, with other names and buckets by configuration."""

from __future__ import annotations

import datetime as dt

import pytest

import eventcore as ec
from eventcore.exposition import exposition_of
from eventcore.rehearsal import rehearse
from router import Candidate, Router, RoutingRequest
from router.events import InferModel, RouteRequest
from router.metrics import TINY_DANCER

ACME = [
    ec.Counter(
        "acme_dispatches_total",
        on=RouteRequest,
        labels={"result": ec.rename("outcome", {"success": "ok"}, other="error")},
        help="Dispatches, in another vocabulary.",
    ),
    ec.Histogram(
        "acme_node_duration_seconds",
        on=(RouteRequest, InferModel),
        value="duration_s",
        labels={"node": ec.rename("event", {"router.route": "entry", "router.model_inference": "model"})},
        help="Durations of several events under one name.",
    ),
]


class Acme:
    """A plugin with a second vocabulary over the router's events."""

    @ec.hookimpl
    def eventcore_packs(self):
        return {"acme": ACME}


def start(**options):
    """Return the metric handler of a running emitter."""
    return ec.configure(service="packs", handlers={"metric": options}, plugins=[Acme()]).handler("metric")


def route(times=3):
    """Route some requests with the real router; one more fails."""
    router = Router()
    candidates = [
        Candidate(id=str(number), embedding=[1.0, number / 9], created_at=dt.datetime.now(dt.UTC).timestamp())
        for number in range(3)
    ]
    for _ in range(times):
        router.route(RoutingRequest(query_embedding=[1.0, 0.5], candidates=candidates))
    with pytest.raises(ValueError, match="has shape"):
        router.route(RoutingRequest(query_embedding=[1.0, 0.5, 0.1], candidates=candidates))


def test_two_vocabularies_read_the_same_events():
    """No second line of emitting code: one event counts in both packs, each with its names, labels and values."""
    metric = start(packs=["tiny_dancer", "acme"])
    route()
    assert metric.value("tiny_dancer_routing_requests_total", {"status": "success"}) == 3
    assert metric.value("tiny_dancer_routing_requests_total", {"status": "failure"}) == 1
    assert metric.value("acme_dispatches_total", {"result": "ok"}) == 3
    assert metric.value("acme_dispatches_total", {"result": "error"}) == 1
    assert metric.value("acme_node_duration_seconds_count", {"node": "entry"}) == 4
    assert metric.value("acme_node_duration_seconds_count", {"node": "model"}) == 3


def test_buckets_are_changed_by_configuration():
    """A histogram's buckets, of a pack or given in code, are those of the settings, in the catalog too."""
    given = ec.Histogram("own_seconds", on=RouteRequest, value="duration_s", help="Given in code.")
    options = {
        "packs": ["tiny_dancer"],
        "buckets": {"tiny_dancer_routing_latency_seconds": [0.5, 60], "own_seconds": [30.0]},
    }
    emitter = ec.configure(instruments=[given], handlers={"metric": options})
    metric = emitter.handler("metric")
    route()
    labels = {"operation": "total"}
    assert metric.value("tiny_dancer_routing_latency_seconds_bucket", {**labels, "le": "60.0"}) == 4
    assert metric.value("tiny_dancer_routing_latency_seconds_bucket", {**labels, "le": "0.01"}) is None
    assert metric.value("own_seconds_bucket", {"le": "30.0"}) == 4
    known = exposition_of(emitter.catalog).series
    assert known["tiny_dancer_routing_latency_seconds_bucket"].labels["le"] == {"0.5", "60.0", "+Inf"}
    assert known["own_seconds_bucket"].labels["le"] == {"30.0", "+Inf"}
    assert TINY_DANCER[1].buckets[0] == 0.0001  # the pack itself is as it was


def test_metrics_of_packs_are_renamed_by_configuration():
    """A metric of a pack goes by the name that the settings give it, in the catalog too."""
    metric = start(packs=["tiny_dancer"], rename={"tiny_dancer_routing_requests_total": "agents_requests_total"})
    route()
    assert metric.value("agents_requests_total", {"status": "success"}) == 3
    assert metric.value("tiny_dancer_routing_requests_total", {"status": "success"}) is None
    known = exposition_of(metric.emitter.catalog).series
    assert "agents_requests_total" in known
    assert "tiny_dancer_routing_requests_total" not in known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packs": ["tiny_dance"]}, r"no installed plugin offers a metric pack 'tiny_dance'; did you mean"),
        (
            {"packs": ["tiny_dancer"], "buckets": {"tiny_dancer_confidence_score": [1.0]}},
            r"option 'buckets': .* no histogram of this handler; did you mean 'tiny_dancer_confidence_scores'\?",
        ),
        (
            {"packs": ["tiny_dancer"], "buckets": {"tiny_dancer_errors_total": [1.0]}},
            r"'tiny_dancer_errors_total' is no histogram of this handler",
        ),
        ({"packs": ["tiny_dancer"], "buckets": {"tiny_dancer_confidence_scores": [2, 1]}}, "buckets must increase"),
        ({"packs": ["tiny_dancer"], "rename": {"acme_dispatches_total": "x_total"}}, "is no metric of its packs"),
        ({"packs": ["tiny_dancer"], "rename": {"tiny_dancer_errors_total": "no name"}}, "is no metric name"),
        (
            {"packs": ["tiny_dancer"], "rename": {"tiny_dancer_errors_total": "tiny_dancer_confidence_scores"}},
            "exists already",
        ),
    ],
)
def test_a_wrong_name_is_one_clear_error(options, message):
    """What is named and is not there, or cannot be, is said with file or code, option, name and a suggestion."""
    with pytest.raises((ec.ConfigurationError, ec.InstrumentError), match=message):
        start(**options)


@pytest.mark.parametrize(
    ("name", "is_fine"),
    [("acme_pay_seconds", True), ("tiny_dancer_confidence_scores", True), ("tiny_dancer_errors_total", False)],
)
def test_commands_leave_buckets_of_an_applications_own_histograms_alone(tmp_path, name, is_fine):
    """Without the application its own instruments are not known: buckets for them are no mistake to a fresh emitter."""
    path = tmp_path / "eventcore.toml"
    path.write_text(f'[handlers.metric]\npacks = ["tiny_dancer"]\n[handlers.metric.buckets]\n{name} = [0.1, 1]\n')
    if is_fine:
        assert [handler.kind for handler in rehearse(path).handlers] == ["metric"]
    else:
        with pytest.raises(ec.ConfigurationError, match=f"'{name}' is no histogram of this handler"):
            rehearse(path)


def test_the_tiny_dancer_pack_is_whole():
    """All ten metrics of the guide, with its labels and values, and the buckets of its implementation."""
    found = {instrument.name: instrument for instrument in TINY_DANCER}
    sizes = ("1-10", "11-50", "51-100", "100+")
    models = ("lightweight", "powerful")
    durations = (0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01)
    latencies = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)
    confidences = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1)
    expected = {
        "tiny_dancer_routing_requests_total": ("counter", {"status": ("success", "failure")}, None),
        "tiny_dancer_routing_latency_seconds": ("histogram", {"operation": ("total",)}, latencies),
        "tiny_dancer_feature_engineering_duration_seconds": ("histogram", {"batch_size": sizes}, durations),
        "tiny_dancer_model_inference_duration_seconds": ("histogram", {"model_type": ("fastgrnn",)}, durations),
        "tiny_dancer_circuit_breaker_state": ("gauge", {}, None),
        "tiny_dancer_routing_decisions_total": ("counter", {"model_type": models}, None),
        "tiny_dancer_confidence_scores": ("histogram", {"decision_type": models}, confidences),
        "tiny_dancer_uncertainty_estimates": (
            "histogram",
            {"decision_type": models},
            (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1),
        ),
        "tiny_dancer_candidates_processed_total": ("counter", {"batch_size_range": sizes}, None),
        "tiny_dancer_errors_total": ("counter", {"error_type": None}, None),
    }
    assert list(found) == list(expected)
    for name, (kind, labels, buckets) in expected.items():
        instrument = found[name]
        assert instrument.kind == kind
        assert set(instrument.labels) == set(labels), name
        for label, values in labels.items():
            got = instrument.label_values(label)
            assert got is not None
            assert values is None or set(got) == set(values), name
        assert getattr(instrument, "buckets", None) == buckets, name
    assert {"inference_error", "circuit_breaker_open"} <= set(
        found["tiny_dancer_errors_total"].label_values("error_type")
    )


def test_the_summary_has_requests_shed_and_errors():
    """``summary()`` gives the totals that the orchestrator's guide logs, of whatever pack there is."""

    class Staged(ec.Event, name="packs.staged", category="execution"):
        shed: bool

    shed = ec.Counter("x_requests_shed_total", on=Staged, where={"shed": True}, help="Shed.")
    emitter = ec.configure(instruments=[shed], handlers={"metric": {"packs": ["tiny_dancer"]}})
    metric = emitter.handler("metric")
    route()
    emitter.emit(Staged(shed=True))
    summary = metric.summary()
    assert summary.requests_total == {"success": 3, "failure": 1}
    assert summary.requests_shed == {"": 1}
    assert summary.errors_total["invalid_input"] == 1
    assert sum(summary.errors_total.values()) == 1
