"""A calibration in few bits: needs rounded down to 16 bits and sorted, about eight bits a prompt with its harm.

Rounding keeps what is promised. The grid is fixed, its values are exact in float32, and needs are rounded **down** to
it: for a threshold t on the grid, need < t is the same claim of the rounded need as of the need itself. Thresholds are
calibrated needs, so they are on the grid, and to calibrate on rounded needs is to calibrate a score that is a little
coarser, nothing else.

Prompts of a calibration are exchangeable, so their order says nothing; sorted, n numbers below u take about
2 + log2(u / n) bits each (Elias 1974, Fano 1971): the lower bits as they are, of the upper ones only at which numbers
they go up. For 1,896 prompts that is 7.1 bits and one for the harm, of 40 in arrays of float32 and uint8. What is
restored is shuffled, by a seed that is taken from the bits, for those who take a part of a calibration by its place.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import ConfigError, DimensionMismatch
from router.prompt_model import NeedCalibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["from_bits", "to_bits"]

STEPS = 1 << 15
"""Of the grid in a unit of need, which goes from -1 to 1."""
LARGEST = 2 * STEPS


def to_bits(calibration: NeedCalibration) -> NDArray[np.uint8]:
    """Return ``calibration`` as packed bits; ConfigError for needs outside [-1, 1] or none."""
    need, harm = calibration.need.astype(np.float64), calibration.harm
    if not len(need) or not ((need >= -1.0) & (need <= 1.0)).all() or not ((harm == 0) | (harm == 1)).all():
        raise ConfigError(
            "a calibration has no needs, needs outside [-1, 1] or harms other than 0 and 1: calibrate the model again"
        )
    codes = np.floor(need * STEPS).astype(np.int64) + STEPS
    order = np.lexsort((harm, codes))
    codes, width = codes[order], _lower_bits(len(codes))
    rises = np.zeros(len(codes) + (LARGEST >> width), dtype=np.uint8)
    rises[(codes >> width) + np.arange(len(codes))] = 1
    lower = (codes[:, None] >> np.arange(width)) & 1
    return np.packbits(np.concatenate([rises, lower.ravel().astype(np.uint8), harm[order].astype(np.uint8)]))


def from_bits(bits: NDArray[Any], count: int) -> NeedCalibration:
    """Return the calibration of ``count`` prompts in ``bits``, each need rounded down to the grid, in random order.

    Raises DimensionMismatch for bits that hold no such calibration.
    """
    width = _lower_bits(count)
    sizes = (count + (LARGEST >> width), count * width, count)
    expected = (math.ceil(sum(sizes) / 8),)
    if count < 1 or bits.dtype != np.uint8 or bits.shape != expected:
        raise DimensionMismatch(
            f"a calibration of {count} prompts is {bits.dtype}{bits.shape}, expected uint8{expected}"
        )
    rises, lower, harm, _ = np.split(np.unpackbits(bits), np.cumsum(sizes))
    upper = np.flatnonzero(rises) - np.arange(count) if int(rises.sum()) == count else np.array([LARGEST + 1])
    if upper.max() > LARGEST >> width:
        raise DimensionMismatch(f"the bits of a calibration are not those of {count} needs: calibrate the model again")
    codes = (upper << width) + lower.reshape(count, width) @ (1 << np.arange(width))
    need = (codes / STEPS - 1.0).astype(np.float32)
    order = np.random.default_rng(zlib.crc32(bits.tobytes())).permutation(count)
    return NeedCalibration(need[order], harm[order])


def _lower_bits(count: int) -> int:
    return max(0, math.floor(math.log2(LARGEST / max(count, 1))))
