import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.quality import area_under_roc, expected_calibration_error, log_loss


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_the_share_of_pairs_ranked_right(rows):
    """Counting every pair of a success and a failure, ties as one half, gives the same number."""
    scores = np.array([score / 5 for score, _ in rows])
    outcomes = np.array([float(success) for _, success in rows])
    pairs = [
        1.0 if good > bad else 0.5 if good == bad else 0.0
        for good in scores[outcomes == 1.0]
        for bad in scores[outcomes == 0.0]
    ]
    if pairs:
        assert area_under_roc(scores, outcomes) == pytest.approx(np.mean(pairs))
    else:
        with pytest.raises(InvalidRequest, match="successes and failures"):
            area_under_roc(scores, outcomes)


def test_log_loss_is_the_mean_negative_log_likelihood():
    """Certainty that is wrong costs much and stays finite; one half costs ln 2."""
    assert log_loss(np.full(4, 0.5), np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx(np.log(2.0))
    assert log_loss(np.array([0.8, 0.4]), np.array([1.0, 0.0])) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert 20.0 < log_loss(np.array([1.0]), np.array([0.0])) < 30.0


def test_calibration_error_is_the_mean_gap_of_claim_and_outcome():
    """Scores that are ten points too high everywhere have an error of a tenth; honest ones have almost none."""
    random = np.random.default_rng(0)
    truth = random.uniform(0.1, 0.8, 200_000)
    outcomes = (random.uniform(size=truth.size) < truth).astype(float)
    assert expected_calibration_error(truth + 0.1, outcomes) == pytest.approx(0.1, abs=0.005)
    assert expected_calibration_error(truth, outcomes) < 0.006
    assert expected_calibration_error(np.array([0.3]), np.array([1.0])) == pytest.approx(0.7)
