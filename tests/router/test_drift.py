import gc
import json

import numpy as np
import pytest
from scipy.stats import ks_2samp

import eventcore as ec
from router import Candidate, DriftConfig, History, Router, RoutingRequest, load_model
from router.drift import DriftWatch, kolmogorov_smirnov
from router.errors import ConfigError, DimensionMismatch, NonFiniteInput
from router.model_file import BUNDLED_MODEL


def watch(**options):
    """Return a watch with windows of 50, and the findings that it reports."""
    found = []
    config = DriftConfig(request_window=50, feedback_window=50)
    return DriftWatch(config, found.append, **options), found


def feed(watched, random, requests, shift=0.0):
    """Let requests of ten candidates pass, with features and scores moved by ``shift``."""
    for _ in range(requests):
        watched.add_request(random.normal(shift, 1.0, size=(10, 5)), random.normal(shift, 1.0, size=10))


def test_the_distance_is_kolmogorovs_and_smirnovs():
    """It agrees with scipy's, ties included."""
    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = random.integers(0, 10, size=30) / 10, random.normal(0.5, 0.3, size=50).round(1)
        assert kolmogorov_smirnov(np.sort(one), np.sort(other)) == pytest.approx(ks_2samp(one, other).statistic)


def test_what_stays_as_it_was_does_not_drift():
    """Over fifty windows of the same distribution nothing is reported as drift."""
    watched, found = watch()
    feed(watched, np.random.default_rng(0), 51 * 50)
    assert [finding.kind for finding in found] == ["features", "scores"] * 50
    assert not any(finding.is_drifting or finding.has_changed for finding in found)
    assert watched.drifting == {}


def test_drift_is_found_once_and_ends_once():
    """With the first window that has moved, and with the first that is back."""
    watched, found = watch()
    random = np.random.default_rng(1)
    for shift in (0.0, 0.0, 2.0, 2.0, 0.0, 0.0):
        feed(watched, random, 50, shift)
    of_features = [(f.is_drifting, f.has_changed) for f in found if f.kind == "features"]
    assert of_features == [(False, False), (True, True), (True, False), (False, True), (False, False)]
    assert [f.is_drifting for f in found if f.kind == "scores"] == [False, True, True, False, False]


def test_the_feature_that_has_moved_is_named():
    """One of five that moves is enough."""
    watched, found = watch()
    random = np.random.default_rng(2)
    feed(watched, random, 50)
    for _ in range(50):
        features = random.normal(size=(10, 5))
        features[:, 3] += 3.0
        watched.add_request(features, random.normal(size=10))
    assert [(f.subject, f.is_drifting) for f in found] == [("success", True), ("scores", False)]


def test_training_figures_are_the_reference_where_there_are_any():
    """Features given are, and the bins of a calibration; then the first window is judged, too."""
    random = np.random.default_rng(3)
    calibration = load_model().calibration
    bins = len(calibration.upper)
    watched, found = watch(reference=random.normal(size=(1000, 5)), calibration=calibration)
    low = np.concatenate([[calibration.lowest], calibration.upper[:-1]])
    for _ in range(50):
        place = random.integers(0, bins, size=8)
        scores = random.uniform(low[place], calibration.upper[place])
        watched.add_request(random.normal(size=(8, 5)), scores)
    assert [(f.kind, f.is_drifting) for f in found] == [("features", False), ("scores", False)]
    for _ in range(50):
        watched.add_request(random.normal(size=(8, 5)) - 1.0, np.full(8, calibration.upper[-1]))
    assert [(f.kind, f.is_drifting) for f in found[2:]] == [("features", True), ("scores", True)]


def test_calibration_drift_needs_more_than_chance():
    """Outcomes that come as expected do not drift in 40 windows; when they get worse by 0.3 it is seen."""
    watched, found = watch()
    random = np.random.default_rng(4)
    expected = random.uniform(0.3, 0.9, size=40 * 50)
    for chance in expected:
        watched.add_feedback(chance, float(random.uniform() < chance))
    assert len(found) == 40
    assert not any(f.is_drifting for f in found)
    for chance in expected[:50]:
        watched.add_feedback(chance, float(random.uniform() < chance - 0.4))
    assert (found[-1].kind, found[-1].is_drifting, found[-1].sample_size) == ("calibration", True, 50)
    assert found[-1].distance > found[-1].limit >= 0.1


def test_few_rows_of_each_request_are_looked_at():
    """The window holds at most so many rows per request, evenly spread."""
    watched, found = watch(reference=np.random.default_rng(5).normal(size=(100, 5)))
    feed(watched, np.random.default_rng(6), 49)
    watched.add_request(np.zeros((1000, 5)), np.zeros(1000))
    assert found[0].sample_size == 49 * 5 + 8


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: DriftConfig(request_window=0), ConfigError, "request_window is 0"),
        (lambda: DriftConfig(distance_limit=1.0), ConfigError, r"distance_limit is 1\.0"),
        (lambda: watch(reference=[[0.0, 1.0]]), DimensionMismatch, r"expected \(n, 5\)"),
        (lambda: watch(reference=[[0.0, 1.0, 2.0, 3.0, np.nan]]), NonFiniteInput, "leave those rows out"),
    ],
)
def test_settings_out_of_range_are_named(call, kind, message):
    """With the value and the range."""
    with pytest.raises(kind, match=message):
        call()


def test_a_router_emits_drift_and_its_health_shows_it(tmp_path):
    """A warning when it begins, a line when it ends, the gauge and the counters, and the health check ``router``."""
    log = tmp_path / "log.jsonl"
    handlers = {
        "log": {"format": "json", "output": str(log), "min_severity": "debug", "events": ["router.drift_*"]},
        "metric": {"packs": ["router"]},
    }
    query = np.ones(4, np.float32)
    history = History(":memory:")
    gc.collect()  # routers of other tests emit to whatever is in use, while they live
    with ec.configure(service="test", handlers=handlers, replace=True) as emitter:
        config = DriftConfig(request_window=5, feedback_window=40)
        router = Router(drift=config, history=history, emitter=emitter)
        rates = [0.5] * 5 + [0.9] * 5 + [0.5] * 5
        for number, rate in enumerate(rates):
            candidates = [Candidate(str(i), query, created_at=0.0, success_rate=rate) for i in range(3)]
            router.route(RoutingRequest(query, candidates, request_id=str(number)))
            if number == 9:
                check = emitter.health.report()["checks"]["router"]
                assert check["status"] == "degraded"
                assert "features" in check["details"]["drifting"]
                assert "drift of features" in check["message"]
        for number in range(40):
            router.route(RoutingRequest(query, candidates, request_id=f"f{number}"))
            router.feedback(f"f{number}", 0.0)
        assert emitter.flush(5)
        metric = emitter.handler("metric")
        assert metric.value("router_drift_detected_total", {"kind": "features"}) == 1
        assert metric.value("router_drift_detected_total", {"kind": "calibration"}) == 1
        assert metric.value("router_drift_distance", {"kind": "features"}) == 0.0
        assert metric.value("router_feedback_total", {"status": "accepted"}) == 40
    history.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    features = [line["name"] for line in lines if line.get("kind") == "features" and "measured" not in line["name"]]
    assert features == ["router.drift_detected", "router.drift_ended"]
    assert {line["level"] for line in lines if line["name"] == "router.drift_detected"} == {"warning"}


def test_a_reload_begins_anew_with_the_new_model(tmp_path):
    """What drifted from the old model says nothing about the new one."""
    router = Router(drift=DriftConfig(request_window=1), emitter=ec.Emitter())
    query = np.ones(4, np.float32)
    for rate in (0.1, 0.9):
        router.route(RoutingRequest(query, [Candidate("a", query, success_rate=rate)]))
    assert "features" in router.drift.drifting
    router.reload(BUNDLED_MODEL)
    assert router.drift.drifting == {}
