"""The pytest fixture ``events``: what was emitted, a clock and ids of the test's own, the stream of a failed test."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

import eventcore as ec


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER, message="{amount} paid"):
    amount: float


class Charge(ec.Operation, name="shop.charge", category=ec.Category.INTEGRATION):
    attempts: int = ec.unset


VOCABULARY = """
import eventcore as ec
import pytest

class Paid(ec.Event, name="shop.paid", category="user"):
    amount: float

def emit(amount):
    ec.get_emitter().emit(Paid(amount=amount))
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Return a function that runs tests in a pytest of their own, with warnings as errors."""
    monkeypatch.delenv("CI", raising=False)  # there pytest repeats whole messages in its summary

    def run(tests, *options):
        pytester.makepyfile(VOCABULARY + tests)
        return pytester.runpytest_inprocess("-W", "error", "--strict-markers", "-p", "no:cacheprovider", *options)

    return run


def test_gives_a_buffer_without_configuration(events):
    """With nothing configured, ``events`` is the only handler of a fresh emitter in use, and stderr stays quiet."""
    ec.emit_error_event("disk is full")
    assert [envelope.message for envelope in events.get_events(severity="error")] == ["disk is full"]
    events.assert_emitted("system.error", times=1, text="disk is full")
    assert ec.get_emitter().handlers == (events,)


def test_time_and_ids_are_the_tests_own(events, event_clock):
    """``event_clock`` is the clock of ``events``; ids and times are known beforehand."""
    assert event_clock is events.clock
    with ec.get_emitter().operation(Charge):
        event_clock.advance(0.5)
    (envelope,) = events.of(Charge).envelopes
    assert envelope.duration_s == 0.5
    assert envelope.id.startswith("019b76da-a9f4-7")  # the milliseconds of 2026-01-01T00:00:00.500Z
    assert envelope.sequence == 1


def test_wrong_results_raise(events):
    """A result that does not validate fails the test where the operation ends."""
    with pytest.raises(ValidationError), ec.get_emitter().operation(Charge) as operation:
        operation.set(attempts="many")


@pytest.mark.eventcore(strict=False, real_clock=True)
def test_the_marker_switches_both_off(events):
    """With the marker a wrong result is reported as in production, and time is the machine's."""
    with ec.get_emitter().operation(Charge) as operation:
        operation.set(attempts="many")
    events.assert_emitted("eventcore.invalid_result", times=1)
    assert events.of(Charge).envelopes[0].time.year >= 2025
    with pytest.raises(RuntimeError, match="real_clock"):
        _ = events.clock


def test_the_marker_is_checked(run):
    """An argument that the marker does not know is an error that says what it takes."""
    result = run(
        """
@pytest.mark.eventcore(stric=False)
def test_misspelt(events):
    pass

@pytest.mark.eventcore(False)
def test_by_position(events):
    pass
"""
    )
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*::test_misspelt: @pytest.mark.eventcore takes strict= and real_clock=*'stric'*"])
    result.stdout.fnmatch_lines(["*::test_by_position: @pytest.mark.eventcore takes *given [[]False*"])


def test_a_failed_test_prints_the_stream(run):
    """The report of a failed test shows what was emitted; that of a passed one does not; each test starts empty."""
    result = run(
        """
def test_passes(events):
    emit(1)
    assert len(events) == 1

def test_fails(events):
    emit(77)
    assert events.of(Paid)[0].amount == 78

def test_restored():
    assert ec.get_emitter().handlers[0].kind == "last_resort"
"""
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*eventcore events*", "1  INFO      shop.paid*amount=77.0"])
    result.stdout.no_fnmatch_line("*amount=1.0*")


def test_a_failed_assertion_prints_the_stream_once(run):
    """The message of a failed assertion has the stream, which is not repeated below; the traceback is the test's."""
    result = run(
        """
def test_fails(events):
    emit(77)
    events.assert_emitted(Paid, amount=78)
"""
    )
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert text.count("amount=77.0") == 2  # in what is near, and in the stream
    assert "eventcore events" not in text
    result.stdout.fnmatch_lines(["E  *Paid(amount=78) was not emitted; nearest:"])
    assert "recorded.py" not in text


def test_follows_the_emitter_that_a_fixture_configures(run):
    """An emitter configured by another fixture is captured, and has its own clock, ids and handlers back afterwards."""
    result = run(
        """
@pytest.fixture
def emitter():
    with ec.configure(handlers={"memory": {"use": "buffer"}}) as emitter:
        seams = emitter.clock, emitter.time_ns, emitter.monotonic_ns, emitter.ids, emitter.strict, emitter.handlers
        yield emitter
        now = emitter.clock, emitter.time_ns, emitter.monotonic_ns, emitter.ids, emitter.strict, emitter.handlers
        assert all(a is b for a, b in zip(seams[:5], now[:5])) and seams[5] == now[5]

def test_captured(emitter, events):
    emit(1)
    events.assert_emitted(Paid, times=1)
    assert len(emitter.handler("memory").of(Paid)) == 1
"""
    )
    result.assert_outcomes(passed=1)


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


def test_a_fixture_of_the_same_name_wins(run):
    """A project that has a fixture ``events`` of its own keeps it."""
    result = run(
        """
@pytest.fixture
def events():
    return ["mine"]

def test_mine(events):
    assert events == ["mine"]
"""
    )
    result.assert_outcomes(passed=1)


def test_the_documentation_shows_what_is_printed(pytester, checkout):
    """The first example of docs/testing.md, run as it stands, prints the output that the page shows."""
    page = (checkout / "docs" / "testing.md").read_text(encoding="utf-8")
    code, shown = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    pytester.makepyfile(code)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    assert shown in result.stdout.str() + "\n"
