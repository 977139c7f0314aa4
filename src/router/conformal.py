"""Thresholds with a guarantee: how much may go to the weak model, for a given rate of harm.

A request goes to the weak model when its *need* for the strong one, any score, is below a threshold. Calibration data
hold the need of each request and whether sending it to the weak model would have done harm (the weak model fails on it;
or: it fails where the strong one is right). There are two promises one may make with them, and they differ:

`control_risk`: of **all** requests, those sent to the weak model and harmed are at most a share α, in expectation over
calibration sets. Conformal risk control (Angelopoulos et al. 2024, arXiv 2208.02814, theorem 1): such a loss grows with
the threshold, so the largest threshold whose mean loss, one worst case added, stays at α will do.

`learn_then_test`: **among the requests sent** to the weak model, the rate of harm is at most α, with probability 1 - δ
over calibration sets. This rate need not grow with the threshold, so each threshold is a hypothesis to test, with an
exact binomial p-value (Angelopoulos et al. 2021, arXiv 2110.01052), and looking at many has its price: fixed-sequence
testing from several starts, each with an equal part of δ. Taking the loosest threshold whose own bound holds, without
that price, breaks δ, as a simulation with known truth shows in the tests.

Both hold when requests are exchangeable with the calibration data, and only then. `Mondrian` keeps a promise for each
group of requests; `AdaptiveRisk` keeps the long-run rate under drift, for any sequence of requests.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import CalibrationError, ConfigError, DimensionMismatch, NonFiniteInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.floating[Any]]

__all__ = [
    "AdaptiveRisk",
    "Guarantee",
    "Mondrian",
    "binomial_cdf",
    "conformal_quantile",
    "control_risk",
    "learn_then_test",
    "prediction_sets",
    "required_calibration_size",
]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A threshold and what it promises: requests whose need is below ``threshold`` may go to the weak model."""

    threshold: float
    """-inf sends none, +inf all."""
    alpha: float
    """The rate of harm that is promised not to be passed."""
    delta: float | None
    """The chance that it is passed nevertheless; None for a promise in expectation."""
    calibration_size: int
    share: float
    """The share of the calibration requests below the threshold."""
    observed_risk: float
    """The rate of harm in the calibration data, of all requests, or with ``delta`` among those below the threshold."""

    def allows(self, need: ArrayLike) -> NDArray[np.bool_]:
        """Return which requests may go to the weak model; NaN may not."""
        allowed: NDArray[np.bool_] = np.asarray(need, dtype=np.float64) < self.threshold
        return allowed


def required_calibration_size(alpha: float) -> int:
    """Return how many calibration requests `control_risk` needs to promise anything at level ``alpha``."""
    return max(1, math.ceil(1.0 / _level("alpha", alpha) - 1.0 - 1e-9))


def control_risk(need: ArrayLike, harm: ArrayLike, alpha: float) -> Guarantee:
    """Return the largest threshold that keeps the expected share of harmed requests at ``alpha``.

    ``need`` and ``harm``, both of shape (n,), are the scores of the calibration requests and the harm, in [0, 1], of
    sending each to the weak model. The threshold is the largest t with (Σ harm[need < t] + 1) / (n + 1) <= alpha.
    Raises CalibrationError, naming the size that is needed, when there are too few requests to promise anything.
    """
    s, h = _checked(need, harm)
    needed = required_calibration_size(alpha)
    if len(s) < needed:
        raise CalibrationError(
            f"{len(s)} calibration requests are too few to promise a risk of {alpha:g}: collect at least {needed}"
        )
    order = np.argsort(s, kind="stable")
    s, h = s[order], h[order]
    # What a threshold just above each score would cost; equal scores are taken or left together.
    last_of_equals = np.append(np.diff(s) > 0.0, True)
    breaks = np.flatnonzero(last_of_equals & ((np.cumsum(h) + 1.0) / (len(s) + 1) > alpha + 1e-12))
    threshold = float(s[breaks[0]]) if len(breaks) else math.inf
    below = s < threshold
    return Guarantee(threshold, alpha, None, len(s), float(below.mean()), float((h * below).mean()))


def learn_then_test(
    need: ArrayLike,
    harm: ArrayLike,
    alpha: float,
    *,
    delta: float,
    thresholds: ArrayLike,
    starts: tuple[float, ...] = (0.2, 0.5),
) -> Guarantee:
    """Return the largest threshold below which, with probability 1 - ``delta``, the rate of harm is at most ``alpha``.

    ``harm`` is 0 or 1. ``thresholds``, in any order, have to be chosen without the calibration data: quantiles of the
    needs of other requests, or a fixed grid. From each of ``starts``, places in [0, 1] of the sorted thresholds,
    testing goes on to larger thresholds until one fails, at level delta / len(starts); what passed is certified. When
    nothing passes the threshold is -inf: none may be sent, which is true whatever the data. Raises CalibrationError
    when so few are given that no outcome whatever could pass, naming the size that is needed.
    """
    s, h = _checked(need, harm)
    _level("alpha", alpha)
    level = _level("delta", delta) / len(starts)
    if not np.isin(h, (0.0, 1.0)).all():
        raise ConfigError("learn_then_test needs a harm of 0 or 1 for each request")
    grid = np.unique(np.asarray(thresholds, dtype=np.float64))
    if not len(grid) or not np.isfinite(grid).all() or not starts or not all(0.0 <= start <= 1.0 for start in starts):
        raise ConfigError("thresholds have to be finite numbers, at least one, and starts places from 0 to 1")
    needed = math.ceil(math.log(level) / math.log1p(-alpha))  # with no harm at all, (1 - alpha)^n <= level
    if len(s) < needed:
        raise CalibrationError(
            f"{len(s)} calibration requests are too few to promise a risk of {alpha:g} with probability "
            f"{1 - delta:g}: collect at least {needed}"
        )
    order = np.argsort(s, kind="stable")
    sent = np.searchsorted(s[order], grid, side="left")
    harmed = np.concatenate([[0.0], np.cumsum(h[order])])[sent]
    certified = -1
    for start in starts:
        index = min(int(start * len(grid)), len(grid) - 1)
        while index < len(grid) and binomial_cdf(int(harmed[index]), int(sent[index]), alpha) <= level:
            certified = max(certified, index)
            index += 1
    if certified < 0:
        return Guarantee(-math.inf, alpha, delta, len(s), 0.0, 0.0)
    count = int(sent[certified])
    return Guarantee(float(grid[certified]), alpha, delta, len(s), count / len(s), float(harmed[certified]) / count)


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """Return P(X <= successes) for X ~ Binomial(trials, probability), summed term by term in logarithms.

    1 for no trials: nothing speaks against any hypothesis.
    """
    if successes >= trials:
        return 1.0
    k = np.arange(successes + 1, dtype=np.float64)
    # ln of C(n, k) from the sum of ln((n - j + 1) / j), j = 1..k.
    choose = np.concatenate([[0.0], np.cumsum(np.log((trials - k[1:] + 1.0) / k[1:]))])
    terms = choose + k * math.log(probability) + (trials - k) * math.log1p(-probability)
    largest = float(terms.max())
    return float(min(1.0, math.exp(largest) * np.exp(terms - largest).sum()))


class Mondrian:
    """One guarantee for each group of requests, each from that group's own calibration data.

    A promise for all requests together may be kept by being kind to one domain and harsh to another; a promise per
    group may not. A request of a group that was not calibrated goes to the strong model.
    """

    __slots__ = ("guarantees",)

    def __init__(self, guarantees: Mapping[str, Guarantee]) -> None:
        """Take a guarantee for each group."""
        self.guarantees = dict(guarantees)

    @classmethod
    def fit(
        cls,
        need: ArrayLike,
        harm: ArrayLike,
        groups: ArrayLike,
        calibrate: Callable[[Array, Array], Guarantee],
        *,
        skip_small: bool = False,
    ) -> Mondrian:
        """Calibrate each group by ``calibrate(need, harm)``, such as ``lambda s, h: control_risk(s, h, 0.05)``.

        Raises CalibrationError naming every group that is too small, or with ``skip_small`` leaves those groups out:
        all their requests go to the strong model.
        """
        s, h = _checked(need, harm)
        g = np.asarray(groups)
        if g.shape != s.shape:
            raise DimensionMismatch(f"groups have shape {g.shape}, needs {s.shape}: pass one group per request")
        found: dict[str, Guarantee] = {}
        too_small: list[str] = []
        for group in np.unique(g):
            try:
                found[str(group)] = calibrate(s[g == group], h[g == group])
            except CalibrationError as error:
                too_small.append(f"{group}: {error}")
        if too_small and not skip_small:
            raise CalibrationError(
                f"{len(too_small)} groups cannot be calibrated ({'; '.join(too_small)}); join them, or skip_small=True"
            )
        return cls(found)

    def allows(self, need: ArrayLike, groups: ArrayLike) -> NDArray[np.bool_]:
        """Return which requests may go to the weak model, each by the threshold of its group."""
        limits = [self.threshold(str(group)) for group in np.asarray(groups)]
        allowed: NDArray[np.bool_] = np.asarray(need, dtype=np.float64) < np.array(limits)
        return allowed

    def threshold(self, group: str) -> float:
        """Return the threshold of a group; -inf for one that was not calibrated."""
        found = self.guarantees.get(group)
        return -math.inf if found is None else found.threshold

    def __repr__(self) -> str:
        """Show the groups and their thresholds."""
        return f"Mondrian({ {group: round(item.threshold, 4) for group, item in self.guarantees.items()} })"


class AdaptiveRisk:
    """Risk control that follows drift: adaptive conformal inference (Gibbs & Candès 2021) over a sliding window.

    The level in use answers for what was promised: after each outcome it moves by ``rate`` · (alpha - loss), where the
    loss is the harm if the request was sent to the weak model, else 0. Whatever the sequence of requests, the mean loss
    over the first T is at most alpha + (alpha + rate) / (rate · T): at a level of 0 or below nothing is sent, so no
    loss follows. The level is kept at or below 1, which leaves that bound as it is and lets it come down quickly after
    a good time.

    The threshold at a level is that of `control_risk` over the last ``window`` requests whose harm is known. Of one
    that was sent to the strong model it is known only where both were asked: pass None there, and nothing is learned.
    """

    def __init__(self, alpha: float, *, rate: float = 0.02, window: int = 1000) -> None:
        """Start at level ``alpha`` with an empty window: until it holds enough, nothing is sent to the weak model."""
        if not rate > 0.0 or window < 1:
            raise ConfigError(f"rate is {rate!r} and window {window!r}: both have to be positive")
        self.alpha = _level("alpha", alpha)
        self.rate = rate
        self.level = alpha
        self._window: deque[tuple[float, float]] = deque(maxlen=window)
        self._sorted: list[tuple[float, float]] = []
        self._threshold: float | None = None

    @property
    def threshold(self) -> float:
        """The threshold in use: requests whose need is below it may go to the weak model."""
        if self._threshold is None:
            self._threshold = self._find()
        return self._threshold

    def allows(self, need: float) -> bool:
        """Whether a request may go to the weak model now."""
        return need < self.threshold

    def observe(self, need: float, harm: float | None, *, sent: bool) -> None:
        """Learn from a request: its need, the harm of the weak model (None where unknown), and whether it was sent."""
        if not math.isfinite(need) or (harm is not None and not 0.0 <= harm <= 1.0):
            raise NonFiniteInput(f"need {need!r} has to be finite and harm {harm!r} from 0 to 1, or None if unknown")
        if sent and harm is None:
            raise ConfigError("the harm of a request that was sent to the weak model has to be told")
        loss = harm if sent and harm is not None else 0.0
        self.level = min(1.0, self.level + self.rate * (self.alpha - loss))
        if harm is not None:
            if len(self._window) == self._window.maxlen:
                self._sorted.pop(bisect.bisect_left(self._sorted, self._window[0]))
            self._window.append((need, harm))
            bisect.insort(self._sorted, (need, harm))
        self._threshold = None

    def _find(self) -> float:
        if self.level <= 0.0 or len(self._sorted) < required_calibration_size(min(self.level, 1.0 - 1e-9)):
            return -math.inf
        if self.level >= 1.0:
            return math.inf
        pairs = np.array(self._sorted)
        return control_risk(pairs[:, 0], pairs[:, 1], self.level).threshold

    def __repr__(self) -> str:
        """Show the promise and where it stands."""
        return f"AdaptiveRisk(alpha={self.alpha}, level={self.level:.4f}, {len(self._sorted)} outcomes)"


def conformal_quantile(scores: ArrayLike, alpha: float) -> float:
    """Return the ceil((n + 1)(1 - alpha))-th smallest of ``scores``: the quantile of split conformal prediction.

    A new score from the same distribution is at most that with probability at least 1 - alpha (Vovk et al. 2005).
    Raises CalibrationError when n is too small for any finite quantile, naming the size that is needed.
    """
    s = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(s).all():
        raise NonFiniteInput("conformity scores hold NaN or infinity: leave those examples out")
    rank = math.ceil((len(s) + 1) * (1.0 - _level("alpha", alpha)) - 1e-9)
    if rank > len(s):
        raise CalibrationError(
            f"{len(s)} calibration scores are too few for coverage {1 - alpha:g}: collect at least "
            f"{required_calibration_size(alpha)}"
        )
    return float(s[rank - 1])


def prediction_sets(probabilities: ArrayLike, quantile: float) -> NDArray[np.bool_]:
    """Return the classes of each set, those with 1 - probability <= ``quantile``, shape (requests, classes).

    Least ambiguous sets (Sadinle et al. 2019): ``quantile`` is `conformal_quantile` of 1 - probability of the truth.
    """
    sets: NDArray[np.bool_] = 1.0 - np.asarray(probabilities, dtype=np.float64) <= quantile
    return sets


def _level(name: str, value: float) -> float:
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} is {value!r}: use a number between 0 and 1, such as 0.05")
    return value


def _checked(need: ArrayLike, harm: ArrayLike) -> tuple[Array, Array]:
    s, h = np.asarray(need, dtype=np.float64), np.asarray(harm, dtype=np.float64)
    if s.ndim != 1 or h.shape != s.shape:
        raise DimensionMismatch(f"needs {s.shape} and harms {h.shape} have to be vectors of one length")
    if not (np.isfinite(s).all() and np.isfinite(h).all()):
        raise NonFiniteInput("calibration needs or harms hold NaN or infinity: leave those requests out")
    if len(h) and (h.min() < 0.0 or h.max() > 1.0):
        raise ConfigError("harms have to lie in [0, 1]")
    return s, h
