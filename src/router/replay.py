"""Recorded outcomes, and a replay of them that gives each request the features a running router would have seen.

The table says how well every model answers every prompt. A router never has such a table: when a request comes, it
knows of each candidate what the requests so far have shown. The replay recovers that. Prompts come in a seeded order;
models join the pool over time; each request is answered by a few candidates, drawn with unequal popularity, and only
those add to what is known: how often a candidate was called; how often it succeeded (rule of succession,
(s + 1)/(n + 2), so that an untried one stands at ½); for which tasks it has proven good; and the mean embedding of the
questions it answered well. The features of all candidates are computed, by the code that serves, *before* anything of
the request is learned.

Only ``history`` prompts are learned from. Replaying validation, calibration or test prompts among the training prompts
keeps what is known of the candidates alike for all of them, and nothing measured on a prompt ever comes from a prompt
outside the training split.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from router.errors import DataNotFound, TrainingError
from router.features import Candidate, CandidatePool, extract_features

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["Outcomes", "ReplayConfig", "Samples", "question_of", "read_outcomes", "replay", "split_prompts"]

_COST_SUFFIX = "|total_cost"
PROVEN = "proven"


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """How every model answered every prompt."""

    models: tuple[str, ...]
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    """One per prompt."""
    success: NDArray[np.bool_]
    """(prompts, models): whether the model's score is at least ½."""
    prices: Array
    """(models,): mean cost per prompt."""
    skipped_rows: int
    """Rows left out because a model's score is missing."""


def read_outcomes(path: Path) -> Outcomes:
    """Read a table of the RouterBench form: ``task``, ``prompt``, a score per model and ``MODEL|total_cost``.

    ``path`` is CSV, gzip-compressed when it ends in ``.gz``. Raises DataNotFound when it is absent, TrainingError when
    it is not such a table.
    """
    if not path.is_file():
        raise DataNotFound(f"there is no outcome table at {path}: give the folder of the data with --data")
    with _opened(path) as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        models = tuple(name for name in names if f"{name}{_COST_SUFFIX}" in names)
        if not models or not {"task", "prompt"} <= set(names):
            raise TrainingError(
                f"{path} is no outcome table: expected task, prompt, MODEL and MODEL|total_cost columns"
            )
        rows = list(reader)
    complete = [row for row in rows if all(row[model] for model in models)]
    if not complete:
        raise TrainingError(f"{path} has no row with a score for every model: choose another table")
    return Outcomes(
        models=models,
        prompts=tuple(_prompt_text(row["prompt"]) for row in complete),
        tasks=tuple(row["task"] for row in complete),
        success=np.array([[float(row[model]) >= 0.5 for model in models] for row in complete]),
        prices=np.array([[float(row[model + _COST_SUFFIX] or 0.0) for model in models] for row in complete]).mean(
            axis=0
        ),
        skipped_rows=len(rows) - len(complete),
    )


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _prompt_text(cell: str) -> str:
    """Return the text of a prompt cell, which RouterBench writes as a Python list of one string."""
    if not cell.startswith("["):
        return cell
    try:
        parts = ast.literal_eval(cell)
    except (SyntaxError, ValueError):
        return cell
    return "\n".join(map(str, parts)) if isinstance(parts, list) else cell


def question_of(prompt: str) -> str:
    """Return the last paragraph of ``prompt``: what is asked, without the few-shot examples before it.

    The examples are the same for all prompts of a task. Embedded with the question they would turn the similarity of
    query and candidate into a detector of the prompt's format.
    """
    return prompt.rstrip().rpartition("\n\n")[2]


def split_prompts(prompts: Sequence[str], shares: dict[str, float], *, seed: int) -> dict[str, NDArray[np.intp]]:
    """Return the indices of the prompts in each named part; ``shares`` sum to 1.

    A prompt's place follows from a hash of its question and the seed, so equal questions stay together and the order of
    the table does not matter.
    """
    names = list(shares)
    bounds = np.cumsum([shares[name] for name in names])
    places = np.array([_place(prompt, seed) for prompt in prompts])
    parts = np.minimum(np.searchsorted(bounds, places, side="right"), len(names) - 1)
    return {name: np.flatnonzero(parts == index) for index, name in enumerate(names)}


def _place(prompt: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{question_of(prompt)}".encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """How a replay runs: ``episodes`` passes, each with its own order, pace, popularity and joining times."""

    episodes: int = 8
    answers_per_request: int = 3
    """How many candidates answer each request."""
    fastest_gap_s: float = 0.1
    slowest_gap_s: float = 10.0
    """The mean time between requests of an episode is drawn, evenly in its logarithm, between these two."""
    proven_after: int = 5
    """Answers in a task before a candidate can count as proven in it."""
    proven_rate: float = 0.8
    """Success rate in the task from which it does."""


class Samples(NamedTuple):
    """One row per candidate of each request."""

    features: NDArray[np.float32]
    """(rows, 5), not normalised"""
    successes: Array
    """(rows,), 0 or 1"""
    prompt_index: NDArray[np.intp]
    """(rows,), which prompt of the table the row belongs to"""
    request_index: NDArray[np.intp]
    """(rows,), which request: a prompt is one request per episode"""


class _Known:
    """What has been learned of one candidate so far."""

    def __init__(self, model: str, price: float, joined_s: float, dimension: int) -> None:
        self.model, self.price, self.joined_s = model, price, joined_s
        self.calls, self.successes = 0, 0
        self.by_task: dict[str, tuple[int, int]] = {}
        self.answered_well = np.zeros(dimension)

    def learn(self, task: str, embedding: Array, *, succeeded: bool) -> None:
        calls, successes = self.by_task.get(task, (0, 0))
        self.by_task[task] = (calls + 1, successes + succeeded)
        self.calls += 1
        self.successes += succeeded
        if succeeded:
            self.answered_well += embedding

    def candidate(self, config: ReplayConfig) -> Candidate:
        metadata = {
            task: PROVEN
            for task, (calls, successes) in self.by_task.items()
            if calls >= config.proven_after and (successes + 1) / (calls + 2) >= config.proven_rate
        }
        return Candidate(
            id=self.model,
            embedding=(self.answered_well / max(self.successes, 1)).astype(np.float32),
            metadata=metadata,
            created_at=self.joined_s,
            access_count=self.calls,
            success_rate=(self.successes + 1) / (self.calls + 2),
            price=self.price,
        )


def replay(
    outcomes: Outcomes,
    embeddings: NDArray[np.float32],
    *,
    history: NDArray[np.intp],
    queries: NDArray[np.intp],
    seed: int,
    config: ReplayConfig | None = None,
) -> Samples:
    """Return the samples of the ``queries`` prompts, replayed among the ``history`` prompts.

    ``embeddings`` has shape (prompts, d), a row per prompt of the table; ``history`` and ``queries`` are indices into
    it and may overlap. The same seed gives the same samples.
    """
    config = config or ReplayConfig()
    random = np.random.default_rng(seed)
    learned, asked = set(history.tolist()), set(queries.tolist())
    features, successes, prompt_index = [], [], []
    for _ in range(config.episodes):
        order = random.permutation(np.union1d(history, queries))
        gap_s = math.exp(random.uniform(math.log(config.fastest_gap_s), math.log(config.slowest_gap_s)))
        arrivals_s = np.cumsum(random.exponential(gap_s, size=len(order)))
        # Two models are there from the start, the rest joins over the first half.
        joining = random.uniform(0.0, 0.5 * arrivals_s[-1], size=len(outcomes.models))
        joining[random.permutation(len(outcomes.models))[:2]] = 0.0
        popularity = random.exponential(size=len(outcomes.models))
        known = [
            _Known(model, price, joined_s, embeddings.shape[1])
            for model, price, joined_s in zip(outcomes.models, outcomes.prices.tolist(), joining.tolist(), strict=True)
        ]
        for prompt, now_s in zip(order.tolist(), arrivals_s.tolist(), strict=True):
            present = np.flatnonzero(joining <= now_s)
            task = outcomes.tasks[prompt]
            if prompt in asked:
                pool = CandidatePool([known[model].candidate(config) for model in present])
                features.append(extract_features(embeddings[prompt], pool, {task: PROVEN}, now_s=now_s))
                successes.append(outcomes.success[prompt, present])
                prompt_index.append(np.full(len(present), prompt))
            if prompt in learned:
                weights = popularity[present] / popularity[present].sum()
                count = min(config.answers_per_request, len(present))
                for model in random.choice(present, size=count, replace=False, p=weights):
                    known[model].learn(task, embeddings[prompt], succeeded=bool(outcomes.success[prompt, model]))
    return Samples(
        features=np.concatenate(features),
        successes=np.concatenate(successes).astype(np.float64),
        prompt_index=np.concatenate(prompt_index),
        request_index=np.repeat(np.arange(len(features)), [len(rows) for rows in features]),
    )
