"""A bad handler hurts only itself: neither the caller nor the other handlers notice, and everything is counted."""

from __future__ import annotations

import pytest

import eventcore as ec
from eventcore.vocabulary import HandlerChanged
from eventcore_buffer.handler import BufferHandler


class Sold(ec.Event, name="shop.sold", category=ec.Category.USER):
    number: int


class Sell(ec.Operation, name="shop.sell", category=ec.Category.USER):
    pass


class StillClock:
    """A clock that only moves when told to."""

    def __init__(self):
        self.now_ns = 1_700_000_000_000_000_000

    def time_ns(self):
        """Return the wall time."""
        return self.now_ns

    monotonic_ns = time_ns

    def advance(self, seconds):
        """Move on."""
        self.now_ns += int(seconds * 1e9)


class Moody(ec.Handler):
    """Raises while it is broken; remembers what it was asked to handle."""

    kind = "moody"

    def __init__(self, **options):
        super().__init__(**options)
        self.error = RuntimeError("out of ink")
        self.calls = []

    def handle(self, envelope):
        """Raise, or not."""
        self.calls.append(envelope)
        if self.error is not None:
            raise self.error


class MoodyInBatches(Moody):
    """The same for whole batches; with ``odd_only``, only events with odd numbers fail."""

    odd_only = False

    def handle_batch(self, envelopes):
        """Raise for the batch, or name those in it that failed."""
        self.calls.extend(envelopes)
        if self.odd_only:
            raise ec.PartialFailure([i for i, e in enumerate(envelopes) if e.event.number % 2], self.error)
        raise self.error


@pytest.fixture(params=["inline", "queued"])
def delivery(request):
    """Return how the bad handler gets its envelopes; each promise holds both ways."""
    return request.param


@pytest.fixture
def clock():
    """Return a clock that stands still."""
    return StillClock()


@pytest.fixture
def start(clock):
    """Return a function that configures an emitter with one handler between two good ones."""

    def configure(bad):
        return ec.configure(
            clock=clock, handlers={"first": BufferHandler(), "bad": bad, "last": BufferHandler()}, service="shop"
        )

    return configure


def sell(emitter, numbers):
    """Emit events one by one, and have each of them handled."""
    for number in numbers:
        emitter.emit(Sold(number=number))
        assert emitter.flush()


def changes(emitter):
    """Return what the good handlers were told about the bad one, the same for both."""
    told = [[event.what for event in emitter.handler(name).of(HandlerChanged)] for name in ("first", "last")]
    assert told[0] == told[1]
    return told[0]


def test_the_caller_and_the_neighbours_notice_nothing(start, delivery):
    """``emit`` returns as if nothing were, and handlers before and after the bad one get every event in order."""
    bad = Moody(delivery=delivery, events=["shop.*"])
    emitter = start(bad)
    for number in range(4):
        assert emitter.emit(Sold(number=number)) is None
    assert emitter.flush()
    for name in ("first", "last"):
        assert [event.number for event in emitter.handler(name).of(Sold)] == [0, 1, 2, 3]
    ledger = emitter.ledger()
    row = ledger.handler("bad")
    assert (row.accepted, row.delivered, row.failed, row.pending) == (4, 0, 4, 0)
    assert ledger.handler("first").failed == ledger.handler("last").failed == 0
    assert ledger.handler("first").delivered == ledger.handler("first").accepted == len(emitter.handler("first"))
    assert ledger.is_settled


def test_an_operation_goes_on_with_a_bad_handler(start, delivery):
    """The block runs to its end and counts as a success; the neighbours get the operation and what happened in it."""
    emitter = start(Moody(delivery=delivery, events=["shop.*"]))
    with emitter.operation(Sell):
        emitter.emit(Sold(number=1))
    emitter.flush()
    for name in ("first", "last"):
        seen = [(envelope.name, envelope.outcome) for envelope in emitter.handler(name).get_events(type="shop.*")]
        assert seen == [("shop.sold", None), ("shop.sell", "success")]
    assert emitter.ledger().handler("bad").failed == 2


def test_the_others_are_told_once(start, delivery):
    """The first failure is reported, with the reason, through the other handlers; the bad one does not hear of it."""
    bad = Moody(delivery=delivery, exclude=["eventcore.started"])
    emitter = start(bad)
    sell(emitter, range(4))
    assert changes(emitter) == ["failed"]
    (report,) = emitter.handler("first").of(HandlerChanged)
    assert (report.handler, report.reason) == ("bad", "RuntimeError: out of ink")
    assert [envelope.name for envelope in bad.calls] == ["shop.sold"] * 4


def test_repeated_failure_means_quarantine(start, delivery):
    """After five failures the handler is left alone; what it would have got is counted, the others hear of it once."""
    bad = Moody(delivery=delivery, events=["shop.*"])
    emitter = start(bad)
    sell(emitter, range(9))
    row = emitter.ledger().handler("bad")
    assert (len(bad.calls), row.failed, row.dropped) == (5, 5, {"quarantined": 4})
    assert row.accepted == 9
    assert changes(emitter) == ["failed", "quarantined"]
    assert len(emitter.handler("last").of(Sold)) == 9


def test_a_probe_decides_whether_it_may_come_back(start, delivery, clock):
    """When its time is up one event is let through: failing again doubles the time, success ends the quarantine."""
    bad = Moody(delivery=delivery, events=["shop.*"])
    emitter = start(bad)
    sell(emitter, range(6))
    assert len(bad.calls) == 5
    clock.advance(1.0)
    sell(emitter, [6])  # the probe; it fails
    assert len(bad.calls) == 6
    clock.advance(1.5)
    sell(emitter, [7])  # two seconds this time: still out
    assert len(bad.calls) == 6
    bad.error = None
    clock.advance(0.5)
    sell(emitter, [8, 9, 10])
    assert [envelope.event.number for envelope in bad.calls] == [0, 1, 2, 3, 4, 6, 8, 9, 10]
    assert changes(emitter) == ["failed", "quarantined", "recovered"]
    row = emitter.ledger().handler("bad")
    assert (row.accepted, row.failed, row.delivered, row.dropped) == (11, 6, 3, {"quarantined": 2})
    assert emitter.ledger().is_settled


def test_it_is_reported_again_after_a_long_good_time(start, delivery):
    """A handler that failed once and then handled a hundred events well is as good as new; its next failure is news."""
    bad = Moody(delivery=delivery, events=["shop.*"])
    emitter = start(bad)
    sell(emitter, [0])
    error, bad.error = bad.error, None
    sell(emitter, range(1, 101))
    bad.error = error
    sell(emitter, [101])
    assert changes(emitter) == ["failed", "failed"]


def test_a_batch_fails_as_a_whole(start):
    """What a batch handler raises counts for every envelope of the batch, and for no other handler."""
    emitter = start(MoodyInBatches(events=["shop.*"], linger_s=1.0))
    for number in range(4):
        emitter.emit(Sold(number=number))
    emitter.flush()
    ledger = emitter.ledger()
    assert (ledger.handler("bad").failed, ledger.handler("bad").delivered) == (4, 0)
    assert ledger.handler("last").failed == 0


def test_a_batch_that_failed_in_part_counts_in_part(start):
    """PartialFailure counts the named envelopes as failed and the rest as delivered."""
    bad = MoodyInBatches(events=["shop.*"], linger_s=1.0)
    bad.odd_only = True
    emitter = start(bad)
    for number in range(5):
        emitter.emit(Sold(number=number))
    emitter.flush()
    row = emitter.ledger().handler("bad")
    assert (row.failed, row.delivered) == (2, 3)
    assert changes(emitter) == ["failed"]


def test_a_failing_flush_and_close_are_reported(start, delivery):
    """``flush`` and ``shutdown`` do not raise because of a handler; the shutdown report names it, the others close."""
    closed = []

    class Careless(Moody):
        def flush(self):
            raise OSError("disk is full")

        def close(self):
            closed.append(self.name)
            raise OSError("disk is gone")

    bad = Careless(delivery=delivery, events=["shop.*"])
    bad.error = None
    emitter = start(bad)
    emitter.emit(Sold(number=1))
    emitter.flush()
    assert changes(emitter) == ["failed"]
    report = ec.shutdown()
    assert report.errors == ("bad: OSError('disk is gone')",)
    assert closed == ["bad"]
    assert emitter.ledger().handler("bad").delivered == 1


def test_a_handler_that_cannot_say_what_it_wants_is_isolated(start, delivery):
    """If ``sink_for`` raises, ``emit`` does not: the event reaches the others, and they are told."""

    class Undecided(Moody):
        def sink_for(self, event_type, severity):
            raise LookupError(event_type.__name__)

    emitter = start(Undecided(delivery=delivery, events=["shop.*"]))
    sell(emitter, [1, 2])
    assert [event.number for event in emitter.handler("last").of(Sold)] == [1, 2]
    assert changes(emitter) == ["failed"]
    assert emitter.ledger().is_settled


def test_a_handler_that_exits_does_not_take_its_worker_along(start):
    """``sys.exit`` in a queued handler is a failure like others: later events are handled."""
    bad = Moody(delivery="queued", events=["shop.*"])
    bad.error = SystemExit(3)
    emitter = start(bad)
    emitter.emit(Sold(number=1))
    emitter.flush(0.5)
    bad.error = None
    sell(emitter, [2])
    row = emitter.ledger().handler("bad")
    assert (row.failed, row.delivered, row.pending) == (1, 1, 0)
    assert changes(emitter) == ["failed"]


def test_an_interrupt_passes_and_is_counted(start):
    """Ctrl-C during an inline handler reaches the caller, as it must; what it cut off counts as failed."""
    bad = Moody(delivery="inline", events=["shop.*"])
    bad.error = KeyboardInterrupt()
    emitter = start(bad)
    with pytest.raises(KeyboardInterrupt):
        emitter.emit(Sold(number=1))
    ledger = emitter.ledger()
    assert ledger.handler("bad").failed == 1
    assert ledger.is_settled
    bad.error = None
    sell(emitter, [2])
    assert [event.number for event in emitter.handler("last").of(Sold)] == [2]


def test_a_first_failure_during_shutdown_does_not_hold_it_up(start):
    """A worker that fails for the first time while shutdown waits for it goes on, and the rest is handled in time."""
    bad = Moody(delivery="queued", events=["shop.*"], linger_s=1.0, batch_size=1)
    emitter = start(bad)
    for number in range(3):
        emitter.emit(Sold(number=number))
    report = ec.shutdown(5.0)
    assert report.is_clean
    row = emitter.ledger().handler("bad")
    assert (row.failed, row.pending) == (3, 0)


def test_a_handler_that_emits_while_handling_cannot_recurse_without_bound(start, delivery):
    """What a handler emits reaches the others; to itself it comes back a few times at most, and is counted."""

    class Echo(Moody):
        def handle(self, envelope):
            self.calls.append(envelope)
            ec.get_emitter().emit(Sold(number=envelope.event.number + 1))

    bad = Echo(delivery=delivery, events=["shop.*"])
    emitter = start(bad)
    sell(emitter, [0])
    row = emitter.ledger().handler("bad")
    assert row.dropped["recursion"] >= 1
    assert len(bad.calls) <= 4
    assert 2 <= len(emitter.handler("last").of(Sold)) <= 5
    assert emitter.ledger().is_settled
