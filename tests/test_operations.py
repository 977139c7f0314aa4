import asyncio
import contextvars
import gc
import threading
import weakref
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import ValidationError, field_validator

import eventcore as ec
from eventcore.context import NOTHING_CARRIED, ROOT, current_scope
from eventcore.extras import NO_EXTRAS
from tests.support.handlers import Clock, Collect, CollectStarts, Held, eventually


class Charge(ec.Operation, name="shop.charge", category="integration"):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label] = "stripe"
    attempts: Annotated[int, ec.Measure(unit="1")] = ec.unset
    fee: float = ec.unset


class Batch(ec.Operation, name="shop.batch", category="model", each=("scores",)):
    scores: ec.Array[float] = ()
    labels: list[str] = ec.unset


class Noted(ec.Event, name="noted", category="data"):
    n: int = 0


class Boom(Exception):
    pass


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def emitter(clock):
    """Return an emitter with that clock."""
    with ec.Emitter(clock=clock) as emitter:
        yield emitter


@pytest.fixture
def handler(emitter):
    """Return an inline handler that keeps everything."""
    return emitter.add_handler(Collect(delivery="inline"))


def charges(handler):
    """Return the charges that a handler got, as (outcome, payload)."""
    return [(e.outcome, dict(e.payload)) for e in handler.got if e.name == "shop.charge"]


# -- with blocks -------------------------------------------------------------------------------------------------------


def test_an_operation_is_emitted_once_when_it_ends(emitter, handler, clock):
    """An operation starts with typed fields, may be given results, and is emitted once when it ends."""
    with emitter.operation(Charge, provider="adyen") as op:
        clock.advance(0.25)
        op.set(attempts=2)
        assert handler.got == []
    assert charges(handler) == [("success", {"provider": "adyen", "attempts": 2})]
    envelope = handler.got[0]
    assert envelope.duration_s == 0.25
    assert envelope.span.start_ns == 1_700_000_000_000_000_000
    assert envelope.time_ns == envelope.span.start_ns + 250_000_000


def test_the_duration_is_monotonic(emitter, handler, clock):
    """A wall clock that is set back does not make a duration negative."""
    with emitter.operation(Charge):
        clock.wall -= 3600 * 10**9
        clock.monotonic += 5 * 10**8
    assert handler.got[0].duration_s == 0.5


def test_results_that_were_not_set_are_no_values(emitter, handler):
    """An unset result yields no attribute, never a false zero."""
    with emitter.operation(Charge):
        pass
    envelope = handler.got[0]
    assert envelope.payload == {"provider": "stripe"}
    assert envelope.get("attempts") is ec.unset
    assert envelope.event.attempts is ec.unset


def test_a_result_may_be_set_again(emitter, handler):
    """The last value of a result counts."""
    with emitter.operation(Charge) as op:
        op.set(attempts=1)
        op.set(attempts=2, fee=0.5)
    assert handler.got[0].payload == {"provider": "stripe", "attempts": 2, "fee": 0.5}


def test_operations_work_as_async_with(emitter, handler):
    """Operations work as ``async with``."""

    async def main():
        async with emitter.operation(Charge) as op:
            await asyncio.sleep(0)
            op.set(attempts=3)

    asyncio.run(main())
    assert charges(handler) == [("success", {"provider": "stripe", "attempts": 3})]


def test_an_operation_may_be_ended_by_hand(emitter, handler):
    """Where no block fits, ``end`` ends it with one of the four outcomes, or an error."""
    for outcome in ("success", "cancelled", "abandoned"):
        emitter.operation(Charge).__enter__().end(outcome)
    emitter.operation(Charge).__enter__().end("failure", Boom("x"))
    assert [e.outcome for e in handler.got] == ["success", "cancelled", "abandoned", "failure"]
    assert handler.got[3].error_type == "Boom"
    assert current_scope() is ROOT


def test_a_wrong_outcome_is_an_error(emitter):
    """A wrong outcome is an error with the likely one, and leaves the operation open."""
    with emitter.operation(Charge) as op:
        with pytest.raises(ValueError, match="unknown outcome 'sucess'; did you mean 'success'"):
            op.end("sucess")
        assert op.is_open


def test_events_inside_belong_to_the_operation(emitter, handler):
    """``op.event`` emits inside the operation, wherever it is called from."""
    with emitter.operation(Charge) as op:
        thread = threading.Thread(target=op.event, args=(Noted(),), kwargs={"severity": "error", "tags": ("t",)})
        thread.start()
        thread.join()
    noted, charge = handler.got
    assert (noted.trace_id, noted.span_id) == (charge.trace_id, charge.span_id)
    assert (noted.severity, noted.tags) == (ec.Severity.ERROR, ("t",))


def test_the_current_operation_can_be_set_and_failed_from_afar(emitter, handler):
    """``ec.current_operation()`` gives ``.set``, ``.event`` and ``.fail`` to code that was not handed the operation."""
    error = Boom("quietly")

    def deep():
        operation = ec.current_operation()
        operation.set(attempts=7)
        operation.event(Noted(n=1))
        operation.fail(error)

    with emitter.operation(Charge):
        deep()
    assert handler.names == ["noted", "shop.charge"]
    assert charges(handler) == [("failure", {"provider": "stripe", "attempts": 7})]
    assert handler.got[1].error_type == "Boom"


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_an_exception_marks_failure_and_goes_on_untouched(emitter, handler):
    """An exception marks ``failure`` and goes on untouched."""
    error = Boom("no")
    with pytest.raises(Boom) as caught, emitter.operation(Charge):
        raise error
    assert caught.value is error
    assert error.__context__ is None
    envelope = handler.got[0]
    assert (envelope.outcome, envelope.error_type, envelope.severity) == ("failure", "Boom", ec.Severity.ERROR)


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_what_is_no_exception_marks_cancelled(emitter, handler, error):
    """Cancellation, an interrupt and an exit mark ``cancelled`` at WARNING, and go on."""
    with pytest.raises(error), emitter.operation(Charge):
        raise error
    assert handler.got[0].outcome == "cancelled"
    assert handler.got[0].severity is ec.Severity.WARNING


def test_a_cancelled_task_ends_its_operations(emitter, handler):
    """A task that is cancelled ends its operations as ``cancelled``."""

    async def main():
        async def work():
            async with emitter.operation(Charge):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert charges(handler) == [("cancelled", {"provider": "stripe"})]


def test_operations_open_at_shutdown_end_as_abandoned(emitter, handler):
    """Operations still open at shutdown end as ``abandoned``, with the fields set so far."""
    op = emitter.operation(Charge).__enter__()
    op.set(attempts=1)
    assert emitter.open_operations() == (op,)
    report = emitter.shutdown()
    assert report.abandoned_operations == 1
    assert not report.is_clean
    assert charges(handler) == [("abandoned", {"provider": "stripe", "attempts": 1})]
    counts = emitter.ledger().operations
    op.suspend()
    assert (counts["started"], counts["abandoned"], emitter.ledger().open_operations) == (1, 1, 0)


def test_leaving_a_block_after_shutdown_harms_nobody(emitter, handler):
    """A block that is still running when the emitter shuts down is left without an error from the bus."""
    emitter.strict = True
    with emitter.operation(Charge) as op:
        emitter.shutdown()
        op.set(attempts=1)
    assert [e.outcome for e in handler.got if e.name == "shop.charge"] == ["abandoned"]
    assert current_scope() is ROOT


def test_an_exception_is_kept_without_locals_or_the_object(emitter, handler):
    """An exception is kept as ``TracebackException`` without locals, never as an object."""

    class Carries(Exception):
        pass

    def fails():
        secret = "hunter2"  # noqa: F841 - it must not be found in what is kept
        raise Carries("message")

    with pytest.raises(Carries), emitter.operation(Charge):
        fails()
    kept = handler.got[0].span.error
    text = "".join(kept.format())
    assert "Carries: message" in text
    assert "in fails" in text
    assert "hunter2" not in text.replace('secret = "hunter2"', "")  # the line of source is no value
    assert all(frame.locals is None for frame in kept.stack)
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o).__name__ == "Carries" and isinstance(o, Exception)]


def test_an_error_may_name_its_type(emitter, handler):
    """An exception with an ``error_type`` text of its own is counted under that; anything else is ignored."""

    class Timeout(Exception):
        error_type = "timeout"

    class Odd(Exception):
        error_type = 504

    for error in (Timeout(), Odd()):
        with pytest.raises(type(error)), emitter.operation(Charge):
            raise error
    assert handler.got[0].error_type == "timeout"
    assert handler.got[1].error_type.endswith("Odd")


def test_an_exception_that_cannot_be_printed_is_kept_all_the_same(emitter, handler):
    """An exception whose text cannot be made still ends the operation and goes on."""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    with pytest.raises(Mute), emitter.operation(Charge):
        raise Mute
    assert handler.got[0].outcome == "failure"


def test_fail_marks_failure_without_an_exception(emitter, handler):
    """``fail`` lets it end as a failure although no exception leaves the block."""
    with emitter.operation(Charge) as op:
        op.fail(Boom("returned, not raised"))
    assert handler.got[0].outcome == "failure"
    assert "Boom: returned, not raised" in "".join(handler.got[0].span.error.format())


def test_the_exception_of_fail_is_not_kept(emitter, handler):
    """What ``fail`` was given is kept as ``TracebackException`` only: the object may go."""
    error = Boom("gone")
    gone = weakref.ref(error)
    with emitter.operation(Charge) as op:
        op.fail(error)
    del error
    gc.collect()
    assert gone() is None
    assert "Boom: gone" in "".join(op.error.format())


def test_an_exception_that_leaves_wins_over_fail(emitter, handler):
    """The exception that leaves the block is the error, whatever ``fail`` said before."""

    def fails_twice():
        with emitter.operation(Charge) as op:
            op.fail(Boom())
            raise KeyError

    with pytest.raises(KeyError):
        fails_twice()
    assert handler.got[0].error_type == "KeyError"


def test_fail_holds_when_ended_by_hand(emitter, handler):
    """A failed operation that is ended by hand is a failure."""
    op = emitter.operation(Charge).__enter__()
    op.fail(Boom())
    op.end()
    assert handler.got[0].outcome == "failure"
    assert handler.got[0].error_type == "Boom"


def test_links_are_kept(emitter, handler):
    """``link`` links other spans, by their hexadecimal ids."""
    with emitter.operation(Charge) as op:
        op.link("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
        op.link("0" * 31 + "1", "0" * 15 + "2")
    assert handler.got[0].span.links == ((0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7), (1, 2))


@pytest.mark.parametrize(
    ("trace", "span"), [("xyz", "1" * 16), ("1" * 32, ""), ("1_0", "1" * 16), ("1" * 40, "2" * 16)]
)
def test_a_link_is_made_of_hexadecimal_ids(emitter, trace, span):
    """A link to what is no pair of ids (32 and 16 hexadecimal digits) is an error where it is made."""
    with emitter.operation(Charge) as op, pytest.raises(ValueError, match="hexadecimal"):
        op.link(trace, span)


# -- validation --------------------------------------------------------------------------------------------------------


def test_an_invalid_result_does_not_lose_the_operation(emitter, handler):
    """If a result does not validate, the operation is still delivered with its ids, outcome and valid fields."""
    with emitter.operation(Charge, provider="adyen") as op:
        op.set(attempts="many", fee=0.5)
    assert charges(handler) == [("success", {"provider": "adyen", "fee": 0.5})]
    charge = next(e for e in handler.got if e.name == "shop.charge")
    assert charge.span.invalid == ("attempts",)
    assert charge.event.attempts is ec.unset


def test_defaults_are_valid_fields(emitter, handler):
    """Fields that were left to their defaults are valid: an invalid result does not take them along."""
    with emitter.operation(Charge) as op:
        op.set(attempts="many")
    assert charges(handler) == [("success", {"provider": "stripe"})]


class Ranked(ec.Operation, name="shop.rank", category="model", each=("item", "score", "place")):
    item: ec.Array[str]
    score: ec.Array[float] = ec.unset
    place: ec.Array[int] = ec.unset


def test_arrays_of_a_batch_that_differ_in_length_are_invalid_results(emitter, handler):
    """Results that do not fit the batch are left out and reported once; no handler has to fail on them."""
    with emitter.operation(Ranked, item=["a", "b"]) as op:
        op.set(score=[0.5], place=[2, 1])
    rank = next(e for e in handler.got if e.name == "shop.rank")
    assert rank.span.invalid == ("score",)
    assert [dict(row) for row in rank.items()] == [{"item": "a", "place": 2}, {"item": "b", "place": 1}]
    report = next(e for e in handler.got if e.name == "eventcore.invalid_result")
    assert report.event.reason == "aligned array fields differ in length: {'item': 2, 'score': 1, 'place': 2}"


@pytest.mark.usefixtures("handler")
def test_strict_raises_for_arrays_of_a_batch_that_differ_in_length(emitter):
    """Strict mode, for tests, raises where the operation ends."""
    emitter.strict = True
    with pytest.raises(ValueError, match="differ in length"), emitter.operation(Ranked, item=["a"]) as op:
        op.set(score=[0.5, 0.6])


def test_valid_fields_are_validated_beside_invalid_ones(emitter, handler):
    """Beside an invalid result the valid ones are what they always are: converted, and arrays copied."""
    scores = [0.5]
    with emitter.operation(Batch) as op:
        op.set(scores=scores, labels=3)
    scores.append(9)
    with emitter.operation(Charge) as op:
        op.set(attempts="many", fee="0.5")
    batch, charge = (e for e in handler.got if e.span is not None)
    assert batch.payload == {"scores": (0.5,)}
    assert charge.payload == {"provider": "stripe", "fee": 0.5}


def test_an_invalid_result_is_reported(emitter):
    """Invalid results are dropped, counted and reported as an event that names operation, field and reason."""
    handler = emitter.add_handler(Collect(act=lambda envelope: envelope.payload, delivery="inline"))
    with emitter.operation(Charge) as op:
        op.set(attempts="many")
    reports = [e for e in handler.got if e.name == "eventcore.invalid_result"]
    assert len(reports) == 1
    assert reports[0].severity is ec.Severity.WARNING
    assert reports[0].event.operation == "shop.charge"
    assert reports[0].event.fields == ["attempts"]
    assert "attempts: Input should be a valid integer" in reports[0].message


def test_an_invalid_result_is_reported_by_a_queued_handler_too(emitter):
    """An operation of plain values is validated in the worker, and its invalid results are reported from there."""
    handler = emitter.add_handler(Collect(linger_s=0))
    with emitter.operation(Charge) as op:
        op.set(attempts="many")
    assert emitter.flush()
    assert emitter.flush(), "the report follows the operation"
    assert sorted(handler.names) == ["eventcore.invalid_result", "shop.charge"]
    assert emitter.ledger().is_settled


def test_several_handlers_report_an_invalid_result_once(emitter):
    """However many handlers get it, an operation is validated and reported once."""
    handlers = [emitter.add_handler(Collect(linger_s=0)) for _ in range(3)]
    for _ in range(20):
        with emitter.operation(Charge) as op:
            op.set(attempts="many")
    assert emitter.flush()
    assert emitter.flush()
    for handler in handlers:
        assert handler.names.count("shop.charge") == 20
        assert handler.names.count("eventcore.invalid_result") == 20


def test_strict_mode_raises(clock):
    """Strict mode (tests) raises where a result does not validate."""
    with ec.Emitter(clock=clock, strict=True) as emitter:
        emitter.add_handler(Collect())
        with pytest.raises(ValidationError, match="attempts"), emitter.operation(Charge) as op:
            op.set(attempts="many")


def test_strict_mode_does_not_replace_an_exception(clock):
    """In strict mode, too, an exception goes on untouched, whatever else does not validate."""
    with ec.Emitter(clock=clock, strict=True) as emitter:
        handler = emitter.add_handler(Collect(delivery="inline"))
        error = Boom()
        with pytest.raises(Boom) as caught, emitter.operation(Charge, attempts="many"):
            raise error
    assert caught.value is error
    assert charges(handler) == [("failure", {"provider": "stripe"})]


def test_a_validator_that_breaks_harms_neither_caller_nor_worker(emitter):
    """A validator that raises no ValueError neither replaces the caller's exception nor stops a worker."""

    class Plain(ec.Operation, name="plain", category="data"):
        n: int = 0

        @field_validator("n")
        @classmethod
        def _broken(cls, value):
            raise RuntimeError("a fault in the application's own validator")

    class NotPlain(Plain, name="not_plain"):
        more: list[int] = ec.unset

    handler = emitter.add_handler(Collect(linger_s=0))
    for event_type in (Plain, NotPlain):
        with pytest.raises(Boom), emitter.operation(event_type, n=1):
            raise Boom
    assert emitter.flush()
    emitter.emit(Noted())
    assert emitter.flush()
    assert emitter.flush()
    assert handler.names.count("plain") == 1
    assert handler.names.count("not_plain") == 1
    assert handler.names.count("noted") == 1
    assert emitter.ledger().is_settled
    for envelope in handler.got:
        if envelope.span is not None:
            assert "n" not in envelope.payload, "what could not be checked is not handed on"
            assert envelope.span.invalid == ("n",)


def test_arrays_are_those_of_the_end(emitter):
    """Array and list results are copied at the end: what the caller does to them afterwards does not show."""
    handler = emitter.add_handler(Collect(linger_s=0))
    scores, labels = np.array([0.5, 0.25]), ["a"]
    with emitter.operation(Batch) as op:
        op.set(scores=scores, labels=labels)
    scores[:] = 9
    labels.append("b")
    assert emitter.flush()
    assert handler.events[0].scores.tolist() == [0.5, 0.25]
    assert handler.events[0].labels == ["a"]


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_an_unknown_field_is_an_error_at_once(emitter):
    """A field that the type does not have is a TypeError that names type, field and the likely one."""
    with pytest.raises(TypeError, match=r"Charge has no field 'providr'; did you mean 'provider'\?"):
        emitter.operation(Charge, providr="stripe")
    with (
        emitter.operation(Charge) as op,
        pytest.raises(TypeError, match=r"Charge has no field 'attempt'; did you mean 'attempts'\?"),
    ):
        op.set(attempt=1)


@pytest.mark.parametrize("fact", ["outcome", "duration_s", "trace_id", "error_type"])
def test_facts_of_the_bus_are_not_given(emitter, fact):
    """A wrong ``outcome=`` argument is an error that says who stamps it."""
    with pytest.raises(TypeError, match=f"Charge: '{fact}' is stamped by the bus"):
        emitter.operation(Charge, **{fact: "success"})


def test_only_operations_last(emitter):
    """An event type that is no operation, or is abstract, cannot be run as one."""

    class Abstract(ec.Operation, category="data"):
        pass

    for wrong in (Noted, Abstract):
        with pytest.raises(TypeError, match=wrong.__name__):
            emitter.operation(wrong).__enter__()


def test_an_operation_is_entered_once(emitter):
    """Starting an operation twice is misuse; the message says how to get another."""
    op = emitter.operation(Charge)
    with op, pytest.raises(ec.OperationMisuse, match=r"started already; call emitter\.operation"):
        op.__enter__()
    with pytest.raises(ec.OperationMisuse, match="started already"):
        op.__enter__()


def misuses(handler):
    """Return the misuses that a handler was told of, as (operation, what)."""
    return [(e.payload["operation"], e.payload["what"]) for e in handler.got if e.name == "eventcore.misuse"]


def test_an_operation_is_ended_once(emitter, handler):
    """Ending an operation twice, or before it started, is misuse: reported once, counted, and nothing more emitted."""
    for _ in range(3):
        op = emitter.operation(Charge)
        op.end()
        op.__enter__()
        op.end()
        op.end()
    assert misuses(handler) == [("shop.charge", "ended_before_start"), ("shop.charge", "ended_twice")]
    assert emitter.misuses.counts == {("shop.charge", "ended_before_start"): 3, ("shop.charge", "ended_twice"): 3}
    assert len(charges(handler)) == 3


def test_misuse_raises_in_strict_mode(emitter, handler):
    """In strict mode misuse raises, and says which operation and what to do."""
    emitter.strict = True
    op = emitter.operation(Charge)
    with pytest.raises(ec.OperationMisuse, match="Charge ended before start; enter it"):
        op.end()
    op.__enter__()
    op.end()
    with pytest.raises(ec.OperationMisuse, match="Charge ended twice"):
        op.end()
    with pytest.raises(ec.OperationMisuse, match=r"Charge used after end; set\(\) it before"):
        op.set(attempts=1)
    assert len(charges(handler)) == 1


def test_an_operation_that_ends_in_another_context_is_misuse(emitter, handler):
    """Ending an operation in another context than it was entered in is reported; neither scope is harmed."""
    op = emitter.operation(Charge).__enter__()
    seen = []

    def elsewhere():
        with emitter.operation(Batch) as inner:
            op.end()
            seen.append(ec.current_operation() is inner)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [True]
    assert misuses(handler) == [("shop.charge", "ended_elsewhere")]
    assert charges(handler) == [("success", {"provider": "stripe"})]
    op.suspend()
    assert current_scope() is ROOT


def test_an_exception_wins_over_misuse(emitter, handler):
    """An exception that leaves a block in another context goes on untouched, in strict mode too."""
    emitter.strict = True
    op = emitter.operation(Charge).__enter__()
    contextvars.copy_context().run(op.__exit__, Boom, Boom(), None)
    assert misuses(handler) == [("shop.charge", "ended_elsewhere")]
    assert charges(handler) == [("failure", {"provider": "stripe"})]


def test_an_operation_that_nothing_refers_to_is_abandoned(emitter, handler):
    """An operation that was dropped without an end is abandoned by the next flush, and reported."""
    kept = emitter.operation(Charge, provider="adyen").__enter__()
    kept.suspend()

    def drops():
        emitter.operation(Charge).__enter__()
        emitter.flush()
        assert charges(handler) == []  # it is still the current scope of this context

    contextvars.copy_context().run(drops)
    emitter.flush()
    assert charges(handler) == [("abandoned", {"provider": "stripe"})]
    assert misuses(handler) == [("shop.charge", "never_ended")]
    assert emitter.open_operations() == (kept,)


def test_many_dropped_operations_are_found_without_a_flush(emitter, handler):
    """Dropped operations do not pile up: beyond a few dozen open ones the dropped among them are abandoned."""
    held = []
    for n in range(1000):
        op = emitter.operation(Charge).__enter__()
        op.suspend()
        if n % 10 == 0:
            held.append(op)
    assert 100 <= len(emitter.open_operations()) < 300
    assert all(op.is_open for op in held)


def test_an_operation_that_runs_is_not_taken_for_a_dropped_one(emitter, handler):
    """Operations that run are not taken for dropped ones, whoever holds them: a block, a generator, a task."""

    @emitter.operation(Charge)
    def generator():
        yield 1

    @emitter.operation(Charge)
    async def coroutine():
        await asyncio.sleep(0)
        emitter.flush()
        await asyncio.sleep(0)

    async def main():
        await asyncio.gather(coroutine(), coroutine())

    running = generator()
    next(running)
    with emitter.operation(Charge), emitter.operation(Charge):
        emitter.flush()
        asyncio.run(main())
    emitter.flush()
    list(running)
    assert [outcome for outcome, _ in charges(handler)] == ["success"] * 5
    assert misuses(handler) == []


def test_operations_open_at_shutdown_are_abandoned_and_no_misuse(emitter, handler):
    """Operations still open at shutdown end as ``abandoned``; a service that is stopped has requests under way."""
    emitter.strict = True
    held = [emitter.operation(Charge).__enter__() for _ in range(3)]
    report = emitter.shutdown()
    assert [op.outcome for op in held] == ["abandoned"] * 3
    assert report.abandoned_operations == 3
    assert misuses(handler) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda op: op.set(attempts=1),
        lambda op: op.fail(Boom()),
        lambda op: op.link("1" * 32, "2" * 16),
    ],
)
def test_an_operation_does_not_change_after_its_end(emitter, handler, change):
    """Changing an operation after its end is misuse: it has been emitted."""
    with emitter.operation(Charge) as op:
        pass
    change(op)
    assert misuses(handler) == [("shop.charge", "used_after_end")]
    assert charges(handler) == [("success", {"provider": "stripe"})]
    assert not op.links
    emitter.strict = True
    with pytest.raises(ec.OperationMisuse, match="used after end"):
        change(op)


def test_an_operation_prints_itself(emitter):
    """An operation prints its name, state and fields."""
    op = emitter.operation(Charge, provider="adyen")
    assert repr(op) == "<operation shop.charge not started {'provider': 'adyen'}>"
    with op:
        assert "open" in repr(op)
    assert "success" in repr(op)


# -- starts ------------------------------------------------------------------------------------------------------------


def test_starts_are_announced_to_those_who_ask(emitter, handler):
    """A handler that asks for starts gets an envelope at the start, with the same ids as the end's; others do not."""
    starts = emitter.add_handler(CollectStarts(delivery="inline"))
    with emitter.operation(Charge, provider="adyen") as op:
        op.set(attempts=1)
        start = starts.got[0]
        assert start.is_start
        assert start.payload == {"provider": "adyen"}
        assert (start.outcome, start.duration_s, start.error_type) == (None, None, None)
    start, end = starts.got
    assert (start.phase, end.phase) == ("start", "end")
    assert (start.span_id, start.trace_id) == (end.span_id, end.trace_id)
    assert start.payload == {"provider": "adyen"}, "results set later do not show in the start"
    assert start.id != end.id
    assert [e.phase for e in handler.got] == ["end"]


def test_a_wrong_start_field_does_not_depend_on_who_listens(emitter, handler):
    """Whether a wrong start field raises does not depend on the handlers: it is left out and reported, once."""
    starts = emitter.add_handler(CollectStarts(delivery="inline"))
    with emitter.operation(Charge, provider="paypal"):
        pass
    assert [(e.phase, dict(e.payload)) for e in starts.got if e.name == "shop.charge"] == [("start", {}), ("end", {})]
    assert handler.names.count("eventcore.invalid_result") == 1
    assert charges(handler) == [("success", {})]


# -- the account -------------------------------------------------------------------------------------------------------


def test_operations_are_counted(emitter, handler):
    """Operations started = ended + open + abandoned."""
    with emitter.operation(Charge):
        pass
    with pytest.raises(Boom), emitter.operation(Charge):
        raise Boom
    left = emitter.operation(Charge).__enter__()
    gone = emitter.operation(Charge).__enter__()
    gone.end("abandoned")
    ledger = emitter.ledger()
    assert dict(ledger.operations) == {"started": 4, "ended": 2, "abandoned": 1}
    assert ledger.open_operations == 1
    assert emitter.open_operations() == (left,)
    left.end()
    assert emitter.ledger().open_operations == 0


def test_operations_cost_nothing_to_whom_nobody_listens(emitter):
    """Without handlers an operation still has ids, for children and ``traceparent``, and is counted."""
    with emitter.operation(Charge):
        assert ec.current_trace().traceparent is not None
    assert emitter.ledger().operations["ended"] == 1


def test_open_operations_are_bounded(emitter, handler, monkeypatch):
    """Open operations have a limit: beyond it the oldest end as abandoned, and are counted."""
    monkeypatch.setattr("eventcore.misuse.MAX_OPEN_OPERATIONS", 3)
    emitter.watermark = 3
    operations = [emitter.operation(Charge, provider="stripe").__enter__() for _ in range(5)]
    assert [op.outcome for op in operations] == ["abandoned", "abandoned", None, None, None]
    assert len(emitter.open_operations()) == 3
    assert emitter.ledger().operations["abandoned"] == 2


def test_handlers_that_come_and_go_count_from_then_on(emitter, handler):
    """Who is attached when an operation starts hears of its start; who is when it ends, of its end."""
    with emitter.operation(Charge):  # of this type one was under way before: what was decided for it is known
        pass
    operation = emitter.operation(Charge)
    early = emitter.add_handler(CollectStarts(delivery="inline"))
    with operation:
        late = emitter.add_handler(Collect(delivery="inline"), name="late")
        emitter.remove_handler(handler)
    assert [e.phase for e in early.got] == ["start", "end"]
    assert [e.phase for e in late.got] == ["end"]
    assert [e.phase for e in handler.got] == ["end"]
    with emitter.operation(Charge):
        emitter.is_enabled = False
    assert [e.phase for e in early.got] == ["start", "end", "start"]
    assert emitter.ledger().is_settled


# -- in queues ---------------------------------------------------------------------------------------------------------


def test_all_workers_get_the_same_envelope_of_an_operation_and_let_it_go(emitter):
    """An operation waits itself; its envelope is made when it is taken, once for all handlers, and kept by none."""
    first, second = Held(delivery="queued", linger_s=0), Held(delivery="queued", linger_s=0)
    emitter.add_handler(first, name="first")
    with emitter.operation(Charge) as op:
        pass
    assert first.entered.wait(5)
    assert op.is_taken
    assert op.made is None, "its only worker has it"
    emitter.add_handler(second, name="second")
    with emitter.operation(Charge, provider="adyen") as op:
        pass
    assert second.entered.wait(5)
    assert op.made is not None, "the first worker is still at the operation before, and will want it"
    first.release.set()
    second.release.set()
    assert emitter.flush()
    assert first.got[1] is second.got[0]
    assert (first.got[1].payload, first.got[1].duration_s) == ({"provider": "adyen"}, 0)
    assert op.made is None
    gone = weakref.ref(op)
    gc.disable()
    try:
        first.got.clear()
        second.got.clear()
        del op
        assert eventually(lambda: gone() is None), "an operation and its envelope kept each other"
    finally:
        gc.enable()


def test_operations_that_find_no_room_are_counted(emitter):
    """A full queue drops operations like events, the newest or the oldest, and counts each by its type."""
    newest = Held(delivery="queued", linger_s=0, queue_size=2, batch_size=1)
    oldest = Held(delivery="queued", linger_s=0, queue_size=2, batch_size=1, overflow="drop_oldest")
    for name, handler in (("newest", newest), ("oldest", oldest)):
        emitter.add_handler(handler, name=name)
    with emitter.operation(Charge, attempts=0):
        pass
    assert newest.entered.wait(5)
    assert oldest.entered.wait(5)
    for number in range(1, 6):
        with emitter.operation(Charge, attempts=number):
            pass
    newest.release.set()
    oldest.release.set()
    assert emitter.flush()
    assert [e.payload["attempts"] for e in newest.got] == [0, 1, 2]
    assert [e.payload["attempts"] for e in oldest.got] == [0, 4, 5]
    assert {(r.handler, r.event): dict(r.dropped) for r in emitter.ledger().rows} == {
        ("newest", "shop.charge"): {"full": 3},
        ("oldest", "shop.charge"): {"full": 3},
    }
    assert emitter.ledger().is_settled


def test_an_interrupted_hand_over_of_an_operation_is_counted(emitter):
    """A KeyboardInterrupt between two queues passes; who got the operation delivers it, for the others it failed."""
    first, second = Collect(delivery="queued"), Collect(delivery="queued")
    emitter.add_handler(first, name="first")
    emitter.add_handler(second, name="second")
    queue = emitter.attachments[1].queue
    put, cut = queue.put, [True]

    def put_once_cut(item):
        if cut.pop() if cut else False:
            raise KeyboardInterrupt
        put(item)

    queue.put = put_once_cut
    emitter.recompile()
    with pytest.raises(KeyboardInterrupt), emitter.operation(Charge):
        pass
    with emitter.operation(Charge):
        pass
    assert emitter.flush()
    ledger = emitter.ledger()
    assert [(row.handler, row.delivered, row.failed) for row in ledger.rows] == [("first", 2, 0), ("second", 1, 1)]
    assert ledger.is_settled
    assert ledger.outcomes["success"] == 2


# -- what few operations have ------------------------------------------------------------------------------------------


def test_an_operation_without_anything_unusual_has_no_object_of_its_own_for_that(emitter, handler):
    """Bound fields and what few operations have cost the others nothing: they share what says that there is none."""
    plain = emitter.operation(Charge)
    with plain, emitter.operation(Charge) as inner:
        pass
    assert plain.extras is inner.extras is NO_EXTRAS
    assert plain.carried is inner.carried is NOTHING_CARRIED
    assert [e.error_type for e in handler.got] == [None, None]


def test_what_one_operation_has_is_not_seen_on_another(emitter, handler):
    """Tags, errors, links, invalid results and bound fields stay with the operation that they were given to."""
    with ec.bound(tenant="acme"), emitter.operation(Charge) as outer:
        outer.tags = ("vip",)
        outer.link("1" * 32, "2" * 16)
        with emitter.operation(Charge, attempts="many") as inner:
            pass
        outer.fail(Boom())
    assert [dict(e.payload) for e in handler.got if e.name == "shop.charge"] == [{"provider": "stripe"}] * 2
    assert (outer.tags, outer.error_type, len(outer.links), outer.invalid) == (("vip",), "Boom", 1, ())
    assert (inner.tags, inner.error_type, inner.links, inner.invalid) == ((), None, (), ("attempts",))
    assert inner.bound is outer.bound
    with emitter.operation(Charge) as after:
        pass
    assert after.extras is NO_EXTRAS
    assert (after.tags, after.error, after.error_type, after.links, after.invalid) == ((), None, None, (), ())
    assert after.bound == {}
