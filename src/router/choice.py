"""Which of the candidates gets the request: the best quality for the price that the caller accepts.

What is known of each candidate is its quality, the chance that it answers well, and its price. The caller says what he
accepts in one of four ways:

`Threshold`: the cheapest candidate that is at most so much worse than the best.
`TargetShare`: the same, with the threshold at which at most a given share of requests goes above the cheapest.
`Budget`: the highest quality at a given mean price.
`Guaranteed`: of two candidates, the cheap one wherever a conformal guarantee lets it (see `router.conformal`).

A lightweight and a powerful model are the case of two candidates. Qualities have the shape (requests, candidates),
prices (candidates,); what is chosen are indices of candidates, shape (requests,).
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from router.conformal import AdaptiveRisk, Mondrian
from router.errors import CalibrationError, ConfigError, DimensionMismatch, InvalidRequest, NonFiniteInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from router.conformal import Guarantee
    from router.history import History
    from router.prompt_model import NeedCalibration

    Array = NDArray[np.floating[Any]]
    Places = NDArray[np.intp]

__all__ = ["Budget", "Guaranteed", "Policy", "TargetShare", "Threshold"]

_TIE = 1e-12
"""Values that differ by less, relative to their size, are equal: they were computed in different ways."""


class Policy(Protocol):
    """How a candidate is chosen; the four classes of this module, or anything with the same method."""

    def choose(self, quality: ArrayLike, price: ArrayLike, *, group: str | None = None) -> Places:
        """Return the index of the candidate for each request, shape (requests,).

        ``quality`` has the shape (requests, candidates), ``price`` (candidates,); ``group`` is the domain of the
        requests, where it matters.
        """


class Threshold:
    """The cheapest candidate whose quality is at least that of the best less ``tolerance``, which is not negative.

    Of equal prices the better one. Raises ConfigError for a tolerance that is negative or NaN.
    """

    def __init__(self, tolerance: float) -> None:
        if not tolerance >= 0.0:
            raise ConfigError(f"the tolerance is {tolerance!r}: use a number from 0, in units of quality")
        self.tolerance = tolerance

    def choose(self, quality: ArrayLike, price: ArrayLike, *, group: str | None = None) -> Places:
        """Return the choices; errors as `checked` raises them."""
        del group
        q, p = checked(quality, price)
        good_enough = q >= q.max(axis=1, keepdims=True) - self.tolerance
        return _cheapest(q, p, good_enough)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tolerance:g})"


class TargetShare(Threshold):
    """The threshold at which at most ``share`` of requests goes above the cheapest candidate; made by `fit`.

    For requests exchangeable with those it was fitted on, in expectation over both. (The threshold is an order
    statistic of what the cheapest lacks, as in split conformal prediction.)
    """

    def __init__(self, share: float, tolerance: float) -> None:
        super().__init__(tolerance)
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"the share is {share!r}: use a number from 0 to 1")
        self.share = share

    @classmethod
    def fit(cls, share: float, quality: ArrayLike, price: ArrayLike) -> Self:
        """Find the threshold on qualities (requests, candidates) of requests that were not trained on.

        Too few requests send everything to the cheapest: that keeps the promise, whatever the data.
        """
        q, p = checked(quality, price)
        lacking = np.sort(q.max(axis=1) - q[:, p == p.min()].max(axis=1))[::-1]
        # A new value is above the j-th largest of n with a chance of at most j / (n + 1).
        rank = math.floor(cls(share, 0.0).share * (len(lacking) + 1) + 1e-9)
        tolerance = math.inf if rank < 1 else 0.0 if rank > len(lacking) else float(lacking[rank - 1])
        return cls(share, tolerance)

    def __repr__(self) -> str:
        return f"TargetShare({self.share:g}, tolerance={self.tolerance:g})"


class Budget:
    """The highest mean quality at a mean price of at most ``per_request``; made by `fit`.

    Each request gets the candidate with the highest quality - ``multiplier`` · price (Lagrange: no other way to spend
    as much has a higher mean quality). Where candidates tie, the dearest is bought whenever the ``share`` of its
    surcharge, put by at every tie, has paid for it: so the budget is used to the last surcharge, and never passed. Safe
    to share between threads.
    """

    def __init__(self, per_request: float, multiplier: float, share: float = 0.0) -> None:
        if not (per_request >= 0.0 and multiplier >= 0.0 and 0.0 <= share <= 1.0):
            raise ConfigError(
                f"budget {per_request!r}, multiplier {multiplier!r} and share {share!r}: the first two are not "
                "negative, the last is from 0 to 1"
            )
        self.per_request = per_request
        self.multiplier = multiplier
        self.share = share
        self._saved = 0.0
        self._lock = threading.Lock()

    @classmethod
    def fit(cls, per_request: float, quality: ArrayLike, price: ArrayLike) -> Self:
        """Find the smallest multiplier that keeps the mean price of these requests within the budget.

        Raises ConfigError when even the cheapest candidate costs more than ``per_request``.
        """
        q, p = checked(quality, price)
        if not per_request >= p.min():
            raise ConfigError(
                f"a budget of {per_request!r} per request is below the cheapest price, {p.min():g}: raise it, or offer "
                "a cheaper candidate"
            )
        multipliers = _multipliers(q, p)
        low, high = 0, len(multipliers) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if _spent(cls(per_request, multipliers[middle]), q, p) <= per_request
                else (middle + 1, high)
            )
        found = cls(per_request, float(multipliers[low]))
        cheap, dear = found._ends(q, p)
        surcharge = float((p[dear] - p[cheap]).mean())
        if surcharge > 0.0 and found.multiplier > 0.0:
            left = per_request - float(p[cheap].mean())
            found.share = min(1.0, left / surcharge)
        return found

    def choose(self, quality: ArrayLike, price: ArrayLike, *, group: str | None = None) -> Places:
        """Return the choices; errors as `checked` raises them."""
        del group
        q, p = checked(quality, price)
        chosen, dear = self._ends(q, p)
        if self.share > 0.0:
            surcharge = p[dear] - p[chosen]
            with self._lock:
                for request in np.flatnonzero(surcharge > 0.0):
                    self._saved += self.share * surcharge[request]
                    if self._saved >= surcharge[request] * (1.0 - _TIE):
                        self._saved = max(0.0, self._saved - surcharge[request])
                        chosen[request] = dear[request]
        return chosen

    def _ends(self, q: Array, p: Array) -> tuple[Places, Places]:
        """Return the cheapest and the dearest of the candidates that are worth most to each request."""
        worth = q - self.multiplier * p
        size = np.maximum(np.abs(q).max(axis=1, keepdims=True), self.multiplier * p.max())
        tied = worth >= worth.max(axis=1, keepdims=True) - _TIE * np.maximum(size, 1.0)
        return _cheapest(q, p, tied), _cheapest(q, -p, tied)

    def __repr__(self) -> str:
        return f"Budget({self.per_request:g}, multiplier={self.multiplier:g}, share={self.share:g})"


class Guaranteed:
    """Of two candidates the cheap one wherever ``rule`` allows it: a conformal threshold on the need for the dear one.

    The need is the dear candidate's quality less the cheap one's, as `router.prompt_model.need_of` gives it. With a
    `Mondrian` rule the threshold is that of the request's group; with `AdaptiveRisk` it follows `observe`. Safe to
    share between threads.
    """

    def __init__(self, rule: Guarantee | Mondrian | AdaptiveRisk) -> None:
        self.rule = rule
        self._lock = threading.Lock()

    @classmethod
    def adaptive(
        cls,
        alpha: float,
        calibration: NeedCalibration,
        *,
        rate: float = 0.02,
        window: int = 1000,
        history: History | None = None,
    ) -> Self:
        """Return an adaptive guarantee that starts from held-out needs and goes on with what `observe` is told.

        With a ``history`` it starts where the feedback that is remembered there has brought it, whoever took it.
        """
        rule = AdaptiveRisk(alpha, rate=rate, window=window)
        for need, harm in zip(calibration.need.tolist()[-window:], calibration.harm.tolist()[-window:], strict=True):
            rule.observe(need, harm, sent=False)
        rule.level = alpha  # these were nobody's requests: they fill the window and earn nothing
        if not math.isfinite(rule.threshold) and rule.threshold < 0.0 and len(calibration.need) * alpha < 1.0:
            raise CalibrationError(
                f"{len(calibration.need)} held-out needs are too few to start at a level of {alpha:g}: hold out more"
            )
        for need, harm in history.harms() if history is not None else ():
            rule.observe(need, harm, sent=harm is not None)
        return cls(rule)

    def choose(self, quality: ArrayLike, price: ArrayLike, *, group: str | None = None) -> Places:
        """Return the choices; DimensionMismatch unless there are two candidates, InvalidRequest at one price for both.

        Further errors as `checked` raises them.
        """
        cheap, dear = _two(price)
        q, _ = checked(quality, price)
        return np.where(self.needs(q, price) < self.threshold(group), cheap, dear)

    def needs(self, quality: Array, price: ArrayLike) -> Array:
        """Return the need of each request for the dear candidate, shape (requests,)."""
        cheap, dear = _two(price)
        need: Array = quality[:, dear] - quality[:, cheap]
        return need

    def threshold(self, group: str | None) -> float:
        """Return the threshold in force for a group."""
        if isinstance(self.rule, Mondrian):
            return self.rule.threshold("" if group is None else group)
        with self._lock:
            return self.rule.threshold

    def observe(self, need: float, harm: float | None, *, sent: bool) -> None:
        """Learn from what came of a request, where the rule is one that learns; see `AdaptiveRisk.observe`."""
        if isinstance(self.rule, AdaptiveRisk):
            with self._lock:
                self.rule.observe(need, harm, sent=sent)

    def __repr__(self) -> str:
        return f"Guaranteed({self.rule!r})"


def checked(quality: ArrayLike, price: ArrayLike) -> tuple[Array, Array]:
    """Return both as float64 arrays.

    Raises DimensionMismatch when there is not one price per candidate, NonFiniteInput for NaN or infinity,
    InvalidRequest for a negative price.
    """
    q, p = np.asarray(quality, dtype=np.float64), np.asarray(price, dtype=np.float64)
    if q.ndim != 2 or not q.shape[1] or p.shape != q.shape[1:]:
        raise DimensionMismatch(
            f"qualities {q.shape} and prices {p.shape} do not fit: expected (requests, candidates) and (candidates,)"
        )
    if not (np.isfinite(q).all() and np.isfinite(p).all()):
        raise NonFiniteInput("qualities or prices hold NaN or infinity: leave those candidates out")
    if p.min() < 0.0:
        raise InvalidRequest(f"candidate {int(p.argmin())} has the price {p.min():g}: prices are not negative")
    return q, p


def _cheapest(q: Array, p: Array, allowed: NDArray[np.bool_]) -> Places:
    """Return the cheapest of the allowed candidates of each request; of equal prices the best, then the first."""
    prices = np.where(allowed, p, np.inf)
    among = allowed & (prices == prices.min(axis=1, keepdims=True))
    places: Places = np.where(among, q, -np.inf).argmax(axis=1)
    return places


def _spent(budget: Budget, q: Array, p: Array) -> float:
    return float(p[budget._ends(q, p)[0]].mean())  # noqa: SLF001 - one algorithm in two functions


def _multipliers(q: Array, p: Array) -> Array:
    """Return 0 and every multiplier at which two candidates of a request tie, in rising order."""
    low, high = np.triu_indices(len(p), k=1)
    surcharge = p[high] - p[low]
    differ = surcharge != 0.0
    slopes = ((q[:, high] - q[:, low])[:, differ] / surcharge[differ]).ravel()
    rising: Array = np.unique(np.append(slopes[slopes > 0.0], 0.0))
    return rising


def _two(price: ArrayLike) -> tuple[int, int]:
    """Return the places of the cheap and the dear one of two candidates."""
    p = np.asarray(price, dtype=np.float64)
    if p.shape != (2,):
        raise DimensionMismatch(
            f"there are {p.size} candidates: a guarantee is about two, a cheap one and a dear one; use Threshold, "
            "TargetShare or Budget for more"
        )
    if p[0] == p[1]:
        raise InvalidRequest(f"both candidates cost {p[0]:g}: a guarantee needs a cheap one and a dear one")
    return (0, 1) if p[0] < p[1] else (1, 0)
