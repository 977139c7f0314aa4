"""Whether a router can do its work: one real inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import eventcore as ec
from router.errors import InferenceError

if TYPE_CHECKING:
    from router.router import Model

__all__ = ["RouterHealthCheck"]


class RouterHealthCheck(ec.ModelHealthCheck):
    """Scores one candidate with every feature half way; degraded while the circuit breaker refuses calls."""

    def __init__(self, model: Model, breaker: ec.Breaker | None) -> None:
        super().__init__("tiny_dancer", self._infer, critical=True)
        self._model = model
        self._breaker = breaker

    def _infer(self) -> dict[str, Any]:
        weights = np.asarray(self._model.feature_weights)
        features = 0.5 * weights[None, :]
        score = self._model.score(features)
        doubt = self._model.uncertainty(score)
        if not (np.isfinite(score).all() and np.isfinite(doubt).all()):
            raise InferenceError("the model gave a score that is not finite; check its weights")
        return {"test_input_shape": list(features.shape), "score": round(float(score[0]), 6)}

    def run(self) -> ec.HealthResult:
        """Infer, then look at the breaker."""
        found = super().run()
        if self._breaker is None or self._breaker.state is not ec.BreakerState.OPEN:
            return found
        details = {**found.details, "breaker": self._breaker.state.value}
        status = max(found.status, ec.HealthStatus.DEGRADED, key=list(ec.HealthStatus).index)
        return ec.HealthResult(status, f"{found.message}; the circuit breaker is open", details)
