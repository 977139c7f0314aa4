"""Durable delivery and audit-class events: through the journal, at least once, across processes."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import Annotated, Any

import pytest
from pydantic import field_serializer

import eventcore as ec
from eventcore.durable import DurableQueue
from eventcore.health import bus_checks
from eventcore.health_monitor import run_checks
from eventcore.journal import Journal
from eventcore.journal_config import JournalConfig
from eventcore.journal_record import Replay, record
from tests.support.handlers import Clock, Collect, CollectBatches


class Paid(ec.Event, name="durable.paid", category=ec.Category.USER, message="{amount} paid"):
    amount: int
    card: Annotated[str, ec.Sensitive] = "4111 1111 1111 1111"
    note: str = ""


class Audited(ec.Event, name="durable.audited", category=ec.Category.SECURITY, durable=True):
    number: int


class Carried(ec.Event, name="durable.carried", category=ec.Category.DATA):
    thing: Any


class Charge(ec.Operation, name="durable.charge", category=ec.Category.INTEGRATION):
    provider: str
    attempts: int = ec.unset


class Closed(ec.Operation, name="durable.closed", category=ec.Category.SECURITY, durable=True):
    number: int


class Rich(ec.Event, name="durable.rich", category=ec.Category.DATA):
    at: dt.datetime
    scores: ec.Array[float]
    data: dict[str, Any]


def amounts(handler):
    """Return the amounts of the payments that a handler got, in order."""
    return [envelope.get("amount") for envelope in handler.got]


def paid(emitter):
    """Return the only handler's account of payments, without the reports about itself that it does not get."""
    return next(row for row in emitter.ledger().rows if row.event == "durable.paid")


@contextmanager
def running(*handlers, **journal):
    """Run an emitter with handlers and journal settings, and shut it down."""
    emitter = ec.Emitter(journal=JournalConfig(**journal))
    for handler in handlers:
        emitter.add_handler(handler)
    try:
        yield emitter
    finally:
        emitter.shutdown(5)


@pytest.fixture
def latch():
    """Return an event that is set at the end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def until(condition, timeout_s=10):
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


# -- the way through the journal ---------------------------------------------------------------------------------------


def test_a_durable_handler_gets_everything_in_order():
    """5. Order: a durable handler sees one thread's events in emit order, and the ledger balances."""
    handler = Collect(delivery="durable")
    with running(handler) as emitter:
        for n in range(2000):
            emitter.emit(Paid(amount=n))
        assert emitter.flush(20)
        assert amounts(handler) == list(range(2000))
        row = emitter.ledger().handler("collect")
        assert (row.accepted, row.delivered, row.pending, row.recovered) == (2000, 2000, 0, 0)
        assert handler.flushed == 1
        assert handler.got[0].event == Paid(amount=0, card="[REDACTED]")


def test_no_journal_before_a_durable_handler_exists(tmp_path):
    """10. No surprises: the file is made when the first durable handler starts, at the path of the settings."""
    with ec.configure(handlers={"queued": Collect()}, journal={"path": "mine.db"}) as emitter:
        emitter.emit(Paid(amount=1))
        assert not list(tmp_path.glob("*.db*"))
        emitter.add_handler(Collect(delivery="durable"), name="durable")
        assert (tmp_path / "mine.db").exists()


def test_a_mistake_in_its_settings_is_one_clear_error(tmp_path):
    """A wrong option of [journal] is an error that names file, key and what was expected."""
    (tmp_path / "eventcore.toml").write_text('[journal]\npath = "x.db"\nmax_rows = 0\n')
    with pytest.raises(ec.ConfigurationError, match=r"eventcore\.toml.*journal\.max_rows.*greater than or equal to 1"):
        ec.configure(handlers={"h": Collect()})


def test_leftovers_of_an_earlier_run_come_first(latch):
    """5. Order: leftovers of an earlier run come first, and are counted as recovered."""
    held = Collect(act=lambda _: latch.wait(), delivery="durable", batch_size=10)
    emitter = ec.Emitter()
    emitter.add_handler(held, name="h")
    for n in range(50):
        emitter.emit(Paid(amount=n))
    until(lambda: emitter.attachments[0].queue.backlog == 50)
    report = emitter.shutdown(0.3)
    assert report.journalled == {"h": 50}
    assert report.abandoned_envelopes == {"h": 0}
    row = emitter.ledger().handler("h")
    assert (row.accepted, row.pending, row.delivered, row.dropped.total()) == (50, 50, 0, 0)

    handler = Collect(delivery="durable")
    with running() as emitter:
        emitter.add_handler(handler, name="h")
        for n in range(50, 60):
            emitter.emit(Paid(amount=n))
        assert emitter.flush(10)
        assert amounts(handler) == list(range(60))
        row = emitter.ledger().handler("h")
        assert (row.accepted, row.recovered, row.delivered, row.pending) == (10, 50, 60, 0)
        assert "recovered 50" in str(emitter.ledger())


def test_leftovers_are_handled_without_a_new_event(latch):
    """Leftovers do not wait for the next event: the handler gets them when it is attached."""
    with running(Collect(act=lambda _: latch.wait(), delivery="durable")) as emitter:
        emitter.emit(Paid(amount=1))
        until(lambda: emitter.attachments[0].queue.backlog == 1)
        emitter.shutdown(0.1)
    handler = Collect(delivery="durable")
    with running(handler):
        until(lambda: amounts(handler) == [1])


def test_a_flush_waits_for_leftovers(latch):
    """What an earlier run has left was accepted before the flush, so it is handed over when the flush returns."""
    with running(Collect(act=lambda _: latch.wait(), delivery="durable")) as emitter:
        for n in range(20):
            emitter.emit(Paid(amount=n))
        until(lambda: emitter.attachments[0].queue.backlog == 20)
        emitter.shutdown(0.1)
    handler = Collect(act=lambda _: time.sleep(0.005), delivery="durable", batch_size=3)
    with running(handler) as emitter:
        assert emitter.flush(10)
        assert (len(handler.got), handler.flushed) == (20, 1)
        assert emitter.ledger().handler("collect").pending == 0


def test_a_handler_that_fails_for_a_while_loses_nothing():
    """Retries hold their batch at the head: what failed is tried again until it succeeds, in order."""
    left = [4]

    def fail(envelope):
        if envelope.get("amount") == 5 and left[0]:
            left[0] -= 1
            raise OSError("down")

    handler = Collect(act=fail, delivery="durable")
    with running(handler) as emitter:
        for n in range(20):
            emitter.emit(Paid(amount=n))
        assert emitter.flush(20)
        assert handler.raised == 4
        assert amounts(handler) == list(range(20))
        row = paid(emitter)
        assert (row.delivered, row.failed, row.dropped.total(), row.pending) == (20, 0, 0, 0)


def test_quarantine_pauses_and_drops_nothing():
    """A durable handler in quarantine waits: nothing is dropped, and all is delivered when it is back."""
    is_down = threading.Event()
    is_down.set()

    def fail(_):
        if is_down.is_set():
            raise OSError("down")

    handler = Collect(act=fail, delivery="durable")
    with running(handler) as emitter:
        for n in range(30):
            emitter.emit(Paid(amount=n))
        breaker = emitter.attachments[0].quarantine.breaker
        until(lambda: breaker.state is ec.BreakerState.OPEN)
        row = paid(emitter)
        assert (row.delivered, row.dropped.total()) == (0, 0)
        is_down.clear()
        assert emitter.flush(20)
        assert amounts(handler) == list(range(30))
        row = paid(emitter)
        assert (row.delivered, row.dropped.total()) == (30, 0)


def test_a_durable_handler_is_not_called_while_it_is_in_quarantine():
    """A bad handler is let back by half-open probes alone: while its breaker's time stands still, so does it."""
    is_down = threading.Event()
    is_down.set()

    def fail(_):
        if is_down.is_set():
            raise OSError("down")

    clock = Clock()
    handler = Collect(act=fail, delivery="durable")
    with ec.Emitter(clock=clock) as emitter:
        emitter.add_handler(handler)
        emitter.emit(Paid(amount=1))
        breaker = emitter.attachments[0].quarantine.breaker
        until(lambda: breaker.state is ec.BreakerState.OPEN)
        raised = handler.raised
        is_down.clear()
        time.sleep(1.2)  # longer than the pause that follows five failures
        assert (handler.raised, handler.got) == (raised, [])
        clock.advance(2)
        assert emitter.flush(20)
        assert amounts(handler) == [1]


def test_of_a_batch_that_failed_in_part_only_that_part_is_tried_again():
    """What a batch handler has delivered is not delivered again while the rest of its batch is retried."""
    seen = []

    class Half(CollectBatches):
        def handle_batch(self, envelopes):
            seen.append([envelope.get("amount") for envelope in envelopes])
            if len(seen) == 1:
                raise ec.PartialFailure([1, 3], OSError("those"))

    with running(Half(delivery="durable", linger_s=0.2)) as emitter:
        for n in range(5):
            emitter.emit(Paid(amount=n))
        assert emitter.flush(10)
        row = emitter.ledger().handler("collect_batches")
    assert seen == [[0, 1, 2, 3, 4], [1, 3]]
    assert (row.delivered, row.failed, row.pending) == (5, 0, 0)


def test_a_handler_that_hangs_cannot_hang_shutdown(latch):
    """3. A bad handler hurts only itself: what a hanging durable handler holds stays in the journal."""
    emitter = ec.Emitter()
    emitter.add_handler(Collect(act=lambda _: latch.wait(), delivery="durable"), name="h")
    emitter.emit(Paid(amount=1))
    assert not emitter.flush(0.1)
    report = emitter.shutdown(0.3)
    assert report.journalled == {"h": 1}
    latch.set()
    assert emitter.ledger().handler("h").pending == 1


def test_a_full_journal_refuses_and_counts(latch):
    """8. Bounded: what meets the journal's limit is dropped with reason ``full``; what it holds is delivered."""
    handler = Collect(act=lambda _: latch.wait(), delivery="durable")
    with running(handler, max_rows=10) as emitter:
        for n in range(25):
            emitter.emit(Paid(amount=n))
        until(lambda: emitter.ledger().handler("collect").dropped["full"] == 15)
        assert run_checks(bus_checks(emitter))["checks"]["journal"]["status"] == "degraded"
        latch.set()
        assert emitter.flush(10)
        assert amounts(handler) == list(range(10))


def test_what_cannot_be_stored_is_counted():
    """2. Nothing is lost silently: too large and unserialisable envelopes are dropped with a reason of their own."""

    class Knot(ec.Event, name="durable.knot", category="data"):
        data: str

        @field_serializer("data")
        def refuse(self, data):
            raise RuntimeError(f"{data} cannot be written")

    handler = Collect(delivery="durable")
    with running(handler, max_event_bytes=2000) as emitter:
        emitter.emit(Paid(amount=1, note="long " * 1000))
        emitter.emit(Knot(data="this"))
        emitter.emit(Paid(amount=2))
        assert emitter.flush(10)
        row = emitter.ledger().handler("collect")
        assert row.dropped == {"too_large": 1, "invalid": 1}
        assert amounts(handler) == [2]


def test_an_overflowing_memory_queue_counts_as_for_queued_handlers():
    """The bounded memory queue in front of the journal drops by the same policies, counted as ``full``."""
    handler = Collect(delivery="durable", queue_size=5)
    with running(handler) as emitter:
        journal = emitter.durability.journal
        with journal._using:  # the disk stands still
            emitter.emit(Paid(amount=0))
            until(lambda: emitter.attachments[0].queue.depth == 1 and not emitter.attachments[0].queue._items)
            for n in range(1, 9):
                emitter.emit(Paid(amount=n))
        assert emitter.flush(10)
        row = emitter.ledger().handler("collect")
        assert row.dropped == {"full": 3}
        assert amounts(handler) == list(range(6))


def test_two_durable_handlers_go_at_their_own_pace(latch):
    """Each durable handler has a cursor of its own; a slow one does not hold another back."""
    slow = Collect(act=lambda _: latch.wait(), delivery="durable")
    fast = Collect(delivery="durable")
    with running() as emitter:
        emitter.add_handler(slow, name="slow")
        emitter.add_handler(fast, name="fast")
        for n in range(10):
            emitter.emit(Paid(amount=n))
        until(lambda: amounts(fast) == list(range(10)))
        assert amounts(slow) == []
        latch.set()
        assert emitter.flush(10)
        assert amounts(slow) == list(range(10))


def test_a_removed_handler_finds_its_rows_again(latch):
    """What a removed durable handler had not handled waits for one of its name; the ledger counts it once."""
    with running() as emitter:
        emitter.add_handler(Collect(act=lambda _: latch.wait(), delivery="durable"), name="h")
        emitter.emit(Paid(amount=1))
        until(lambda: emitter.attachments[0].queue.backlog == 1)
        assert emitter.remove_handler("h", timeout_s=0.1) == 0
        again = emitter.add_handler(Collect(delivery="durable"), name="h")
        until(lambda: amounts(again) == [1])
        emitter.flush(5)
        row = emitter.ledger().handler("h")
        assert (row.accepted, row.delivered, row.recovered, row.pending) == (1, 1, 0, 0)


# -- replayed envelopes ------------------------------------------------------------------------------------------------


def replayed(handler, *emits):
    """Return the envelopes that a durable handler gets of some emits."""
    with running(handler) as emitter:
        for emit in emits:
            emit(emitter)
        assert emitter.flush(10)
    return handler.got


def test_a_replayed_envelope_is_like_a_fresh_one():
    """A handler finds event, payload, name, severity, id, times, tags, scope and message as they were emitted."""
    fresh = Collect()
    durable = Collect(delivery="durable")
    with running(fresh, durable) as emitter:
        with ec.bound(tenant="acme", correlation_id="c-1"), ec.continue_trace(f"00-{'a' * 32}-{'b' * 16}-01"):
            emitter.emit(Paid(amount=3, note="mail me@example.com"), severity="error", tags=("x",))
        emitter.flush(10)
    (one,), (other,) = fresh.got, durable.got
    for fact in ("event", "payload", "name", "category", "severity", "id", "time_ns", "tags", "message", "phase"):
        assert getattr(other, fact) == getattr(one, fact), fact
    assert other.redacted == one.redacted
    assert (other.trace_id, other.span_id, other.correlation_id) == ("a" * 32, "b" * 16, "c-1")
    assert other.scope.bound == {"tenant": "acme"}
    assert other.scope.sampled


def test_a_replayed_operation_has_its_span():
    """A replayed operation has ids, duration, outcome and the error, whose stack can be printed."""

    def fail(_):
        return 1 / 0

    def work(emitter):
        with pytest.raises(ZeroDivisionError), emitter.operation(Charge, provider="stripe", attempts=2) as op:
            fail(op.link("c" * 32, "d" * 16))

    (envelope,) = replayed(Collect(delivery="durable"), work)
    assert envelope.event == Charge(provider="stripe", attempts=2)
    assert (envelope.outcome, envelope.error_type) == ("failure", "ZeroDivisionError")
    assert envelope.duration_s > 0
    assert envelope.span.start_ns + envelope.span.duration_ns == envelope.time_ns
    assert envelope.span.links == ((int("c" * 32, 16), int("d" * 16, 16)),)
    assert "in work" in "".join(envelope.span.error.format())
    assert str(envelope.span.error) == "division by zero"


def test_values_of_many_kinds_survive():
    """Times, arrays and nested data are of their own types again after the journal."""
    at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    (envelope,) = replayed(
        Collect(delivery="durable"),
        lambda e: e.emit(Rich(at=at, scores=[0.5, 1.5], data={"deep": [1, {"x": None}], "nan": float("inf")})),
    )
    assert envelope.event.at == at
    assert list(envelope.event.scores) == [0.5, 1.5]
    assert envelope.get("data") == {"deep": [1, {"x": None}], "nan": float("inf")}


class Raw(ec.Event, name="durable.raw", category=ec.Category.DATA):
    body: bytes
    data: Any


@pytest.mark.parametrize(
    "data",
    [b"\xff\x00\xfe", "\ud800 alone", {"deep": [b"\xff", {"x": ("\udfff", "ä")}]}, {"\x00bytes": 1}, b"text"],
    ids=repr,
)
def test_what_json_cannot_hold_survives(data):
    """Bytes that are no UTF-8 and lone surrogates come back as they were, also deep in a payload."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    (envelope,) = replayed(Collect(delivery="durable"), lambda e: e.emit(Raw(body=b"\xfe\xff", data=data)))
    assert envelope.event.body == b"\xfe\xff"
    assert plain(envelope.get("data")) == (plain(data) if data != b"text" else "text")


def test_events_without_a_class_survive():
    """Ad-hoc events are replayed with their text and data."""
    handler = Collect(delivery="durable")
    with ec.configure(handlers={"h": handler}) as emitter:
        ec.emit_event("shop.opened", message="open", data={"door": 3})
        assert emitter.flush(10)
    found = next(e for e in handler.got if e.name == "shop.opened")
    assert (found.message, found.get("data")) == ("open", {"door": 3})


def changed(row, change):
    """Return a row whose stored facts are changed."""
    facts = json.loads(row.envelope)
    change(facts)
    return row._replace(envelope=json.dumps(facts).encode())


def stored(event):
    """Return the row of an event."""
    handler = Collect()
    with running(handler) as emitter:
        emitter.emit(event)
        emitter.flush(5)
    return record(handler.got[0])


def test_a_replayed_event_of_another_shape_keeps_its_unknown_fields():
    """A replayed event of an older or newer shape keeps its unknown fields, beside those that its class knows."""
    row = changed(stored(Paid(amount=1)), lambda facts: facts["payload"].update(colour="red"))
    envelope = Replay(ec.Catalog()).envelope(row)
    assert isinstance(envelope.event, Paid)
    assert (envelope.get("colour"), envelope.get("amount"), envelope.payload["colour"]) == ("red", 1, "red")


def test_a_replayed_event_that_no_longer_validates_keeps_what_was_stored():
    """Where a stored value does not fit the class any more, the payload is the stored one."""
    row = changed(stored(Paid(amount=1)), lambda facts: facts["payload"].update(amount="many"))
    envelope = Replay(ec.Catalog()).envelope(row)
    assert (envelope.get("amount"), envelope.name) == ("many", "durable.paid")


def test_a_replayed_event_of_an_unknown_class_is_its_payload():
    """Without its class, an envelope still has name, category, severity, message and the stored payload."""
    row = changed(stored(Paid(amount=1)), lambda _: None)._replace(event="gone.away")
    envelope = Replay(ec.Catalog()).envelope(row)
    assert envelope.payload == {"amount": 1, "card": "[REDACTED]", "note": ""}
    assert (envelope.name, envelope.category, envelope.message) == ("gone.away", ec.Category.USER, "1 paid")
    assert envelope.spec.name == "gone.away"


def test_no_secret_reaches_the_disk(tmp_path, latch):
    """9. Secrets stay in: nothing sensitive, in fields, free text, bound fields or errors, is in the journal."""
    secret = "sk-abcdefghijklmnopqrstuv"
    handler = Collect(act=lambda _: latch.wait(), delivery="durable")
    with running(handler) as emitter:
        with ec.bound(api_key=secret, remark=f"uses {secret}"):
            emitter.emit(Paid(amount=77, card="4929-SENSITIVE-0001", note=f"key {secret}"))
        with pytest.raises(ValueError, match="bad"), emitter.operation(Charge, provider="p"):
            raise ValueError(f"bad {secret}")
        until(lambda: emitter.attachments[0].queue.backlog == 2)
        content = b"".join(found.read_bytes() for found in tmp_path.glob("eventcore-journal.db*"))
        assert b'"amount":77' in content
        assert secret.encode() not in content
        assert b"SENSITIVE" not in content
        latch.set()


# -- audit class -------------------------------------------------------------------------------------------------------


def test_an_audit_emit_returns_when_its_event_is_committed():
    """4. Durable means durable: when ``emit`` of an audit-class event returns, its row is committed, in order."""
    handler = Collect(act=lambda _: time.sleep(0.001), delivery="durable")
    with running(handler) as emitter:
        for n in range(0, 20, 2):
            emitter.emit(Paid(amount=n))
            emitter.emit(Audited(number=n + 1))
            row = emitter.ledger().handler("collect")
            in_memory = emitter.attachments[0].queue.depth
            assert in_memory == 0
            assert row.accepted == n + 2
        assert emitter.flush(10)
        assert [e.get("amount") if e.name == "durable.paid" else e.get("number") for e in handler.got] == list(
            range(20)
        )


def test_an_audit_emit_waits_no_longer_than_its_time():
    """``emit`` waits at most ``commit_timeout_s``; a late commit raises NotDurable, and is counted."""
    handler = Collect(delivery="durable")
    with running(handler, commit_timeout_s=0.05) as emitter:
        late = pytest.raises(ec.NotDurable, match=r"not committed to the journal within .* it may still be")
        with emitter.durability.journal._using, late:  # a disk that stands still
            emitter.emit(Audited(number=1))
        assert emitter.ledger().unconfirmed == 1
        emitter.emit(Audited(number=2))
        assert emitter.flush(10)
        assert [e.get("number") for e in handler.got] == [1, 2]


def test_on_not_durable_count_does_not_raise():
    """With ``on_not_durable = "count"`` a late commit is only counted."""
    with running(Collect(delivery="durable"), commit_timeout_s=0.05, on_not_durable="count") as emitter:
        with emitter.durability.journal._using:
            emitter.emit(Audited(number=1))
        assert emitter.ledger().unconfirmed == 1


def test_an_audit_emit_that_is_refused_raises_at_once(latch):
    """A full journal, or an emitter that is shut down, fails an audit-class emit with the reason."""
    handler = Collect(act=lambda _: latch.wait(), delivery="durable")
    with running(handler, max_rows=1, commit_timeout_s=60) as emitter:
        emitter.emit(Audited(number=1))
        with pytest.raises(ec.NotDurable, match="journal is full"):
            emitter.emit(Audited(number=2))
        latch.set()
        emitter.shutdown(5)
        with pytest.raises(ec.NotDurable, match="'shutdown'"):
            emitter.emit(Audited(number=3))
        assert emitter.ledger().handler("collect").dropped == {"full": 1, "shutdown": 1}


def test_an_audit_emit_of_the_committing_thread_does_not_wait_for_itself():
    """A finalizer that runs in the thread that would have to commit is refused at once; its event is stored."""
    refused, asked = [], threading.Event()

    class Parting:
        def __del__(self):
            try:
                ec_emitter.emit(Audited(number=1))
            except ec.NotDurable as error:
                refused.append(str(error))
            asked.set()

    handler = Collect(delivery="durable")
    with running(handler, commit_timeout_s=30) as ec_emitter:
        ec_emitter.emit(Carried(thing=Parting()))
        assert asked.wait(10)
        assert ec_emitter.flush(10)
        assert refused == ["durable.audited: emitted in the thread that would have to commit it"]
        assert [envelope.name for envelope in handler.got] == ["durable.carried", "durable.audited"]
        assert ec_emitter.ledger().unconfirmed == 1


def test_emit_durable_does_not_block_the_event_loop():
    """``await emit_durable`` waits for the commit while the loop goes on, for events of any type."""
    handler = Collect(delivery="durable")

    async def main(emitter):
        lock = emitter.durability.journal._using
        lock.acquire()
        waits = asyncio.create_task(emitter.emit_durable(Audited(number=1)))
        ticks = 0
        for _ in range(5):
            await asyncio.sleep(0.005)
            ticks += 1
        assert not waits.done()
        lock.release()
        await waits
        assert ticks == 5
        await asyncio.gather(*(emitter.emit_durable(Paid(amount=n)) for n in range(50)))

    with running(handler) as emitter:
        asyncio.run(main(emitter))
        assert emitter.attachments[0].queue.depth == 0
        assert emitter.flush(10)
        assert amounts(handler)[1:] == list(range(50))


def test_emit_durable_times_out():
    """``await emit_durable`` raises NotDurable after ``commit_timeout_s``."""
    late = pytest.raises(ec.NotDurable, match="not committed")
    emitting = running(Collect(delivery="durable"), commit_timeout_s=0.05)
    with emitting as emitter, emitter.durability.journal._using, late:
        asyncio.run(emitter.emit_durable(Audited(number=1)))


def test_emit_durable_needs_a_durable_handler():
    """``emit_durable`` of what no durable handler takes is a configuration error."""
    nobody = pytest.raises(ec.ConfigurationError, match=r"no durable handler takes 'durable\.paid'")
    with running(Collect()) as emitter, nobody:
        asyncio.run(emitter.emit_durable(Paid(amount=1)))


@pytest.mark.parametrize(
    "options", [{}, {"delivery": "durable", "events": ["other.*"]}, {"delivery": "durable", "sampling": 0.5}]
)
def test_an_audit_type_without_a_durable_handler_is_a_configuration_error(options):
    """4. An audit type without a durable handler that takes all of it is an error, at its first emit."""
    with running(Collect(**options)) as emitter:
        with pytest.raises(
            ec.ConfigurationError, match=r"Audited \('durable.audited'\) is declared durable=True, but no"
        ):
            emitter.emit(Audited(number=1))
        with pytest.raises(ec.ConfigurationError, match="no durable handler"), emitter.operation(Closed, number=1):
            pytest.fail("it must not start")


def test_an_audit_type_of_the_catalog_without_a_durable_handler_fails_configure():
    """4. For types that the catalog knows, ``configure()`` says so."""
    with pytest.raises(ec.ConfigurationError, match="declared durable=True"):
        ec.configure(handlers={"h": Collect()}, events=[Audited])
    with ec.configure(handlers={"h": Collect(delivery="durable")}, events=[Audited]) as emitter:
        emitter.emit(Audited(number=1))


def test_an_emitter_that_is_switched_off_takes_no_audit_events():
    """A silenced emitter is silent: an audit-class emit neither waits nor fails."""
    with running(Collect(delivery="durable")) as emitter:
        emitter.is_enabled = False
        emitter.emit(Audited(number=1))
        asyncio.run(emitter.emit_durable(Audited(number=2)))
        assert emitter.ledger().emitted == 0


def test_an_audit_operation_waits_at_its_end():
    """An audit-class operation raises NotDurable at its end, but never in the place of an error on its way out."""
    with running(Collect(delivery="durable"), commit_timeout_s=0.05) as emitter, emitter.durability.journal._using:
        with pytest.raises(ec.NotDurable), emitter.operation(Closed, number=1):
            pass
        with pytest.raises(ZeroDivisionError), emitter.operation(Closed, number=2):
            _ = 1 / 0
    assert emitter.ledger().unconfirmed == 2


def test_other_handlers_get_an_audit_event_too():
    """An audit-class event goes to inline and queued handlers like any other, also when its commit fails."""
    inline, queued = Collect(delivery="inline"), Collect()
    with running(inline, queued, Collect(delivery="durable"), commit_timeout_s=0.05) as emitter:
        with emitter.durability.journal._using, pytest.raises(ec.NotDurable):
            emitter.emit(Audited(number=1))
        emitter.flush(5)
        assert len(inline.got) == len(queued.got) == 1
        assert emitter.ledger().is_settled


def test_an_audit_event_of_another_handler_waits_too():
    """An audit-class event emitted by an inline handler while it handles is committed when its emit returns."""
    depths = []

    def act(envelope):
        if envelope.name == "durable.paid":
            emitter.emit(Audited(number=7))
            depths.append(emitter.attachments[1].queue.depth)

    durable = Collect(delivery="durable")
    with running(Collect(act=act, delivery="inline"), durable) as emitter:
        emitter.emit(Paid(amount=1))
        assert depths == [0]
        assert emitter.flush(5)
        assert emitter.ledger().is_settled
        assert {e.name for e in durable.got} == {"durable.paid", "durable.audited"}


def test_eight_threads_of_audit_events():
    """Audit-class emits of many threads all return committed, and each thread's order is kept."""
    handler = Collect(delivery="durable")
    with running(handler) as emitter:

        def work(thread):
            for n in range(25):
                emitter.emit(Audited(number=thread * 1000 + n))

        threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert emitter.flush(10)
        got = [e.get("number") for e in handler.got]
        for t in range(8):
            assert [n for n in got if n // 1000 == t] == [t * 1000 + n for n in range(25)]


def test_a_poisoned_journal_fails_readiness():
    """An I/O error fails readiness until the journal was verified; audit-class emits fail, others are counted."""
    other = Collect()
    with running(other, Collect(delivery="durable")) as emitter:
        emitter.emit(Audited(number=1))
        assert run_checks(bus_checks(emitter))["ready"]
        journal = emitter.durability.journal
        journal._connection.execute("PRAGMA query_only = ON")  # SQLite itself refuses to write from now on
        with pytest.raises(ec.NotDurable, match="cannot be written"):
            emitter.emit(Audited(number=2))
        assert not run_checks(bus_checks(emitter))["ready"]
        # The report of it may have failed to reach the same handler by now: look at the audit event alone.
        rows = {(row.handler, row.event): row for row in emitter.ledger().rows}
        assert rows["collect_2", "durable.audited"].failed == 1
        until(lambda: ("journal", "failed") in [(e.get("handler"), e.get("what")) for e in other.got])
        assert journal.reopen()
        emitter.emit(Audited(number=3))
        assert run_checks(bus_checks(emitter))["ready"]
        assert emitter.flush(10)
        assert ("journal", "recovered") in [(e.get("handler"), e.get("what")) for e in other.got]


# -- processes ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys, threading
import eventcore as ec

class Audited(ec.Event, name="killed.audited", category="security", durable=True):
    number: int

class Keep(ec.Handler):
    delivery = "durable"

    def handle(self, envelope):
        if envelope.name == "killed.audited":
            os.write(out, b"d %d\\n" % envelope.get("number"))

out = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
first = int(sys.argv[2])
with ec.configure(handlers={"keep": Keep()}) as emitter:
    if first < 0:
        emitter.flush(30)
        row = emitter.ledger().handler("keep")
        assert row.pending == 0, row
        sys.exit()

    def work(thread):
        for n in range(100_000):
            number = first + thread * 100_000 + n
            emitter.emit(Audited(number=number))
            os.write(out, b"a %d\\n" % number)

    for thread in range(2):
        threading.Thread(target=work, args=(thread,), daemon=True).start()
    threading.Event().wait()
"""


def test_kill_9_loses_nothing_acknowledged(tmp_path):
    """4. ``kill -9`` loses no acknowledged event and corrupts nothing; each thread's events stay in order."""
    log = tmp_path / "log"

    def start(first):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(log), str(first)], cwd=tmp_path)

    for run in range(4):
        process = start(run * 1_000_000)
        before = log.stat().st_size if log.exists() else 0
        try:
            enough = before + 3000 * (run + 1)
            until(lambda p=process, e=enough: p.poll() is not None or (log.exists() and log.stat().st_size > e), 30)
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    assert start(-1).wait(60) == 0
    acknowledged, delivered = [], []
    for line in log.read_text().splitlines():
        what, number = line.split()
        (acknowledged if what == "a" else delivered).append(int(number))
    assert len(acknowledged) > 1000
    assert set(acknowledged) <= set(delivered)
    for thread in {n // 100_000 for n in delivered}:
        mine = list(dict.fromkeys(n for n in delivered if n // 100_000 == thread))
        assert mine == list(range(mine[0], mine[0] + len(mine)))


FORKED = """
import os, sys, time
import eventcore as ec

class Audited(ec.Event, name="forked.audited", category="security", durable=True):
    number: int

class Slow(ec.Handler):
    delivery = "durable"
    got = []

    def handle(self, envelope):
        time.sleep(float(sys.argv[1]))
        self.got.append(envelope.get("number"))

handler = Slow()
emitter = ec.Emitter()
emitter.add_handler(handler, name="h")
for n in range(10):
    emitter.emit(Audited(number=n))
child = os.fork()
if child == 0:
    before = emitter.ledger().handler("h")
    assert (before.pending, before.accepted, before.delivered) == (0, 0, 0), before
    assert before.recovered == before.dropped["forked"] <= 10, before
    handler.got.clear()
    for n in range(100, 105):
        emitter.emit(Audited(number=n))
    assert emitter.flush(20)
    assert handler.got == [100, 101, 102, 103, 104], handler.got
    row = emitter.ledger().handler("h")
    assert (row.pending, row.accepted, row.delivered) == (0, 5, 5), row
    report = emitter.shutdown(5)
    assert not report.journalled and not report.errors, report
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
emitter.emit(Audited(number=10))
assert emitter.flush(20)
assert handler.got == list(range(11)), handler.got
assert emitter.ledger().handler("h").delivered == 11
emitter.shutdown(5)
print(sorted(name for name in os.listdir() if ".fork-" in name))
"""


@pytest.mark.parametrize("pause", ["0", "0.01"])
def test_a_forked_child_starts_with_an_empty_journal(tmp_path, pause):
    """10. A forked child delivers nothing of its parent's, loses nothing of it, and has a journal of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, pause], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_second_emitter_on_one_journal_is_a_configuration_error(tmp_path):
    """A journal belongs to one emitter: the second is told who has it, and what to set."""
    refused = pytest.raises(ec.ConfigurationError, match=rf"in use by another emitter \(process {os.getpid()}\)")
    with running(Collect(delivery="durable")), refused:
        ec.Emitter().add_handler(Collect(delivery="durable"))


def test_a_replacement_takes_the_journal_over(latch):
    """``configure(replace=True)`` hands the journal, and what waits in it, to the new emitter."""
    ec.configure(handlers={"h": Collect(act=lambda _: latch.wait(), delivery="durable")}, shutdown_timeout_s=0.2)
    ec.get_emitter().emit(Paid(amount=1))
    until(lambda: ec.get_emitter().attachments[0].queue.backlog == 2)
    handler = Collect(delivery="durable")
    with ec.configure(handlers={"h": handler}, replace=True) as emitter:
        assert emitter.flush(10)
        assert amounts(handler)[:2] == [ec.unset, 1]


def test_a_row_that_cannot_be_read_does_not_stop_the_rest(latch):
    """A row that no longer makes an envelope is dropped as ``invalid``, and what follows is delivered."""
    with running(Collect(act=lambda _: latch.wait(), delivery="durable")) as emitter:
        for n in range(3):
            emitter.emit(Paid(amount=n))
        until(lambda: emitter.attachments[0].queue.backlog == 3)
        emitter.shutdown(0.1)
    with sqlite3.connect("eventcore-journal.db") as file:
        file.execute("UPDATE rows SET envelope = '{}' WHERE position = 2")
    handler = Collect(delivery="durable")
    with running(handler) as emitter:
        assert emitter.flush(10)
        assert amounts(handler) == [0, 2]
        row = paid(emitter)
        assert (row.recovered, row.delivered, row.dropped, row.pending) == (3, 2, {"invalid": 1}, 0)


def test_a_durable_queue_is_known_as_such():
    """The queue of a durable handler says so, and what waits in the journal counts beside its depth."""
    with running(Collect(delivery="durable")) as emitter:
        queue = emitter.attachments[0].queue
        assert isinstance(queue, DurableQueue)
        assert queue.is_durable
        assert isinstance(emitter.durability.journal, Journal)
