"""The programs that the TinyLLM and MoE guides print, in the words of docs/from-the-guides.md."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import eventcore as ec


class Slack(ec.Handler):
    """The guide's custom handler; what it would send to Slack it keeps."""

    def __init__(self):
        super().__init__(min_severity="error")
        self.sent = []

    def handle(self, envelope):
        self.sent.append(envelope.message)


def lines_of(path):
    """Return the lines of a JSON log, by what they say."""
    return {line["event"]: line for line in map(json.loads, Path(path).read_text().splitlines())}


def test_the_tinyllm_guides_logging():
    """Fields, exceptions, bound fields and requests of the guide's loggers stand in its lines, and no secret does."""
    log = {"format": "json", "output": "app.json"}
    with ec.configure(service="tinyllm", version="0.1.0", handlers={"log": log}):
        logger = ec.get_logger(__name__, component="executor")
        logger.info("node_executed", node_id="entry", duration_ms=123, tokens_used=45)
        try:
            int("risky")
        except ValueError as error:
            logger.error("operation_failed", error=str(error), exc_info=True)  # noqa: G201 - the guide's line
        ec.bind_context(request_id="req-123", user_id="user-456")
        logger.info("processing_request")
        ec.unbind_context("request_id", "user_id")
        logger.info("unbound")
        ec.log_request(
            request_id="req-123",
            method="POST",
            path="/api/generate",
            headers={"Authorization": "Bearer sk-abc123"},
            body={"prompt": "Hello", "api_key": "hunter2"},
        )
        with ec.span("my_operation"):
            trace_id = ec.current_trace().trace_id
            logger.info("operation_started")
    lines = lines_of("app.json")
    assert (lines["node_executed"]["component"], lines["node_executed"]["tokens_used"]) == ("executor", 45)
    assert "ValueError" in lines["operation_failed"]["exception"]
    assert (lines["processing_request"]["request_id"], lines["processing_request"]["user_id"]) == (
        "req-123",
        "user-456",
    )
    assert not {"request_id", "user_id"} & lines["unbound"].keys()
    assert lines["http_request"]["headers"] == {"Authorization": "[REDACTED]"}
    assert lines["http_request"]["body"] == {"prompt": "Hello", "api_key": "[REDACTED]"}
    started = lines["operation_started"]
    assert (started["trace_id"], started["app"], started["version"]) == (trace_id, "tinyllm", "0.1.0")


def test_the_tinyllm_guides_tracing_and_events():
    """Attributes, events and errors of the guide's spans are on them; its emitter, handlers and buffer answer."""
    span = {"exporter": "memory", "span_events": True}
    handlers = {"log": {"format": "json", "output": "app.json"}, "span": span, "buffer": {"max_size": 1000}}
    with ec.configure(service="tinyllm", handlers={**handlers, "metric": {"max_series": 2000}}) as emitter:
        slack = Slack()
        emitter.add_handler(slack)
        with ec.span("processing", node_type="router"):
            ec.current_operation().set(user_id="user-123")
            ec.emit_event("cache_miss", data={"cache_key": "abc"})
            trace_id = ec.current_trace().trace_id
            ec.emit_event(
                "step.completed", ec.Category.EXECUTION, ec.Severity.INFO, "Step completed", trace_id=trace_id
            )

        @ec.traced(attributes={"component": "executor"})
        async def execute_graph(graph_id):
            return graph_id

        assert asyncio.run(execute_graph("g")) == "g"
        with pytest.raises(KeyError), ec.span("risky_operation"):
            raise KeyError("gone")
        ec.emit_error_event("Operation failed", error=KeyError("gone"), category="execution", data={"node_id": "entry"})
        assert ec.current_trace().trace_id is None
        assert emitter.is_enabled
        names = [handler.__class__.__name__ for handler in emitter.handlers]
        assert emitter.flush()
        stats = emitter.handler("metric").get_cardinality_stats()
        errors = emitter.handler("buffer").get_events(
            category=ec.Category.EXECUTION, severity=ec.Severity.ERROR, limit=10
        )
        spans = {span.name.rsplit(".", maxsplit=1)[-1]: span for span in emitter.handler("span").exporter.spans}
    lines = lines_of("app.json")
    assert {lines["cache_miss"]["trace_id"], lines["Step completed"]["trace_id"]} == {trace_id}
    assert (spans["processing"].attributes["node_type"], spans["processing"].attributes["user_id"]) == (
        "router",
        "user-123",
    )
    assert "cache_miss" in [event.name for event in spans["processing"].events]
    assert spans["execute_graph"].attributes["component"] == "executor"
    assert spans["risky_operation"].events[-1].name == "exception"
    assert names == ["LogHandler", "SpanHandler", "BufferHandler", "MetricHandler", "Slack"]
    assert stats["max_cardinality"] == 2000
    assert all(info["cardinality"] <= 2000 for info in stats["metrics"].values())
    assert [envelope.name for envelope in errors] == ["risky_operation", "execution.error"]
    assert len(slack.sent) == 2


def test_the_moe_guides_program(monkeypatch):
    """Logging, custom metrics, spans, health and profiling of the MoE guide give its records, series and report."""
    monkeypatch.setattr("eventcore.by_hand._declared", {})  # its metric is not to be one of other tests
    handlers = {
        "log": {"format": "json", "output": "router.log", "schema": "moe"},
        "span": {"exporter": "memory"},
        "metric": {},
    }
    with ec.configure(service="dynamic-moe-router", environment="production", handlers=handlers) as emitter:
        custom = ec.counter("dynamic_moe_custom_events_total", help="Custom.", labels=["event_type", "model_name"])
        custom.inc(event_type="user_interaction", model_name="production-model")

        logger = ec.get_logger("my_module")
        ec.bind_context(correlation_id="c-1")
        ec.emit_event("routing.complete", message="Routing completed successfully", data={"model": {"batch_size": 4}})
        logger.info("done", extra={"performance": {"experts_used": 3.2}})
        ec.unbind_context("correlation_id")
        logger.info("cleared")

        with ec.span("custom_operation", operation_type="preprocessing") as op:
            op.set(processed_items=3)

        @ec.traced("model_inference", model_type="dynamic_moe")
        def run_inference():
            ec.start_profile("inference")
            return ec.end_profile("inference")

        profile_data = run_inference()

        class ExpertBalance(ec.HealthCheck):
            async def run(self):
                return ec.HealthResult(ec.HealthStatus.DEGRADED, "Expert load imbalance: 0.40", {"balance_score": 0.4})

        emitter.health.add_check(ExpertBalance("expert_balance_m"))
        emitter.health.add_check(ec.ModelHealthCheck("my-model", "Hello".split))
        report = asyncio.run(emitter.health.get_overall_health())
        text = emitter.handler("metric").render().decode()
        assert emitter.flush()
        spans = {span.name: span for span in emitter.handler("span").exporter.spans}

    lines = [json.loads(line) for line in Path("router.log").read_text().splitlines()]
    records = {line["event"]["message"]: line for line in lines}
    routed = records["Routing completed successfully"]
    assert (routed["event"]["type"], routed["correlation_id"]) == ("routing.complete", "c-1")
    assert routed["data"]["model"] == {"batch_size": 4}
    assert (routed["service"]["name"], routed["service"]["environment"]) == ("dynamic-moe-router", "production")
    assert records["done"]["data"]["performance"] == {"experts_used": 3.2}
    assert not records["cleared"].get("correlation_id")
    assert 'dynamic_moe_custom_events_total{event_type="user_interaction",model_name="production-model"} 1.0' in text
    assert spans["custom_operation"].attributes["processed_items"] == 3
    assert spans["model_inference"].attributes["model_type"] == "dynamic_moe"
    assert profile_data["duration"] >= 0
    assert "memory_delta" in profile_data
    assert report["status"] == "degraded", report
    assert report["checks"]["expert_balance_m"]["details"] == {"balance_score": 0.4}
    assert report["checks"]["model_my-model"]["status"] == "healthy"
