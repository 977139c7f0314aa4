"""From an answer to what became of it: which requests wait for feedback, and what a piece of feedback means.

Both are kept in the history. That is where a second outcome of a request is refused, so that of several callers,
threads or processes exactly one is heard.
"""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from router.choice import Guaranteed
from router.errors import InvalidRequest, NonFiniteInput, UnknownRequest
from router.history import duplicate
from router.waiting import Open

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from router.choice import Policy
    from router.history import History
    from router.response import RoutingResponse

    Array = NDArray[np.floating[Any]]

__all__ = ["FeedbackLoop", "Outcome", "checked_quality"]


class Outcome(NamedTuple):
    """What a piece of feedback means."""

    candidate_id: str
    quality: float
    expected: float
    need: float | None
    was_cheap: bool
    """Whether the cheap one of two candidates answered, where the policy is a guarantee."""


class FeedbackLoop:
    """Remembers answers and takes feedback on them; safe to share between threads."""

    def __init__(self, history: History) -> None:
        """Take the history."""
        self.history = history

    def remember(self, response: RoutingResponse, prices: Array, policy: Policy | None) -> None:
        """Let a request wait for feedback; a response without an id gets one."""
        quality = response.quality
        if response.request_id is None:
            response.request_id = uuid.uuid4().hex
        chosen = response.best_place if response.place is None else response.place
        need = cheap = None
        if isinstance(policy, Guaranteed) and len(prices) == 2:
            need, cheap = float(policy.needs(quality[None], prices)[0]), int(prices.argmin())
        self.history.await_feedback(response.request_id, Open(response.ids, quality, chosen, need, cheap))

    def accept(self, request_id: str, quality: float, candidate_id: str | None) -> Outcome:
        """Put an outcome into the history and return what it means; the errors are those of `Router.feedback`."""
        quality = checked_quality(quality)
        found = self.history.waiting(request_id)
        if found is None:
            if self.history.has(request_id):
                raise duplicate(request_id)
            raise UnknownRequest(
                f"no request {request_id!r} waits for feedback: give the response's request_id within "
                f"{self.history.max_waiting_s:g} s, while it is among the last {self.history.max_waiting} requests of "
                f"{self.history.path}"
            )
        place = found.chosen if candidate_id is None else _place_of(candidate_id, found.ids, request_id)
        expected = float(found.expected[place])
        outcome = Outcome(found.ids[place], quality, expected, found.need, was_cheap=place == found.cheap)
        self.history.add(
            request_id, outcome.candidate_id, quality, expected, need=outcome.need, was_cheap=outcome.was_cheap
        )
        return outcome

    def __repr__(self) -> str:
        """Show where it is kept."""
        return f"FeedbackLoop({self.history!r})"


def checked_quality(quality: float) -> float:
    """Return a quality from 0 to 1 as a float; InvalidRequest for anything else, NonFiniteInput for NaN or infinity."""
    try:
        value = float(quality)
    except (TypeError, ValueError):
        value = -1.0
    if 0.0 <= value <= 1.0:
        return value
    kind = InvalidRequest if math.isfinite(value) else NonFiniteInput
    raise kind(f"the quality of an answer is {quality!r}: use a number from 0 (wrong) to 1 (right)")


def _place_of(candidate_id: str, ids: Sequence[str], request_id: str) -> int:
    try:
        return ids.index(candidate_id)
    except ValueError:
        raise InvalidRequest(
            f"request {request_id!r} had no candidate {candidate_id!r}: name the one of its {len(ids)} that answered"
        ) from None
