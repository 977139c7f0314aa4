"""The span plugin: events inside operations, as events of their span; and OpenTelemetry's names for generative AI."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import server_attributes

import eventcore as ec
from eventcore_span import genai
from eventcore_span.held import MAX_OPEN
from tests.support.otlp_receiver import OtlpReceiver, attributes_of

pytestmark = pytest.mark.filterwarnings("error")


class Work(ec.Operation, name="test.work", category=ec.Category.EXECUTION):
    number: int = 0


class Score(ec.Operation, name="test.score", category=ec.Category.MODEL, each=("item",)):
    item: ec.Array[int]


class Retried(ec.Event, name="test.retried", category=ec.Category.INTEGRATION):
    attempt: int
    card: Annotated[str | None, ec.Sensitive] = None
    about: dict[str, Any] = ec.unset


@pytest.fixture
def emitter():
    """Return an emitter whose span handler turns events into span events."""
    with ec.configure(handlers={"span": {"exporter": "memory", "span_events": True}}) as configured:
        yield configured


def spans(emitter):
    """Return what was exported so far."""
    assert emitter.flush()
    return emitter.handler("span").exporter.spans


def row(emitter, event):
    """Return the span handler's row for one event type."""
    return next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("span", event))


def test_events_become_events_of_the_span_they_happen_in(emitter):
    """Each event is part of the innermost operation's span, in order, with its time and its attributes."""
    with emitter.operation(Work):
        emitter.emit(Retried(attempt=1, about={"host": "a", "n": 2}))
        with emitter.operation(Work):
            emitter.emit(Retried(attempt=2))
        with ec.bound(user="me"):
            emitter.emit(Retried(attempt=3))
    inner, outer = spans(emitter)
    assert [event.attributes for event in outer.events] == [
        {"attempt": 1, "about.host": "a", "about.n": 2},
        {"attempt": 3},
    ]
    assert [(event.name, event.attributes["attempt"]) for event in inner.events] == [("test.retried", 2)]
    assert outer.start_ns <= outer.events[0].time_ns <= outer.events[1].time_ns <= outer.end_ns


def test_they_arrive_over_otlp_with_the_exception_last():
    """In a decoded OTLP stream a failed operation has its events, then its exception; secrets are redacted."""
    with OtlpReceiver() as receiver:
        options = {"exporter": "otlp", "endpoint": receiver.endpoint, "span_events": True}
        with ec.configure(handlers={"span": options}) as emitter:
            with emitter.operation(Work) as operation:
                emitter.emit(Retried(attempt=1, card="4111 1111 1111 1111"))
                ec.emit_event("passing", category="execution", message="at joe@example.com", data={"size": 3})
                operation.fail(ValueError("no"))
            assert emitter.flush()
        (span,) = receiver.wait_for(1)
    retried, passing, exception = span.events
    assert attributes_of(retried.attributes) == {"attempt": 1, "card": "[REDACTED]"}
    assert passing.name == "passing"
    assert attributes_of(passing.attributes) == {"message": "at [REDACTED_EMAIL]", "size": 3}
    assert exception.name == "exception"
    assert span.start_time_unix_nano < retried.time_unix_nano <= passing.time_unix_nano <= exception.time_unix_nano


def test_without_the_option_events_are_no_part_of_spans():
    """By default events are correlated logs only: the span handler does not take them at all."""
    with ec.configure(handlers={"span": {"exporter": "memory"}}) as emitter:
        with emitter.operation(Work):
            emitter.emit(Retried(attempt=1))
        assert [span.events for span in spans(emitter)] == [()]
        assert not emitter.enabled(Retried)


def test_events_outside_a_recorded_operation_take_no_place():
    """Events outside operations, or in traces that are not recorded, are counted as sampled out before the queue."""
    options = {"exporter": "memory", "span_events": True, "sampling_ratio": 0.0}
    with ec.configure(handlers={"span": options}) as emitter:
        emitter.emit(Retried(attempt=1))
        with emitter.operation(Work):
            emitter.emit(Retried(attempt=2))
        with ec.continue_trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
            emitter.emit(Retried(attempt=3))
            with emitter.operation(Work):
                emitter.emit(Retried(attempt=4))
        (span,) = spans(emitter)
        assert [event.attributes["attempt"] for event in span.events] == [4]
        account = row(emitter, "test.retried")
        assert (account.emitted, account.sampled, account.delivered, account.pending) == (4, 3, 1, 0)


def test_an_event_that_comes_after_its_span_is_counted_as_failed(emitter):
    """What another thread emits in an operation whose span has left is not lost in silence."""
    with emitter.operation(Work):
        late = ec.in_context(lambda: emitter.emit(Retried(attempt=1)))
    assert spans(emitter)[0].events == ()
    thread = threading.Thread(target=late)
    thread.start()
    thread.join()
    assert emitter.flush()
    assert row(emitter, "test.retried").failed == 1


def test_a_batch_has_its_events_on_its_first_span(emitter):
    """An operation that expands into spans per element keeps its events once, on the span with its own id."""
    with emitter.operation(Score, item=[1, 2, 3]) as op:
        emitter.emit(Retried(attempt=1))
    made = spans(emitter)
    assert [len(span.events) for span in made] == [1, 0, 0]
    assert made[0].span_id == op.span_id


def test_the_number_of_events_is_limited(monkeypatch):
    """A span keeps as many events, of as many attributes, as OTEL_*_COUNT_LIMIT say, and counts what was dropped."""
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "3")
    with ec.configure(handlers={"span": {"exporter": "memory", "span_events": True}}) as emitter:
        with emitter.operation(Work):
            for number in range(5):
                emitter.emit(Retried(attempt=number, about={"a": 1, "b": 2, "c": 3}))
        (span,) = spans(emitter)
    assert [event.attributes["attempt"] for event in span.events] == [0, 1]
    assert span.dropped_events == 3
    assert (len(span.events[0].attributes), span.events[0].dropped_attributes) == (3, 1)


def test_events_of_operations_that_never_end_are_bounded(emitter):
    """Events of too many open operations are forgotten, the oldest first, and that is shown."""
    held = emitter.handler("span")._held
    with emitter.operation(Work) as first:
        emitter.emit(Retried(attempt=1))
        assert emitter.flush()
        kept = next(iter(held._held.values()))
        held._held.update(dict.fromkeys(range(1, MAX_OPEN + 1), kept))
        with emitter.operation(Work):
            emitter.emit(Retried(attempt=2))
        assert emitter.flush()
    assert first.span_id not in held._held
    assert emitter.handler("span").describe()["held_events_forgotten"] == 1


# -- generative AI -----------------------------------------------------------------------------------------------------


class Chat(ec.Operation, name="llm.chat", category=ec.Category.MODEL):
    operation: Literal["chat", "embeddings"]
    provider: str
    model: str
    temperature: float = ec.unset
    input_tokens: Annotated[int, ec.Measure(unit="{token}")] = ec.unset
    output_tokens: Annotated[int, ec.Measure(unit="{token}")] = ec.unset
    finish_reasons: ec.Array[str] = ec.unset
    input_messages: list[dict[str, str]] = ec.unset
    retries: int = 0


CHAT = {
    "operation": "chat",
    "provider": "openai",
    "model": "gpt-5",
    "temperature": 0.5,
    "input_tokens": 12,
    "output_tokens": 34,
    "finish_reasons": ["stop"],
    "input_messages": [{"role": "user", "content": "hello"}],
}
EXPECTED = {
    "event.name": "llm.chat",
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.usage.input_tokens": 12,
    "gen_ai.usage.output_tokens": 34,
    "gen_ai.response.finish_reasons": ["stop"],
    "retries": 0,
}


def sent(fields, operation=Chat, **options):
    """Run one operation and return its span as an OTLP receiver decodes it."""
    with OtlpReceiver() as receiver:
        handler = {"exporter": "otlp", "endpoint": receiver.endpoint, **options}
        with ec.configure(handlers={"span": handler}) as emitter:
            with emitter.operation(operation, **fields):
                pass
            assert emitter.flush()
        return receiver.wait_for(1)[0]


def test_operations_of_models_follow_the_conventions_for_generative_ai():
    """With conventions = "genai" name, kind and attributes are OpenTelemetry's; what people wrote is left out."""
    span = sent(CHAT, conventions="genai")
    assert (span.name, span.kind) == ("chat gpt-5", 3)
    assert attributes_of(span.attributes) == EXPECTED


def test_message_content_is_captured_where_asked_for(monkeypatch):
    """OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true adds the messages."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    attributes = attributes_of(sent(CHAT, conventions="genai").attributes)
    assert "hello" in attributes.pop("gen_ai.input.messages")[0]
    assert attributes == EXPECTED


def test_other_operations_keep_their_names():
    """The conventions are for operations of category model; without the option nothing is renamed."""
    span = sent({"number": 1}, operation=Work, conventions="genai")
    assert (span.name, span.kind) == ("test.work", 1)
    plain = sent(CHAT)
    assert (plain.name, plain.kind) == ("llm.chat", 1)
    assert attributes_of(plain.attributes)["provider"] == "openai"


def test_every_name_is_one_of_opentelemetrys():
    """The mapping names only attributes that the installed semantic conventions have, and none that they deprecate."""
    known = {}
    for module in (gen_ai_attributes, server_attributes):
        source = Path(module.__file__).read_text()
        for match in re.finditer(r'^([A-Z_]+): Final = "(.*?)"\n"""(.*?)"""', source, re.MULTILINE | re.DOTALL):
            known[match[2]] = "Deprecated: Replaced" in match[3] or "Deprecated: Removed" in match[3]
    assert len(known) > 30
    assert {name: known.get(name) for name in genai.ATTRIBUTES.values()} == dict.fromkeys(
        genai.ATTRIBUTES.values(), False
    )
