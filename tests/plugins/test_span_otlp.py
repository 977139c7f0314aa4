"""The span plugin: the bytes of OTLP, held against opentelemetry-proto's own messages."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import eventcore as ec
from eventcore_span.builder import SpanBuilder
from eventcore_span.exporters import FileExporter
from eventcore_span.limits import Limits
from eventcore_span.otlp import SpanEncoder, encode
from eventcore_span.span import FinishedSpan, SpanEvent
from tests.support.otlp_receiver import spans_of
from tests.support.otlp_spans import request_of_json, span_message

IDS = st.integers(1, 2**128 - 1)
SPAN_IDS = st.integers(1, 2**64 - 1)
TIMES = st.integers(0, 2**63)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)
SCALARS = st.one_of(TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
ATTRIBUTES = st.dictionaries(TEXTS, SCALARS | st.lists(SCALARS, max_size=5).map(tuple), max_size=6)
SPANS = st.builds(
    FinishedSpan,
    name=TEXTS,
    trace_id=IDS,
    span_id=SPAN_IDS,
    parent_span_id=st.just(0) | SPAN_IDS,
    start_ns=TIMES,
    end_ns=TIMES,
    attributes=ATTRIBUTES,
    kind=st.integers(1, 5),
    is_parent_remote=st.booleans(),
    status=st.sampled_from([0, 2]),
    status_message=TEXTS,
    trace_state=TEXTS,
    dropped_attributes=st.integers(0, 2**32 - 1),
    events=st.lists(st.builds(SpanEvent, TEXTS, TIMES, ATTRIBUTES, st.integers(0, 9)), max_size=3).map(tuple),
    dropped_events=st.integers(0, 2**32 - 1),
    links=st.lists(st.tuples(IDS, SPAN_IDS), max_size=3).map(tuple),
    dropped_links=st.integers(0, 2**32 - 1),
)


class Color(enum.Enum):
    RED = "red"


class Plain(ec.Operation, name="test.plain", span="plain name", category=ec.Category.EXECUTION):
    """One field of every kind whose values are scalars."""

    text: str | None = None
    number: int = ec.unset
    share: float = ec.unset
    yes: bool = ec.unset
    mode: Annotated[Literal["fast", "slow"], ec.Label] = ec.unset
    color: Color = ec.unset
    raw: bytes = ec.unset
    card: Annotated[str, ec.Sensitive] = ec.unset


class Nested(ec.Operation, name="test.nested", category=ec.Category.EXECUTION):
    value: Any = ec.unset


class Batch(ec.Operation, name="test.batch", category=ec.Category.EXECUTION, each=("item", "score")):
    item: ec.Array[str]
    score: ec.Array[float]


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.none() | TEXTS | st.text(st.characters(codec="utf-8"), min_size=900, max_size=1100),
        "number": st.integers(-(2**70), 2**70) | st.sampled_from([-(2**63), 2**63 - 1, 127, 128]),
        "share": st.floats(allow_nan=False),
        "yes": st.booleans(),
        "mode": st.sampled_from(["fast", "slow", "wrong"]),
        "color": st.sampled_from(Color),
        "raw": st.binary(max_size=8),
        "card": TEXTS,
    },
)


BOUND = st.dictionaries(st.sampled_from(["text", "number", "event.name", "user", "a.b", "tags", "x" * 40]), SCALARS)
"""Bound fields, of which some are called as fields of the operation are."""


class Keep(ec.Handler):
    """Keeps envelopes, redacted as every handler gets them."""

    def __init__(self):
        super().__init__(queue_size=100_000)
        self.envelopes = []

    def handle(self, envelope):
        self.envelopes.append(envelope)


@pytest.fixture(scope="module")
def emitter():
    """Return an emitter of which envelopes can be had, and whose operations are sampled."""
    with ec.Emitter() as made:
        made.add_handler(Keep(), name="keep")
        made.trace_bound = 1 << 64
        yield made


def in_one_order(spans):
    """Return spans with their attributes sorted: their order means nothing to OpenTelemetry."""
    for span in spans:
        found = sorted(span.attributes, key=lambda item: item.key)
        del span.attributes[:]
        span.attributes.extend(found)
    return spans


def both(emitter, limits=None):
    """Return the bytes of the latest operation's spans, and the messages that they are to be."""
    assert emitter.flush()
    envelope = next(kept for kept in reversed(emitter.handler("keep").envelopes) if kept.span)
    builder = SpanBuilder(limits)
    spans = [Span.FromString(data) for data in SpanEncoder(builder).encode(envelope, envelope.span)]
    return in_one_order(spans), in_one_order([span_message(s) for s in builder.build(envelope, envelope.span)])


@given(SPANS)
def test_every_span_is_written_as_opentelemetry_proto_writes_it(span):
    """The bytes of any finished span parse to the message that opentelemetry-proto builds of it."""
    assert Span.FromString(encode(span)) == span_message(span)


@given(SPANS)
def test_every_span_is_the_same_in_a_file(tmp_path_factory, span):
    """The OTLP JSON of any finished span parses to the message that opentelemetry-proto builds of it."""
    path = tmp_path_factory.mktemp("spans") / "spans.jsonl"
    exporter = FileExporter(path, ec.Resource())
    exporter.export([span])
    exporter.close()
    (line,) = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert spans_of(request_of_json(line)) == [span_message(span)]


@given(fields=FIELDS, bound=BOUND, remote=st.booleans(), fails=st.booleans())
def test_prepared_fragments_give_the_same_span(emitter, fields, bound, remote, fails):
    """A plain operation, written from what was prepared per type, is the span that the builder makes of it.

    So is one with bound fields, a remote parent, a failure or values that take the longer way.
    """
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with (
        ec.continue_trace(header if remote else None, tracestate="a=b"),
        ec.bound(correlation_id=next(iter(bound), None), **bound),
        emitter.operation(Plain, **fields) as operation,
    ):
        operation.tags = tuple(bound)[:1]
        if fails:
            operation.fail(ValueError("no"))
    written, expected = both(emitter)
    assert written == expected
    assert len(written) == 1


def test_the_way_over_prepared_fragments_is_taken(emitter):
    """A plain success does not go through the builder at all, however its field values vary; else it would be slow."""

    class Forbidden(SpanBuilder):
        def build(self, envelope, operation):
            raise AssertionError("built")

    encoder = SpanEncoder(Forbidden())
    for fields in ({"text": "x", "number": -1, "share": 0.5, "yes": True, "mode": "slow"}, {}, {"card": "secret"}):
        with ec.bound(correlation_id="c", user="me"), emitter.operation(Plain, **fields):
            pass
        assert emitter.flush()
        envelope = emitter.handler("keep").envelopes[-1]
        (data,) = encoder.encode(envelope, envelope.span)
        assert Span.FromString(data).name == "plain name"


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (Nested, {"value": {"a": {"b": [1, "x", None]}, "n": 2**70}}),
        (Nested, {"value": "é" * 2_000}),
        (Nested, {"value": list(range(2_000))}),
        (Nested, {"value": {str(n): n for n in range(200)}}),
        (Nested, {"value": Color.RED}),
        (Batch, {"item": ["a", "b", "c"], "score": [0.1, 0.2, 0.3]}),
        (Batch, {"item": [], "score": []}),
    ],
)
def test_other_operations_give_the_same_spans(emitter, operation, fields):
    """Nested values, long texts and arrays, and batches: the bytes are those of the builder's spans."""
    with emitter.operation(operation, **fields):
        pass
    written, expected = both(emitter)
    assert written == expected


@given(st.dictionaries(st.sampled_from(["size", "event.name", "attributes", "a", "user"]), SCALARS, max_size=5))
def test_spans_without_a_class_are_the_same_on_both_ways(emitter, values):
    """What ec.span was given comes out as the builder puts it: at the top, the first to take a name keeps it."""
    ec.set_emitter(emitter)
    with ec.bound(user="me"), ec.span("passing", **values):
        pass
    ec.set_emitter(None)
    written, expected = both(emitter)
    assert written == expected


def test_limits_hold_on_both_ways(emitter):
    """Fewer attributes and shorter text than usual: both ways cut alike, and the span says how many were dropped."""
    with emitter.operation(Plain, text="x" * 50, number=1, share=2.0, yes=True, mode="fast"):
        pass
    written, expected = both(emitter, Limits(attributes=4, text=10))
    assert written == expected
    (span,) = written
    assert {item.key for item in span.attributes} == {"event.name", "text", "number", "share"}
    assert span.attributes[3].value.string_value == "x" * 9 + "…"
    assert span.dropped_attributes_count == 2


def test_the_encoder_remembers_a_bounded_number_of_texts(emitter):
    """Texts that are different every time do not pile up in what is prepared."""
    encoder = SpanEncoder(SpanBuilder())
    for number in range(600):
        with emitter.operation(Plain, text=f"request {number}"):
            pass
    assert emitter.flush()
    for envelope in emitter.handler("keep").envelopes[-600:]:
        assert list(encoder.encode(envelope, envelope.span))
    (kept,) = (len(field) for name, field in encoder._prepared[Plain]._fields if name == "text")
    assert kept <= 256
