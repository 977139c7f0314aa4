import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router.compact_calibration import STEPS, from_bits, to_bits
from router.conformal import control_risk
from router.errors import CalibrationError, ConfigError, DimensionMismatch
from router.prompt_model import NeedCalibration

needs = arrays(np.float32, st.integers(1, 300), elements=st.floats(-1, 1, width=32))


def _calibration(need, seed=0):
    harm = np.random.default_rng(seed).uniform(size=len(need)) < 0.3
    return NeedCalibration(need, harm.astype(np.uint8))


def _pairs(need, harm):
    return sorted(zip(np.asarray(need, dtype=np.float64).tolist(), harm.tolist(), strict=True))


@given(needs)
def test_needs_come_back_rounded_down_each_with_its_harm(need):
    """No need comes back larger, none smaller by a step of the grid, and harms stay with their needs."""
    calibration = _calibration(need)
    again = from_bits(to_bits(calibration), len(need))
    rounded = np.floor(need.astype(np.float64) * STEPS) / STEPS
    assert _pairs(again.need, again.harm) == _pairs(rounded, calibration.harm)
    assert again.need.dtype == np.float32


@given(needs)
def test_what_was_rounded_stays(need):
    """Bits that are read and written again are the same: saving a loaded model changes nothing."""
    bits = to_bits(_calibration(need))
    np.testing.assert_array_equal(to_bits(from_bits(bits, len(need))), bits)
    first, second = from_bits(bits, len(need)), from_bits(bits, len(need))
    np.testing.assert_array_equal(first.need, second.need)


@given(needs, st.sampled_from([0.05, 0.2, 0.5]))
def test_a_threshold_is_never_laxer_for_the_rounding(need, alpha):
    """Whatever the needs, the threshold that is promised with is at most the one of the needs as they were."""
    calibration = _calibration(need)
    again = from_bits(to_bits(calibration), len(need))
    try:
        before = control_risk(calibration.need, calibration.harm, alpha)
    except CalibrationError:
        with pytest.raises(CalibrationError):
            control_risk(again.need, again.harm, alpha)
        return
    assert control_risk(again.need, again.harm, alpha).threshold <= before.threshold


def test_a_prompt_takes_about_eight_bits():
    """1,896 prompts, as the bundled models have, take a fifth of what they take in arrays, and more of them less."""
    random = np.random.default_rng(0)
    many, more = (_calibration(random.uniform(-0.3, 0.4, count).astype(np.float32)) for count in (1896, 20000))
    assert to_bits(many).nbytes <= (many.need.nbytes + many.harm.nbytes) / 4.9
    assert to_bits(more).nbytes * 8 < 6 * 20000


def test_the_order_is_no_longer_that_of_the_needs():
    """Who takes the first fifth of a restored calibration gets a sample of all needs, not the smallest."""
    need = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    again = from_bits(to_bits(_calibration(need)), 1000).need
    assert abs(again[:200].mean()) < 0.08
    assert again[:200].std() > 0.25


def test_what_is_no_calibration_is_refused():
    """Needs out of range or harms of another kind, bits too few, too many or of nothing: one clear error each."""
    good = _calibration(np.linspace(-1, 1, 50, dtype=np.float32))
    bits = to_bits(good)
    with pytest.raises(ConfigError, match="outside"):
        to_bits(NeedCalibration(np.array([1.5], np.float32), np.array([0], np.uint8)))
    with pytest.raises(ConfigError, match="no needs"):
        to_bits(NeedCalibration(np.empty(0, np.float32), np.empty(0, np.uint8)))
    with pytest.raises(ConfigError, match="outside"):
        to_bits(NeedCalibration(np.array([np.nan], np.float32), np.array([0], np.uint8)))
    with pytest.raises(ConfigError, match="harms"):
        to_bits(NeedCalibration(np.array([0.5], np.float32), np.array([2], np.uint8)))
    for wrong in (bits[:-1], np.append(bits, np.uint8(0)), bits.astype(np.int16), bits[None]):
        with pytest.raises(DimensionMismatch, match="expected uint8"):
            from_bits(wrong, 50)
    with pytest.raises(DimensionMismatch, match="expected uint8"):
        from_bits(bits, 0)
    with pytest.raises(DimensionMismatch, match="not those of 50 needs"):
        from_bits(np.zeros_like(bits), 50)
    with pytest.raises(DimensionMismatch, match="not those of 50 needs"):
        from_bits(np.full_like(bits, 255), 50)
