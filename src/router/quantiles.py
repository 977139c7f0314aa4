"""A distribution in 33 numbers: its quantiles in steps of 1/32, which a model file can carry for each feature.

A hundred thousand training rows tell the distance of Kolmogorov and Smirnov to a window exactly; their quantiles
tell it to 1/32. Between two quantiles the distribution function is known to lie between their two levels, and nothing
more. `distance` is the least distance that a sample with these quantiles can have: it never exceeds the exact one, so
that the sketch finds no drift that is none, and lacks at most 1/32 of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["QUANTILES", "distance", "quantiles_of"]

QUANTILES = 33
"""At the levels 0, 1/32, … 1."""


def quantiles_of(values: Array) -> Array:
    """Return the quantiles of each column of ``values``, shape (n, columns) to (columns, 33), of the same dtype.

    Each is a value of the sample: the smallest that a share of at least its level does not exceed.
    """
    levels = np.linspace(0.0, 1.0, QUANTILES)
    found: Array = np.quantile(values, levels, axis=0, method="inverted_cdf").T
    return found


def distance(quantiles: Array, window: Array) -> float:
    """Return the least distance of Kolmogorov and Smirnov of a sample with these quantiles to a sorted sample.

    Both are vectors; the result is from 0 to 1.
    """
    steps = len(quantiles) - 1
    both = np.concatenate([quantiles, window])
    reached = np.searchsorted(quantiles, both, side="right")  # levels that are reached there
    least, most = np.maximum(reached - 1, 0) / steps, np.minimum(reached, steps) / steps
    found = np.searchsorted(window, both, side="right") / len(window)
    return float(np.maximum(found - most, least - found).max(initial=0.0))
