"""What is watched of the packs: the guides' panels and alerts, with what they need to be shown right, and our own.

Every expression of the Tiny Dancer guide returns data on our series as printed, so none is corrected. Added to its
alerts: a severity, by which Alertmanager routes, and recording rules for what dashboards ask for most.
"""

from __future__ import annotations

from eventcore.monitoring import Alert, BadCase, LogAlert, Monitoring, Panel, Query, Recording, RuleGroup

__all__ = ["ROUTER", "TINY_DANCER"]

_P95 = "histogram_quantile(0.95, rate(tiny_dancer_routing_latency_seconds_bucket[5m]))"
_LATENCY = "tiny_dancer_routing_latency_seconds_bucket"
_STATES = {0.0: "closed", 1.0: "half-open", 2.0: "open"}

TINY_DANCER = Monitoring(
    title="Tiny Dancer Routing",
    panels=(
        Panel(
            title="Request Rate",
            queries=(Query("rate(tiny_dancer_routing_requests_total[5m])", "{{status}}"),),
            unit="reqps",
        ),
        Panel(title="P95 Latency", queries=(Query(_P95, "p95 {{operation}}"),), unit="s"),
        Panel(
            title="Circuit Breaker State",
            queries=(Query("tiny_dancer_circuit_breaker_state", "state"),),
            states=_STATES,
        ),
        Panel(
            title="Lightweight vs Powerful Routing",
            queries=(Query("rate(tiny_dancer_routing_decisions_total[5m])", "{{model_type}}"),),
            unit="ops",
        ),
    ),
    groups=(
        RuleGroup(
            "tiny_dancer",
            (
                Alert(
                    name="HighErrorRate",
                    expr="rate(tiny_dancer_errors_total[5m]) > 0.05",
                    for_="5m",
                    summary="High error rate detected",
                    description="{{ $labels.error_type }}: {{ $value | humanize }} errors per second",
                    bad=BadCase(
                        series={'tiny_dancer_errors_total{error_type="inference_error"}': "0+60x20"},
                        after="15m",
                        labels={"error_type": "inference_error"},
                        value="1",
                    ),
                    good={'tiny_dancer_errors_total{error_type="inference_error"}': "0+1x20"},
                ),
                Alert(
                    name="CircuitBreakerOpen",
                    expr="tiny_dancer_circuit_breaker_state == 2",
                    for_="1m",
                    severity="critical",
                    summary="Circuit breaker is open",
                    bad=BadCase(series={"tiny_dancer_circuit_breaker_state": "0 0 2x18"}, after="5m"),
                    good={"tiny_dancer_circuit_breaker_state": "0 2 1 0x18"},
                ),
                Alert(
                    name="HighLatency",
                    expr=f"{_P95} > 0.01",
                    for_="5m",
                    summary="P95 latency above 10ms",
                    description="P95 latency is {{ $value | humanizeDuration }}",
                    bad=BadCase(
                        series={
                            f'{_LATENCY}{{operation="total",le="0.01"}}': "0+50x20",
                            f'{_LATENCY}{{operation="total",le="0.05"}}': "0+100x20",
                            f'{_LATENCY}{{operation="total",le="+Inf"}}': "0+100x20",
                        },
                        after="15m",
                        labels={"operation": "total"},
                        value="46ms",
                    ),
                    good={
                        f'{_LATENCY}{{operation="total",le="0.005"}}': "0+99x20",
                        f'{_LATENCY}{{operation="total",le="0.01"}}': "0+100x20",
                        f'{_LATENCY}{{operation="total",le="+Inf"}}': "0+100x20",
                    },
                ),
            ),
        ),
        RuleGroup(
            "tiny_dancer_recording",
            (
                Recording(
                    "status:tiny_dancer_routing_requests:rate5m",
                    "sum by (status) (rate(tiny_dancer_routing_requests_total[5m]))",
                ),
                Recording(
                    "job:tiny_dancer_routing_latency_seconds:p95_5m",
                    f"histogram_quantile(0.95, sum by (job, le) (rate({_LATENCY}[5m])))",
                ),
                Recording(
                    "job:tiny_dancer_routing_decisions_lightweight:ratio_rate5m",
                    'sum by (job) (rate(tiny_dancer_routing_decisions_total{model_type="lightweight"}[5m]))'
                    " / sum by (job) (rate(tiny_dancer_routing_decisions_total[5m]))",
                ),
            ),
        ),
    ),
    log_alerts=(
        LogAlert(
            name="RoutingErrors",
            where={"name": "router.route", "outcome": "failure"},
            window="5m",
            above=10,
            summary="High number of routing errors detected",
        ),
        LogAlert(
            name="CircuitBreakerOpened",
            where={"name": "circuit.opened"},
            window="5m",
            above=0,
            severity="critical",
            summary="The circuit breaker opened",
        ),
    ),
)
"""The Tiny Dancer guide's dashboard and alerts; the alert over logs is modelled on the MoE guide's."""


def _mean(metric: str) -> str:
    return f"rate({metric}_sum[5m]) / rate({metric}_count[5m])"


def _mean_by_job(metric: str) -> str:
    return f"sum by (job) (rate({metric}_sum[5m])) / sum by (job) (rate({metric}_count[5m]))"


_UNKNOWN = 'sum by (job) (rate(router_feedback_total{status="unknown"}[15m]))'

ROUTER = Monitoring(
    title="Router in service",
    panels=(
        Panel(
            title="Quality of Answers",
            queries=(
                Query(_mean("router_feedback_quality"), "told by feedback"),
                Query(_mean("router_feedback_expected_quality"), "expected"),
            ),
            unit="percentunit",
            description="Means over the answers that there was feedback on. Where they part, calibration drifts.",
        ),
        Panel(
            title="Feedback",
            queries=(
                Query("rate(router_feedback_total[5m])", "{{status}}"),
                Query("rate(router_feedback_forgotten_total[5m])", "never came"),
            ),
            unit="ops",
        ),
        Panel(
            title="Drift",
            queries=(Query("router_drift_distance", "{{kind}}"),),
            description="Distance of the last window; if not set otherwise the limit is 0.25, of calibration 0.1.",
        ),
        Panel(title="Backends", queries=(Query("router_breaker_state", "{{breaker}}"),), states=_STATES),
        Panel(
            title="P95 of Reading a Prompt",
            queries=(
                Query("histogram_quantile(0.95, rate(router_prompt_assessment_duration_seconds_bucket[5m]))", "p95"),
            ),
            unit="s",
        ),
        Panel(
            title="Shadow Disagreement",
            queries=(
                Query(
                    "rate(router_shadow_disagreements_total[5m]) / rate(router_shadow_candidates_total[5m])",
                    "share of candidates",
                ),
            ),
            unit="percentunit",
        ),
    ),
    groups=(
        RuleGroup(
            "router",
            (
                Alert(
                    name="RouterDrift",
                    expr="increase(router_drift_detected_total[15m]) > 0",
                    for_="1m",
                    summary="Drift of {{ $labels.kind }}",
                    description="What is routed is no longer what the model was made for",
                    bad=BadCase(
                        series={'router_drift_detected_total{kind="needs"}': "0x3 1x20"},
                        after="10m",
                        labels={"kind": "needs"},
                    ),
                    good={'router_drift_detected_total{kind="needs"}': "1x20"},
                ),
                Alert(
                    name="BackendOpen",
                    expr='router_breaker_state{breaker=~"backend:.*"} == 2',
                    for_="1m",
                    severity="critical",
                    summary="The circuit breaker of {{ $labels.breaker }} is open",
                    bad=BadCase(
                        series={'router_breaker_state{breaker="backend:gpt-4"}': "0 2x20"},
                        after="5m",
                        labels={"breaker": "backend:gpt-4"},
                    ),
                    good={'router_breaker_state{breaker="backend:gpt-4"}': "0 2 1 0x20"},
                ),
                Alert(
                    name="FeedbackFindsNoRequest",
                    expr=f"{_UNKNOWN} / sum by (job) (rate(router_feedback_total[15m])) > 0.1",
                    for_="5m",
                    summary="Feedback finds no request that waits for it",
                    description="{{ $value | humanizePercentage }} of feedback is unknown: raise max_waiting of the "
                    "history, or let all processes open the same file",
                    bad=BadCase(
                        series={
                            'router_feedback_total{job="app",status="unknown"}': "0+30x30",
                            'router_feedback_total{job="app",status="accepted"}': "0+70x30",
                        },
                        after="25m",
                        labels={"job": "app"},
                        value="30%",
                    ),
                    good={
                        'router_feedback_total{job="app",status="unknown"}': "0+1x30",
                        'router_feedback_total{job="app",status="accepted"}': "0+99x30",
                    },
                ),
            ),
        ),
        RuleGroup(
            "router_recording",
            (
                Recording("job:router_feedback_quality:mean_5m", _mean_by_job("router_feedback_quality")),
                Recording(
                    "job:router_feedback_expected_quality:mean_5m", _mean_by_job("router_feedback_expected_quality")
                ),
            ),
        ),
    ),
)
"""What a router in service does beside routing: backends, prompts, feedback, drift, the shadow model."""
