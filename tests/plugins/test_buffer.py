"""The buffer plugin: a bounded memory of events, and the pytest fixture ``events``."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Annotated

import pytest

import eventcore as ec
from eventcore_buffer.handler import BufferHandler


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


def test_configuring_the_plugin_imports_no_handler_until_it_is_used():
    """The plugin module names its handler by path: importing it loads neither eventcore nor pydantic."""
    code = "import sys, eventcore_buffer; sys.exit(bool({'eventcore', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
