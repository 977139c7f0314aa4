"""The buffer plugin: a bounded memory of events, and the pytest fixture ``events``."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Annotated

import pytest

import eventcore as ec
from eventcore_buffer.handler import BufferHandler
from eventcore_buffer.testing import attached_buffer, stream


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER, message="{amount} paid"):
    amount: float
    card: Annotated[str, ec.Sensitive] = ""


class Refused(ec.Event, name="shop.refused", category=ec.Category.SECURITY, severity=ec.Severity.ERROR):
    reason: str


class RefusedByBank(Refused, name="shop.refused.bank"):
    pass


class Charge(ec.Operation, name="shop.charge", category=ec.Category.INTEGRATION):
    provider: str


@pytest.fixture
def emitter():
    """Return a configured emitter with a buffer named ``memory``."""
    with ec.configure(service="shop", handlers={"memory": {"use": "buffer", "max_size": 3, "events": "shop.*"}}) as it:
        yield it


@pytest.fixture
def memory(emitter):
    """Return the buffer of ``emitter``."""
    return emitter.handler("memory")


# -- the handler -------------------------------------------------------------------------------------------------------


def test_sees_an_event_right_after_emit(emitter, memory):
    """An event is in the buffer as soon as ``emit`` returns, without a flush."""
    event = Refused(reason="limit")
    emitter.emit(event)
    assert [envelope.event for envelope in memory] == [event]
    assert not [thread for thread in threading.enumerate() if "memory" in thread.name]


def test_forgets_the_oldest_and_counts_it(emitter, memory):
    """A full buffer forgets the oldest envelopes and says how many."""
    for amount in range(5):
        emitter.emit(Paid(amount=amount))
    assert [event.amount for event in memory.of(Paid)] == [2, 3, 4]
    assert memory.forgotten == 2
    assert memory.describe() == {"kept": 3, "max_size": 3, "forgotten": 2}


def test_counts_exactly_what_many_threads_make_it_forget(emitter):
    """Emitting from eight threads, kept and forgotten envelopes add up to what was emitted."""
    buffer = emitter.add_handler(BufferHandler(max_size=10, events=["shop.paid"]))
    start = threading.Barrier(8)

    def work():
        start.wait()
        for amount in range(500):
            emitter.emit(Paid(amount=amount))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(buffer), buffer.forgotten) == (10, 8 * 500 - 10)


def test_keeps_the_end_of_an_operation_only(emitter, memory):
    """An operation is in the buffer once, with outcome and duration, when it has ended."""
    with emitter.operation(Charge, provider="stripe"):
        assert len(memory) == 0
    (envelope,) = memory
    assert (envelope.outcome, envelope.phase) == ("success", "end")
    assert envelope.duration_s >= 0


def test_an_operation_is_validated_when_it_ends(emitter):
    """A result that does not fit is left out and reported before ``with`` is over, not when the buffer is read."""
    buffer = emitter.add_handler(BufferHandler())
    with emitter.operation(Charge, provider="stripe") as operation:
        operation.set(provider=["not", "text"])
    assert [envelope.name for envelope in buffer] == ["eventcore.invalid_result", "shop.charge"]
    assert "provider" not in buffer.get_events(type=Charge)[0].payload


def test_redacts_sensitive_fields(emitter, memory):
    """A sensitive value does not reach the buffer; the caller's event is left alone."""
    event = Paid(amount=1, card="4111 1111 1111 1111")
    emitter.emit(event)
    assert memory.of(Paid)[0].card == "[REDACTED]"
    assert event.card == "4111 1111 1111 1111"


def test_asks_by_category_severity_type_and_limit(emitter):
    """``get_events`` combines its filters; severity is equality, ``min_severity`` a lower bound, newest last."""
    buffer = emitter.add_handler(BufferHandler(events=["shop.*"]))
    emitter.emit(Paid(amount=1))
    emitter.emit(Refused(reason="limit"))
    emitter.emit(RefusedByBank(reason="closed"))
    emitter.emit(Paid(amount=2), severity="critical")

    def names(**query):
        return [envelope.name for envelope in buffer.get_events(**query)]

    assert names() == ["shop.paid", "shop.refused", "shop.refused.bank", "shop.paid"]
    assert names(category="security") == ["shop.refused", "shop.refused.bank"]
    assert names(category=ec.Category.USER, severity=ec.Severity.INFO) == ["shop.paid"]
    assert names(severity="error") == ["shop.refused", "shop.refused.bank"]
    assert names(min_severity="error") == ["shop.refused", "shop.refused.bank", "shop.paid"]
    assert names(type=Refused) == ["shop.refused", "shop.refused.bank"]
    assert names(type="shop.refused*", limit=1) == ["shop.refused.bank"]
    assert names(limit=2) == ["shop.refused.bank", "shop.paid"]
    assert names(limit=0) == []
    assert [event.reason for event in buffer.of(Refused)] == ["limit", "closed"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"category": "securty"}, "did you mean 'security'"),
        ({"severity": "eror"}, "did you mean 'error'"),
        ({"limit": -1}, "not -1"),
        ({"type": 7}, "event class or a glob"),
    ],
)
def test_a_wrong_question_is_an_error(memory, query, message):
    """A misspelt filter is an error that helps, not an empty answer."""
    with pytest.raises((ValueError, TypeError), match=message):
        memory.get_events(**query)


def test_clear_drops_what_is_kept(emitter, memory):
    """``clear`` empties the buffer; events after it are kept again."""
    emitter.emit(Paid(amount=1))
    memory.clear()
    assert len(memory) == 0
    emitter.emit(Paid(amount=2))
    assert [event.amount for event in memory.of(Paid)] == [2]


def test_a_wrong_size_is_a_configuration_error():
    """``max_size = 0`` says where, which option and why."""
    with pytest.raises(ec.ConfigurationError, match=r"handlers\.memory.*option 'max_size' is 0"):
        ec.configure(handlers={"memory": {"use": "buffer", "max_size": 0}})


# -- the fixture -------------------------------------------------------------------------------------------------------


def test_the_fixture_gives_a_buffer_without_configuration(events):
    """With nothing configured, ``events`` is the only handler of a fresh emitter in use, and stderr stays quiet."""
    ec.emit_error_event("disk is full")
    assert [envelope.message for envelope in events.get_events(severity="error")] == ["disk is full"]
    assert ec.get_emitter().handlers == (events,)


def test_restores_the_unconfigured_emitter():
    """After the block nothing is configured, as before."""
    before = ec.get_emitter()
    with attached_buffer():
        assert ec.get_emitter() is not before
    assert ec.get_emitter() is before


def test_restores_the_configured_emitter(emitter):
    """The buffer, handlers added meanwhile and the switch are put back on the emitter that was in use."""
    before = emitter.handlers
    with attached_buffer() as buffer:
        ec.get_emitter().emit(Paid(amount=1))
        assert len(buffer.of(Paid)) == 1
        emitter.add_handler(BufferHandler())
        emitter.is_enabled = False
    assert ec.get_emitter() is emitter
    assert emitter.handlers == before
    assert emitter.is_enabled


def test_restores_after_configure_and_shutdown_inside():
    """An emitter configured inside and left running is shut down, and nothing is configured again."""
    before = ec.get_emitter()
    with attached_buffer() as buffer:
        inner = ec.configure(replace=True, handlers={"memory": {"use": "buffer"}})
        inner.emit(Paid(amount=1))
        assert len(buffer) == 0
    assert ec.get_emitter() is before
    assert [envelope.name for envelope in inner.handler("memory")][-1] == "eventcore.stopped"
    with attached_buffer():
        ec.set_emitter(None)
    assert ec.get_emitter() is before


def test_restores_when_the_configured_emitter_was_shut_down_inside(emitter):
    """An emitter that the code inside shut down is not put back in use: nothing is configured, as shutdown says."""
    with attached_buffer():
        ec.shutdown()
        inner = ec.configure(handlers={"memory": {"use": "buffer"}})
    assert inner.handler("memory").get_events()[-1].name == "eventcore.stopped"
    assert ec.get_emitter() is not emitter
    assert ec.get_emitter().handlers[0].kind == "last_resort"


def test_the_stream_is_readable_and_bounded(emitter):
    """The printed stream has a line per event with time, severity, name and fields, the newest only, secrets out."""
    buffer = emitter.add_handler(BufferHandler(max_size=55, events=["shop.*"]))
    for amount in range(60):
        emitter.emit(Paid(amount=amount, card="4111"))
    with emitter.operation(Charge, provider="x" * 500):
        pass
    lines = stream(buffer).splitlines()
    assert lines[0] == "(11 earlier ones are not shown)"
    assert len(lines) == 51
    assert "INFO     shop.paid  amount=59.0 card='[REDACTED]'" in lines[-2]
    assert "shop.charge" in lines[-1]
    assert len(lines[-1]) == 300
    assert stream(BufferHandler()) == "(no events)"


def test_a_failed_test_prints_the_stream(pytester):
    """The report of a failed test shows what was emitted; that of a passed one does not; each test starts empty."""
    pytester.makepyfile(
        """
        import eventcore as ec

        class Paid(ec.Event, name="shop.paid", category="user"):
            amount: float

        def test_passes(events):
            ec.get_emitter().emit(Paid(amount=1))
            assert len(events) == 1

        def test_fails(events):
            ec.get_emitter().emit(Paid(amount=77))
            assert events.of(Paid)[0].amount == 78

        def test_restored():
            assert ec.get_emitter().handlers[0].kind == "last_resort"
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*eventcore events*", "*INFO     shop.paid  amount=77.0"])
    result.stdout.no_fnmatch_line("*amount=1.0*")


def test_leaves_pytest_alone_where_eventcore_is_unused(pytester):
    """In a project that does not use eventcore, pytest with warnings as errors neither imports it nor notices it."""
    pytester.makepyfile(
        """
        import sys

        def test_nothing_imported():
            assert not {"eventcore", "pydantic", "eventcore_buffer.handler"} & sys.modules.keys()
            assert "eventcore_buffer.pytest_plugin" in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-W", "error", "--strict-markers", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


def test_a_fixture_of_the_same_name_wins(pytester):
    """A project that has a fixture ``events`` of its own keeps it."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def events():
            return ["mine"]

        def test_mine(events):
            assert events == ["mine"]
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_configuring_the_plugin_imports_no_handler_until_it_is_used():
    """The plugin module names its handler by path: importing it loads neither eventcore nor pydantic."""
    code = "import sys, eventcore_buffer; sys.exit(bool({'eventcore', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
