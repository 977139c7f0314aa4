"""What a router answers: a decision for each candidate, made into objects when they are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

A = TypeVar("A", bound="NDArray[Any]")

__all__ = ["RoutingDecision", "RoutingResponse"]


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The decision for one candidate."""

    candidate_id: str
    confidence: float
    use_lightweight: bool
    uncertainty: float


class RoutingResponse:
    """Decisions by confidence, highest first, and what they cost; immutable.

    It keeps the arrays they were computed in, and sorts and makes decisions when they are looked at: a hundred of them
    cost more than all the arithmetic before, and most callers look at one.
    """

    __slots__ = (
        "_confidence",
        "_decisions",
        "_order",
        "_quality",
        "_uncertainty",
        "_use_lightweight",
        "feature_time_us",
        "ids",
        "inference_time_us",
        "place",
        "request_id",
    )

    ids: Sequence[str]
    """As they came; the arrays are in the same order."""
    inference_time_us: int
    """From entry to the answer, whole microseconds; the name is Tiny Dancer's."""
    feature_time_us: int
    request_id: str | None
    """What `Router.feedback` is told."""
    place: int | None
    """The place of the candidate that a policy chose."""

    def __init__(
        self,
        ids: Sequence[str],
        confidence: Array,
        use_lightweight: NDArray[np.bool_],
        uncertainty: Array,
        *,
        inference_time_us: int,
        feature_time_us: int,
        request_id: str | None = None,
        chosen: int | None = None,
        quality: Array | None = None,
    ) -> None:
        """Take arrays of shape (candidates,) and the place of the candidate that a policy chose."""
        self.ids = ids
        self._confidence = confidence
        self._use_lightweight = use_lightweight
        self._uncertainty = uncertainty
        self.inference_time_us = inference_time_us
        self.feature_time_us = feature_time_us
        self.request_id = request_id
        self.place = chosen
        self._quality = confidence if quality is None else quality
        self._order: NDArray[np.intp] | None = None
        self._decisions: tuple[RoutingDecision, ...] | None = None

    @property
    def confidence(self) -> Array:
        """The confidence in each candidate, shape (candidates,); like all of its arrays read-only."""
        return _sealed(self._confidence)

    @property
    def uncertainty(self) -> Array:
        """How far each confidence may be from the truth, shape (candidates,)."""
        return _sealed(self._uncertainty)

    @property
    def use_lightweight(self) -> NDArray[np.bool_]:
        """Which candidates the lightweight model may answer for, shape (candidates,)."""
        return _sealed(self._use_lightweight)

    @property
    def quality(self) -> Array:
        """What is expected of each candidate's answer: its confidence, or what a prompt model said."""
        return _sealed(self._quality)

    @property
    def order(self) -> NDArray[np.intp]:
        """Places of the candidates by confidence, highest first; equal ones as they came."""
        if self._order is None:
            self._order = (-self._confidence).argsort(kind="stable")
        return self._order

    @property
    def decisions(self) -> tuple[RoutingDecision, ...]:
        """All of them, by confidence."""
        if self._decisions is None:
            ids, scores, light, doubt = (
                self.ids,
                self._confidence.tolist(),
                self._use_lightweight.tolist(),
                self._uncertainty.tolist(),
            )
            self._decisions = tuple(RoutingDecision(ids[i], scores[i], light[i], doubt[i]) for i in self.order.tolist())
        return self._decisions

    @property
    def best_place(self) -> int:
        """The place of the candidate with the highest confidence."""
        return int(self._confidence.argmax())

    @property
    def best(self) -> RoutingDecision:
        """The candidate with the highest confidence."""
        return self._at(self.best_place)

    @property
    def chosen(self) -> RoutingDecision:
        """The candidate to send the request to: the policy's choice; without a policy the best that answers."""
        return self.best if self.place is None else self._at(self.place)

    @property
    def candidates_processed(self) -> int:
        """How many candidates there were."""
        return len(self.ids)

    def _at(self, place: int) -> RoutingDecision:
        return RoutingDecision(
            self.ids[place],
            float(self._confidence[place]),
            bool(self._use_lightweight[place]),
            float(self._uncertainty[place]),
        )

    def __repr__(self) -> str:
        """Show what was chosen."""
        return f"RoutingResponse({len(self.ids)} candidates, chosen {self.chosen.candidate_id!r})"


def _sealed(array: A) -> A:
    """Return the array, read-only from now on: it is told in a worker, maybe later."""
    array.setflags(write=False)
    return array
