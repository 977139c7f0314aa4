import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.drift import kolmogorov_smirnov
from router.quantiles import QUANTILES, distance, quantiles_of

SAMPLES = st.lists(st.integers(0, 20) | st.floats(0, 20, width=32), min_size=1, max_size=80)


@given(SAMPLES, SAMPLES)
def test_the_distance_to_quantiles_lacks_at_most_a_step(reference, window):
    """It is never above the exact one of the two samples, and at most 1/32 below, however many values are equal."""
    sample, seen = np.array(reference, np.float64), np.sort(np.array(window, np.float64))
    exact = kolmogorov_smirnov(np.sort(sample), seen)
    found = distance(quantiles_of(sample[:, None])[0], seen)
    assert exact - 1 / (QUANTILES - 1) - 1e-12 <= found <= exact + 1e-12


@given(SAMPLES)
def test_a_sample_is_at_no_distance_from_its_own_quantiles(values):
    """Whatever it looks like."""
    sample = np.sort(np.array(values, np.float64))
    assert distance(quantiles_of(sample[:, None])[0], sample) == 0.0


def test_quantiles_are_values_of_each_column():
    """Rising from the least to the largest, in the dtype that came."""
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    found = quantiles_of(values)
    assert (found.shape, found.dtype) == ((3, QUANTILES), np.float32)
    for column, row in zip(values.T, found, strict=True):
        assert set(row) <= set(column)
        assert (row[0], row[-1]) == (column.min(), column.max())
        assert (np.diff(row) >= 0).all()
        assert row[16] == pytest.approx(np.median(column), abs=0.01)
