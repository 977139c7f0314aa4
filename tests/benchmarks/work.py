"""The work W, ours and by hand, and the check that both leave the same.

One operation with two attributes leaves one JSON log line with trace ids, one labelled counter, one labelled histogram
and one span as OTLP protobuf.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Annotated, Literal

import orjson
import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import eventcore as ec
from eventcore.instruments import DEFAULT_BUCKETS
from tests.benchmarks.receiver import Receiver

QUEUE = 200_000
"""More than any round emits, on both sides, so that nothing is dropped (the ledger is asked)."""


class Charge(ec.Operation, name="bench.charge", category=ec.Category.USER, message="charged", logger="shop"):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]


INSTRUMENTS = (
    ec.Counter("charges_total", on=Charge, help="Charges.", labels={"provider": "provider", "outcome": "outcome"}),
    ec.Histogram(
        "charge_seconds", on=Charge, help="Time of charges.", labels={"provider": "provider"}, value="duration_s"
    ),
)


class Ours:
    """W by way of eventcore, with ``log``, ``metric`` and ``span``."""

    def __init__(self, receiver: Receiver, folder: Path, interop: str = "off") -> None:
        self.path = folder / "ours.log"
        self.emitter = ec.configure(
            service="shop",
            instruments=INSTRUMENTS,
            handlers={
                "log": {"format": "json", "events": "bench.*", "output": str(self.path), "queue_size": QUEUE},
                "metric": {"queue_size": QUEUE},
                "span": {"exporter": "otlp", "endpoint": receiver.url, "queue_size": QUEUE, "interop": interop},
            },
            replace=True,
        )

    def work(self) -> None:
        with self.emitter.operation(Charge, provider="stripe", amount=12.5):
            pass

    def flush(self) -> None:
        """Wait until everything has left; fail loudly where it has not, or where the ledger knows of a loss."""
        assert self.emitter.flush(60.0), "ours did not flush"
        ledger = self.emitter.ledger()
        assert ledger.is_settled, f"ours did not balance:\n{ledger}"
        assert ledger.dropped == 0, f"ours dropped:\n{ledger}"
        assert all(row.failed == 0 for row in ledger.rows), f"ours failed:\n{ledger}"

    def exposition(self) -> str:
        return self.emitter.handler("metric").render().decode()

    def close(self) -> None:
        ec.shutdown()


class ByHand:
    """The same with structlog (orjson), prometheus_client and the OpenTelemetry SDK.

    Each as its documentation advises for speed: attributes given at the start, processors cached, bytes written,
    positional labels, batches of 512.
    """

    def __init__(self, receiver: Receiver, folder: Path) -> None:
        self.path = folder / "by_hand.log"
        self._provider = TracerProvider(resource=Resource.create({"service.name": "shop", "service.version": "0"}))
        self._processor = BatchSpanProcessor(OTLPSpanExporter(receiver.traces_url), max_queue_size=QUEUE)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("shop")
        self.registry = CollectorRegistry()
        self._charges = Counter("charges", "Charges.", ["provider", "outcome"], registry=self.registry)
        self._seconds = Histogram(
            "charge_seconds", "Time of charges.", ["provider"], buckets=DEFAULT_BUCKETS, registry=self.registry
        )
        self._file = self.path.open("wb")
        self._log = structlog.wrap_logger(
            structlog.BytesLogger(self._file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=orjson.dumps),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(20),
            cache_logger_on_first_use=True,
        ).bind(logger="shop", name="bench.charge", category="user", app="shop", version="0")

    def work(self) -> None:
        start = time.perf_counter()
        with self._tracer.start_as_current_span(
            "bench.charge", attributes={"event.name": "bench.charge", "provider": "stripe", "amount": 12.5}
        ) as span:
            pass
        duration = time.perf_counter() - start
        context = span.get_span_context()
        self._log.info(
            "charged",
            provider="stripe",
            amount=12.5,
            duration_ms=duration * 1000,
            outcome="success",
            trace_id=format(context.trace_id, "032x"),
            span_id=format(context.span_id, "016x"),
            id=str(uuid.uuid4()),
        )
        self._charges.labels("stripe", "success").inc()
        self._seconds.labels("stripe").observe(duration)

    def flush(self) -> None:
        assert self._processor.force_flush(60_000), "by hand did not flush"

    def exposition(self) -> str:
        return generate_latest(self.registry).decode()

    def close(self) -> None:
        self._provider.shutdown()
        self._file.close()


def check_equal(ours: Ours, by_hand: ByHand, receiver: Receiver, calls: int = 50) -> None:
    """Do W ``calls`` times on each fresh side, decode what came out, and raise AssertionError unless it is the same."""
    found = []
    for side in (ours, by_hand):
        for _ in range(calls):
            side.work()
        side.flush()
        spans = [
            (resource_spans.resource, span)
            for request in receiver.take()
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
        lines = [orjson.loads(line) for line in side.path.read_bytes().splitlines()]
        named = {(span.trace_id.hex(), span.span_id.hex()) for _, span in spans}
        assert len(named) == len(lines) == calls, f"{side}: {len(named)} spans, {len(lines)} lines, {calls} calls"
        assert named == {(line["trace_id"], line["span_id"]) for line in lines}, "a line's ids are not its span's"
        found.append(
            {
                "spans": {_span_facts(resource, span) for resource, span in spans},
                "lines": {_line_facts(line) for line in lines},
                "samples": _samples(side.exposition()),
            }
        )
    for what in ("spans", "lines", "samples"):
        mine, theirs = found[0][what], found[1][what]
        assert mine, f"no {what}"
        assert mine == theirs, f"{what} differ:\nours    {mine}\nby hand {theirs}"


def _span_facts(resource, span) -> tuple:
    named = {item.key: item.value.string_value for item in resource.attributes}
    attributes = tuple(sorted((item.key, item.value.SerializeToString()) for item in span.attributes))
    assert 0 <= span.end_time_unix_nano - span.start_time_unix_nano < 1e9
    status = (span.status.code, span.status.message)
    who = (named["service.name"], named["service.version"])
    remote = span.flags & 0x300  # the SDK leaves the other bits, W3C's trace flags, at 0
    return (*who, span.name, span.kind, remote, span.parent_span_id, status, attributes)


def _line_facts(line: dict) -> tuple:
    """Everything but what differs from line to line, of which only the kind is looked at."""
    varying = {"timestamp", "id", "trace_id", "span_id", "duration_ms"}
    assert len(line["id"]) == 36
    assert len(line["timestamp"]) == 27
    return tuple(sorted((key, type(value).__name__ if key in varying else value) for key, value in line.items()))


def _samples(text: str) -> dict:
    """Values of the counter and of the histogram's count, and which buckets there are; durations differ."""
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            if ("provider", "stripe") not in labels or sample.labels.get("outcome", "success") != "success":
                continue
            if sample.name in ("charges_total", "charge_seconds_count", "charge_seconds_bucket"):
                is_count = not sample.name.endswith("_bucket") or sample.labels["le"] == "+Inf"
                samples[sample.name, labels] = sample.value if is_count else None
    return samples
