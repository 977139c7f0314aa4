"""Every handler of this repository passes the kit that handler authors are given."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import ClassVar

import pytest

import eventcore as ec
from eventcore.testing import HandlerConformance
from eventcore.testing.conformance_events import EVENTS
from eventcore_buffer.handler import BufferHandler
from eventcore_log.handler import LogHandler
from eventcore_metric.handler import MetricHandler
from eventcore_span.handler import SpanHandler
from eventcore_webhook.handler import WebhookHandler
from tests.support.otlp_receiver import OtlpReceiver, attributes_of
from tests.support.webhook_receiver import webhook_receiver

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_handler"
SECRET = "whsec_" + base64.b64encode(b"conformance of the webhook").decode()


def _desk_handler():
    path = EXAMPLE / "desk_handler" / "handler.py"
    spec = importlib.util.spec_from_file_location("desk_handler_of_the_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DeskHandler


class TestLog(HandlerConformance):
    """The log handler, as JSON into a file."""

    wrong_options: ClassVar = {"format": "xml", "output": ""}

    def make_handler(self, tmp_path):
        return LogHandler(format="json", output=tmp_path / "log.json", min_severity="trace")

    def received(self, handler):
        return [json.loads(line)["id"] for line in Path(handler.config.output).read_text(encoding="utf-8").splitlines()]


class TestLogDurable(TestLog):
    """The same through the journal, which must hold whatever comes."""

    def make_handler(self, tmp_path):
        return LogHandler(format="json", output=tmp_path / "log.json", min_severity="trace", delivery="durable")


class TestLogRotating(TestLog):
    """The same into files that make way for new ones."""

    wrong_options: ClassVar = {"max_bytes": 0, "rotate_every_s": 0, "backups": 0}

    def make_handler(self, tmp_path):
        return LogHandler(
            format="json", output=tmp_path / "log.json", min_severity="trace", max_bytes=2_000, backups=10_000
        )

    def received(self, handler):
        path = Path(handler.config.output)
        older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda found: -int(found.suffix[1:]))
        return [json.loads(line)["id"] for found in (*older, path) for line in found.read_text().splitlines()]


class TestLogOtlp(HandlerConformance):
    """The log handler, as OTLP to a real receiver."""

    wrong_options: ClassVar = {"endpoint": "ftp://localhost", "timeout_s": 0}

    @pytest.fixture(autouse=True)
    def _receiver(self):
        with OtlpReceiver() as self.receiver:
            yield

    def make_handler(self, tmp_path):
        return LogHandler(output="otlp", endpoint=self.receiver.endpoint, min_severity="trace")

    def received(self, handler):
        return [
            attributes_of(record.attributes)["log.record.uid"]
            for request in self.receiver.requests
            for group in request.message.resource_logs
            for scope in group.scope_logs
            for record in scope.log_records
        ]


class TestSpanOtlp(HandlerConformance):
    """The span handler, as OTLP to a real receiver."""

    wrong_options: ClassVar = {"endpoint": "http://localhost:14268", "timeout_s": 0, "conventions": "mine"}

    @pytest.fixture(autouse=True)
    def _receiver(self):
        with OtlpReceiver() as self.receiver:
            yield

    def make_handler(self, tmp_path):
        return SpanHandler(exporter="otlp", endpoint=self.receiver.endpoint)

    def received(self, handler):
        return [span.span_id.hex() for span in self.receiver.spans]


class TestSpanFile(HandlerConformance):
    """The span handler, into a file of OTLP JSON."""

    wrong_options: ClassVar = {"sampling_ratio": 2, "endpoint": "http://localhost:4318"}

    def make_handler(self, tmp_path):
        return SpanHandler(exporter="file", path=tmp_path / "spans.jsonl")

    def received(self, handler):
        requests = [json.loads(line) for line in handler.config.path.read_text().splitlines()]
        return [
            span["spanId"]
            for request in requests
            for group in request["resourceSpans"]
            for scope in group["scopeSpans"]
            for span in scope["spans"]
        ]


class TestSpanMemory(HandlerConformance):
    """The span handler, into memory."""

    wrong_options: ClassVar = {"exporter": 3, "timeout_s": 0}

    def make_handler(self, tmp_path):
        return SpanHandler(exporter="memory")

    def received(self, handler):
        return [f"{span.span_id:016x}" for span in handler.exporter.spans]


class TestMetric(HandlerConformance):
    """The metric handler, with a counter for each type."""

    keeps_order = False
    wrong_options: ClassVar = {"exporter": "graphite", "max_series": 0}

    def make_emitter(self):
        counters = [
            ec.Counter(f"{event_type.__event__.name.replace('.', '_')}_total", on=event_type, help="Seen.")
            for event_type in EVENTS
        ]
        return ec.Emitter(catalog=ec.Catalog(events=EVENTS, instruments=counters))

    def make_handler(self, tmp_path):
        return MetricHandler()

    def received(self, handler):
        seen = {event_type.__event__.name: event_type.__event__.name.replace(".", "_") for event_type in EVENTS}
        return [name for name, metric in seen.items() for _ in range(int(handler.value(f"{metric}_total") or 0))]


class TestBuffer(HandlerConformance):
    """The buffer handler, which works in the caller."""

    wrong_options: ClassVar = {"max_size": 0}

    def make_handler(self, tmp_path):
        return BufferHandler()

    def received(self, handler):
        return [envelope.id for envelope in handler]


class TestWebhook(HandlerConformance):
    """The webhook handler, against a real receiver that verifies signatures."""

    secrets: ClassVar = (SECRET, "path-secret")
    wrong_options: ClassVar = {"url": "ftp://example.com", "secret": "short", "max_attempts": 0}

    @pytest.fixture(autouse=True)
    def _receiver(self):
        with webhook_receiver(SECRET) as self.receiver:
            yield

    def make_handler(self, tmp_path):
        return WebhookHandler(url=self.receiver.url, secret=SECRET, allow_private=True, backoff_s=0.001)

    def received(self, handler):
        assert all(request.verified for request in self.receiver.requests)
        return [request.headers["webhook-id"].removeprefix("msg_") for request in self.receiver.requests]


class TestWebhookUnordered(TestWebhook):
    """The same where an event that has to be tried again lets the others go first."""

    wrong_options: ClassVar = {"ordered": "perhaps"}

    def make_handler(self, tmp_path):
        return WebhookHandler(url=self.receiver.url, secret=SECRET, allow_private=True, backoff_s=0.001, ordered=False)


class TestExample(HandlerConformance):
    """The handler of ``examples/custom_handler``."""

    keeps_order = False
    wrong_options: ClassVar = {"path": 7, "queue_size": "many"}

    def make_handler(self, tmp_path):
        return _desk_handler()(path=tmp_path / "tally.jsonl")

    def received(self, handler):
        lines = [json.loads(line) for line in handler.config.path.read_text().splitlines()]
        return [line["event"] for line in lines for _ in range(line["count"])]
