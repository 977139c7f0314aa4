"""Metric packs: the guides' series as instruments over our events, with their names, labels, values and buckets."""

from __future__ import annotations

import eventcore as ec
from router.errors import ERROR_TYPES
from router.events import (
    MODEL_BREAKER,
    AssessPrompt,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CompareShadow,
    DriftDetected,
    DriftMeasured,
    EngineerFeatures,
    FeedbackReceived,
    FeedbackRefused,
    HistoryFailed,
    InferModel,
    ReloadModel,
    RequestsForgotten,
    RouteRequest,
    RoutingDecided,
)

__all__ = ["ROUTER", "TINY_DANCER"]

_BATCH_EDGES = (10, 50, 100)
_DURATIONS = (0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01)
_DECISION = ec.rename("use_lightweight", {True: "lightweight", False: "powerful"})

TINY_DANCER = (
    ec.Counter(
        "tiny_dancer_routing_requests_total",
        on=RouteRequest,
        labels={"status": ec.rename("outcome", {"success": "success"}, other="failure")},
        help="Routing requests by status.",
    ),
    ec.Histogram(
        "tiny_dancer_routing_latency_seconds",
        on=RouteRequest,
        value="duration_s",
        labels={"operation": ec.const("total")},
        buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
        help="Time to route a request.",
    ),
    ec.Histogram(
        "tiny_dancer_feature_engineering_duration_seconds",
        on=EngineerFeatures,
        value="duration_s",
        labels={"batch_size": ec.bins("batch_size", _BATCH_EDGES)},
        buckets=_DURATIONS,
        help="Time to compute the features of all candidates of a request, by their number.",
    ),
    ec.Histogram(
        "tiny_dancer_model_inference_duration_seconds",
        on=InferModel,
        value="duration_s",
        labels={"model_type": "model_type"},
        buckets=_DURATIONS,
        help="Time of one pass of the model over all candidates of a request.",
    ),
    ec.Gauge(
        "tiny_dancer_circuit_breaker_state",
        on=(CircuitClosed, CircuitHalfOpened, CircuitOpened),
        where={"breaker": MODEL_BREAKER},  # those of backends are in the pack ``router``
        value=ec.codes("state", initial="closed", closed=0, half_open=1, open=2),
        across="max",
        help="State of the circuit breaker: 0 closed, 1 half-open, 2 open.",
    ),
    ec.Counter(
        "tiny_dancer_routing_decisions_total",
        on=RoutingDecided,
        each=("use_lightweight",),
        labels={"model_type": _DECISION},
        help="Decisions per candidate, by the kind of model chosen.",
    ),
    ec.Histogram(
        "tiny_dancer_confidence_scores",
        on=RoutingDecided,
        each=("confidence", "use_lightweight"),
        value="confidence",
        labels={"decision_type": _DECISION},
        buckets=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0),
        help="Confidence per candidate, by decision.",
    ),
    ec.Histogram(
        "tiny_dancer_uncertainty_estimates",
        on=RoutingDecided,
        each=("uncertainty", "use_lightweight"),
        value="uncertainty",
        labels={"decision_type": _DECISION},
        buckets=(0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0),
        help="Uncertainty per candidate, by decision.",
    ),
    ec.Counter(
        "tiny_dancer_candidates_processed_total",
        on=RouteRequest,
        value="candidate_count",
        where={"outcome": "success"},
        labels={"batch_size_range": ec.bins("candidate_count", _BATCH_EDGES)},
        help="Candidates of requests that were routed, by the number of candidates in the request.",
    ),
    ec.Counter(
        "tiny_dancer_errors_total",
        on=RouteRequest,
        where={"outcome": "failure"},
        labels={"error_type": ec.rename("error_type", {name: name for name in ERROR_TYPES}, other="unknown")},
        help="Failed routing requests by type of error.",
    ),
)
"""The ten metrics of the Tiny Dancer guide."""

_STATUS = {"status": ec.rename("outcome", {"success": "success"}, other="failure")}
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

ROUTER = (
    ec.Gauge(
        "router_breaker_state",
        on=(CircuitClosed, CircuitHalfOpened, CircuitOpened),
        value=ec.codes("state", closed=0, half_open=1, open=2),
        labels={"breaker": "breaker"},
        across="max",
        help="State of each circuit breaker that has moved: 0 closed, 1 half-open, 2 open.",
    ),
    ec.Histogram(
        "router_prompt_assessment_duration_seconds",
        on=AssessPrompt,
        value="duration_s",
        buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0),
        help="Time to embed a prompt and to estimate the quality of each known model on it.",
    ),
    ec.Counter(
        "router_model_reloads_total",
        on=ReloadModel,
        labels=_STATUS,
        help="Attempts to replace the model while serving, by whether the new one was taken.",
    ),
    ec.Counter(
        "router_shadow_comparisons_total",
        on=CompareShadow,
        labels=_STATUS,
        help="Answered requests that the shadow model decided again, by whether it could.",
    ),
    ec.Counter(
        "router_shadow_candidates_total",
        on=CompareShadow,
        value="candidate_count",
        where={"outcome": "success"},
        help="Candidates that both models decided about.",
    ),
    ec.Counter(
        "router_shadow_disagreements_total",
        on=CompareShadow,
        value="disagreements",
        help="Candidates for which the shadow model decided otherwise between lightweight and powerful.",
    ),
    ec.Counter(
        "router_shadow_skipped_total",
        on=CompareShadow,
        value="skipped",
        help="Requests that were not compared because the shadow model could not keep up.",
    ),
    ec.Histogram(
        "router_shadow_difference",
        on=CompareShadow,
        value="largest_difference",
        buckets=(0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
        help="Largest difference of the two models' scores in a request.",
    ),
    ec.Counter(
        "router_feedback_total",
        on=(FeedbackReceived, FeedbackRefused),
        labels={"status": "status"},
        help="Feedback by what became of it.",
    ),
    ec.Histogram(
        "router_feedback_quality",
        on=FeedbackReceived,
        value="quality",
        buckets=_SHARES,
        help="Quality of answers, as feedback says.",
    ),
    ec.Histogram(
        "router_feedback_expected_quality",
        on=FeedbackReceived,
        value="expected",
        buckets=_SHARES,
        help="Quality that the router expected of the answers there was feedback on.",
    ),
    ec.Counter(
        "router_feedback_forgotten_total",
        on=RequestsForgotten,
        value="count",
        help="Requests that were forgotten before any feedback came.",
    ),
    ec.Counter(
        "router_history_failures_total",
        on=HistoryFailed,
        help="How often the history began to be unwritable.",
    ),
    ec.Gauge(
        "router_drift_distance",
        on=DriftMeasured,
        value="distance",
        labels={"kind": "kind"},
        across="max",
        help="Distance of the last window of requests or feedback from what the model was made for.",
    ),
    ec.Counter(
        "router_drift_detected_total",
        on=DriftDetected,
        labels={"kind": "kind"},
        help="How often a distance has passed its limit.",
    ),
)
"""What the router does beside routing: backends, prompts, reloads, the shadow model, feedback, drift."""
