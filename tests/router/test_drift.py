import gc
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

import eventcore as ec
from router import (
    Candidate,
    DriftConfig,
    HashingEmbedder,
    History,
    Router,
    RoutingRequest,
    load_model,
    save_model,
)
from router.drift import DriftWatch, kolmogorov_smirnov
from router.errors import ConfigError, DimensionMismatch, NonFiniteInput
from router.model_file import BUNDLED_MODEL, save_prompt_model
from router.prompt_model import NeedCalibration, PromptModel, PromptRecipe
from router.prompts import embed_chunks
from router.training import TrainingConfig


@pytest.fixture
def prompted(tmp_path):
    """Return a prompt model of two candidates, calibrated on far higher needs than it gives; its embedder, its file."""
    embedder = HashingEmbedder(32)
    texts = [f"question {number} about {'code' if number % 2 else 'law'}" for number in range(20)]
    outcomes = np.array([[number % 2, 1.0] for number in range(20)])
    recipe = PromptRecipe(2, components=4, hidden_size=4, training=TrainingConfig(epochs=2))
    chunks = embed_chunks(texts, embedder, 2)
    fitted = PromptModel.fit(("small", "large"), texts, chunks, outcomes, embedder="hashing:32", recipe=recipe)
    needs = NeedCalibration(np.linspace(0.9, 1.0, 50, dtype=np.float32), np.zeros(50, np.uint8))
    model, path = replace(fitted, calibration=needs), tmp_path / "prompts.safetensors"
    save_prompt_model(model, path)
    return model, embedder, path


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


def test_features_that_are_not_watched_hide_nothing():
    """One that is known to be elsewhere is left out; the one that has moved among the others is named."""
    random = np.random.default_rng(9)
    found = []
    config = DriftConfig(request_window=50, features=("similarity", "success"))
    watched = DriftWatch(config, found.append, reference=random.normal(size=(1000, 5)))
    for shift in (0.0, 0.8):
        for _ in range(50):
            features = random.normal(size=(8, 5))
            features[:, 1] += 9.0
            features[:, 3] += shift
            watched.add_request(features, random.normal(size=8))
    judged = [(f.subject, f.is_drifting) for f in found if f.kind == "features"]
    assert judged[0][1] is False
    assert judged[1] == ("success", True)


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


def test_what_a_model_file_keeps_is_the_reference(tmp_path):
    """A router whose model says what features it was trained on judges the first window; one of an old file does not.

    The features of the shipped model's training, drawn by its quantiles, are no drift; candidates a month old are.
    """
    model = load_model()
    found = []
    router = Router(drift=DriftConfig(request_window=40), emitter=ec.Emitter())
    watched = DriftWatch(router.drift.config, found.append, quantiles=model.reference)
    random = np.random.default_rng(7)
    for _ in range(40):
        places = random.integers(0, 33, size=(8, 5))
        watched.add_request(model.reference[np.arange(5), places], random.uniform(size=8))
    assert [(f.kind, f.is_drifting) for f in found] == [("features", False)]
    query = np.ones(4, np.float32)
    for number in range(40):
        router.route(RoutingRequest(query, [Candidate("a", query, created_at=0.0, access_count=number)]))
    assert router.drift.drifting["features"].distance > 0.5
    old = tmp_path / "old.safetensors"
    save_model(replace(model, reference=None), old)
    router.reload(old)
    assert load_model(old).reference is None
    for _ in range(40):
        router.route(RoutingRequest(query, [Candidate("a", query)]))
    assert "features" not in router.drift.drifting


def test_needs_are_held_against_those_of_the_calibration(prompted):
    """Prompts that need other than those held out are drift; a reload of the prompt model begins anew."""
    model, embedder, path = prompted
    found = []
    config = DriftConfig(request_window=20)
    router = Router(prompt_model=model, embedder=embedder, drift=config, emitter=ec.Emitter())
    router.drift._report = found.append
    query = np.ones(4, np.float32)
    pair = [Candidate(name, query, price=price) for name, price in (("small", 1.0), ("large", 9.0))]
    for number in range(20):
        router.route(RoutingRequest(query, pair, prompt=f"question {number} about code"))
    assert [f.kind for f in found if f.kind == "needs"] == ["needs"]
    assert router.drift.drifting["needs"].sample_size == 20
    router.route(RoutingRequest(query, pair[:1], prompt="a question that only one of the two can get"))
    router.route(RoutingRequest(query, pair))
    router.reload_prompt_model(path)
    assert "needs" not in router.drift.drifting


def test_needs_like_those_of_the_calibration_do_not_drift():
    """Over forty windows drawn from the held-out needs; without any the first window is the reference."""
    random = np.random.default_rng(8)
    held_out = random.normal(size=500)
    for options in ({"needs": held_out}, {}):
        watched, found = watch(**options)
        for need in random.choice(held_out, size=40 * 50):
            watched.add_need(need)
        assert len(found) == (40 if options else 39)
        assert not any(f.is_drifting for f in found)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: DriftConfig(request_window=0), ConfigError, "request_window is 0"),
        (lambda: DriftConfig(distance_limit=1.0), ConfigError, r"distance_limit is 1\.0"),
        (lambda: DriftConfig(features=("length",)), ConfigError, "name some of similarity, recency"),
        (lambda: DriftConfig(features=()), ConfigError, "name some of similarity, recency"),
        (lambda: DriftConfig(against="yesterday"), ConfigError, 'use "training" or "first_window"'),
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
        config = DriftConfig(request_window=5, feedback_window=40, against="first_window")
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
    router = Router(drift=DriftConfig(request_window=1, against="first_window"), emitter=ec.Emitter())
    query = np.ones(4, np.float32)
    for rate in (0.1, 0.9):
        router.route(RoutingRequest(query, [Candidate("a", query, success_rate=rate)]))
    assert "features" in router.drift.drifting
    router.reload(BUNDLED_MODEL)
    assert router.drift.drifting == {}
