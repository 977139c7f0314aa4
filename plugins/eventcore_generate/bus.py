"""What is watched of the bus itself: lost events, handlers in quarantine, metrics at their limit, queues near full."""

from __future__ import annotations

from eventcore.monitoring import Alert, BadCase, Monitoring, Panel, Query, Recording, RuleGroup

__all__ = ["BUS"]

BUS = Monitoring(
    title="eventcore",
    panels=(
        Panel(
            title="Events by handler and outcome",
            queries=(Query("sum by (handler, outcome) (rate(eventcore_events_total[5m]))", "{{handler}} {{outcome}}"),),
            unit="ops",
        ),
        Panel(
            title="Events lost, by reason",
            queries=(
                Query(
                    'sum by (handler, reason) (rate(eventcore_events_total{outcome="dropped"}[5m]))',
                    "{{handler}} {{reason}}",
                ),
            ),
            unit="ops",
        ),
        Panel(
            title="Handlers in quarantine",
            queries=(Query("eventcore_handler_breaker_state", "{{handler}}"),),
            states={0.0: "closed", 1.0: "half-open", 2.0: "open"},
        ),
        Panel(
            title="How full queues are",
            queries=(Query("eventcore_queue_size / eventcore_queue_capacity", "{{handler}}"),),
            unit="percentunit",
        ),
    ),
    groups=(
        RuleGroup(
            "eventcore",
            (
                Alert(
                    name="EventsDropped",
                    expr='sum by (job, handler, reason) (increase(eventcore_events_total{outcome="dropped"}[5m])) > 0',
                    for_="1m",
                    summary="Handler {{ $labels.handler }} loses events",
                    description="{{ $value | humanize }} events in 5 minutes, reason {{ $labels.reason }}",
                    bad=BadCase(
                        series={
                            'eventcore_events_total{job="app",handler="log",outcome="dropped",reason="full"}': (
                                "0+10x20"
                            )
                        },
                        after="10m",
                        labels={"job": "app", "handler": "log", "reason": "full"},
                        value="50",
                    ),
                    good={
                        'eventcore_events_total{job="app",handler="log",outcome="dropped",reason="full"}': ("7+0x20"),
                        'eventcore_events_total{job="app",handler="log",outcome="delivered",reason=""}': "0+10x20",
                    },
                ),
                Alert(
                    name="HandlerFailing",
                    expr='sum by (job, handler) (increase(eventcore_events_total{outcome="failed"}[5m])) > 0',
                    for_="5m",
                    summary="Handler {{ $labels.handler }} fails",
                    description="{{ $value | humanize }} events in 5 minutes were not handled",
                    bad=BadCase(
                        series={'eventcore_events_total{job="app",handler="log",outcome="failed",reason=""}': "0+2x20"},
                        after="10m",
                        labels={"job": "app", "handler": "log"},
                        value="10",
                    ),
                    good={'eventcore_events_total{job="app",handler="log",outcome="failed",reason=""}': "3+0x20"},
                ),
                Alert(
                    name="HandlerQuarantined",
                    expr="eventcore_handler_breaker_state == 2",
                    for_="1m",
                    severity="critical",
                    summary="Handler {{ $labels.handler }} is in quarantine",
                    description="It failed repeatedly and gets no events until a probe succeeds",
                    bad=BadCase(
                        series={'eventcore_handler_breaker_state{job="app",handler="oncall"}': "0 2x20"},
                        after="5m",
                        labels={"job": "app", "handler": "oncall"},
                    ),
                    good={'eventcore_handler_breaker_state{job="app",handler="oncall"}': "0 1 0x20"},
                ),
                Alert(
                    name="SeriesLimitReached",
                    expr="eventcore_metric_overflow_total > 0",
                    for_="1m",
                    summary="Metric {{ $labels.metric }} is at its limit of series",
                    description="{{ $value | humanize }} observations are counted under label values 'other'",
                    bad=BadCase(
                        series={'eventcore_metric_overflow_total{job="app",metric="shop_paid_total"}': "0 5x20"},
                        after="5m",
                        labels={"job": "app", "metric": "shop_paid_total"},
                        value="5",
                    ),
                    good={'eventcore_metric_overflow_total{job="app",metric="shop_paid_total"}': "0x20"},
                ),
                Alert(
                    name="QueueNearlyFull",
                    expr="eventcore_queue_size / eventcore_queue_capacity > 0.9",
                    for_="2m",
                    summary="The queue of handler {{ $labels.handler }} is nearly full",
                    description="{{ $value | humanizePercentage }} of its places are taken",
                    bad=BadCase(
                        series={
                            'eventcore_queue_size{job="app",handler="log"}': "0 95x20",
                            'eventcore_queue_capacity{job="app",handler="log"}': "100x20",
                        },
                        after="5m",
                        labels={"job": "app", "handler": "log"},
                        value="95%",
                    ),
                    good={
                        'eventcore_queue_size{job="app",handler="log"}': "0 50x20",
                        'eventcore_queue_capacity{job="app",handler="log"}': "100x20",
                    },
                ),
            ),
        ),
        RuleGroup(
            "eventcore_recording",
            (
                Recording("job:eventcore_emitted:rate5m", "sum by (job) (rate(eventcore_emitted_total[5m]))"),
                Recording(
                    "job:eventcore_emit_duration_seconds:p99_5m",
                    "histogram_quantile(0.99, sum by (job, le) (rate(eventcore_emit_duration_seconds_bucket[5m])))",
                ),
            ),
        ),
    ),
)
"""The further panels of its dashboard follow from the series that plugins declare."""
