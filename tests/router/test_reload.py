import threading
from dataclasses import replace

import numpy as np
import pytest

import eventcore as ec
from router import Candidate, CandidatePool, Router, RoutingRequest, load_model, save_model
from router.errors import ConfigError, InferenceError, ModelError, ModelFormatError, NoCalibration
from router.fastgrnn import FastGRNN
from router.reload import MAX_WAITING, rehearse


def request():
    """Return a request with a pool of candidates that are not alike."""
    random = np.random.default_rng(0)
    candidates = [
        Candidate(f"c{i}", random.normal(size=8).astype(np.float32), access_count=i, success_rate=i / 10)
        for i in range(10)
    ]
    return RoutingRequest(np.ones(8, np.float32), CandidatePool(candidates))


def other_model():
    """Return a sound model with weights of its own."""
    model = load_model()
    return replace(model, network=FastGRNN.initialise(model.network.config, seed=7))


@pytest.fixture
def files(tmp_path):
    """Return the paths of two sound models, a damaged one and one without a calibration."""
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("one", "two", "damaged", "uncalibrated")}
    save_model(load_model(), paths["one"])
    save_model(other_model(), paths["two"])
    paths["damaged"].write_bytes(paths["one"].read_bytes()[:-10])
    save_model(replace(load_model(), calibration=None), paths["uncalibrated"])
    return paths


def test_a_reload_takes_effect_with_the_next_request(events, files):
    """And is emitted, with its source."""
    router = Router()
    before = router.route(request()).confidence.tolist()
    loaded = router.reload(files["two"])
    assert router.model is loaded
    assert router.route(request()).confidence.tolist() != before
    router.reload(files["one"])
    assert router.route(request()).confidence.tolist() == before
    sources = [each.event.source for each in events.get_events(type="router.model_reload")]
    assert sources == [str(files["two"]), str(files["one"])]


@pytest.mark.parametrize(("name", "kind"), [("damaged", ModelFormatError), ("uncalibrated", NoCalibration)])
def test_a_refused_file_leaves_the_old_model_and_says_why(events, files, name, kind):
    """The error goes to the caller and into the event; what served before goes on serving."""
    router = Router()
    model, before = router.model, router.route(request()).confidence.tolist()
    with pytest.raises(kind) as refused:
        router.reload(files[name])
    with pytest.raises(ModelError, match="no model file"):
        router.reload(files["one"].with_name("absent"))
    assert router.model is model
    assert router.route(request()).confidence.tolist() == before
    failed = events.get_events(type="router.model_reload")
    assert [each.outcome for each in failed] == ["failure", "failure"]
    assert str(refused.value) in str(failed[0].span.error)


def test_a_reload_without_a_prompt_model_is_an_error():
    """There is nothing that it could replace."""
    with pytest.raises(ConfigError, match="no prompt model to replace"):
        Router().reload_prompt_model("any")


@pytest.mark.slow
def test_a_thousand_reloads_under_traffic_harm_no_request(files):
    """Four threads route all the while: every answer is wholly that of one model or wholly that of the other."""
    router, asked = Router(emitter=ec.Emitter()), request()
    expected = set()
    for name in ("one", "two"):
        router.reload(files[name])
        expected.add(tuple(router.route(asked).confidence.tolist()))
    assert len(expected) == 2
    seen, errors, ended = set(), [], threading.Event()

    def traffic():
        try:
            while not ended.is_set():
                seen.add(tuple(router.route(asked).confidence.tolist()))
        except Exception as error:  # noqa: BLE001 - any is a failure of the test
            errors.append(error)

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1000):
        router.reload(files["one" if number % 2 else "two"])
    ended.set()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert seen == expected
    assert router.breaker.failures == 0


def test_a_shadow_decides_again_what_was_answered(events):
    """An equal model agrees to the last bit; another one differs by what the event says."""
    router = Router()
    router.start_shadow(load_model())
    answer = router.route(request())
    assert router.shadow.wait()
    other = other_model()
    router.start_shadow(other)
    router.route(request())
    assert router.stop_shadow()
    assert router.shadow is None
    equal, different = (each.event for each in events.get_events(type="router.shadow_comparison"))
    assert (equal.candidate_count, equal.disagreements, equal.best_differs) == (10, 0, False)
    assert equal.largest_difference == pytest.approx(0.0, abs=1e-6)
    assert different.largest_difference > 0.01
    assert answer.candidates_processed == 10


def test_a_shadow_sees_its_share_evenly_spread(events):
    """Of ten requests at a share of 0.3 three are compared."""
    router = Router()
    router.start_shadow(load_model(), share=0.3)
    for _ in range(10):
        router.route(request())
    router.stop_shadow()
    assert len(events.get_events(type="router.shadow_comparison")) == 3


class Hanging:
    """A model that answers when it is let."""

    feature_weights = (1.0,) * 5

    def __init__(self):
        self.go = threading.Event()
        self.is_slow = False

    def score(self, features):
        if self.is_slow:
            assert self.go.wait(10)
        return np.full(len(features), 0.5)

    def uncertainty(self, scores):
        return np.zeros_like(scores)


def test_a_slow_shadow_delays_nobody_and_what_it_skips_is_counted(events):
    """Beyond its bounded queue requests are left out, and the next comparison says how many."""
    router, shadow = Router(), Hanging()
    router.start_shadow(shadow)
    shadow.is_slow = True
    for _ in range(MAX_WAITING + 25):
        router.route(request())
    shadow.go.set()
    assert router.shadow.wait(10)
    router.route(request())
    assert router.stop_shadow()
    compared = events.get_events(type="router.shadow_comparison")
    skipped = sum(each.event.skipped for each in compared)
    assert len(compared) + skipped == MAX_WAITING + 26
    assert skipped == 25


def test_a_shadow_that_fails_hurts_only_itself(events):
    """The answer stands, and the comparison is a failed operation."""

    class Breaks(Hanging):
        broken = False

        def score(self, features):
            if self.broken:
                raise ZeroDivisionError
            return super().score(features)

    router, shadow = Router(), Breaks()
    router.start_shadow(shadow)
    shadow.broken = True
    assert router.route(request()).best
    router.stop_shadow()
    (failed,) = events.get_events(type="router.shadow_comparison")
    assert (failed.outcome, failed.error_type) == ("failure", "ZeroDivisionError")


def test_a_shadow_is_rehearsed_and_its_share_checked():
    """What cannot score never begins to run beside."""
    router = Router()
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="share of requests for the shadow"):
            router.start_shadow(load_model(), share=share)
    with pytest.raises(NoCalibration):
        router.start_shadow(replace(load_model(), calibration=None))
    assert router.shadow is None
    assert router.stop_shadow()


def test_a_rehearsal_refuses_scores_that_are_no_probabilities():
    """Above one, NaN, or of another shape."""

    class Odd(Hanging):
        def __init__(self, scores):
            super().__init__()
            self.scores = np.array(scores)

        def score(self, features):
            return self.scores

    for scores in ([0.1, 0.2, 1.5], [0.1, np.nan, 0.2], [0.5]):
        with pytest.raises(InferenceError, match="expected numbers from 0 to 1"):
            rehearse(Odd(scores))
