"""W's caller against Logfire: a span and an info, exported locally; nothing leaves the process on Logfire's side."""

from __future__ import annotations

import gc
import statistics
import tempfile
from pathlib import Path

import logfire
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tests.benchmarks.paired import Result, result
from tests.benchmarks.receiver import Receiver
from tests.benchmarks.signals import flood
from tests.benchmarks.work import QUEUE, Ours

ROUNDS, CALLS = 9, 1_000


class _Encoded(SpanExporter):
    """Encodes spans as OTLP protobuf, as an exporter would, and keeps only how many there were."""

    spans = 0

    def export(self, spans) -> SpanExportResult:
        assert encode_spans(spans).SerializeToString()
        self.spans += len(spans)
        return SpanExportResult.SUCCESS


class ByLogfire:
    def __init__(self) -> None:
        self._exporter = _Encoded()
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=QUEUE)
        logfire.configure(
            send_to_logfire=False,
            console=False,
            metrics=False,
            inspect_arguments=False,
            additional_span_processors=[self._processor],
        )
        self.calls = 0

    def work(self) -> None:
        self.calls += 1
        with logfire.span("bench.charge", provider="stripe", amount=12.5):
            logfire.info("charged", provider="stripe", amount=12.5)

    def flush(self) -> None:
        """Wait until all has left: of each call a span and a log record, which is a span to Logfire."""
        assert self._processor.force_flush(60_000)
        assert self._exporter.spans == 2 * self.calls, f"{self._exporter.spans} spans of {self.calls} calls"


def w_by_logfire() -> Result:
    p50s = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        receiver = Receiver()
        sides = (Ours(receiver, Path(folder)), ByLogfire())
        try:
            for side in sides:
                flood(side, CALLS)
            for _ in range(ROUNDS):
                for place, side in enumerate(sides):
                    gc.collect()
                    took, _ = flood(side, CALLS)
                    p50s[place].append(statistics.median(took) / 1000)
        finally:
            sides[0].close()
            receiver.close()
    return result("W, caller p50, flood", p50s[0], "logfire span + info", p50s[1], reach=1 / 30)


CASES = [w_by_logfire]
