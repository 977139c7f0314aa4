"""A model whose backend is down for a while: the fault that the demo injects on purpose."""

from __future__ import annotations

from typing import Any

from router.errors import InferenceError


class FailingForAWhile:
    """Passes calls on to ``model``, except that calls number ``first`` to ``first + count - 1`` fail."""

    def __init__(self, model: Any, *, first: int, count: int) -> None:
        self._model = model
        self._failing = range(first, first + count)
        self.calls = 0

    @property
    def feature_weights(self) -> Any:
        return self._model.feature_weights

    def score(self, features: Any) -> Any:
        self.calls += 1
        if self.calls in self._failing:
            raise InferenceError("the model's backend does not answer (a fault injected by the demo)")
        return self._model.score(features)

    def uncertainty(self, scores: Any) -> Any:
        return self._model.uncertainty(scores)
