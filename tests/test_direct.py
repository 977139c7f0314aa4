import threading

import pytest

import eventcore as ec
from tests.support.handlers import Collect


class Counted(ec.Event, name="direct.counted", category=ec.Category.DATA):
    number: int


class Direct(Collect):
    """Takes events directly where it may; ``taken`` has them, with the thread that brought each."""

    kind = "direct"

    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        self.taken = []
        self.error = None

    def direct_sink_for(self, event_type, severity):
        return self.take

    def take(self, event):
        if self.error is not None:
            raise self.error
        self.taken.append((event, threading.current_thread()))


@pytest.fixture
def emitter():
    """An emitter that is shut down at the end."""
    with ec.Emitter() as emitter:
        yield emitter


def row_of(emitter, name="direct"):
    """Return the account of one handler, which must balance."""
    row = emitter.ledger().handler(name)
    assert row.pending == 0
    return row


def test_an_event_for_one_handler_alone_is_taken_in_the_caller(emitter):
    """Where no other handler wants an event, a direct sink gets it at once, and it counts as delivered."""
    handler = emitter.add_handler(Direct())
    event = Counted(number=1)
    emitter.emit(event)
    assert handler.taken == [(event, threading.current_thread())]
    assert handler.got == []
    assert (row_of(emitter).accepted, row_of(emitter).delivered) == (1, 1)


def test_an_event_that_others_want_goes_through_the_queue(emitter):
    """With another handler the envelope is made anyway, and the queue takes it; when that one leaves, no longer."""
    handler = emitter.add_handler(Direct())
    other = emitter.add_handler(Collect())
    emitter.emit(Counted(number=1))
    assert emitter.flush()
    assert (len(handler.got), len(other.got), handler.taken) == (1, 1, [])
    emitter.remove_handler(other)
    emitter.emit(Counted(number=2))
    assert [event.number for event, _ in handler.taken] == [2]
    assert row_of(emitter).delivered == 2


@pytest.mark.parametrize("options", [{"sampling": 0.5}, {"max_per_second": 5}, {"min_severity": "error"}])
def test_filters_and_samples_are_not_passed_by(emitter, options):
    """A handler that takes a share, or not this event at all, has no direct way around that."""
    handler = emitter.add_handler(Direct(**options))
    for number in range(20):
        emitter.emit(Counted(number=number))
    assert emitter.flush()
    assert handler.taken == []
    assert row_of(emitter).delivered < 20


def test_a_direct_sink_that_raises_harms_nobody(emitter):
    """Its failure is counted, the caller goes on, and while the handler is watched it gets events by its queue."""
    handler = emitter.add_handler(Direct())
    handler.error = OSError("broken")
    emitter.emit(Counted(number=1))
    emitter.emit(Counted(number=2))
    assert emitter.flush()
    assert [envelope.event.number for envelope in handler.got] == [2]
    assert (row_of(emitter).failed, row_of(emitter).delivered) == (1, 1)


def test_an_interrupted_direct_sink_is_counted(emitter):
    """A KeyboardInterrupt passes, and what it cut off counts as failed."""
    handler = emitter.add_handler(Direct())
    handler.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        emitter.emit(Counted(number=1))
    assert (row_of(emitter).failed, row_of(emitter).delivered) == (1, 0)


def test_what_a_handler_emits_while_it_handles_does_not_come_back_directly(emitter):
    """A worker that emits a type of its handler's does not get it, by this way either; it is counted."""

    class Other(ec.Event, name="direct.other", category=ec.Category.DATA):
        pass

    class Echo(Direct):
        def direct_sink_for(self, event_type, severity):
            return self.take if event_type is Counted else None

    handler = emitter.add_handler(Echo(act=lambda envelope: emitter.emit(Counted(number=3))))
    emitter.emit(Other())
    assert emitter.flush()
    assert handler.taken == []
    assert row_of(emitter).dropped == {"recursion": 1}


def test_a_closed_handler_takes_nothing_directly(emitter):
    """After shutdown what is emitted is counted as dropped, not taken."""
    handler = emitter.add_handler(Direct())
    emitter.shutdown()
    emitter.emit(Counted(number=1))
    assert handler.taken == []
    assert row_of(emitter).dropped == {"shutdown": 1}


def test_a_handler_that_cannot_say_uses_its_queue(emitter):
    """An error while a direct sink is asked for is reported, and costs no event."""

    class Unsure(Direct):
        def direct_sink_for(self, event_type, severity):
            raise LookupError("what?")

    handler = emitter.add_handler(Unsure())
    emitter.emit(Counted(number=1))
    assert emitter.flush()
    assert [envelope.event.number for envelope in handler.got if envelope.name == "direct.counted"] == [1]
