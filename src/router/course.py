"""The course of a request through the router: what was found and when, and what is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import eventcore as ec
from router.events import (
    AssessPrompt,
    CheckCircuitBreaker,
    EngineerFeatures,
    EstimateUncertainty,
    InferModel,
    RouteRequest,
    RoutingDecided,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.features import CandidatePool, RoutingRequest
    from router.reader import Reader

    Array = NDArray[np.floating[Any]]

__all__ = ["ROUTED", "Course"]

SILENT: tuple[type[ec.Operation], ...] = (CheckCircuitBreaker, EngineerFeatures, InferModel, EstimateUncertainty)
"""The steps of a request, in order, in which nothing can be emitted."""


class Course:
    """One request on its way.

    ``marks``: when it began, when each step ended, and when it was answered (ns of the emitter's monotonic clock). What
    a step finds has no value before the step has ended.
    """

    __slots__ = (
        "chosen",
        "confidence",
        "count",
        "is_decided",
        "lightweight",
        "marks",
        "now_ns",
        "now_s",
        "permit",
        "place",
        "pool",
        "quality",
        "reader",
        "request",
        "state",
        "uncertainty",
    )

    pool: CandidatePool
    confidence: Array
    uncertainty: Array
    quality: Array
    lightweight: NDArray[np.bool_]
    place: int | None
    """Of the candidate to use; None for the one of the highest confidence."""

    def __init__(self, request: RoutingRequest, reader: Reader | None, now_ns: Callable[[], int], now_s: float) -> None:
        """Begin; ``reader`` is what reads its prompt, if anything does."""
        self.request = request
        self.reader = reader
        self.count = len(request.candidates)
        self.now_ns = now_ns
        self.marks = [now_ns()]
        self.now_s = now_s
        self.permit = 0
        self.state = "closed"
        self.chosen: str | None = None
        self.is_decided = False

    @property
    def steps(self) -> tuple[type[ec.Operation], ...]:
        """The steps that it has, in order."""
        return SILENT if self.reader is None else (*SILENT, AssessPrompt)

    @property
    def under_way(self) -> type[ec.Operation] | None:
        """The step that has begun and not ended."""
        steps, ended = self.steps, len(self.marks) - 1
        return steps[ended] if ended < len(steps) else None

    # -- what is told ------------------------------------------------------------------------------------------------

    @property
    def given(self) -> dict[str, Any]:
        """The fields of `RouteRequest` that are known when it comes."""
        return {"candidate_count": self.count, "request_id": self.request.request_id}

    @property
    def results(self) -> dict[str, Any]:
        """The fields of `RouteRequest` that are known when it was answered."""
        light = int(np.count_nonzero(self.lightweight))
        results = {
            "inference_time_us": (self.marks[-1] - self.marks[0]) // 1000,
            "lightweight_routes": light,
            "powerful_routes": self.count - light,
        }
        return results if self.chosen is None else {**results, "chosen": self.chosen}

    @property
    def decisions(self) -> dict[str, Any]:
        """The fields of `RoutingDecided`."""
        return {
            "candidate_id": self.pool.ids,
            "use_lightweight": self.lightweight,
            "uncertainty": self.uncertainty,
            "confidence": self.confidence,
        }

    def fields_of(self, step: type[ec.Operation]) -> dict[str, Any]:
        """Return the fields of one of its steps; where that failed, without what it would have found."""
        if step is CheckCircuitBreaker:
            return {"state": self.state}
        if step is InferModel:
            found = {"confidence": self.confidence} if hasattr(self, "confidence") else {}
            return {"model_type": "fastgrnn", "candidate_id": self.request.pool.ids, **found}
        if step is AssessPrompt:
            return {"known_models": len(self.reader.heads) if self.reader else 0}
        return {"batch_size": self.count}

    def tell(self, operation: ec.LiveOperation[RouteRequest], error: BaseException | None = None) -> None:
        """Emit its steps inside the operation that it is; the one under way ends now, with the ``error``."""
        for step, began_ns, ended_ns in zip(self.steps, self.marks, self.marks[1:], strict=False):
            operation.step(step, began_ns, ended_ns, **self.fields_of(step))
        failed = self.under_way
        if failed is not None and error is not None:
            operation.step(failed, self.marks[-1], self.now_ns(), error, **self.fields_of(failed))
        if self.is_decided:
            operation.event(RoutingDecided(**self.decisions))
        if error is None:
            operation.set(**self.results)


def _unfold(course: Course) -> list[ec.Past]:
    marks, told = course.marks, [ec.Past(course.marks[0], course.marks[-1], {**course.given, **course.results})]
    for step, began_ns, ended_ns in zip(SILENT, marks, marks[1:], strict=False):
        told.append(ec.Past(began_ns, ended_ns, course.fields_of(step)))
    return [*told, ec.Past(marks[-1], marks[-1], course.decisions)]


ROUTED = ec.Recording(RouteRequest, (*SILENT, RoutingDecided), _unfold)
"""A request that was answered, as it is told when nothing in it could emit anything: at the least cost."""
