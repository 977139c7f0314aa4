"""What the router says: its event types, in Tiny Dancer's words (span names, messages, levels, logger, fields).

The router emits these and nothing else; which metrics, log lines and spans follow is decided by configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

import eventcore as ec

__all__ = [
    "BACKEND",
    "EVENTS",
    "MODEL_BREAKER",
    "AssessPrompt",
    "CheckCircuitBreaker",
    "CircuitBreakerEnabled",
    "CircuitClosed",
    "CircuitHalfOpened",
    "CircuitOpened",
    "CompareShadow",
    "DriftDetected",
    "DriftEnded",
    "DriftMeasured",
    "EngineerFeatures",
    "EstimateUncertainty",
    "FeedbackReceived",
    "FeedbackRefused",
    "HistoryFailed",
    "InferModel",
    "ModelLoaded",
    "ReloadModel",
    "RequestsForgotten",
    "RouteRequest",
    "RouterInitializing",
    "RoutingDecided",
]

LOGGER = "tiny_dancer_router"
Count = Annotated[int, ec.Measure(unit="1")]
State = Literal["closed", "half_open", "open"]
DriftKind = Literal["features", "scores", "needs", "calibration"]
MODEL_BREAKER = "model"
"""The name of the breaker before the router's own model."""
BACKEND = "backend:"
"""What the names of backends' breakers begin with."""
BreakerName = Annotated[str, ec.Label, Field(examples=[MODEL_BREAKER])]


def _rounded(values: Any) -> Any:
    """Round float32 to six places, as float64: what it makes of 0.92 is not what a reader of a log wants to see."""
    return np.round(values.astype(np.float64), 6) if getattr(values, "dtype", None) == np.float32 else values


Shares = Annotated[ec.Array[float], BeforeValidator(_rounded), ec.Measure(unit="1")]
"""Numbers from 0 to 1, one per candidate."""


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
    chosen: str = ec.unset
    """The candidate that the policy chose, where there is one."""


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
    confidence: Shares = ec.unset


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
    uncertainty: Shares
    confidence: Shares


class CircuitOpened(
    ec.Event,
    name="circuit.opened",
    category=ec.Category.EXECUTION,
    severity=ec.Severity.ERROR,
    message="Circuit breaker open after {failures} failures",
    logger=LOGGER,
):
    """The breaker refuses calls from now on."""

    breaker: BreakerName
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

    breaker: BreakerName
    state: Annotated[Literal["half_open"], ec.Label] = "half_open"


class CircuitClosed(
    ec.Event,
    name="circuit.closed",
    category=ec.Category.EXECUTION,
    message="Circuit breaker closed",
    logger=LOGGER,
):
    """The breaker lets all calls pass again."""

    breaker: BreakerName
    state: Annotated[Literal["closed"], ec.Label] = "closed"


class AssessPrompt(
    ec.Operation,
    name="router.prompt_assessment",
    span="prompt_assessment",
    category=ec.Category.MODEL,
    severity=ec.Severity.DEBUG,
    message="Prompt assessed",
    failure_message="Prompt assessment failed",
    logger=LOGGER,
):
    """Reading a prompt: its chunks embedded, and the quality that each known model would reach on it."""

    known_models: Count


class ReloadModel(
    ec.Operation,
    name="router.model_reload",
    span="model_reload",
    category=ec.Category.MODEL,
    message="Model replaced",
    failure_message="Model refused; the one before it goes on serving",
    logger=LOGGER,
):
    """Loading and checking another model and, where it is sound, serving with it from the next request on."""

    source: str


class CompareShadow(
    ec.Operation,
    name="router.shadow_comparison",
    span="shadow_comparison",
    category=ec.Category.MODEL,
    severity=ec.Severity.DEBUG,
    message="Shadow model compared",
    failure_message="Shadow model failed",
    logger=LOGGER,
):
    """A request that was answered, decided again by the shadow model, and what differs; nobody waits for it."""

    candidate_count: Count
    skipped: Annotated[int, ec.Measure(unit="1")]
    """Requests left out since the last comparison, because the shadow could not keep up."""
    disagreements: Count = ec.unset
    """Candidates for which it would have decided otherwise between lightweight and powerful."""
    largest_difference: Annotated[float, ec.Measure(unit="1")] = ec.unset
    """Of the scores of any candidate."""
    best_differs: bool = ec.unset


class FeedbackReceived(
    ec.Event,
    name="router.feedback_received",
    category=ec.Category.DATA,
    severity=ec.Severity.DEBUG,
    message="Feedback on {candidate_id}: {quality}, expected {expected}",
    logger=LOGGER,
):
    """Somebody told how good an answer was."""

    request_id: str
    candidate_id: str
    quality: Annotated[float, ec.Measure(unit="1")]
    expected: Annotated[float, ec.Measure(unit="1")]
    status: Annotated[Literal["accepted"], ec.Label] = "accepted"


class FeedbackRefused(
    ec.Event,
    name="router.feedback_refused",
    category=ec.Category.DATA,
    severity=ec.Severity.WARNING,
    message="Feedback on request {request_id} refused: {status}",
    logger=LOGGER,
):
    """Feedback that belongs to no open request, or came a second time."""

    request_id: str
    status: Annotated[Literal["unknown", "duplicate"], ec.Label]


class RequestsForgotten(
    ec.Event,
    name="router.requests_forgotten",
    category=ec.Category.DATA,
    severity=ec.Severity.DEBUG,
    message="{count} requests forgotten before any feedback came",
    logger=LOGGER,
):
    """Requests that waited for feedback made room for newer ones, or waited too long."""

    count: Count


class HistoryFailed(
    ec.Event,
    name="router.history_failed",
    category=ec.Category.DATA,
    severity=ec.Severity.ERROR,
    message="The history cannot be written; requests wait in memory",
    logger=LOGGER,
):
    """Requests that wait for feedback could not be written, the first time after they could."""

    reason: str


class DriftMeasured(
    ec.Event,
    name="router.drift_measured",
    category=ec.Category.PERFORMANCE,
    severity=ec.Severity.DEBUG,
    message="Drift of {kind}: {distance}",
    logger=LOGGER,
):
    """A window of requests or of feedback was held against what the model was made for."""

    kind: Annotated[DriftKind, ec.Label]
    subject: str
    """The feature that has moved most, or the kind."""
    distance: Annotated[float, ec.Measure(unit="1")]
    """Kolmogorov and Smirnov's distance; of calibration, the mean quality less the mean expected one, without sign."""
    sample_size: Count


class DriftDetected(
    ec.Event,
    name="router.drift_detected",
    category=ec.Category.PERFORMANCE,
    severity=ec.Severity.WARNING,
    message="{kind} drift: {subject} is {distance} away, the limit is {limit}",
    logger=LOGGER,
):
    """A distance has passed its limit."""

    kind: Annotated[DriftKind, ec.Label]
    subject: str
    distance: Annotated[float, ec.Measure(unit="1")]
    limit: float


class DriftEnded(
    ec.Event,
    name="router.drift_ended",
    category=ec.Category.PERFORMANCE,
    message="{kind} drift is over: {distance}",
    logger=LOGGER,
):
    """A distance has come back."""

    kind: Annotated[DriftKind, ec.Label]
    distance: Annotated[float, ec.Measure(unit="1")]


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
    AssessPrompt,
    ReloadModel,
    CompareShadow,
    FeedbackReceived,
    FeedbackRefused,
    RequestsForgotten,
    HistoryFailed,
    DriftMeasured,
    DriftDetected,
    DriftEnded,
]
"""All of them, for the catalog."""
