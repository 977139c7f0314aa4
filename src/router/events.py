"""What the router says: its event types, in Tiny Dancer's words (span names, messages, levels, logger, fields).

The router emits these and nothing else; which metrics, log lines and spans follow is decided by configuration.
"""

from __future__ import annotations

from typing import Annotated, Literal

import eventcore as ec

__all__ = [
    "EVENTS",
    "CheckCircuitBreaker",
    "CircuitBreakerEnabled",
    "CircuitClosed",
    "CircuitHalfOpened",
    "CircuitOpened",
    "EngineerFeatures",
    "EstimateUncertainty",
    "InferModel",
    "ModelLoaded",
    "RouteRequest",
    "RouterInitializing",
    "RoutingDecided",
]

LOGGER = "tiny_dancer_router"
Count = Annotated[int, ec.Measure(unit="1")]
State = Literal["closed", "half_open", "open"]


class RouterInitializing(
    ec.Event,
    name="router.initializing",
    category=ec.Category.SYSTEM,
    message="Initializing Tiny Dancer router",
    logger=LOGGER,
):
    """A router is being made."""


class CircuitBreakerEnabled(
    ec.Event,
    name="router.circuit_breaker_enabled",
    category=ec.Category.SYSTEM,
    message="Circuit breaker enabled with threshold: {threshold}",
    logger=LOGGER,
):
    """The router guards its model by a circuit breaker."""

    threshold: int


class ModelLoaded(
    ec.Event,
    name="router.model_loaded",
    category=ec.Category.MODEL,
    severity=ec.Severity.DEBUG,
    logger=LOGGER,
    message="Model loaded",
):
    """The router has its model."""

    source: str
    seed: int
    training_data: str


class RouteRequest(
    ec.Operation,
    name="router.route",
    span="routing_request",
    category=ec.Category.EXECUTION,
    start_message="Processing routing request",
    message="Routing request completed successfully",
    failure_message="Routing request failed",
    logger=LOGGER,
):
    """One request routed; lasts from entry to the answer."""

    candidate_count: Count
    request_id: str | None = None
    inference_time_us: Annotated[int, ec.Measure(unit="us")] = ec.unset
    lightweight_routes: Count = ec.unset
    powerful_routes: Count = ec.unset


class CheckCircuitBreaker(
    ec.Operation,
    name="router.circuit_breaker_check",
    span="circuit_breaker_check",
    category=ec.Category.EXECUTION,
    severity=ec.Severity.TRACE,
    logger=LOGGER,
):
    """Asking the circuit breaker whether the model may be called."""

    state: Annotated[State, ec.Label] = ec.unset


class EngineerFeatures(
    ec.Operation,
    name="router.feature_engineering",
    span="feature_engineering",
    category=ec.Category.EXECUTION,
    severity=ec.Severity.DEBUG,
    start_message="Extracting features",
    logger=LOGGER,
):
    """Computing the features of all candidates of a request."""

    batch_size: Count


class InferModel(
    ec.Operation,
    name="router.model_inference",
    span="model_inference",
    category=ec.Category.MODEL,
    severity=ec.Severity.DEBUG,
    message="Model inference completed",
    failure_message="Model inference failed",
    logger=LOGGER,
    each=("candidate_id", "confidence"),
):
    """Scoring all candidates of a request in one pass; one log line and one span per candidate follow from it."""

    model_type: Annotated[Literal["fastgrnn"], ec.Label]
    candidate_id: ec.Array[str]
    confidence: Annotated[ec.Array[float], ec.Measure(unit="1")] = ec.unset


class EstimateUncertainty(
    ec.Operation,
    name="router.uncertainty_estimation",
    span="uncertainty_estimation",
    category=ec.Category.MODEL,
    severity=ec.Severity.TRACE,
    logger=LOGGER,
):
    """Estimating how far to trust the scores of all candidates of a request."""

    batch_size: Count


class RoutingDecided(
    ec.Event,
    name="router.decided",
    category=ec.Category.EXECUTION,
    severity=ec.Severity.DEBUG,
    message="Routing decision made",
    logger=LOGGER,
    each=("candidate_id", "use_lightweight", "uncertainty", "confidence"),
):
    """What was decided for each candidate of a request."""

    candidate_id: ec.Array[str]
    use_lightweight: Annotated[ec.Array[bool], ec.Label]
    uncertainty: Annotated[ec.Array[float], ec.Measure(unit="1")]
    confidence: Annotated[ec.Array[float], ec.Measure(unit="1")]


class CircuitOpened(
    ec.Event,
    name="circuit.opened",
    category=ec.Category.EXECUTION,
    severity=ec.Severity.ERROR,
    message="Circuit breaker open after {failures} failures",
    logger=LOGGER,
):
    """The breaker refuses calls from now on."""

    breaker: str
    failures: Count
    retry_after_s: Annotated[float, ec.Measure(unit="s")]
    state: Annotated[Literal["open"], ec.Label] = "open"


class CircuitHalfOpened(
    ec.Event,
    name="circuit.half_opened",
    category=ec.Category.EXECUTION,
    severity=ec.Severity.WARNING,
    message="Circuit breaker half-open: probing",
    logger=LOGGER,
):
    """The breaker lets a few probes pass."""

    breaker: str
    state: Annotated[Literal["half_open"], ec.Label] = "half_open"


class CircuitClosed(
    ec.Event,
    name="circuit.closed",
    category=ec.Category.EXECUTION,
    message="Circuit breaker closed",
    logger=LOGGER,
):
    """The breaker lets all calls pass again."""

    breaker: str
    state: Annotated[Literal["closed"], ec.Label] = "closed"


EVENTS = [
    RouterInitializing,
    CircuitBreakerEnabled,
    ModelLoaded,
    RouteRequest,
    CheckCircuitBreaker,
    EngineerFeatures,
    InferModel,
    EstimateUncertainty,
    RoutingDecided,
    CircuitOpened,
    CircuitHalfOpened,
    CircuitClosed,
]
"""All of them, for the catalog."""
