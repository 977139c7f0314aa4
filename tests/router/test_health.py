import numpy as np
import pytest

import eventcore as ec
from router import Router
from router.errors import InferenceError


def report(router):
    """Return the health of an emitter that has the router's check, and the check's result."""
    monitor = ec.Emitter().health
    monitor.add_check(router.health_check())
    found = monitor.report()
    return found, found["checks"]["model_tiny_dancer"]


def test_a_routers_check_is_a_real_inference():
    """The check scores a candidate with the bundled model; it is critical."""
    _, check = report(Router())
    assert (check["status"], check["critical"]) == ("healthy", True)
    assert 0 < check["details"]["score"] < 1
    assert check["details"]["test_input_shape"] == [1, 5]


class Broken:
    """A model whose arithmetic has gone wrong."""

    feature_weights = (1.0,) * 5

    def __init__(self, score):
        self.score = score

    def uncertainty(self, scores):
        return np.zeros_like(scores)


def overflows(features):
    """Raise as the real model does."""
    raise InferenceError("overflow")


@pytest.mark.parametrize("score", [overflows, lambda features: np.full(len(features), np.nan)])
def test_a_model_that_cannot_infer_is_unhealthy(score):
    """A model that raises, or gives no finite score, is unhealthy, and the process is not ready."""
    found, check = report(Router(model=Broken(score)))
    assert (found["status"], found["ready"]) == ("unhealthy", False)
    assert check["message"] == "check failed: InferenceError"


def test_an_open_breaker_is_degraded():
    """While the circuit breaker refuses calls the router is degraded, though its model works."""
    router = Router()
    for _ in range(router.config.circuit_breaker_threshold):
        router.breaker.failure(router.breaker.try_acquire())
    _, check = report(router)
    assert (check["status"], check["details"]["breaker"]) == ("degraded", "open")
    assert check["message"].endswith("the circuit breaker is open")
