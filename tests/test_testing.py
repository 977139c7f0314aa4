"""The kit for tests: capturing, questions, assertions, clock and ids."""

from __future__ import annotations

import subprocess
import sys
import threading
import unittest
from typing import Annotated, Any
from unittest import mock

import numpy as np
import pytest
from pydantic import ValidationError

import eventcore as ec
from eventcore.testing import FakeClock, capture, deterministic_ids
from eventcore_buffer.handler import BufferHandler
from tests.support.handlers import Collect, Held


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER, message="{amount} paid"):
    amount: float
    currency: str = "eur"


class PaidByCard(Paid, name="shop.paid.card"):
    card: Annotated[str, ec.Sensitive]


class Refused(ec.Event, name="shop.refused", category=ec.Category.SECURITY, severity=ec.Severity.ERROR):
    reason: str


class Charge(ec.Operation, name="shop.charge", category=ec.Category.INTEGRATION):
    provider: str = "stripe"
    attempts: int = ec.unset


class Scored(ec.Event, name="shop.scored", category=ec.Category.MODEL):
    scores: ec.Array[float]


class Odd(ec.Event, name="shop.odd", category=ec.Category.DATA):
    value: Any
    times: int = 0


@pytest.fixture
def emitter():
    """Return an emitter of its own, with no handlers."""
    with ec.Emitter() as it:
        yield it


@pytest.fixture
def events(emitter):
    """Return what is captured on ``emitter``."""
    with capture(emitter) as it:
        yield it


def failure(call, *arguments, **keywords):
    """Return the message of the AssertionError that a call raises."""
    with pytest.raises(AssertionError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


# -- questions ---------------------------------------------------------------------------------------------------------


def test_asks_by_type_with_envelopes(emitter, events):
    """``of`` returns the events of a class and its subclasses in order, and their envelopes beside them."""
    emitter.emit(Paid(amount=1))
    emitter.emit(Refused(reason="limit"))
    emitter.emit(PaidByCard(amount=2, card="4111"), tags=("vip",))
    found = events.of(Paid)
    assert [event.amount for event in found] == [1, 2]
    assert [envelope.event for envelope in found.envelopes] == found
    assert found.envelopes[1].tags == ("vip",)
    assert found == [Paid(amount=1), events.last(PaidByCard)]


def test_asks_by_name_field_and_fact(emitter, events):
    """``named`` takes a glob; ``where`` compares payload fields and envelope facts, on all events or on an answer."""
    emitter.emit(Paid(amount=1), severity="warning")
    emitter.emit(Paid(amount=2))
    emitter.emit(Refused(reason="limit"))
    with pytest.raises(ZeroDivisionError), emitter.operation(Charge):
        _ = 1 / 0
    assert [type(event) for event in events.named("shop.*")] == [Paid, Paid, Refused, Charge]
    assert events.where(amount=2) == [Paid(amount=2)]
    assert events.where(severity=ec.Severity.WARNING) == events.where(severity="warning") == [Paid(amount=1)]
    assert events.where(outcome="failure", error_type="ZeroDivisionError") == events.of(Charge)
    assert events.where(message="2.0 paid") == [Paid(amount=2)]
    assert events.of(Paid).where(category="user").where(amount=1) == [Paid(amount=1)]
    assert events.where(attempts=ec.unset) == [*events.of(Paid), *events.of(Refused), *events.of(Charge)]
    assert events.where(reason="nobody") == []


def test_last_and_count(emitter, events):
    """``last`` is the newest of a type and fails where there is none; ``count`` counts."""
    emitter.emit(Paid(amount=1))
    emitter.emit(Paid(amount=2))
    assert events.last(Paid).amount == 2
    assert events.last(Paid, amount=1).amount == 1
    assert (events.count(Paid), events.count(Paid, amount=2), events.count(Refused)) == (2, 1, 0)
    assert failure(events.last, Refused).startswith("Refused was not emitted")


def test_values_are_compared_as_tests_expect(emitter, events):
    """Matchers, arrays and unset fields can be compared; an array equals the list it was made of."""
    emitter.emit(Paid(amount=0.1 + 0.2))
    emitter.emit(Scored(scores=np.array([0.5, 1.0])))
    emitter.emit(Scored(scores=[1.0]))
    emitter.emit(Odd(value={"a": [1, 2]}))
    events.assert_emitted(Paid, amount=pytest.approx(0.3), currency=mock.ANY)
    events.assert_emitted(Scored, times=1, scores=[0.5, 1.0])
    events.assert_emitted(Scored, times=1, scores=np.array([0.5, 1.0]))
    events.assert_emitted(Scored, times=1, scores=(1.0,))
    events.assert_not_emitted(Scored, scores=[0.5])
    events.assert_emitted(Odd, value={"a": [1, 2]})
    events.assert_not_emitted(Odd, value=[1, 2])


def test_a_misspelt_field_is_an_error(emitter, events):
    """A name that the type does not have is refused, so that ``assert_not_emitted`` cannot pass because of it."""
    with pytest.raises(TypeError, match=r"Paid has no field and no fact 'amout'.*did you mean 'amount'"):
        events.assert_not_emitted(Paid, amout=1)
    emitter.emit(Paid(amount=1))
    with pytest.raises(TypeError, match=r"'shop\.\*' has no field and no fact 'amout'"):
        events.assert_not_emitted("shop.*", amout=1)
    with pytest.raises(TypeError, match="an event class or a glob"):
        events.count(7)


def test_fields_named_like_arguments_can_be_asked_for(emitter, events):
    """A payload field may bear the name of an argument of an assertion: ``where`` takes any."""
    emitter.emit(Odd(value=1, times=3))
    assert len(events.of(Odd).where(times=3)) == len(events.where(times=3)) == 1
    assert events.of(Odd).where(times=4) == []


# -- assertions --------------------------------------------------------------------------------------------------------


def test_assert_emitted_returns_the_event_and_counts(emitter, events):
    """It returns the newest match; ``times`` is exact; without it once or more will do."""
    emitter.emit(Paid(amount=1))
    emitter.emit(Paid(amount=1, currency="usd"))
    assert events.assert_emitted(Paid, amount=1).currency == "usd"
    events.assert_emitted("shop.*", times=2)
    assert failure(events.assert_emitted, Paid, times=1).startswith(
        "Paid was to be emitted 1x, but was 2x: #1, #2\n\n#  severity"
    )
    with pytest.raises(ValueError, match="say assert_not_emitted"):
        events.assert_emitted(Paid, times=0)


def test_a_failed_assertion_says_what_is_near_and_prints_the_stream(emitter, events):
    """The message names what was asked for, in what the nearest events differ, and shows the stream as a table."""
    emitter.emit(PaidByCard(amount=1, card="4111 1111 1111 1111"))
    with emitter.operation(Charge) as operation:
        emitter.emit(Paid(amount=2))
        events.clock.advance(0.25)
    trace = f"{operation.trace_id:032x}"[:6] + "/" + f"{operation.span_id:016x}"[:6]
    text = failure(events.assert_emitted, Paid, amount=3, currency="eur")
    assert text.splitlines() == [
        "Paid(amount=3, currency='eur') was not emitted; nearest:",
        "  #2 has amount=2.0",
        "  #1 has amount=1.0",
        "",
        "#  severity  name            outcome          trace          payload",
        "1  INFO      shop.paid.card  -                -              amount=1.0 currency='eur' card='[REDACTED]'",
        f"2  INFO      shop.paid       -                {trace}  amount=2.0 currency='eur'",
        f"3  INFO      shop.charge     success 0.250 s  {trace}  provider='stripe'",
    ]
    assert "nor was any other Refused" in failure(events.assert_emitted, Refused, reason="x")


def test_the_nearest_events_come_first(emitter, events):
    """Of many that do not match, the three that differ least are named, the newest first."""
    for amount, currency in ((1, "usd"), (2, "eur"), (3, "usd"), (4, "eur"), (5, "usd")):
        emitter.emit(Paid(amount=amount, currency=currency))
    lines = failure(events.assert_emitted, Paid, amount=9, currency="eur").splitlines()
    assert lines[0].endswith("nearest of 5:")
    assert lines[1:4] == ["  #4 has amount=4.0", "  #2 has amount=2.0", "  #5 has amount=5.0 currency='usd'"]


def test_assert_not_emitted(emitter, events):
    """It passes where nothing matches, and names the numbers of what does."""
    emitter.emit(Paid(amount=1))
    events.assert_not_emitted(Refused)
    events.assert_not_emitted(Paid, amount=2)
    assert failure(events.assert_not_emitted, Paid).startswith("Paid was not to be emitted, but was: #1\n")


def test_assert_order(emitter, events):
    """Types in order pass, with others between them; each event serves once; a failure says after what it looked."""
    for event in (Paid(amount=1), Refused(reason="a"), Paid(amount=2)):
        emitter.emit(event)
    events.assert_order(Paid, Refused, Paid)
    events.assert_order("shop.refused", Paid)
    assert failure(events.assert_order, Refused, Paid, Refused).startswith(
        "no Refused after #3 shop.paid, where this order was expected: Refused, Paid, Refused\n"
    )
    assert failure(events.assert_order, Charge).startswith("no Charge, where")
    failure(events.assert_order, Paid, Paid, Paid)


def test_assert_ledger_balances(emitter, events):
    """It flushes, returns the ledger, and tells what waits, is open or was miscounted."""
    collect = emitter.add_handler(Collect())
    emitter.emit(Paid(amount=1))
    with emitter.operation(Charge):
        events.assert_ledger_balances()
    ledger = events.assert_ledger_balances()
    assert (len(collect.got), ledger.handler("collect").delivered) == (2, 2)
    emitter._ledger.count("collect", "shop.paid", "end", "delivered")
    assert "collect: -1 pending, but 0 waiting" in failure(events.assert_ledger_balances)


def test_assert_ledger_balances_does_not_wait_for_ever(emitter, events):
    """A handler that hangs makes it fail, in bounded time, with the ledger in the message."""
    held = emitter.add_handler(Held())
    emitter.emit(Paid(amount=1))
    assert held.entered.wait(20)
    try:
        text = failure(events.assert_ledger_balances, timeout_s=0.01)
    finally:
        held.release.set()
    assert "flush took longer than 0.01 s" in text
    assert "accepted" in text


def test_wait_for_another_thread(emitter, events):
    """It returns what another thread emits, at once where it is there already, and fails when nothing comes."""
    go = threading.Event()

    def work():
        go.wait(20)
        emitter.emit(Paid(amount=1))
        emitter.emit(Paid(amount=2))

    thread = threading.Thread(target=work)
    thread.start()
    assert "was not emitted within 0.01 s" in failure(events.wait_for, Paid, timeout_s=0.01)
    go.set()
    assert events.wait_for(Paid, amount=2, timeout_s=20).amount == 2
    assert events.wait_for("shop.*").amount == 1
    thread.join()


def test_the_stream_is_bounded_and_on_lines(emitter, events):
    """The newest 50 are shown, each on one line of bounded width, whatever a value's ``repr`` does."""

    class Broken:
        def __repr__(self):
            raise RuntimeError("no")

    assert events.stream() == "(no events)"
    for amount in range(60):
        emitter.emit(Paid(amount=amount))
    emitter.emit(Odd(value="x\n" * 1000))
    emitter.emit(Odd(value=Broken()))
    emitter.emit(Odd(value=np.arange(10_000)))
    lines = events.stream().splitlines()
    assert lines[0] == "(13 earlier ones are not shown)"
    assert len(lines) == 52
    assert max(map(len, lines)) <= 240
    assert "value=<Broken: repr() raised RuntimeError>" in lines[-2]
    events.clear()
    assert events.stream() == "(no events)"


def test_a_recorder_is_bounded_and_says_what_it_forgot(emitter, events):
    """Beyond 10,000 the oldest events are forgotten and counted."""
    for _ in range(10_007):
        emitter.emit(Paid(amount=1))
    assert (len(events), events.forgotten) == (10_000, 7)
    assert events.stream().startswith("(9957 earlier ones are not shown)")


# -- clock, ids, strictness --------------------------------------------------------------------------------------------


def test_time_stands_still_until_it_is_advanced(emitter, events):
    """Times and durations are what the test makes them, to the nanosecond."""
    emitter.emit(Paid(amount=1))
    with emitter.operation(Charge):
        events.clock.advance(1.5)
    first, second = events
    assert first.time.isoformat() == "2026-01-01T00:00:00+00:00"
    assert second.time_ns - first.time_ns == 1_500_000_000
    assert second.duration_s == 1.5


def test_a_clock_goes_forward_only():
    """A negative step is refused; steps from several threads all count."""
    clock = FakeClock(time_ns=5)
    with pytest.raises(ValueError, match="goes forward"):
        clock.advance(-1)
    threads = [threading.Thread(target=lambda: [clock.advance(0.001) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (clock.time_ns(), clock.monotonic_ns()) == (2_000_000_005, 2_000_000_000)


def test_ids_are_the_same_in_every_run():
    """Two captures give the same sequence numbers, event ids, trace and span ids; another seed gives others."""

    def run(**options):
        with capture(**options) as events:
            ec.get_emitter().emit(Paid(amount=1))
            with ec.get_emitter().operation(Charge):
                pass
            return [(e.sequence, e.id, e.trace_id, e.span_id) for e in events]

    assert run() == run() == run(seed=0)
    assert run() != run(seed=1)
    assert deterministic_ids(3).random_bits(64) == deterministic_ids(3).random_bits(64)


def test_results_that_do_not_validate_raise(emitter):
    """Inside, a wrong result raises in the test; ``strict=False`` leaves it out and reports it, as in production."""
    with capture(emitter), pytest.raises(ValidationError), emitter.operation(Charge) as operation:
        operation.set(attempts="many")
    with capture(emitter, strict=False) as events:
        with emitter.operation(Charge) as operation:
            operation.set(attempts="many")
        assert events.last(Charge).attempts is ec.unset
        events.assert_emitted("eventcore.invalid_result", operation="shop.charge")


def test_the_real_clock_can_be_kept(emitter):
    """With ``real_clock=True`` the emitter's own clock goes on, and asking for one to move says so."""
    clock = emitter.clock
    with capture(emitter, real_clock=True) as events:
        assert emitter.clock is clock
        with pytest.raises(RuntimeError, match="leave out real_clock=True"):
            _ = events.clock


# -- everything is put back --------------------------------------------------------------------------------------------


def seams(emitter):
    """Return what a capture replaces, by identity."""
    return [emitter.clock, emitter.time_ns, emitter.monotonic_ns, emitter.ids, emitter.strict, emitter.is_enabled]


@pytest.mark.parametrize("own", [FakeClock(time_ns=7), None], ids=["fake", "system"])
def test_restores_a_configured_emitter_exactly(own):
    """Clock, ids, strictness, handlers and the switch are the very objects from before; the fixture's time is gone."""
    with ec.configure(handlers={"memory": {"use": "buffer"}}, clock=own, ids=ec.Ids(5)) as emitter:
        before, handlers = seams(emitter), emitter.handlers
        with capture() as events:
            assert emitter.ids is not before[3]
            emitter.emit(Paid(amount=1))
            emitter.add_handler(BufferHandler())
            emitter.is_enabled = False
            assert events.count(Paid) == 1
        assert all(now is then for now, then in zip(seams(emitter), before, strict=True))
        assert emitter.handlers == handlers
        assert ec.get_emitter() is emitter
        emitter.emit(Paid(amount=2))
        assert len(events) == 1
        assert emitter.handler("memory").get_events()[-1].sequence == 2  # its ids: started, and this one


def test_restores_after_an_exception(emitter):
    """An exception passes, and everything is put back all the same."""
    before = seams(emitter)
    with pytest.raises(ZeroDivisionError), capture(emitter):
        _ = 1 / 0
    assert seams(emitter) == before
    assert emitter.handlers == ()


def test_time_does_not_go_back_for_what_has_begun(emitter):
    """An operation that was open before has a duration that is not negative when it ends inside."""
    with capture(emitter) as events:
        pass
    operation = emitter.operation(Charge).__enter__()
    with capture(emitter) as events:
        events.clock.advance(1)
        operation.end()
    assert events.of(Charge).envelopes[0].duration_s >= 1


def test_restores_the_unconfigured_emitter():
    """With nothing configured a fresh emitter is in use meanwhile, and afterwards nothing is configured."""
    before = ec.get_emitter()
    state = seams(before)
    with capture() as events:
        assert ec.get_emitter() is not before
        ec.emit_event("shop.opened", category="user", message="open")
        events.assert_emitted("shop.opened", times=1, text="open")
    assert ec.get_emitter() is before
    assert seams(before) == state


def test_captures_an_emitter_that_is_not_in_use(emitter):
    """An emitter that is passed in is captured; the one in use is left alone."""
    in_use = ec.get_emitter()
    with capture(emitter) as events:
        assert ec.get_emitter() is in_use
        emitter.emit(Paid(amount=1))
    assert events.count(Paid) == 1


def test_restores_after_configure_and_shutdown_inside():
    """An emitter configured inside and left running is shut down, and nothing is configured again."""
    before = ec.get_emitter()
    with capture() as events:
        inner = ec.configure(replace=True, handlers={"memory": {"use": "buffer"}})
        inner.emit(Paid(amount=1))
        assert events.count(Paid) == 0
    assert ec.get_emitter() is before
    assert [envelope.name for envelope in inner.handler("memory")][-1] == "eventcore.stopped"
    with capture():
        ec.set_emitter(None)
    assert ec.get_emitter() is before


def test_restores_when_the_configured_emitter_was_shut_down_inside():
    """An emitter that the code inside shut down is not put back in use: nothing is configured, as shutdown says."""
    with ec.configure(handlers={"memory": {"use": "buffer"}}) as emitter:
        with capture():
            ec.shutdown()
            inner = ec.configure(handlers={"memory": {"use": "buffer"}})
        assert inner.handler("memory").get_events()[-1].name == "eventcore.stopped"
        assert ec.get_emitter() is not emitter
        assert ec.get_emitter().handlers[0].kind == "last_resort"


# -- without pytest ----------------------------------------------------------------------------------------------------


def test_pytest_is_not_needed():
    """Importing and using the kit does not import pytest."""
    code = """
import sys
import eventcore as ec
from eventcore.testing import capture
with capture() as events:
    ec.emit_event("shop.opened", category="user", message="open")
    events.assert_emitted("shop.opened")
sys.exit("pytest" in sys.modules or "_pytest" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_unittest_shows_the_line_of_the_test_only():
    """In a ``unittest.TestCase`` a failed assertion's traceback ends at the test, with the stream below."""

    class Case(unittest.TestCase):
        def test_paying(self):
            with capture() as events:
                ec.get_emitter().emit(Paid(amount=1))
                events.assert_emitted(Refused)

    result = unittest.TestResult()
    Case("test_paying").run(result)
    ((_, text),) = result.failures
    assert "AssertionError: Refused was not emitted" in text
    assert "shop.paid" in text
    assert "recorded.py" not in text
