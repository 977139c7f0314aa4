"""How much of the strong model's gain a router keeps at which cost, and what would be kept without it.

A router ranks prompts by their need for the strong model. Sending the neediest share c to the strong one recovers a
part of the gap between the two models (RouteLLM's *performance gap recovered*); APGR is that part averaged over all c,
0.5 for a coin. CPT(x) is the smallest c that recovers the part x. Prompts of equal need count as drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from router.errors import InvalidRequest, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from router.pairs import Pairs

    Array = NDArray[np.floating[Any]]
    Places = NDArray[np.intp]

__all__ = ["Comparison", "Curve", "Scores", "compare", "gain_curve", "split_by_domain", "split_by_prompt"]


class Curve(NamedTuple):
    """What is recovered at which cost; both rising from 0 to 1 in the first, any value in the second."""

    strong_share: Array
    """Share of the prompts that go to the strong model, 0 to 1, shape (n + 1,)."""
    recovered: Array
    """Share of the gap between weak and strong that is recovered, same shape; may pass 1, may be negative."""

    @property
    def apgr(self) -> float:
        """The mean of what is recovered over all shares."""
        return float(np.trapezoid(self.recovered, self.strong_share))

    def cpt(self, part: float) -> float:
        """Return the smallest share of strong calls that recovers ``part`` of the gap; 1 if none below it does."""
        reached = np.flatnonzero(self.recovered >= part)
        if not len(reached):
            return 1.0
        at = int(reached[0])
        if at == 0:
            return 0.0
        low, high = self.recovered[at - 1], self.recovered[at]
        within = (part - low) / (high - low)
        return float(self.strong_share[at - 1] + within * (self.strong_share[at] - self.strong_share[at - 1]))


def gain_curve(need: Array, gain: Array) -> Curve:
    """Return the curve of a ranking by ``need``, with the strong model's ``gain`` per prompt, both of shape (n,).

    Raises InvalidRequest when the strong model gains nothing over all prompts: there is no gap to recover.
    """
    total = float(gain.sum())
    if total <= 0.0:
        raise InvalidRequest(
            f"the strong model is right on no more of these {len(gain)} prompts than the weak one: there is no gap to "
            f"recover, and nothing to measure a router by"
        )
    _, group, counts = np.unique(-need, return_inverse=True, return_counts=True)
    mean_gain = np.bincount(group, weights=gain) / counts
    order = np.argsort(-need, kind="stable")
    recovered = np.concatenate([[0.0], np.cumsum(mean_gain[group[order]])]) / total
    return Curve(np.linspace(0.0, 1.0, len(gain) + 1), recovered)


def split_by_prompt(pairs: Pairs, seed: int) -> tuple[Places, Places]:
    """Return places of the training and of the test half; equal prompts are on one side."""
    distinct = {prompt: number for number, prompt in enumerate(sorted(set(pairs.prompts)))}
    return _halves(np.array([distinct[prompt] for prompt in pairs.prompts]), seed)


def split_by_domain(pairs: Pairs, seed: int) -> tuple[Places, Places]:
    """Return places of training and test prompts that share no domain; TrainingError with fewer than two domains."""
    names, numbers = np.unique(pairs.domains, return_inverse=True)
    if len(names) < 2:
        raise TrainingError(f"all prompts are of one domain, {names[0]!r}: none is left to be unseen")
    return _halves(numbers, seed)


def _halves(groups: NDArray[np.integer[Any]], seed: int) -> tuple[Places, Places]:
    count = int(groups.max()) + 1
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
    return np.flatnonzero(chosen[groups]), np.flatnonzero(~chosen[groups])


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One method's results over the splits."""

    apgr: Array
    """(splits,)"""
    cpt50: Array
    cpt80: Array

    def gain_over(self, other: Scores) -> tuple[float, float]:
        """Return mean and standard deviation of the paired differences in APGR, over the splits."""
        differences = self.apgr - other.apgr
        return float(differences.mean()), float(differences.std(ddof=1)) if len(differences) > 1 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Methods beside each other on the same splits."""

    scores: Mapping[str, Scores]
    curves: Mapping[str, tuple[Curve, ...]]
    weak_accuracy: float
    strong_accuracy: float
    prompts: int

    def best_of(self, names: Sequence[str]) -> str:
        """Return the one of ``names`` with the highest mean APGR."""
        return max(
            (name for name in names if name in self.scores), key=lambda name: float(self.scores[name].apgr.mean())
        )


def compare(
    pairs: Pairs,
    methods: Mapping[str, Callable[[Pairs, Places, Places, int], Array]],
    *,
    split: Callable[[Pairs, int], tuple[Places, Places]] = split_by_prompt,
    splits: int = 5,
    on_fit: Callable[[str, int], object] | None = None,
) -> Comparison:
    """Fit every method on the training half of each split and rank its test half.

    A method takes the pairs, the places to learn from, the places to rank and the split's number as a seed, and returns
    the need of each prompt to be ranked. ``on_fit`` is told the method and the split before each fit, for progress.
    """
    curves: dict[str, list[Curve]] = {name: [] for name in methods}
    for number in range(splits):
        training, test = split(pairs, number)
        for name, method in methods.items():
            if on_fit is not None:
                on_fit(name, number)
            curves[name].append(gain_curve(method(pairs, training, test, number), pairs.gain[test]))
    scores = {
        name: Scores(
            np.array([curve.apgr for curve in found]),
            np.array([curve.cpt(0.5) for curve in found]),
            np.array([curve.cpt(0.8) for curve in found]),
        )
        for name, found in curves.items()
    }
    accuracy = pairs.outcomes.mean(axis=0)
    return Comparison(
        scores, {n: tuple(c) for n, c in curves.items()}, float(accuracy[0]), float(accuracy[1]), len(pairs)
    )
