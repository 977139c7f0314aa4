import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.conformal import (
    AdaptiveRisk,
    Mondrian,
    binomial_cdf,
    conformal_quantile,
    control_risk,
    learn_then_test,
    prediction_sets,
    required_calibration_size,
)
from router.errors import CalibrationError, ConfigError, DimensionMismatch, NonFiniteInput

GRID = np.linspace(0.01, 1.0, 100)


def _requests(count, random):
    """Needs uniform in [0, 1]; the weak model does harm with probability 0.6·need², so that the truth is known."""
    need = random.uniform(size=count)
    return need, (random.uniform(size=count) < 0.6 * need**2).astype(float)


def _true_rate_among_sent(threshold):
    """E[harm | need < t] of `_requests`: 0.2·t²."""
    return 0.0 if threshold == -math.inf else 0.2 * min(threshold, 1.0) ** 2


# -- risk control --------------------------------------------------------------------------------------------------


def _largest_threshold_by_trying_all(need, harm, alpha):
    """The definition, word for word: try every threshold, keep the largest that qualifies."""
    for threshold in [math.inf, *sorted(set(need), reverse=True)]:
        if (sum(h for s, h in zip(need, harm, strict=True) if s < threshold) + 1) / (len(need) + 1) <= alpha + 1e-12:
            return threshold
    return None


@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.5, 1.0])), min_size=9, max_size=60),
    alpha=st.sampled_from([0.1, 0.2, 0.35]),
)
def test_risk_control_is_its_definition(pairs, alpha):
    """The threshold is the largest that satisfies the bound, with ties, fractions of harm and all."""
    need = [float(s) for s, _ in pairs]
    harm = [h for _, h in pairs]
    assert control_risk(need, harm, alpha).threshold == _largest_threshold_by_trying_all(need, harm, alpha)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1])
def test_the_mean_risk_stays_at_the_level_that_was_promised(alpha):
    """Over 2,000 calibration sets the mean true share of harmed requests is at most alpha, and not far below it."""
    random = np.random.default_rng(0)
    true_risks = []
    for _ in range(2000):
        threshold = min(control_risk(*_requests(500, random), alpha).threshold, 1.0)
        true_risks.append(0.2 * threshold**3)  # ∫₀ᵗ 0.6 s² ds
    error = np.std(true_risks) / math.sqrt(2000)
    assert np.mean(true_risks) <= alpha + 3 * error
    assert np.mean(true_risks) >= alpha - 2 / 501 - 3 * error  # theorem 2 of the paper: at most 2/(n + 1) is given away


def test_too_few_requests_are_an_error_that_says_how_many_are_needed():
    """A level of 0.05 needs 19 calibration requests; one fewer is refused with that number, 19 suffice."""
    assert required_calibration_size(0.05) == 19
    with pytest.raises(CalibrationError, match=r"18 calibration requests are too few .* at least 19"):
        control_risk(np.arange(18), np.zeros(18), 0.05)
    assert control_risk(np.arange(19), np.zeros(19), 0.05).threshold == math.inf


@pytest.mark.parametrize(
    ("need", "harm", "error"),
    [
        ([0.1, math.nan], [0, 1], NonFiniteInput),
        ([0.1, 0.2], [0, 2], ConfigError),
        ([0.1, 0.2], [0], DimensionMismatch),
    ],
)
def test_calibration_data_that_cannot_be_used_are_refused(need, harm, error):
    """NaN, a harm outside [0, 1] and vectors of different lengths each have an error of their own."""
    with pytest.raises(error):
        control_risk(need, harm, 0.4)


def test_a_need_that_is_no_number_goes_to_the_strong_model():
    """NaN is below no threshold, even when everything may be sent."""
    everything = control_risk(np.arange(19), np.zeros(19), 0.05)
    assert everything.allows([0.5, math.nan, 1e9]).tolist() == [True, False, True]


# -- learn, then test ------------------------------------------------------------------------------------------------


def _loosest_whose_own_bound_holds(need, harm, alpha, delta):
    """What a published router does: every threshold is tested at the full delta, the loosest that passes is taken."""
    passed = [
        t
        for t in GRID
        if binomial_cdf(int(harm[need < t].sum()), int((need < t).sum()), alpha) <= delta and any(need < t)
    ]
    return max(passed, default=-math.inf)


def test_the_rate_among_the_sent_passes_alpha_no_more_often_than_delta():
    """With a true rate of 0.105 at every threshold, any is one too many: ours sends in at most 10 % of 1,000 runs.

    The rule without correction does in far more, so the test sees what it is there to see.
    """
    random = np.random.default_rng(1)
    ours = uncorrected = 0
    for _ in range(1000):
        need, harm = random.uniform(size=1000), (random.uniform(size=1000) < 0.105).astype(float)
        ours += learn_then_test(need, harm, 0.1, delta=0.1, thresholds=GRID).share > 0.0
        uncorrected += _loosest_whose_own_bound_holds(need, harm, 0.1, 0.1) > 0.0
    assert ours <= 0.1 * 1000
    assert uncorrected > 0.2 * 1000


def test_the_rate_among_the_sent_holds_where_it_grows_with_the_threshold():
    """With harm growing with need the rate among the sent passes alpha in at most a share delta of 500 runs."""
    random = np.random.default_rng(7)
    broken = 0
    for _ in range(500):
        found = learn_then_test(*_requests(1000, random), 0.1, delta=0.1, thresholds=GRID)
        broken += _true_rate_among_sent(found.threshold) > 0.1
    assert broken <= 0.1 * 500


def test_more_data_send_more_at_the_same_promise():
    """The certified share grows towards what the truth allows: need < √0.5, a share of 0.707."""
    random = np.random.default_rng(2)
    shares = [
        learn_then_test(*_requests(count, random), 0.1, delta=0.1, thresholds=GRID).share
        for count in (300, 3000, 30_000)
    ]
    assert shares == sorted(shares)
    assert 0.65 < shares[-1] < 0.71


def test_when_nothing_can_be_certified_nothing_is_sent():
    """A model that does harm everywhere gets the threshold -inf, and the promise holds."""
    found = learn_then_test(np.linspace(0, 1, 200), np.ones(200), 0.1, delta=0.1, thresholds=GRID)
    assert (found.threshold, found.share) == (-math.inf, 0.0)
    assert not found.allows([-1e300]).any()


def test_too_few_requests_to_certify_anything_are_an_error():
    """With no harm at all, 0.9ⁿ <= 0.05 needs n = 29."""
    with pytest.raises(CalibrationError, match="at least 29"):
        learn_then_test(np.zeros(28), np.zeros(28), 0.1, delta=0.1, thresholds=[0.5])
    assert learn_then_test(np.zeros(29), np.zeros(29), 0.1, delta=0.1, thresholds=[0.5]).share == 1.0


@settings(deadline=None)  # the first call imports scipy
@given(trials=st.integers(1, 400), probability=st.floats(0.01, 0.99), data=st.data())
def test_the_binomial_tail_is_scipys(trials, probability, data):
    """Sums of logarithms agree with scipy's incomplete beta function."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is a development-time oracle")
    successes = data.draw(st.integers(0, trials))
    assert binomial_cdf(successes, trials, probability) == pytest.approx(
        stats.binom.cdf(successes, trials, probability), rel=1e-9, abs=1e-300
    )


# -- groups ------------------------------------------------------------------------------------------------------------


def test_each_group_keeps_its_own_promise():
    """One threshold for all keeps the promise on average, not for the harder domain; one per group does both."""
    random = np.random.default_rng(3)
    domain = np.repeat(["easy", "hard"], 20_000)
    need = random.uniform(size=40_000)
    harm = (random.uniform(size=40_000) < np.where(domain == "easy", 0.02, 0.5) * need).astype(float)
    half = np.arange(40_000) % 2 == 0
    pooled = control_risk(need[half], harm[half], 0.05)
    each = Mondrian.fit(need[half], harm[half], domain[half], lambda s, h: control_risk(s, h, 0.05))
    hard = ~half & (domain == "hard")
    assert (harm[hard] * pooled.allows(need[hard])).mean() > 0.08
    assert (harm[hard] * each.allows(need[hard], domain[hard])).mean() < 0.055
    assert not each.allows([-1.0], ["unheard of"]).any()


def test_groups_that_are_too_small_are_named():
    """The error names each small group; with skip_small they go to the strong model and the others are calibrated."""
    need, harm, groups = np.arange(25.0), np.zeros(25), ["a"] * 20 + ["b"] * 5
    with pytest.raises(CalibrationError, match=r"b: 5 calibration requests .* at least 19"):
        Mondrian.fit(need, harm, groups, lambda s, h: control_risk(s, h, 0.05))
    partial = Mondrian.fit(need, harm, groups, lambda s, h: control_risk(s, h, 0.05), skip_small=True)
    assert (partial.threshold("a"), partial.threshold("b")) == (math.inf, -math.inf)


# -- drift -------------------------------------------------------------------------------------------------------------


def test_under_drift_the_long_run_rate_holds():
    """The harm triples half-way: a threshold from before passes alpha by far, the adaptive one keeps to its bound."""
    random = np.random.default_rng(4)
    alpha, steps = 0.1, 6000
    fixed = control_risk(*_requests(1000, random), alpha)
    adaptive = AdaptiveRisk(alpha, rate=0.02, window=500)
    losses, fixed_losses = [], []
    for step in range(steps):
        need = random.uniform()
        rate = 0.6 * need**2 if step < steps // 2 else min(1.0, 0.5 + need)
        harm = float(random.uniform() < rate)
        sent = adaptive.allows(need)
        losses.append(harm * sent)
        fixed_losses.append(harm * (need < fixed.threshold))
        adaptive.observe(need, harm, sent=sent)
    assert np.mean(losses) <= alpha + (alpha + 0.02) / (0.02 * steps)
    assert np.mean(losses) > 0.5 * alpha  # it is not careful to the point of being useless
    assert np.mean(fixed_losses[steps // 2 :]) > 3 * alpha


@given(
    sequence=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=150),
    rate=st.sampled_from([0.01, 0.1, 0.5]),
)
def test_the_long_run_bound_holds_for_any_sequence(sequence, rate):
    """No order of needs and harms, however hostile, passes the bound of the docstring."""
    adaptive = AdaptiveRisk(0.3, rate=rate, window=20)
    total = 0.0
    for need, harm in sequence:
        sent = adaptive.allows(need)
        total += harm * sent
        adaptive.observe(need, harm, sent=sent)
    assert total / len(sequence) <= 0.3 + (0.3 + rate) / (rate * len(sequence)) + 1e-9


def test_the_harm_of_a_sent_request_cannot_be_left_out():
    """Of a request that went to the strong model the harm may be unknown; of one that was sent it may not."""
    adaptive = AdaptiveRisk(0.1)
    adaptive.observe(0.5, None, sent=False)
    with pytest.raises(ConfigError, match="has to be told"):
        adaptive.observe(0.5, None, sent=True)


# -- prediction sets --------------------------------------------------------------------------------------------------


def test_the_quantile_and_the_sets_are_mapies_and_crepes():
    """On the same scores, two independent libraries give identical sets."""
    crepes = pytest.importorskip("crepes", reason="crepes is a development-time oracle")
    mapie = pytest.importorskip("mapie.classification", reason="MAPIE is a development-time oracle")
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn comes with the oracles")
    random = np.random.default_rng(5)
    x = random.normal(size=(900, 3))
    y = (x[:, 0] + random.normal(size=900) > 0).astype(int)
    model = linear.LogisticRegression().fit(x[:300], y[:300])
    held, new = model.predict_proba(x[300:600]), model.predict_proba(x[600:])
    scores = 1.0 - held[np.arange(300), y[300:600]]
    for alpha in (0.1, 0.2):
        ours = prediction_sets(new, conformal_quantile(scores, alpha))
        conformal = crepes.ConformalClassifier().fit(scores, seed=0)
        theirs = conformal.predict_set(1.0 - new, confidence=1.0 - alpha, smoothing=False, seed=0)
        assert np.array_equal(ours, np.asarray(theirs).astype(bool))
        wrapped = mapie.SplitConformalClassifier(model, confidence_level=1.0 - alpha, prefit=True)
        _, sets = wrapped.conformalize(x[300:600], y[300:600]).predict_set(x[600:])
        assert np.array_equal(ours, sets[:, :, 0].astype(bool))


def test_coverage_is_what_the_theory_says():
    """Coverage given the calibration data follows a Beta(n + 1 - l, l) law: its mean and its spread are met."""
    random = np.random.default_rng(6)
    coverages = [conformal_quantile(random.uniform(size=200), 0.1) for _ in range(4000)]  # uniform: quantile = coverage
    spare = math.floor(201 * 0.1)
    mean = (201 - spare) / 201
    spread = math.sqrt(mean * (1 - mean) / 202)
    assert np.mean(coverages) == pytest.approx(mean, abs=4 * spread / math.sqrt(4000))
    assert np.std(coverages) == pytest.approx(spread, rel=0.06)


def test_a_quantile_that_does_not_exist_is_an_error():
    """Eight scores have no quantile for 90 %; nine have."""
    with pytest.raises(CalibrationError, match="at least 9"):
        conformal_quantile(np.arange(8), 0.1)
    assert conformal_quantile(np.arange(9), 0.1) == 8.0
