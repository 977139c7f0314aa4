"""Whether the router still meets what its model was made for.

Four things are watched, each in windows of fixed size, one after the other:

`features`: the distribution of each feature, against those that the model was trained on.
`scores`: the distribution of scores, against the bins of the model's calibration, which hold equal shares of the
held-out scores.
`needs`: the distribution of what prompts need, against the prompts that the prompt model was calibrated on.
`calibration`: the mean quality that feedback tells, against the mean quality that was expected.

Where a model does not say what it was made for, and wherever the configuration wants it, the first window is what later
ones are held against. The first three are measured by the distance of Kolmogorov and Smirnov, the largest difference of
the two distribution functions, from 0 to 1. Between two samples of 200 independent values it passes 0.16 once in a
hundred windows, so the limit of 0.25 is no noise. Of the training features a model file keeps quantiles, which tell the
distance to 1/32, see `router.quantiles`. Drift ends when a window is below 0.8 of the limit.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput
from router.features import FEATURE_NAMES
from router.quantiles import distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from router.uncertainty import Calibration

    Array = NDArray[np.floating[Any]]
    Kind = Literal["features", "scores", "needs", "calibration"]
    Distance = Callable[[Array, Array], float]

__all__ = ["DriftConfig", "DriftWatch", "Finding", "kolmogorov_smirnov"]

_ENDS_AT = 0.8


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """What is watched, sizes of windows, limits of distances.

    ConfigError for sizes below 1, limits outside (0, 1), or features that there are not.
    """

    request_window: int = 200
    rows_per_request: int = 8
    """Candidates of a request that are looked at, evenly spread: those of one request are alike."""
    feedback_window: int = 100
    against: Literal["training", "first_window"] = "training"
    """What requests are held against."""
    features: tuple[str, ...] = FEATURE_NAMES
    """Which of them are watched: one that is always other than in training would hide what the others do."""
    distance_limit: float = 0.25
    calibration_limit: float = 0.1
    """Of the mean quality less the mean expected one; it has to be more than three standard errors, too."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("request_window", "rows_per_request", "feedback_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: use at least 1")
        for name in ("distance_limit", "calibration_limit"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: use a number between 0 and 1")
        unknown = sorted(set(self.features) - set(FEATURE_NAMES))
        if unknown or not self.features:
            raise ConfigError(f"features are {self.features!r}: name some of {', '.join(FEATURE_NAMES)}")
        if self.against not in {"training", "first_window"}:
            raise ConfigError(f'against is {self.against!r}: use "training" or "first_window"')


@dataclass(frozen=True, slots=True)
class Finding:
    """What a window has shown."""

    kind: Kind
    subject: str
    """The feature that has moved most, or the kind."""
    distance: float
    limit: float
    sample_size: int
    is_drifting: bool
    has_changed: bool
    """Whether it was otherwise before."""


class DriftWatch:
    """Collects what passes and reports a finding at the end of each window; safe to share between threads."""

    def __init__(
        self,
        config: DriftConfig,
        report: Callable[[Finding], None],
        *,
        calibration: Calibration | None = None,
        reference: ArrayLike | None = None,
        quantiles: Array | None = None,
        needs: ArrayLike | None = None,
    ) -> None:
        """Take what is known of the time that the model was made in, as far as ``config`` wants it.

        Its ``calibration``; the ``quantiles`` (5, 33) of its training features, or as ``reference`` such features
        themselves, shape (n, 5), which are used in any case; and ``needs`` of prompts, shape (n,).
        """
        self.config = config
        self._report = report
        self._lock = threading.Lock()
        self._features: list[Array] = []
        self._scores: list[Array] = []
        self._feedback: list[tuple[float, float]] = []
        from_training = config.against == "training"
        self._reference: Array | None = None
        self._distance: Distance = kolmogorov_smirnov
        if reference is not None:
            self._reference = _sorted_columns(reference)
        elif quantiles is not None and from_training:
            self._reference, self._distance = quantiles, distance
        self._score_bins = np.array(calibration.upper) if calibration is not None and from_training else None
        self._score_sample: Array | None = None
        self._needs: list[float] = []
        self._need_sample: Array | None = None
        self._drifting: dict[str, Finding] = {}
        self.expect_needs(needs)

    @property
    def drifting(self) -> dict[str, Finding]:
        """The findings of what drifts now, by kind."""
        return dict(self._drifting)

    def add_request(self, features: Array, scores: Array) -> None:
        """Take in the features (candidates, 5) and scores (candidates,) of a request; neither may change later."""
        rows = slice(None, None, -(-len(features) // self.config.rows_per_request))
        with self._lock:
            self._features.append(features[rows])
            self._scores.append(scores[rows])
            if len(self._features) < self.config.request_window:
                return
            all_features, all_scores = np.concatenate(self._features), np.concatenate(self._scores)
            self._features, self._scores = [], []
        self._judge_features(_sorted_columns(all_features))
        self._judge_scores(np.sort(all_scores))

    def expect_needs(self, needs: ArrayLike | None) -> None:
        """Hold needs against these, shape (n,), from a new window on; without any against the first window."""
        known = None if needs is None or self.config.against != "training" else np.sort(np.asarray(needs, np.float64))
        with self._lock:
            self._needs, self._need_sample = [], known
            self._drifting.pop("needs", None)

    def add_need(self, need: float) -> None:
        """Take in what a prompt needs of the stronger model."""
        with self._lock:
            self._needs.append(need)
            if len(self._needs) < self.config.request_window:
                return
            window, self._needs = np.sort(self._needs), []
            expected = self._need_sample
            if expected is None:
                self._need_sample = window
                return
        self._found("needs", "needs", kolmogorov_smirnov(expected, window), self.config.distance_limit, len(window))

    def add_feedback(self, expected: float, quality: float) -> None:
        """Take in an outcome and what was expected of it, both from 0 to 1."""
        with self._lock:
            self._feedback.append((expected, quality))
            if len(self._feedback) < self.config.feedback_window:
                return
            pairs, self._feedback = np.array(self._feedback), []
        expectations, qualities = pairs.T
        off = abs(float((qualities - expectations).mean()))
        # The most that the mean of independent outcomes with these expectations varies by.
        error = math.sqrt(float((expectations * (1.0 - expectations)).sum())) / len(pairs)
        limit = max(self.config.calibration_limit, 3.0 * error)
        self._found("calibration", "calibration", off, limit, len(pairs))

    def _judge_features(self, columns: Array) -> None:
        if self._reference is None:
            self._reference = columns
            return
        distances = {
            name: self._distance(reference, column)
            for name, reference, column in zip(FEATURE_NAMES, self._reference, columns, strict=True)
            if name in self.config.features
        }
        most = max(distances, key=distances.__getitem__)
        self._found("features", most, distances[most], self.config.distance_limit, columns.shape[1])

    def _judge_scores(self, scores: Array) -> None:
        if self._score_bins is not None:
            # Of the held-out scores, the share (i + 1) / n is at most upper[i].
            expected = np.arange(1, len(self._score_bins) + 1) / len(self._score_bins)
            found = np.searchsorted(scores, self._score_bins, side="right") / len(scores)
            far = float(np.abs(found - expected).max())
        elif self._score_sample is None:
            self._score_sample = scores
            return
        else:
            far = kolmogorov_smirnov(self._score_sample, scores)
        self._found("scores", "scores", far, self.config.distance_limit, len(scores))

    def _found(self, kind: Kind, subject: str, far: float, limit: float, size: int) -> None:
        with self._lock:
            before = kind in self._drifting
            now = far > (_ENDS_AT * limit if before else limit)
            finding = Finding(kind, subject, far, limit, size, is_drifting=now, has_changed=now != before)
            if now:
                self._drifting[kind] = finding
            else:
                self._drifting.pop(kind, None)
        self._report(finding)

    def __repr__(self) -> str:
        """Show what drifts."""
        return f"DriftWatch(drifting: {', '.join(sorted(self._drifting)) or 'nothing'})"


def kolmogorov_smirnov(one: Array, other: Array) -> float:
    """Return the largest difference of the distribution functions of two sorted samples, from 0 to 1."""
    both = np.concatenate([one, other])
    first = np.searchsorted(one, both, side="right") / len(one)
    second = np.searchsorted(other, both, side="right") / len(other)
    return float(np.abs(first - second).max())


def _sorted_columns(features: ArrayLike) -> Array:
    """Return features (n, 5) as (5, n), each row sorted."""
    columns = np.asarray(features, dtype=np.float64).T
    if columns.ndim != 2 or len(columns) != len(FEATURE_NAMES) or not columns.shape[1]:
        raise DimensionMismatch(f"reference features have shape {columns.T.shape}, expected (n, {len(FEATURE_NAMES)})")
    if not np.isfinite(columns).all():
        raise NonFiniteInput("reference features hold NaN or infinity: leave those rows out")
    return np.sort(columns, axis=1)
