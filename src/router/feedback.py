"""From an answer to what became of it: which requests wait for feedback, and what a piece of feedback means.

Requests wait in memory, the newest of them; outcomes go to the history. That is where a second outcome of a request is
refused, so that of several callers, threads or processes exactly one is heard.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from router.choice import Guaranteed
from router.errors import ConfigError, InvalidRequest, NonFiniteInput, UnknownRequest
from router.history import duplicate

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from router.choice import Policy
    from router.history import History
    from router.response import RoutingResponse

    Array = NDArray[np.floating[Any]]

__all__ = ["FeedbackLoop", "Open", "OpenRequests", "Outcome", "checked_quality"]


class Open(NamedTuple):
    """A request that may get feedback."""

    ids: Sequence[str]
    expected: Sequence[float]
    """The quality that was expected of each candidate."""
    chosen: int
    """The place of the one that was chosen."""
    need: float | None
    """Of the dear one of two candidates, where the policy is a guarantee."""
    cheap: int | None
    """The place of the cheap one, likewise."""


class Outcome(NamedTuple):
    """What a piece of feedback means."""

    candidate_id: str
    quality: float
    expected: float
    need: float | None
    was_cheap: bool
    """Whether the cheap one of two candidates answered, where the policy is a guarantee."""


class OpenRequests:
    """The requests that feedback may still come for: the last ``limit``; safe to share between threads."""

    def __init__(self, limit: int = 10_000) -> None:
        """Begin empty."""
        if limit < 1:
            raise ConfigError(f"the limit of open requests is {limit!r}: at least one has to fit")
        self.limit = limit
        self.forgotten = 0
        """Requests that made room for newer ones, or whose id was used again, before any feedback came."""
        self._requests: OrderedDict[str, Open] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, request_id: str, request: Open) -> None:
        """Remember a request; one of the same id, or the oldest, makes room."""
        with self._lock:
            if self._requests.pop(request_id, None) is not None:
                self.forgotten += 1
            self._requests[request_id] = request
            if len(self._requests) > self.limit:
                self._requests.popitem(last=False)
                self.forgotten += 1

    def get(self, request_id: str) -> Open | None:
        """Return a request without taking it out."""
        return self._requests.get(request_id)

    def take(self, request_id: str) -> Open | None:
        """Take a request out: only one of several callers gets it."""
        with self._lock:
            return self._requests.pop(request_id, None)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._requests)


class FeedbackLoop:
    """Remembers answers and takes feedback on them; safe to share between threads."""

    def __init__(self, history: History, max_open: int) -> None:
        """Take the history, and how many requests may wait."""
        self.history = history
        self.open = OpenRequests(max_open)

    def remember(self, response: RoutingResponse, prices: Array, policy: Policy | None) -> None:
        """Let a request wait for feedback; a response without an id gets one."""
        quality = response.quality
        if response.request_id is None:
            response.request_id = uuid.uuid4().hex
        chosen = response.best_place if response.place is None else response.place
        need = cheap = None
        if isinstance(policy, Guaranteed) and len(prices) == 2:
            need, cheap = float(policy.needs(quality[None], prices)[0]), int(prices.argmin())
        self.open.add(response.request_id, Open(response.ids, quality.tolist(), chosen, need, cheap))

    def accept(self, request_id: str, quality: float, candidate_id: str | None) -> Outcome:
        """Put an outcome into the history and return what it means; the errors are those of `Router.feedback`."""
        quality = checked_quality(quality)
        found = self.open.get(request_id)
        if found is None:
            if self.history.has(request_id):
                raise duplicate(request_id)
            raise UnknownRequest(
                f"no request {request_id!r} waits for feedback: give the response's request_id while it is among the "
                f"last {self.open.limit} requests of this router"
            )
        place = found.chosen if candidate_id is None else _place_of(candidate_id, found.ids, request_id)
        outcome = Outcome(found.ids[place], quality, found.expected[place], found.need, was_cheap=place == found.cheap)
        self.history.add(request_id, outcome.candidate_id, quality, outcome.expected)
        self.open.take(request_id)
        return outcome

    def __repr__(self) -> str:
        """Show how many requests wait."""
        return f"FeedbackLoop({len(self.open)} of {self.open.limit} requests wait, {self.history!r})"


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
