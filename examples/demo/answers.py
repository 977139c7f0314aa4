"""The second part of the demo: a policy chooses who answers, feedback says how good that was, and drift is watched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from intake import EMBEDDER
from questions import EASY, HARD, SOLVERS, Question, questions

from router import Candidate, CandidatePool, DriftConfig, Guaranteed, History, Router, RoutingRequest
from router.conformal import AdaptiveRisk
from router.errors import DuplicateFeedback
from router.model_file import load_prompt_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from summary import Tally

PHASES = (EASY, HARD, EASY)
PER_PHASE = 100
WINDOW = 50
"""Questions after which drift is measured; the first window is what later ones are held against."""
ALPHA = 0.1
PRICES = {"weak": 1.0, "strong": 10.0}


class Turn(NamedTuple):
    """A drift that began or ended."""

    question: int
    kind: str
    has_begun: bool


class Answers:
    """What the demo itself saw of this part, to hold the signals against."""

    def __init__(self) -> None:
        self.by: Counter[str] = Counter()
        """By who answered."""
        self.right: Counter[str] = Counter()
        """By who answered; under "weak alone" and "strong alone" by who would have been right."""
        self.twice = 0
        self.turns: list[Turn] = []
        self.known = ""
        self.level = ALPHA

    @property
    def count(self) -> int:
        return self.by.total()

    @property
    def drifts(self) -> int:
        return sum(turn.has_begun for turn in self.turns)


def all_questions() -> Iterator[Question]:
    """Yield easy ones, then hard ones, then easy ones again."""
    for seed, steps in enumerate(PHASES):
        yield from questions(PER_PHASE, steps, seed)


class Answering:
    """A router with a policy and a history in the working folder, and the two programs behind it."""

    def __init__(self, tally: Tally) -> None:
        prompt_model = load_prompt_model()
        assert prompt_model.calibration is not None
        Path("history.db").unlink(missing_ok=True)  # of this run only
        self.history = History("history.db")
        policy = Guaranteed.adaptive(ALPHA, prompt_model.calibration, rate=0.05)
        assert isinstance(policy.rule, AdaptiveRisk)
        self.rule = policy.rule
        self.router = Router(
            prompt_model=prompt_model,
            policy=policy,
            history=self.history,
            drift=DriftConfig(request_window=WINDOW, feedback_window=WINDOW, against="first_window"),
        )
        self.pool = CandidatePool(
            [
                Candidate(name, EMBEDDER.embed("problems of school mathematics"), price=price)
                for name, price in PRICES.items()
            ]
        )
        self.tally = tally
        self.seen = tally.answers = Answers()

    def answer(self, question: Question) -> None:
        """Route a question, have it answered, and tell the router whether that was right."""
        seen, router, prompt = self.seen, self.router, question.prompt
        assert router.drift is not None
        before = set(router.drift.drifting)
        response = router.route(RoutingRequest(EMBEDDER.embed(prompt), self.pool, prompt=prompt))
        assert response.request_id is not None
        name = response.chosen.candidate_id
        with router.backend(name).call():
            found = SOLVERS[name](prompt)
        router.feedback(response.request_id, float(found == question.answer))
        seen.by[name] += 1
        seen.right[name] += found == question.answer
        for each, solve in SOLVERS.items():
            seen.right[f"{each} alone"] += solve(prompt) == question.answer
        after = set(router.drift.drifting)
        seen.turns += [Turn(seen.count, kind, has_begun=kind in after) for kind in sorted(before ^ after)]
        self.tally.add(response)
        if seen.count == 1:
            try:
                router.feedback(response.request_id, 0.0)
            except DuplicateFeedback:
                seen.twice += 1

    def finish(self) -> None:
        """Keep what the history and the policy have learned, and close the file."""
        known = self.history.known().items()
        self.seen.known = ", ".join(
            f"{name} {each.calls} answers, {each.success_rate:.0%} right" for name, each in known
        )
        self.seen.level = self.rule.level
        self.history.close()
