"""The span plugin: which spans follow from operations, and what they hold."""

from __future__ import annotations

import array
import asyncio
import datetime as dt
import enum
import pathlib
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import eventcore as ec

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REMOTE_UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Color(enum.Enum):
    RED = "red"


class Charge(ec.Operation, name="shop.charge", span="charge_card", category=ec.Category.INTEGRATION):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    attempts: Annotated[int, ec.Measure(unit="1")] = ec.unset
    note: str | None = None
    card: Annotated[str | None, ec.Sensitive] = None
    mood: str = ec.unset


class Holder(ec.Operation, name="test.holder", category=ec.Category.DATA):
    value: Any = ec.unset


class Score(ec.Operation, name="test.score", category=ec.Category.MODEL, each=("item", "score")):
    model: str
    item: ec.Array[str]
    score: ec.Array[float] = ec.unset


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER):
    amount: float


@pytest.fixture
def emitter():
    """Return an emitter whose one handler keeps spans in memory."""
    with ec.configure(service="shop", handlers={"span": {"exporter": "memory"}}) as configured:
        yield configured


def spans(emitter, name="span"):
    """Return what the handler exported so far."""
    assert emitter.flush()
    return emitter.handler(name).exporter.spans


def span_of(emitter, operation=Holder, **fields):
    """Run one operation and return its span."""
    with emitter.operation(operation, **fields):
        pass
    return spans(emitter)[-1]


def counts(emitter, handler="span"):
    """Return one handler's row of the ledger."""
    assert emitter.flush()
    return emitter.ledger().handler(handler)


# -- ids, times, nesting -----------------------------------------------------------------------------------------------


def test_nested_operations_are_nested_spans_with_the_ids_seen_inside(emitter):
    """A span's ids are those of ec.current_trace() inside the operation, and its parent is the enclosing operation."""
    with emitter.operation(Charge, provider="stripe"):
        outer = ec.current_trace()
        with emitter.operation(Holder):
            inner = ec.current_trace()
    child, parent = spans(emitter)
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == (outer.trace_id, outer.span_id)
    assert (f"{child.trace_id:032x}", f"{child.span_id:016x}") == (inner.trace_id, inner.span_id)
    assert parent.parent_span_id == 0
    assert child.parent_span_id == parent.span_id
    assert (parent.name, child.name) == ("charge_card", "test.holder")


def test_a_child_lies_within_its_parent(emitter):
    """Start and end are wall times of the operation, so a child's interval lies within its parent's."""
    with emitter.operation(Holder), emitter.operation(Holder):
        pass
    child, parent = spans(emitter)
    assert 0 < parent.start_ns <= child.start_ns <= child.end_ns
    assert child.end_ns - child.start_ns <= parent.end_ns - parent.start_ns


def test_only_operations_become_spans(emitter):
    """An event that does not last is no span; the ledger counts it as filtered, not as accepted."""
    before = counts(emitter).accepted
    emitter.emit(Paid(amount=1.0))
    assert spans(emitter) == ()
    assert counts(emitter).accepted == before
    assert not emitter.enabled(Paid)
    assert emitter.enabled(Charge)


def test_spans_without_a_class_carry_their_attributes_at_the_top(emitter):
    """ec.span(name, **attributes) and @ec.traced make spans of that name, attributes flattened by dots."""

    @ec.traced("load", path="x")
    def load():
        with ec.span("parse", size=3, meta={"a": {"b": True}}):
            pass

    load()
    parse, loaded = spans(emitter)
    assert (parse.name, loaded.name) == ("parse", "load")
    assert parse.attributes == {"event.name": "parse", "size": 3, "meta.a.b": True}
    assert loaded.attributes["path"] == "x"
    assert parse.parent_span_id == loaded.span_id


def test_an_operation_under_a_remote_parent_is_a_server_span(emitter):
    """The operation that continues a caller's trace is a SERVER span and keeps tracestate; those below are INTERNAL."""
    with ec.continue_trace(REMOTE, tracestate="vendor=1"), emitter.operation(Holder), emitter.operation(Holder):
        pass
    inner, outer = spans(emitter)
    assert (outer.kind, inner.kind) == (2, 1)
    assert outer.parent_span_id == 0xB7AD6B7169203331
    assert outer.trace_id == inner.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert outer.trace_state == inner.trace_state == "vendor=1"
    assert (outer.flags, inner.flags) == (0x301, 0x101)


def test_links_are_kept(emitter):
    """op.link(trace_id, span_id) becomes a link of the span."""
    with emitter.operation(Holder) as op:
        op.link("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert spans(emitter)[0].links == ((0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331),)


# -- attributes --------------------------------------------------------------------------------------------------------


def test_attributes_are_the_fields_that_are_set(emitter):
    """Fields become attributes beside event.name; unset results and None are left out, zero and empty text are not."""
    span = span_of(emitter, Charge, provider="adyen")
    assert span.attributes == {"event.name": "shop.charge", "provider": "adyen"}
    attributes = span_of(emitter, Charge, provider="adyen", attempts=0, mood="").attributes
    assert (attributes["attempts"], attributes["mood"]) == (0, "")


def test_bound_fields_correlation_id_and_tags_are_attributes(emitter):
    """What is bound around an operation is on its span; a field of the operation wins over a bound one."""
    with (
        ec.bound(correlation_id="c-1", tenant="acme", provider="bound", user={"plan": "pro"}),
        emitter.operation(Charge, provider="stripe") as op,
    ):
        op.tags = ("vip", "eu")
    (span,) = spans(emitter)
    assert span.attributes["tags"] == ("vip", "eu")
    assert span.attributes["correlation_id"] == "c-1"
    assert span.attributes["tenant"] == "acme"
    assert span.attributes["user.plan"] == "pro"
    assert span.attributes["provider"] == "stripe"


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


CYCLE: dict[str, Any] = {}
CYCLE["self"] = [CYCLE]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (7, 7),
        (2.5, 2.5),
        ("text", "text"),
        ([1, 2], (1, 2)),
        ((), ()),
        ({"x"}, ("x",)),
        (array.array("d", [0.5]), (0.5,)),
        (np.float32(0.5), 0.5),
        (np.bool_(1), True),
        (np.array([1, 2]), (1, 2)),
        (2**63, "9223372036854775808"),
        ([2**64], ("18446744073709551616",)),
        (Color.RED, "red"),
        (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "2026-01-02T00:00:00+00:00"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (b"\x00", "b'\\x00'"),
        ("half \ud800", "half ?"),
        ([{"a": 1}, None, [1]], ("{'a': 1}", "None", "[1]")),
        (Unprintable(), "<Unprintable>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_keep_their_type_or_become_text(emitter, value, expected):
    """Booleans, integers, floats, text and arrays of them keep their type; anything else becomes text, never a loss."""
    got = span_of(emitter, value=value).attributes["value"]
    assert got == expected
    assert type(got) is type(expected)
    assert counts(emitter).failed == 0


def test_mappings_are_flattened_by_dots(emitter):
    """Nested mappings become dotted keys, whatever their keys are, and a cycle ends."""
    attributes = span_of(emitter, value={"a": {"b": 1, 2: "two"}, "c": [1]}).attributes
    assert {key: attributes[key] for key in attributes if key != "event.name"} == {
        "value.a.b": 1,
        "value.a.2": "two",
        "value.c": (1,),
    }
    nested: dict[str, Any] = {}
    nested["again"] = nested
    with ec.bound(nested=nested, cycle=CYCLE):
        span_of(emitter, value=nested)
        span_of(emitter, value=CYCLE)
    assert counts(emitter).delivered == 3


def test_attributes_are_bounded_and_the_rest_is_counted(emitter):
    """A span has 128 attributes of 1,000 characters; dropped_attributes says how many more there were."""
    span = span_of(emitter, value={f"k{n:03}": n for n in range(200)})
    assert len(span.attributes) == 128
    assert span.dropped_attributes == 201 - 128
    long = span_of(emitter, value="x" * 5_000).attributes["value"]
    assert len(long) == 1_000
    assert long.endswith("…")
    attributes = span_of(emitter, value=list(range(5_000))).attributes
    assert attributes["value"] == tuple(range(1_000))
    assert attributes["value.length"] == 5_000


def test_secrets_stay_out_of_spans(emitter):
    """Sensitive fields, secret keys and secrets in free text, bound fields and exceptions are redacted."""
    secret = "sk-abcdefghijklmnop1234"
    with (
        pytest.raises(ValueError, match="sk-"),
        ec.bound(password="hunter2", where=f"at {secret}"),
        emitter.operation(Charge, provider="stripe", card="4111 1111 1111 1111", note=f"mail joe@example.com {secret}"),
        emitter.operation(
            Holder,
            value={"api_key": "hunter2", "list": [{"token": "hunter2"}], "headers": {"cookie": {"a": "hunter2"}}},
        ),
    ):
        raise ValueError(f"key {secret} refused")
    text = repr(spans(emitter))
    for leaked in (secret, "hunter2", "4111 1111 1111 1111", "joe@example.com"):
        assert leaked not in text, text
    inner, outer = spans(emitter)
    assert outer.attributes["card"] == "[REDACTED]"
    assert outer.attributes["note"] == "mail [REDACTED_EMAIL] [REDACTED_API_KEY]"
    assert inner.attributes["value.headers.cookie"] == "[REDACTED]"


def test_the_label_values_of_a_type_are_not_searched_for_secrets(emitter):
    """Values of a Literal are written in the code; they come through whatever they look like."""

    class Odd(ec.Operation, name="test.odd", category=ec.Category.DATA):
        mode: Literal["a@example.com"]

    assert span_of(emitter, Odd, mode="a@example.com").attributes["mode"] == "a@example.com"


# -- status ------------------------------------------------------------------------------------------------------------


def test_success_leaves_the_status_unset(emitter):
    """Success is status UNSET, as OpenTelemetry asks of instrumentation; OK is for people to set."""
    span = span_of(emitter)
    assert (span.status, span.status_message, span.events) == (0, "", ())
    assert "error.type" not in span.attributes


def test_a_failure_is_an_error_with_the_exception(emitter):
    """A failure has status ERROR, error.type, and an exception event with type, message and stack, without locals."""
    local = "do not show"
    with pytest.raises(ZeroDivisionError), emitter.operation(Holder):
        _ = 1 // len(local[:0])
    (span,) = spans(emitter)
    assert (span.status, span.status_message) == (2, "ZeroDivisionError: integer division or modulo by zero")
    assert span.attributes["error.type"] == "ZeroDivisionError"
    (event,) = span.events
    assert (event.name, event.time_ns) == ("exception", span.end_ns)
    assert event.attributes["exception.type"] == "ZeroDivisionError"
    assert event.attributes["exception.message"] == "integer division or modulo by zero"
    stack = event.attributes["exception.stacktrace"]
    assert "_ = 1 // len(local[:0])" in stack
    assert local not in stack


class ShopError(Exception):
    pass


def test_the_exception_type_is_qualified_and_a_long_stack_keeps_its_end(emitter):
    """exception.type names the module; of a long stack the end is kept, where the error is."""

    def deeper(depth):
        if depth:
            deeper_again(depth - 1)
        raise ShopError("at the bottom " + "x" * 20_000)

    def deeper_again(depth):
        deeper(depth)

    with pytest.raises(ShopError), emitter.operation(Holder):
        deeper(50)
    (event,) = spans(emitter)[0].events
    assert event.attributes["exception.type"] == f"{__name__}.ShopError"
    assert len(event.attributes["exception.stacktrace"]) <= 8_000
    assert event.attributes["exception.stacktrace"].endswith("xxx\n")
    assert len(event.attributes["exception.message"]) == 1_000


def test_cancelled_and_abandoned_operations_are_errors_in_that_word(emitter):
    """Cancelled and abandoned operations have status ERROR with that word, and no exception event."""

    async def cancelled():
        with emitter.operation(Holder):
            await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    op = emitter.operation(Holder)
    op.__enter__()
    op.end("abandoned")
    first, second = spans(emitter)
    assert (first.status, first.status_message) == (2, "cancelled")
    assert (second.status, second.status_message) == (2, "abandoned")
    assert first.events == second.events == ()


def test_a_failure_reported_by_hand_is_one_too(emitter):
    """op.fail(error) gives the same status and event without an exception leaving the block; so does end('failure')."""
    with emitter.operation(Holder) as op:
        op.fail(KeyError("missing"))
    by_hand = emitter.operation(Holder)
    by_hand.__enter__()
    by_hand.end("failure")
    first, second = spans(emitter)
    assert first.events[0].attributes["exception.type"] == "KeyError"
    assert first.status_message == "KeyError: 'missing'"
    assert (second.status, second.status_message, second.events) == (2, "failure", ())


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_becomes_one_span_per_element(emitter):
    """Aligned arrays expand to spans with the batch's own parent, start and end, marked batched, no time invented."""
    with emitter.operation(Holder), emitter.operation(Score, model="m", item=["a", "b", "c"]) as op:
        op.set(score=np.array([0.25, 0.5, 0.75]))
    *scored, parent = spans(emitter)
    assert [span.attributes for span in scored] == [
        {"event.name": "test.score", "batched": True, "model": "m", "item": item, "score": score}
        for item, score in (("a", 0.25), ("b", 0.5), ("c", 0.75))
    ]
    assert len({span.span_id for span in scored}) == 3
    assert {(span.trace_id, span.parent_span_id) for span in scored} == {(parent.trace_id, parent.span_id)}
    assert len({(span.start_ns, span.end_ns) for span in scored}) == 1


def test_the_ids_of_a_batch_agree_between_handlers_and_with_what_happens_inside():
    """Two handlers give an element the same span id, and a child of the batch finds its parent among them."""
    handlers = {name: {"use": "span", "exporter": "memory"} for name in ("one", "two")}
    with ec.configure(handlers=handlers) as emitter:
        with emitter.operation(Score, model="m", item=["a", "b"]), emitter.operation(Holder):
            inside = ec.current_operation()
        first, second = spans(emitter, "one"), spans(emitter, "two")
    assert [span.span_id for span in first] == [span.span_id for span in second]
    child = next(span for span in first if span.span_id == inside.span_id)
    assert child.parent_span_id in {span.span_id for span in first if span.name == "test.score"}


def test_an_empty_batch_is_one_span(emitter):
    """A batch without elements took its time too, and is one span without them."""
    span = span_of(emitter, Score, model="m", item=[])
    assert span.attributes == {"event.name": "test.score", "batched": True, "model": "m"}


def test_arrays_of_different_lengths_cost_no_span(emitter):
    """A result that does not fit its batch is left out before a span is made; its operation arrives like the others."""
    for items, scores in (("ab", [1.0, 2.0]), ("ab", [1.0]), ("a", [1.0])):
        with emitter.operation(Score, model="m", item=list(items)) as op:
            op.set(score=scores)
    assert [span.attributes.get("score") for span in spans(emitter)] == [1.0, 2.0, None, None, 1.0]
    row = counts(emitter)
    assert (row.failed, row.delivered) == (0, 3)


@pytest.mark.parametrize("seed", [0, 2**64 - 1, 0x9E3779B97F4A7C15])
def test_ids_of_elements_do_not_collide(seed):
    """Ids of 10,000 elements are distinct, not zero, and fit 64 bits."""
    from eventcore_span.builder import _nth_id

    ids = {_nth_id(seed or 1, index) for index in range(10_000)}
    assert len(ids) == 10_000
    assert all(0 < number < 2**64 for number in ids)
