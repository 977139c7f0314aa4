"""What a handler may refuse before the queue: envelope by envelope, and operations of traces that are not recorded."""

from __future__ import annotations

import pytest

import eventcore as ec


class Told(ec.Event, name="test.told", category=ec.Category.SYSTEM):
    n: int


class Work(ec.Operation, name="test.work", category=ec.Category.SYSTEM):
    n: int = 0


class Even(ec.Handler):
    """Takes events with even numbers; its draw fails for 13."""

    kind = "even"

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def draw_for(self, event_type, severity):
        return self._is_even if event_type is Told else None

    @staticmethod
    def _is_even(envelope):
        if envelope.payload["n"] == 13:
            raise ZeroDivisionError("13")
        return envelope.payload["n"] % 2 == 0

    def handle(self, envelope):
        self.seen.append(envelope.payload["n"])


class Recorded(Even):
    """Takes no operations of traces that are not recorded."""

    takes_unsampled = False


@pytest.fixture
def emitter():
    """Return an emitter."""
    with ec.Emitter() as made:
        yield made


def row(emitter, handler, event):
    """Return one handler's row of one event type."""
    assert emitter.flush()
    return next(row for row in emitter.ledger().rows if (row.handler, row.event) == (handler, event))


@pytest.mark.parametrize("delivery", ["queued", "inline"])
def test_what_a_draw_refuses_is_counted_as_sampled(emitter, delivery):
    """A handler's draw is asked before its sampling; the ledger balances, and other handlers get everything."""
    even = emitter.add_handler(Even(delivery=delivery), name="even")
    half = emitter.add_handler(Even(delivery=delivery, max_per_second=3), name="few")
    every = emitter.add_handler(Seen(), name="every")
    for n in range(10):
        emitter.emit(Told(n=n))
    found, few = row(emitter, "even", "test.told"), row(emitter, "few", "test.told")
    assert even.seen == [0, 2, 4, 6, 8]
    assert (found.emitted, found.sampled, found.accepted, found.delivered) == (10, 5, 5, 5)
    assert half.seen == [0, 2, 4]  # refused envelopes cost no token
    assert (few.emitted, few.sampled, few.delivered) == (10, 7, 3)
    assert every.seen == list(range(10))


class Seen(ec.Handler):
    """Takes everything."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def sink_for(self, event_type, severity):
        return self.handle if event_type is Told else None

    def handle(self, envelope):
        self.seen.append(envelope.payload["n"])


def test_a_draw_that_fails_harms_nobody(emitter):
    """An exception in a draw does not reach the caller; the envelope counts as failed, and the account balances."""
    even = emitter.add_handler(Even(), name="even")
    every = emitter.add_handler(Seen(), name="every")
    for n in (12, 13, 14):
        emitter.emit(Told(n=n))
    found = row(emitter, "even", "test.told")
    assert (even.seen, every.seen) == ([12, 14], [12, 13, 14])
    assert (found.emitted, found.accepted, found.delivered, found.failed, found.pending) == (3, 3, 2, 1, 0)


def test_a_handler_that_cannot_say_what_it_draws_takes_everything(emitter):
    """Where draw_for itself fails, nothing is left out, and the failure is isolated."""

    class Broken(Seen):
        def draw_for(self, event_type, severity):
            raise ZeroDivisionError

    broken = emitter.add_handler(Broken(), name="broken")
    emitter.emit(Told(n=1))
    assert row(emitter, "broken", "test.told").delivered == 1
    assert broken.seen == [1]


@pytest.mark.parametrize("bound", [0, 1 << 64])
def test_unsampled_operations_reach_those_who_take_them(emitter, bound):
    """Operations of traces that are not recorded pass by handlers that do not take them, and are counted there."""
    recorded = emitter.add_handler(Recorded(), name="recorded")
    every = emitter.add_handler(Even(), name="every")
    emitter.trace_bound = bound
    for n in range(4):
        with emitter.operation(Work, n=n) as operation:
            if n == 3:
                operation.fail(ValueError("no"))
    emitter.emit(Told(n=8))
    found = row(emitter, "recorded", "test.work")
    assert every.seen == [0, 1, 2, 3, 8]
    assert recorded.seen == ([0, 1, 2, 3, 8] if bound else [8])
    assert (found.emitted, found.sampled, found.delivered) == ((4, 0, 4) if bound else (4, 4, 0))


def test_an_operation_that_nobody_takes_is_counted(emitter):
    """Where the only handler leaves an operation out, the ledger still knows of it."""
    emitter.add_handler(Recorded(), name="recorded")
    with emitter.operation(Work):
        pass
    found = row(emitter, "recorded", "test.work")
    assert (found.emitted, found.sampled, found.accepted) == (1, 1, 0)
    assert emitter.ledger().is_settled
