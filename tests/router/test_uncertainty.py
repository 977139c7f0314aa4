import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError, DimensionMismatch, InvalidRequest, NonFiniteInput
from router.uncertainty import Calibration, is_lightweight, wilson_interval


def _data(count, seed=0, bias=0.0):
    """Scores between 0.2 and 0.9 whose true success rate is the score plus `bias`."""
    random = np.random.default_rng(seed)
    scores = random.uniform(0.2, 0.9, count)
    return scores, (random.uniform(size=count) < scores + bias).astype(float)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(successes, trials, low, high):
    """The four examples of Newcombe (1998, table I, method 3) come out to the printed digits."""
    found = wilson_interval(successes, trials)
    assert tuple(round(float(end), 4) for end in found) == (low, high)


@given(trials=st.integers(1, 10**6), share=st.floats(0.0, 1.0), level=st.floats(0.01, 0.999))
def test_the_interval_stays_within_zero_and_one_and_holds_the_rate(trials, share, level):
    """For any counts and level the interval lies in [0, 1] and contains the observed rate."""
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials, level=level)
    assert 0.0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1.0


def test_the_interval_covers_the_true_rate_as_often_as_it_says():
    """Over many draws at several rates, about 95 of 100 intervals hold the true rate."""
    random = np.random.default_rng(0)
    rates = np.array([0.3, 0.5, 0.7, 0.85])
    low, high = wilson_interval(random.binomial(200, rates, size=(4000, 4)), 200)
    coverage = ((low <= rates) & (rates <= high)).mean(axis=0)
    assert (coverage > 0.93).all()
    assert (coverage < 0.97).all()


def test_uncertainty_is_the_distance_to_the_far_end_of_the_interval():
    """For one bin the figure can be computed by hand: mean score, observed rate, Wilson ends, the larger distance."""
    scores, outcomes = np.full(100, 0.9), np.repeat([1.0, 0.0], [80, 20])
    calibration = Calibration.fit(scores, outcomes)
    low, high = wilson_interval(80, 100)
    assert len(calibration) == 1
    assert calibration.of(np.array([0.9])) == pytest.approx(max(0.9 - low, high - 0.9))
    assert calibration.of(np.array([0.9])) > 0.15  # it claims 0.9 and keeps 0.8: not to be trusted


def test_a_biased_model_is_more_uncertain_than_an_honest_one():
    """Being wrong on average shows, however much data there are; the score's distance from one half does not matter."""
    honest = Calibration.fit(*_data(20_000))
    biased = Calibration.fit(*_data(20_000, bias=-0.15))
    assert (honest.uncertainty < 0.06).all()
    assert (biased.uncertainty > 0.11).all()
    middle, high = honest.of(np.array([0.5, 0.85]))
    assert abs(middle - high) < 0.03


def test_little_evidence_is_more_uncertain_than_much():
    """The same rates from fewer outcomes give a wider margin."""
    few = Calibration.fit(*_data(200), max_bins=2)
    many = Calibration.fit(*_data(20_000), max_bins=2)
    assert few.uncertainty.min() > 2.0 * many.uncertainty.max()


def test_repeated_outcomes_of_one_prompt_are_no_new_evidence():
    """Ten copies of every outcome, named as one group each, give the margin of the single ones."""
    scores, outcomes = _data(600)
    once = Calibration.fit(scores, outcomes, max_bins=3)
    tenfold = Calibration.fit(
        np.repeat(scores, 10), np.repeat(outcomes, 10), groups=np.repeat(np.arange(600), 10), max_bins=3
    )
    blind = Calibration.fit(np.repeat(scores, 10), np.repeat(outcomes, 10), max_bins=3)
    np.testing.assert_allclose(tenfold.effective_size, once.effective_size)
    np.testing.assert_allclose(tenfold.uncertainty, once.uncertainty)
    assert (blind.uncertainty < once.uncertainty).all()


def test_scores_outside_the_calibrated_support_are_wholly_uncertain():
    """Below the lowest and above the highest calibrated score, and for NaN, it is 1; at the two ends it is not."""
    scores, outcomes = _data(1000)
    calibration = Calibration.fit(scores, outcomes)
    ends = np.array([scores.min(), scores.max()])
    assert (calibration.of(ends) < 0.5).all()
    outside = np.array([np.nextafter(ends[0], 0.0), np.nextafter(ends[1], 1.0), 0.0, 1.0, math.nan])
    assert (calibration.of(outside) == 1.0).all()


def test_single_precision_scores_fall_into_the_bins_they_made():
    """A model that scores in float32 finds its own highest and lowest calibration score inside the support."""
    scores, outcomes = _data(1000)
    narrow = scores.astype(np.float32)
    calibration = Calibration.fit(narrow, outcomes)
    assert (calibration.of(narrow) < 1.0).all()


@given(
    levels=st.lists(st.integers(0, 12), min_size=50, max_size=300),
    max_bins=st.integers(1, 12),
    min_bin_size=st.integers(1, 50),
)
def test_bins_hold_what_they_say(levels, max_bins, min_bin_size):
    """Bins are at most max_bins, of at least min_bin_size, in order, and equal scores are never separated."""
    scores = np.array(levels) / 12.0
    outcomes = (np.arange(len(scores)) % 2).astype(float)
    calibration = Calibration.fit(scores, outcomes, max_bins=max_bins, min_bin_size=min_bin_size)
    assert 1 <= len(calibration) <= max_bins
    assert (np.diff(calibration.upper) > 0.0).all()
    assert calibration.lowest == scores.min()
    assert calibration.upper[-1] == scores.max()
    assert calibration.effective_size.sum() == pytest.approx(len(scores))
    assert calibration.effective_size.min() >= min_bin_size - 1e-9
    where = np.searchsorted(calibration.upper, scores)
    for index in range(len(calibration)):
        assert calibration.success_rate[index] == pytest.approx(outcomes[where == index].mean())
        assert calibration.mean_score[index] == pytest.approx(scores[where == index].mean())
    assert ((calibration.of(scores) > 0.0) & (calibration.of(scores) <= 1.0)).all()


def test_what_calibration_promises_holds_on_new_data():
    """On fresh data of the same kind, the success rate is within the margin in at least nine of ten bins."""
    calibration = Calibration.fit(*_data(4000, seed=1))
    scores, outcomes = _data(100_000, seed=2)
    where = np.searchsorted(calibration.upper, scores)
    gaps = [
        abs(outcomes[where == index].mean() - calibration.mean_score[index]) <= calibration.uncertainty[index]
        for index in range(len(calibration))
    ]
    assert np.mean(gaps) >= 0.9


def test_lightweight_takes_both_a_high_score_and_a_low_uncertainty():
    """Each limit decides on its own, at the limit the answer is yes, and NaN is never lightweight."""
    confidence = np.array([0.85, 0.84, 0.99, 0.9, math.nan, 0.9])
    uncertainty = np.array([0.15, 0.0, 0.16, 0.05, 0.0, math.nan])
    assert is_lightweight(confidence, uncertainty).tolist() == [True, False, False, True, False, False]
    assert is_lightweight(confidence, uncertainty, threshold=0.8, max_uncertainty=1.0).tolist() == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("limits", [{"threshold": 1.1}, {"max_uncertainty": -0.1}, {"threshold": math.nan}])
def test_limits_out_of_range_are_named(limits):
    """Thresholds are probabilities."""
    with pytest.raises(ConfigError, match=next(iter(limits))):
        is_lightweight(np.array([0.5]), np.array([0.5]), **limits)


def test_data_that_cannot_calibrate_are_refused():
    """Too few, misshapen, non-finite or impossible values are told apart."""
    scores, outcomes = _data(100)
    with pytest.raises(InvalidRequest, match="40 outcomes are too few"):
        Calibration.fit(scores[:40], outcomes[:40])
    with pytest.raises(DimensionMismatch, match="one length"):
        Calibration.fit(scores, outcomes[:50])
    with pytest.raises(DimensionMismatch, match="groups"):
        Calibration.fit(scores, outcomes, groups=np.arange(5))
    with pytest.raises(NonFiniteInput, match="NaN"):
        Calibration.fit(np.full(100, math.nan), outcomes)
    with pytest.raises(InvalidRequest, match=r"scores in \[0, 1\]"):
        Calibration.fit(scores + 1.0, outcomes)
    with pytest.raises(InvalidRequest, match="outcomes of 0 or 1"):
        Calibration.fit(scores, outcomes * 2.0)
    with pytest.raises(ConfigError, match="level"):
        Calibration.fit(scores, outcomes, level=1.0)
    with pytest.raises(ConfigError, match="max_bins"):
        Calibration.fit(scores, outcomes, max_bins=0)
