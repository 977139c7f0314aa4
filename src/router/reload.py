"""Another model while the router serves: checked before it takes over, or watched as a shadow beside the one that does.

A model file is loaded, whole, and rehearsed on a few extreme inputs before anything of it can be seen; the router then
takes it in one assignment, and each request uses the model that it began with. So no request fails, and none sees half
of a model. The shadow runs in a thread of its own, on copies of requests that were answered already.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from router.errors import ConfigError, InferenceError
from router.events import CompareShadow
from router.features import FEATURE_NAMES, extract_features
from router.model_file import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    import eventcore as ec
    from router.features import CandidatePool, MetadataValue
    from router.model import RouterModel
    from router.router import Model

    Array = NDArray[np.floating[Any]]

__all__ = ["Answered", "Shadow", "load_rehearsed", "rehearse"]

MAX_WAITING = 100
"""Answered requests that may wait for the shadow; further ones are skipped, and counted."""


def load_rehearsed(path: str | os.PathLike[str]) -> RouterModel:
    """Return the candidate model in the file at ``path`` after it has shown that it can score.

    Raises what `load_model` raises, and what `rehearse` does.
    """
    model = load_model(path)
    rehearse(model)
    return model


def rehearse(model: Model) -> None:
    """Let ``model`` score candidates that have nothing, half or all of each feature.

    Raises InferenceError when a score or uncertainty is not a number from 0 to 1, NoCalibration when it has none.
    """
    weights = np.asarray(model.feature_weights, dtype=np.float32)
    shares = np.array([[0.0], [0.5], [1.0]], dtype=np.float32) * np.ones(len(FEATURE_NAMES), dtype=np.float32)
    scores = model.score(shares * weights)
    for what, values in (("score", scores), ("uncertainty", model.uncertainty(scores))):
        if values.shape != (len(shares),) or not ((values >= 0.0) & (values <= 1.0)).all():
            raise InferenceError(f"the model gives the {what} {values.tolist()}: expected numbers from 0 to 1")


class Answered(NamedTuple):
    """A request and what the serving model decided."""

    query_embedding: Array
    pool: CandidatePool
    metadata: Mapping[str, MetadataValue]
    now_s: float
    confidence: Array
    use_lightweight: NDArray[np.bool_]


class Shadow:
    """A model that decides a ``share`` of the requests again, after they were answered.

    Which ones is not drawn but spread evenly. Comparisons are emitted as `CompareShadow`. The thread starts with the
    first request and ends with `close`, or with the process. Raises ConfigError for a share outside (0, 1], and what
    `rehearse` raises.
    """

    def __init__(
        self,
        model: Model,
        share: float,
        decide: Callable[[Array, Array], NDArray[np.bool_]],
        emitter: Callable[[], ec.Emitter],
    ) -> None:
        """Take the model, the rule that makes lightweight or powerful of scores and doubts, and where events go."""
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"the share of requests for the shadow is {share!r}: use a number above 0, up to 1")
        rehearse(model)
        self.model = model
        self.share = share
        self.skipped = 0
        """Requests left out since the last comparison."""
        self._decide = decide
        self._emitter = emitter
        self._seen = 0
        self._reset()
        _SHADOWS.add(self)

    def _reset(self) -> None:
        self._waiting: deque[Answered] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def offer(self, answered: Answered) -> None:
        """Take the request in, if it is its turn and there is room; never waits for the model."""
        with self._changed:
            self._seen += 1
            if self._is_closed or int(self._seen * self.share) == int((self._seen - 1) * self.share):
                return
            if len(self._waiting) >= MAX_WAITING:
                self.skipped += 1
                return
            self._waiting.append(answered)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="router-shadow", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Compare what is waiting and end; whether that was done in time. What is offered later is left out."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def wait(self, timeout_s: float = 5.0) -> bool:
        """Wait until nothing is waiting; whether that was so in time."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                answered = self._waiting[0]  # it stays in the queue while it is compared, for `wait`
                skipped, self.skipped = self.skipped, 0
            with suppress(Exception):  # a model of somebody else's may raise anything, and the event says it
                self._compare(answered, skipped)
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _compare(self, answered: Answered, skipped: int) -> None:
        pool = answered.pool
        with self._emitter().operation(CompareShadow, candidate_count=len(pool), skipped=skipped) as comparison:
            features = extract_features(
                answered.query_embedding,
                pool,
                answered.metadata,
                now_s=answered.now_s,
                weights=self.model.feature_weights,
            )
            scores = self.model.score(features)
            if not np.isfinite(scores).all():
                raise InferenceError("the shadow model gave a score that is not finite")
            lightweight = self._decide(scores, self.model.uncertainty(scores))
            comparison.set(
                disagreements=int(np.count_nonzero(lightweight != answered.use_lightweight)),
                largest_difference=float(np.abs(scores - answered.confidence).max()),
                best_differs=bool(scores.argmax() != answered.confidence.argmax()),
            )

    def __repr__(self) -> str:
        """Show what it runs on how many requests."""
        return f"Shadow({self.model!r}, share={self.share:g}, {len(self._waiting)} waiting)"


_SHADOWS: weakref.WeakSet[Shadow] = weakref.WeakSet()


def _after_fork() -> None:
    for shadow in list(_SHADOWS):
        shadow._reset()  # noqa: SLF001 - its thread is the parent's, and so are the requests that wait for it


os.register_at_fork(after_in_child=_after_fork)
