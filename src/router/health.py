"""Whether a router can do its work: one real inference, open backends, drift, a history that takes what it should."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

import eventcore as ec
from router.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.router import Model, Router

__all__ = ["ROUTERS", "RouterHealthCheck", "routers_checks"]

ROUTERS: weakref.WeakSet[Router] = weakref.WeakSet()
"""All routers of the process."""


class RouterHealthCheck(ec.ModelHealthCheck):
    """Scores one candidate with every feature half way; degraded while the circuit breaker refuses calls."""

    def __init__(self, model: Callable[[], Model], breaker: ec.Breaker | None) -> None:
        super().__init__("tiny_dancer", self._infer, critical=True)
        self._model = model
        self._breaker = breaker

    def _infer(self) -> dict[str, Any]:
        model = self._model()
        weights = np.asarray(model.feature_weights)
        features = 0.5 * weights[None, :]
        score = model.score(features)
        doubt = model.uncertainty(score)
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


def routers_checks(emitter: ec.Emitter) -> list[ec.HealthCheck]:
    """Return one check, ``router``, of all routers that emit there; none where none does."""
    routers = [router for router in ROUTERS if router.emitter is emitter]
    run = functools.partial(_health_of, routers)
    return [ec.HealthCheck("router", run, timeout_s=None, ttl_s=0.0)] if routers else []


def _health_of(routers: list[Router]) -> ec.HealthResult:
    """Return what is well and what is not: degraded while a backend is open, anything drifts or is not written."""
    open_backends = sorted({name for router in routers for name in router.backends.open})
    drifting = sorted({kind for router in routers if router.drift is not None for kind in router.drift.drifting})
    troubles = [f"backends are open: {', '.join(open_backends)}"] if open_backends else []
    troubles += [f"drift of {', '.join(drifting)}"] if drifting else []
    histories = {router.history for router in routers if router.history is not None}
    troubles += sorted(str(history.trouble) for history in histories if history.trouble is not None)
    details = {
        "routers": len(routers),
        "open_backends": open_backends,
        "drifting": drifting,
        "waiting_for_feedback": sum(history.waiting_count for history in histories),
        "forgotten_without_feedback": sum(history.forgotten for history in histories),
    }
    if not troubles:
        return ec.HealthResult(ec.HealthStatus.HEALTHY, "backends and inputs are well", details)
    return ec.HealthResult(ec.HealthStatus.DEGRADED, "; ".join(troubles), details)
