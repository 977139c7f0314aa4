"""How far to trust a score: measured on outcomes the model has not seen, and the rule that decides by it.

A score p claims that about a share p of such requests succeed. Held-out calibration data say how true that is. They are
sorted by score and cut into bins of about equal size; in each bin the observed success rate gets a Wilson interval
(Wilson 1927) at ``level``. The **uncertainty** of every score in the bin is the distance from the bin's mean score to
the far end of that interval: the most by which the claim may be wrong, at that level, given what was observed. It is
large where the model is wrong on average, and where there is little evidence; it is 1 for a score outside the range
seen in calibration, where there is none. It is not a function of the score's distance from one half.

Outcomes of several candidates for the same prompt are not independent. With ``groups``, a bin of n outcomes counts as
``n² / Σ m²`` observations, m being the group sizes (Kish's effective size, the case of full dependence within a group).

What it is not: the interval holds for each bin on its own, for data like the calibration data, and says nothing about a
single request. Conformal guarantees on the decision itself are a later step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from router.errors import ConfigError, DimensionMismatch, InvalidRequest, NonFiniteInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["DEFAULT_MAX_UNCERTAINTY", "DEFAULT_THRESHOLD", "Calibration", "is_lightweight", "wilson_interval"]

DEFAULT_THRESHOLD = 0.85
DEFAULT_MAX_UNCERTAINTY = 0.15


def wilson_interval(successes: ArrayLike, trials: ArrayLike, *, level: float = 0.95) -> tuple[Array, Array]:
    """Return low and high end of Wilson's score interval for a binomial proportion; numbers or arrays.

    ``trials`` are positive and, like ``successes``, need not be whole: an effective sample size is not. ``level`` lies
    in (0, 1), else ConfigError.
    """
    z = _quantile(level)
    n = np.asarray(trials, dtype=np.float64)
    rate = np.asarray(successes, dtype=np.float64) / n
    centre = (rate + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half_width = z / (1.0 + z * z / n) * np.sqrt(rate * (1.0 - rate) / n + z * z / (4.0 * n * n))
    return np.maximum(centre - half_width, 0.0), np.minimum(centre + half_width, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Observed success by score, and the uncertainty that follows from it; see the head of this module.

    All arrays are float64, one entry per bin in rising order of score; ``upper`` holds the highest score of each bin.
    Bin i takes scores above ``upper[i - 1]`` and up to ``upper[i]``.
    """

    lowest: float
    """The lowest score seen; below it, as above ``upper[-1]``, the uncertainty is 1."""
    upper: Array
    mean_score: Array
    success_rate: Array
    effective_size: Array
    """Independent observations the bin is worth; at most the number of outcomes in it."""
    uncertainty: Array
    level: float
    _edges: Array = field(init=False, repr=False)
    _table: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Lay out the look-up: one search among the edges, and 1 on either side of the bins."""
        object.__setattr__(self, "_edges", np.concatenate([[np.nextafter(self.lowest, -1.0)], self.upper]))
        object.__setattr__(self, "_table", np.concatenate([[1.0], self.uncertainty, [1.0]]))

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        outcomes: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        max_bins: int = 20,
        min_bin_size: int = 50,
        level: float = 0.95,
    ) -> Self:
        """Calibrate on ``scores`` in [0, 1] and what came of them, ``outcomes`` 0 or 1, both of shape (n,).

        ``groups`` names, per outcome, what it shares with others, such as the prompt. There are at most ``max_bins``
        bins of at least ``min_bin_size`` outcomes; equal scores stay together. Raises InvalidRequest for fewer outcomes
        than one bin takes or values out of range, DimensionMismatch for arrays of different shapes, NonFiniteInput for
        NaN or infinity.
        """
        p, y, group = _checked(scores, outcomes, groups)
        if max_bins < 1 or min_bin_size < 1:
            raise ConfigError(f"max_bins {max_bins} and min_bin_size {min_bin_size} have to be at least 1")
        if len(p) < min_bin_size:
            raise InvalidRequest(f"{len(p)} outcomes are too few to calibrate on: pass at least {min_bin_size}")
        order = np.argsort(p, kind="stable")
        p, y, group = p[order], y[order], group[order]
        ends = _bin_ends(p, max(min_bin_size, math.ceil(len(p) / max_bins)))
        sizes = np.diff(ends, prepend=0).astype(np.float64)
        starts = ends - sizes.astype(np.intp)
        mean_score = np.add.reduceat(p, starts) / sizes
        rate = np.add.reduceat(y, starts) / sizes
        effective = np.array([_effective_size(group[a:b]) for a, b in zip(starts, ends, strict=True)])
        low, high = wilson_interval(rate * effective, effective, level=level)
        return cls(
            lowest=float(p[0]),
            upper=p[ends - 1],
            mean_score=mean_score,
            success_rate=rate,
            effective_size=effective,
            uncertainty=np.maximum(high - mean_score, mean_score - low),
            level=level,
        )

    def __len__(self) -> int:
        """Return the number of bins."""
        return len(self.upper)

    def __repr__(self) -> str:
        """Show the support and the range of uncertainty in it."""
        return (
            f"Calibration({len(self)} bins over scores {self.lowest:.3f} to {self.upper[-1]:.3f}, "
            f"uncertainty {self.uncertainty.min():.3f} to {self.uncertainty.max():.3f})"
        )

    def of(self, scores: Array) -> Array:
        """Return the uncertainty of each of ``scores``, same shape, in [0, 1]; 1 for NaN."""
        return self._table[np.searchsorted(self._edges, scores)]


def is_lightweight(
    confidence: Array,
    uncertainty: Array,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    max_uncertainty: float = DEFAULT_MAX_UNCERTAINTY,
) -> NDArray[np.bool_]:
    """Decide: lightweight where confidence >= ``threshold`` and uncertainty <= ``max_uncertainty``, else powerful.

    NaN on either side decides for powerful. Raises ConfigError when a limit lies outside [0, 1].
    """
    if not (0.0 <= threshold <= 1.0 and 0.0 <= max_uncertainty <= 1.0):
        raise ConfigError(
            f"threshold is {threshold!r} and max_uncertainty {max_uncertainty!r}: use numbers from 0 to 1"
        )
    decided: NDArray[np.bool_] = (confidence >= threshold) & (uncertainty <= max_uncertainty)
    return decided


def _quantile(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"the level is {level!r}: use a number between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf(0.5 + 0.5 * level)


def _bin_ends(sorted_scores: Array, size: int) -> NDArray[np.intp]:
    """Cut into bins of at least ``size``, never between equal scores; a short rest joins the last bin."""
    # Where one score ends and the next begins.
    borders = np.append(np.flatnonzero(np.diff(sorted_scores)) + 1, len(sorted_scores))
    ends: list[int] = []
    start = 0
    while len(sorted_scores) - start >= size:
        start = int(borders[np.searchsorted(borders, start + size)])
        ends.append(start)
    ends[-1] = len(sorted_scores)
    return np.array(ends, dtype=np.intp)


def _effective_size(groups: NDArray[Any]) -> float:
    _, sizes = np.unique(groups, return_counts=True)
    return float(sizes.sum()) ** 2 / float((sizes.astype(np.float64) ** 2).sum())


def _checked(scores: ArrayLike, outcomes: ArrayLike, groups: ArrayLike | None) -> tuple[Array, Array, NDArray[Any]]:
    p, y = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    group = np.arange(p.size) if groups is None else np.asarray(groups)
    if p.ndim != 1 or y.shape != p.shape or group.shape != p.shape:
        raise DimensionMismatch(
            f"scores {p.shape}, outcomes {y.shape} and groups {group.shape} have to be vectors of one length"
        )
    if not (np.isfinite(p).all() and np.isfinite(y).all()):
        raise NonFiniteInput("calibration scores or outcomes hold NaN or infinity: leave those examples out")
    if p.size and (p.min() < 0.0 or p.max() > 1.0 or not np.isin(y, (0.0, 1.0)).all()):
        raise InvalidRequest("calibration needs scores in [0, 1] and outcomes of 0 or 1")
    return p, y, group
