"""How good scores are: ranking, log loss and calibration, from scores and what came of them.

All functions take two vectors of one length: scores in [0, 1] and outcomes of 0 or 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import InvalidRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["area_under_roc", "expected_calibration_error", "log_loss"]


def area_under_roc(scores: Array, outcomes: Array) -> float:
    """Return the chance that a success scores above a failure, ties counting half; InvalidRequest without both kinds.

    By ranks: the Mann-Whitney U statistic over the number of pairs.
    """
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    ranks = (last_rank - 0.5 * (counts - 1))[where]
    successes = float(outcomes.sum())
    failures = len(outcomes) - successes
    if not (successes and failures):
        raise InvalidRequest("the area under the ROC curve needs successes and failures: all outcomes are the same")
    return float((ranks[outcomes > 0.5].sum() - 0.5 * successes * (successes + 1)) / (successes * failures))


def log_loss(scores: Array, outcomes: Array) -> float:
    """Return the mean negative log likelihood; scores are kept 1e-12 away from 0 and 1."""
    p = np.clip(np.asarray(scores, dtype=np.float64), 1e-12, 1.0 - 1e-12)
    return float(-(outcomes * np.log(p) + (1.0 - outcomes) * np.log1p(-p)).mean())


def expected_calibration_error(scores: Array, outcomes: Array, *, bins: int = 10) -> float:
    """Return the mean distance of score and success rate over ``bins`` groups of equal size in order of score."""
    order = np.argsort(scores, kind="stable")
    gaps = [
        len(chosen) * abs(float(scores[chosen].mean()) - float(outcomes[chosen].mean()))
        for chosen in np.array_split(order, min(bins, len(order)))
    ]
    return sum(gaps) / len(order)
