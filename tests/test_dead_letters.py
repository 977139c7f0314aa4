"""Dead letters: an event that its durable handler can never handle does not hold up the others for ever."""

from __future__ import annotations

import json
import threading

import pytest
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from eventcore.journal import Journal, JournalRow
from eventcore.journal_config import JournalConfig
from tests.support.handlers import Collect, CollectBatches, eventually


class Paid(ec.Event, name="dead.paid", category="user"):
    amount: int


def refuse(*amounts):
    """Return an action that fails on these amounts, alone or in a batch."""

    def act(got):
        for envelope in got if isinstance(got, list) else [got]:
            if envelope.get("amount") in amounts:
                raise ValueError(f"nobody pays {envelope.get('amount')} with password=hunter22")

    return act


@pytest.fixture
def start():
    """Return a function that starts an emitter with a durable handler and a witness of what the bus reports."""
    emitters = []

    def start(handler, **journal):
        emitter = ec.Emitter(journal=JournalConfig(**{"max_attempts": 3, **journal}))
        emitters.append(emitter)
        emitter.add_handler(handler, name="pay")
        emitter.add_handler(Collect(events="eventcore.handler", delivery="inline"), name="witness")
        return emitter

    yield start
    for emitter in emitters:
        emitter.shutdown(5)


def emit(emitter, amounts):
    """Emit payments, one for each amount."""
    for amount in amounts:
        emitter.emit(Paid(amount=amount))


def amounts(handler):
    """Return the amounts of the payments that a handler got, in order."""
    return [envelope.get("amount") for envelope in handler.got if envelope.name == "dead.paid"]


def row_of(emitter):
    """Return the account of the payments."""
    return next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("pay", "dead.paid"))


def dead(emitter):
    """Return the amounts in the dead letters, oldest first."""
    letters = emitter.durability.journal.dead_letters()
    return [json.loads(letter.envelope)["payload"]["amount"] for letter in letters]


@pytest.mark.parametrize(
    ("kind", "poison"), [(Collect, (0,)), (Collect, (3, 4, 7)), (CollectBatches, (4,)), (CollectBatches, (0, 1))]
)
def test_a_poison_event_is_set_aside(start, kind, poison):
    """Retries are bounded: an event on which the handler always fails is set aside, and the others come in order."""
    handler = kind(delivery="durable", act=refuse(*poison), linger_s=0.1)
    emitter = start(handler)
    emit(emitter, range(10))
    assert emitter.flush(30)
    assert amounts(handler) == [amount for amount in range(10) if amount not in poison]
    assert dead(emitter) == list(poison)
    row = row_of(emitter)
    assert (row.delivered, row.pending) == (10 - len(poison), 0)
    assert row.dropped == {"dead_letter": len(poison)}
    assert eventually(lambda: emitter.durability.journal.rows == 0)


def test_it_is_reported_without_its_secrets(start):
    """2. Nothing is lost silently: the report names event, handler, attempts and error; secrets in it are hidden."""
    emitter = start(Collect(delivery="durable", act=refuse(1)))
    emit(emitter, [1, 2])
    assert emitter.flush(30)
    reports = [envelope.event for envelope in emitter.handler("witness").got]
    (report,) = [event for event in reports if event.what == "set_aside"]
    assert report.handler == "pay"
    assert "dead.paid" in report.reason
    assert "after 3 failures (ValueError: nobody pays 1 with [REDACTED_SECRET])" in report.reason
    (letter,) = emitter.durability.journal.dead_letters()
    assert letter.reason == "ValueError: nobody pays 1 with [REDACTED_SECRET]"


@pytest.mark.parametrize("kind", [Collect, CollectBatches])
def test_a_handler_that_is_down_loses_nothing(start, kind):
    """While nothing at all gets through no event is to blame: what failed however often is delivered afterwards."""
    up, tried = threading.Event(), []

    def act(_got):
        tried.append(1)
        if not up.is_set():
            raise ConnectionError("down")

    handler = kind(delivery="durable", act=act)
    emitter = start(handler, max_attempts=1)
    emit(emitter, range(10))
    assert eventually(lambda: len(tried) >= 6, 20)
    up.set()
    assert emitter.flush(30)
    assert amounts(handler) == list(range(10))
    assert dead(emitter) == []
    assert row_of(emitter).delivered == 10


def test_a_poison_event_waits_for_another_to_compare_with(start):
    """The last event may be poison or the handler may be down: it is set aside when one behind it gets through."""
    handler = Collect(delivery="durable", act=refuse(1))
    emitter = start(handler, max_attempts=2)
    emit(emitter, [1])
    assert eventually(lambda: handler.raised >= 3, 20)
    assert dead(emitter) == []
    emit(emitter, [2])
    assert emitter.flush(30)
    assert (dead(emitter), amounts(handler)) == ([1], [2])


def test_retries_end_although_nothing_gets_through(start):
    """Retries: each has a limit, a default, and a count; after ``give_up_after_s`` they end in any case."""
    handler = Collect(delivery="durable", act=refuse(1, 2))
    emitter = start(handler, max_attempts=2, give_up_after_s=0.01)
    emit(emitter, [1, 2])
    assert emitter.flush(30)
    assert dead(emitter) == [1, 2]
    assert row_of(emitter).dropped == {"dead_letter": 2}


def test_only_what_failed_of_a_batch_is_set_aside(start):
    """A handler that says which of a batch failed (PartialFailure) keeps its batches whole."""

    class Partial(CollectBatches):
        def handle_batch(self, envelopes):
            bad = [index for index, envelope in enumerate(envelopes) if envelope.get("amount") == 2]
            self.got.extend(envelope for index, envelope in enumerate(envelopes) if index not in bad)
            if bad:
                raise ec.PartialFailure(bad, ValueError("two"))

    handler = Partial(delivery="durable", linger_s=0.1)
    emitter = start(handler)
    emit(emitter, range(5))
    assert eventually(lambda: amounts(handler) == [0, 1, 3, 4], 20)
    emit(emitter, [5])
    assert emitter.flush(30)
    assert (amounts(handler), dead(emitter)) == ([0, 1, 3, 4, 5], [2])


def test_operators_see_what_waits_and_what_was_set_aside(start):
    """2. Visible in ``inspect``: rows and dead letters of the journal, and what waits for which handler."""
    up = threading.Event()

    def act(envelope):
        refuse(1)(envelope)
        assert envelope.get("amount") < 3 or up.wait(30)

    handler = Collect(delivery="durable", act=act, linger_s=0, batch_size=1, events="dead.paid")
    emitter = ec.configure(journal={"max_attempts": 1}, http={"port": 0}, handlers={"pay": handler})
    emit(emitter, [1, 2, 3, 4, 5])
    pay = emitter.attachments[0]
    assert eventually(lambda: emitter.durability.journal.rows == pay.queue.backlog == 3 and not pay.queue.depth)
    ledger = emitter.ledger()
    assert (ledger.journal.rows, ledger.journal.dead_letters, ledger.journal.is_well) == (3, 1, True)
    assert 0 < ledger.journal.fill < 1
    shown = CliRunner().invoke(
        app, ["debug", "inspect", "--component", "events", "--url", emitter.services["http"].url]
    )
    up.set()
    text = " ".join(shown.output.split())
    assert "journal.db, 3 rows, " in text, shown.output
    assert "1 dead letters" in text
    assert "Waiting for pay: 0 of at most 10000, 3 in the journal" in text


def test_dead_letters_stay_across_restarts(start):
    """They are in the journal's file, and no later run hands them over."""
    emitter = start(Collect(delivery="durable", act=refuse(1)))
    emit(emitter, [1, 2])
    assert emitter.flush(30)
    emitter.shutdown(5)
    handler = Collect(delivery="durable")
    emitter = start(handler)
    emit(emitter, [3])
    assert emitter.flush(10)
    assert (amounts(handler), dead(emitter)) == ([3], [1])


def test_a_forked_childs_dead_letters_are_taken_over(tmp_path):
    """What a child has set aside in its own file is in its parent's program's after the next start."""
    path = tmp_path / "journal.db"
    for name in ("journal.db", "journal.db.fork-999999999"):
        journal = Journal(JournalConfig(path=tmp_path / name))
        rows = [JournalRow("dead.row", "end", number, 9, f"{name}-{number}", b"{}") for number in range(2)]
        journal.append("h", rows).wait(5)
        journal.set_aside([row.position for row in journal.read("h", 0, 10)], "why").wait(5)
        journal.close()
    journal = Journal(JournalConfig(path=path))
    assert [letter.time_ns for letter in journal.dead_letters()] == [0, 1, 0, 1]
    assert (journal.dead, journal.rows) == (4, 0)
    journal.close()
    assert not list(tmp_path.glob("*.fork-*"))


def test_dead_letters_are_bounded(tmp_path):
    """Of more than ``max_dead_letters`` the oldest are deleted."""
    journal = Journal(JournalConfig(path=tmp_path / "journal.db", max_dead_letters=3))
    rows = [JournalRow("dead.row", "end", number, 9, f"id-{number}", b"{}") for number in range(5)]
    journal.append("h", rows).wait(5)
    positions = [row.position for row in journal.read("h", 0, 10)]
    journal.set_aside(positions[:1], "why").wait(5)
    journal.set_aside(positions[1:], "why").wait(5)
    assert [letter.time_ns for letter in journal.dead_letters()] == [2, 3, 4]
    assert (journal.rows, journal.bytes) == (0, 0)
    journal.close()
