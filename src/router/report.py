"""The whole evaluation of a router on recorded pairs: rankings, promises, calibration; what ``router eval`` shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from router.baselines import (
    embedding_baselines,
    mean_gain_of_domain,
    prompt_length,
    random_order,
    text_baselines,
)
from router.conformal import control_risk, required_calibration_size
from router.errors import DimensionMismatch, InvalidRequest
from router.evaluation import compare, split_by_domain, split_by_prompt
from router.pairs import HEADS
from router.prompt_model import PromptModel, PromptRecipe, need_of
from router.prompts import embed_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from router.baselines import Method
    from router.embedding import Embedder
    from router.evaluation import Comparison
    from router.pairs import Pairs

    Array = NDArray[np.floating[Any]]
    Places = NDArray[np.intp]

__all__ = ["ALPHAS", "Evaluation", "PromiseKept", "Reliability", "evaluate"]

ALPHAS = (0.02, 0.05, 0.1)
RESPLITS = 200
RELIABILITY_BINS = 10
LENGTH, DOMAIN, COIN = "prompt length, untrained", "mean gain of the domain", "random"
UNSEEN = "domains unseen in training"
FEWEST_PROMPTS = 20
"""In a half; the baselines hold a tenth of it out, and that has to have both kinds of outcomes."""


class PromiseKept(NamedTuple):
    """What came of risk control at one level, over many splits of the test half into calibration and test."""

    alpha: float
    mean_risk: float
    """Share of prompts that were sent to the weak model and harmed, mean over the splits."""
    standard_error: float
    """Of that mean, were the splits independent; they share prompts, so it is a lower limit."""
    weak_share: float
    """Share of prompts that were sent to the weak model."""


class Reliability(NamedTuple):
    """How true the probabilities of one head are, in bins of equal size in order of probability."""

    claimed: Array
    observed: Array


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All results; comparisons by the way in which prompts were split."""

    comparisons: Mapping[str, Comparison]
    ours: str
    """The name of the model that the promises and the reliability are about."""
    promises: tuple[PromiseKept, ...]
    reliability: Mapping[str, Reliability] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Ways to split that these prompts do not allow, and why."""


def evaluate(
    pairs: Pairs,
    embedders: Mapping[str, Embedder],
    *,
    model: PromptModel | None = None,
    splits: int = 5,
    unseen_domains: bool = True,
    recipe: PromptRecipe | None = None,
    alphas: Sequence[float] = ALPHAS,
    tell: Callable[[str], object] = lambda _: None,
) -> Evaluation:
    """Compare prompt models with the baselines on ``splits`` halves of ``pairs``.

    A prompt model is trained anew for each split and each of ``embedders``, by name; the first of them also serves the
    baselines. ``model`` is ranked beside them as it is, on the same test halves; if it has seen these prompts, its
    figures are worth nothing. Promises and reliability are those of ``model``, or else of the prompt model of the first
    embedder; promises for which a half is too small are left out. ``tell`` hears what is being done. Raises
    InvalidRequest when there are too few prompts or the strong model gains nothing.
    """
    ways = {"equal prompts on one side": split_by_prompt}
    if (reason := _not_measurable(pairs, split_by_prompt, splits)) is not None:
        raise InvalidRequest(f"there is nothing to measure a router by: {reason}; record more outcomes")
    left_out: dict[str, str] = {}
    if unseen_domains and len(set(pairs.domains.tolist())) > 1:
        reason = _not_measurable(pairs, split_by_domain, splits)
        if reason is None:
            ways[UNSEEN] = split_by_domain
        else:
            left_out[UNSEEN] = reason
    recipe = recipe or PromptRecipe.for_prompts(len(pairs) // 2)
    chunks = {name: _embedded(pairs, embedder, recipe.chunk_count, name, tell) for name, embedder in embedders.items()}
    first = next(iter(embedders))
    methods: dict[str, Method] = {COIN: random_order, LENGTH: prompt_length}
    if len(set(pairs.domains.tolist())) > 1:
        methods[DOMAIN] = mean_gain_of_domain
    tell(f"embedding {len(pairs)} whole prompts with {first} for the baselines")
    whole = embed_chunks(pairs.prompts, embedders[first], 1)[:, 0]
    methods |= text_baselines() | embedding_baselines(pairs, whole)
    qualities: dict[int, Array] = {}
    for name in embedders:
        kept = qualities if name == first and model is None else {}
        methods[_title(name)] = _trained_anew(chunks[name], name, recipe, kept)
    if model is not None:
        methods["the given model"] = _as_it_is(model, pairs, chunks, qualities)
    comparisons = {}
    promises: tuple[PromiseKept, ...] = ()
    reliability: dict[str, Reliability] = {}
    for way, split in ways.items():
        qualities.clear()
        comparisons[way] = compare(
            pairs,
            methods,
            split=split,
            splits=splits,
            on_fit=partial(_tell_fit, tell, way),
        )
        if not reliability:
            halves = [pairs.take(split(pairs, number)[1]) for number in range(splits)]
            tell(f"{RESPLITS} splits for each promise")
            known = min(map(len, halves)) // 2
            promises = tuple(
                _promise(halves, qualities, alpha) for alpha in alphas if required_calibration_size(alpha) <= known
            )
            reliability = _reliability(halves, qualities)
    ours = "the given model" if model is not None else _title(first)
    return Evaluation(comparisons, ours, promises, reliability, left_out)


def _not_measurable(pairs: Pairs, split: Callable[[Pairs, int], tuple[Places, Places]], splits: int) -> str | None:
    """Return why models cannot be compared on these halves; None where they can."""
    for number in range(splits):
        training, test = split(pairs, number)
        least = min(len(training), len(test))
        if least < FEWEST_PROMPTS:
            return f"split {number + 1} has a half of {least} prompts, where {FEWEST_PROMPTS} are the least"
        if not pairs.gain[test].sum() > 0.0:
            return (
                f"the strong model is right on no more of the {len(test)} prompts to test on in split {number + 1} "
                f"than the weak one, so there is no gap to recover"
            )
        harmed = int(pairs.harm[training].sum())
        if harmed in {0, len(training)}:
            return (
                f"in split {number + 1}, {harmed} of the {len(training)} prompts to train on have the weak model wrong "
                f"and the strong one right, so there is nothing to learn to tell apart"
            )
    return None


def _tell_fit(tell: Callable[[str], object], way: str, method: str, split: int) -> None:
    tell(f"{way}: split {split + 1}, {method}")


def _title(embedder: str) -> str:
    return f"FastGRNN, two heads, {embedder}"


def _embedded(pairs: Pairs, embedder: Embedder, count: int, name: str, tell: Callable[[str], object]) -> Array:
    tell(f"embedding {len(pairs)} prompts, {count} chunks each, with {name}")
    return embed_chunks(pairs.prompts, embedder, count)


def _trained_anew(chunks: Array, embedder: str, recipe: PromptRecipe, qualities: dict[int, Array]) -> Method:
    def method(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
        known = pairs.take(training)
        model = PromptModel.fit(
            HEADS, known.prompts, chunks[training], known.outcomes, embedder=embedder, recipe=recipe, seed=seed
        )
        qualities[seed] = model.quality(pairs.take(test).prompts, chunks[test])
        return need_of(qualities[seed])

    return method


def _as_it_is(model: PromptModel, pairs: Pairs, chunks: Mapping[str, Array], qualities: dict[int, Array]) -> Method:
    if model.heads != HEADS:
        raise DimensionMismatch(f"the model knows {model.heads}, these tables are about {HEADS}")
    if model.embedder not in chunks:
        raise DimensionMismatch(f"the model needs the embedder {model.embedder!r}: name it with --embedder")
    all_of_them = model.quality(pairs.prompts, chunks[model.embedder])

    def method(pairs: Pairs, training: Places, test: Places, seed: int) -> Array:
        del pairs, training
        qualities[seed] = all_of_them[test]
        return need_of(qualities[seed])

    return method


def _promise(halves: Sequence[Pairs], qualities: Mapping[int, Array], alpha: float) -> PromiseKept:
    """Split every test half again and again: calibrate on one part, count harm on the other."""
    random = np.random.default_rng(0)
    risks, shares = [], []
    for number in range(RESPLITS):
        half, need = halves[number % len(halves)], need_of(qualities[number % len(halves)])
        order = random.permutation(len(half))
        known, new = order[: len(order) // 2], order[len(order) // 2 :]
        sent = control_risk(need[known], half.harm[known], alpha).allows(need[new])
        risks.append(float((half.harm[new] * sent).mean()))
        shares.append(float(sent.mean()))
    return PromiseKept(alpha, float(np.mean(risks)), float(np.std(risks) / np.sqrt(RESPLITS)), float(np.mean(shares)))


def _reliability(halves: Sequence[Pairs], qualities: Mapping[int, Array]) -> dict[str, Reliability]:
    claimed = np.concatenate([qualities[number] for number in range(len(halves))])
    observed = np.concatenate([half.outcomes for half in halves])
    found = {}
    for head, name in enumerate(HEADS):
        parts = np.array_split(np.argsort(claimed[:, head], kind="stable"), RELIABILITY_BINS)
        found[name] = Reliability(
            np.array([claimed[part, head].mean() for part in parts]),
            np.array([observed[part, head].mean() for part in parts]),
        )
    return found
