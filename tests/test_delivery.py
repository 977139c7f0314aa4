import threading
import time

import pydantic
import pytest

import eventcore as ec
from eventcore.context import SCOPE
from eventcore.delivery import SLICE_S, Queue
from eventcore.ledger import Ledger
from tests.support.handlers import Clock, Collect, CollectBatches, Held, eventually, workers
from tests.support.numbered import Numbered, Work, numbers, row_of


class Alarm(ec.Event, name="alarm", category="system", severity="error"):
    pass


@pytest.fixture
def held(emitter):
    """Return a function that attaches a handler which is holding its first event; all are released at the end."""
    handlers = []

    def attach(handler_type=Held, **options):
        handler = emitter.add_handler(handler_type(linger_s=0, batch_size=1, **options))
        handlers.append(handler)
        emitter.emit(Numbered(n=0))
        assert handler.entered.wait(10)
        return handler

    yield attach
    for handler in handlers:
        handler.release.set()


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler_type", [Collect, CollectBatches])
def test_a_handler_sees_one_threads_events_in_emit_order(emitter, handler_type):
    """A handler sees one thread's events in emit order."""
    handler = emitter.add_handler(handler_type(batch_size=7))

    def emit(thread):
        for n in range(500):
            emitter.emit(Numbered(n=n, thread=thread))

    threads = [threading.Thread(target=emit, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emitter.flush()
    assert len(handler.got) == 2000
    for thread in range(4):
        assert [e.event.n for e in handler.got if e.event.thread == thread] == list(range(500))


def test_a_replayed_envelope_waits_like_any_other(emitter):
    """What is replayed, from a file or the journal, goes through the queue of a handler, and nothing of it is lost."""
    handler = emitter.add_handler(Collect(batch_size=2))

    class Again(ec.Envelope):
        """Of a class of its own, as those are that were made elsewhere."""

    for n in range(5):
        emitter.replay(Again(Numbered(n=n), ec.Severity.INFO, (), 1, n, emitter.ids, SCOPE.get()))
    assert emitter.flush()
    assert numbers(handler) == list(range(5))
    assert row_of(emitter, handler).dropped == {}


def test_events_and_operations_share_one_order(emitter):
    """Events and the ends of operations go through the same ordered queue."""
    handler = emitter.add_handler(Collect())
    emitter.emit(Numbered(n=1))
    with emitter.operation(Work, n=3):
        emitter.emit(Numbered(n=2))
    emitter.emit(Alarm())
    emitter.emit(Numbered(n=4))
    assert emitter.flush()
    assert handler.names == ["numbered", "numbered", "work", "alarm", "numbered"]


def test_a_worker_gives_way_after_each_slice(emitter):
    """A worker that has much to do lets other threads run every ``SLICE_S``, however many batches that is."""
    envelopes = emitter.add_handler(Collect(delivery="inline"))
    for n in range(13):
        emitter.emit(Numbered(n=n))
    clock, gave_way = Clock(), []

    def take_time(envelope):
        if envelope.event.n == 0:
            assert all_are_queued.wait(30)
        clock.advance(0.4 * SLICE_S)

    all_are_queued = threading.Event()
    handler = emitter.add_handler(Collect(act=take_time, linger_s=0, batch_size=1))
    queue = Queue(Ledger(), now_s=lambda: clock.monotonic / 1e9, give_way=lambda _: gave_way.append(len(handler.got)))
    queue.attach(emitter.attachments[1])
    for envelope in envelopes.got:
        queue.put(envelope)
    all_are_queued.set()
    assert queue.close(10) == 0
    assert gave_way == [3, 6, 9, 12, 13]


def test_batches_are_small(emitter, held):
    """A worker hands over small batches, in order, of at most ``batch_size``."""

    class HeldBatches(Held):
        def handle_batch(self, envelopes):
            batches.append([e.event.n for e in envelopes])
            if envelopes[0].event.n == 0:
                self._hold(envelopes[0])

    batches = []
    handler = emitter.add_handler(HeldBatches(linger_s=0, batch_size=4))
    emitter.emit(Numbered(n=0))
    assert handler.entered.wait(10)
    for n in range(1, 11):
        emitter.emit(Numbered(n=n))
    handler.release.set()
    assert emitter.flush()
    assert batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


# -- overflow ----------------------------------------------------------------------------------------------------------


def test_drop_newest_keeps_what_came_first(emitter, held):
    """``overflow="drop_newest"`` keeps what came first; the rest is dropped as ``full`` and counted."""
    handler = held(queue_size=3, overflow="drop_newest")
    for n in range(1, 7):
        emitter.emit(Numbered(n=n))
    handler.release.set()
    assert emitter.flush()
    assert numbers(handler) == [0, 1, 2, 3]
    row = row_of(emitter, handler)
    assert (row.accepted, row.delivered, dict(row.dropped), row.pending) == (7, 4, {"full": 3}, 0)


def test_drop_oldest_keeps_what_came_last(emitter, held):
    """``overflow="drop_oldest"`` keeps what came last; the order stays, with gaps."""
    handler = held(queue_size=3, overflow="drop_oldest")
    for n in range(1, 7):
        emitter.emit(Numbered(n=n))
    handler.release.set()
    assert emitter.flush()
    assert numbers(handler) == [0, 4, 5, 6]
    row = row_of(emitter, handler)
    assert (row.accepted, row.delivered, dict(row.dropped), row.pending) == (7, 4, {"full": 3}, 0)


def test_a_flush_survives_drop_oldest(emitter, held):
    """Dropping the oldest does not drop a flush that waits among them."""
    handler = held(queue_size=2, overflow="drop_oldest")
    emitter.emit(Numbered(n=1))
    flushed = []
    thread = threading.Thread(target=lambda: flushed.append(emitter.flush(20)))
    thread.start()
    assert eventually(lambda: len(emitter.attachments[0].queue._items) == 2)
    for n in range(2, 8):
        emitter.emit(Numbered(n=n))
    handler.release.set()
    thread.join()
    assert flushed == [True]


def test_block_waits_for_room(emitter, held):
    """``overflow="block"`` waits for room: nothing is lost when the handler goes on in time."""
    handler = held(queue_size=2, overflow="block", block_timeout_s=30)
    done = []

    def emit():
        for n in range(1, 9):
            emitter.emit(Numbered(n=n))
        done.append(True)

    thread = threading.Thread(target=emit)
    thread.start()
    assert eventually(lambda: emitter.attachments[0].queue.depth >= 3)
    assert not done, "the caller is waiting"
    handler.release.set()
    thread.join()
    assert emitter.flush()
    assert numbers(handler) == list(range(9))
    assert not row_of(emitter, handler).dropped


def test_block_gives_up_in_time(emitter, held):
    """A caller waits at most ``block_timeout_s``; then its event is dropped as ``full`` and counted."""
    handler = held(queue_size=1, overflow="block", block_timeout_s=0.02)
    for n in range(1, 4):
        emitter.emit(Numbered(n=n))
    handler.release.set()
    assert emitter.flush()
    assert numbers(handler) == [0, 1]
    assert dict(row_of(emitter, handler).dropped) == {"full": 2}


def test_a_removed_handler_lets_blocked_callers_go(emitter, held):
    """A caller that waits for room is let go when the handler is removed, and its event counted."""
    handler = held(queue_size=1, overflow="block", block_timeout_s=30)
    emitter.emit(Numbered(n=1))
    thread = threading.Thread(target=emitter.emit, args=(Numbered(n=2),))
    thread.start()
    abandoned = emitter.remove_handler(handler, timeout_s=0.05)
    thread.join(20)
    assert not thread.is_alive()
    assert abandoned == 2, "the one it held and the one that waited"
    row = row_of(emitter, handler)
    assert (row.accepted, row.dropped.total(), row.pending) == (3, 3, 0)


def test_a_full_handler_does_not_slow_the_others(emitter, held):
    """A handler whose queue is full hurts only itself."""
    other = emitter.add_handler(Collect(linger_s=0), name="other")
    handler = held(queue_size=1)
    for n in range(1, 100):
        emitter.emit(Numbered(n=n))
    assert eventually(lambda: len(other.got) == 100)
    assert not handler.got


# -- waking ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lingering(emitter):
    """Return a handler whose worker, once woken, would linger for an hour."""
    handler = emitter.add_handler(Collect())
    emitter.attachments[0].queue._linger_s = 3600
    return handler


def test_an_error_wakes_a_lingering_worker_at_once(emitter, lingering):
    """ERROR wakes at once a worker that lingers for more."""
    emitter.emit(Numbered(n=1))
    assert eventually(workers)
    emitter.emit(Alarm())
    assert eventually(lambda: lingering.names == ["numbered", "alarm"])


def test_an_error_wakes_an_idle_worker_at_once(emitter, lingering):
    """ERROR is handled at once by a worker that was idle: it does not linger."""
    emitter.emit(Alarm())
    assert eventually(lambda: lingering.names == ["alarm"])
    queue = emitter.attachments[0].queue
    assert eventually(lambda: queue._idle)
    for _ in range(20):
        emitter.emit(Alarm())
        assert eventually(lambda: queue._idle and queue.depth == 0)
    assert lingering.names == ["alarm"] * 21


def test_a_flush_does_not_linger(emitter, lingering):
    """A flush is passed on at once, to an idle worker and to a lingering one."""
    queue = emitter.attachments[0].queue
    for n in range(5):
        emitter.emit(Numbered(n=n))
        assert emitter.flush(5)
        assert eventually(lambda: queue._idle)
        assert emitter.flush(5), "an idle worker"
    assert numbers(lingering) == list(range(5))


def test_shutdown_does_not_linger(emitter, lingering):
    """Shutdown hands over at once what waits for a lingering worker."""
    emitter.emit(Numbered(n=1))
    assert emitter.shutdown(20).is_clean
    assert numbers(lingering) == [1]


# -- flush -------------------------------------------------------------------------------------------------------------


def test_flush_waits_for_all_that_was_accepted_before(emitter):
    """``flush`` waits until all that was accepted before is handed over, then lets each handler flush itself."""
    handlers = [emitter.add_handler(Collect(delivery=delivery)) for delivery in ("queued", "queued", "inline")]
    for n in range(300):
        emitter.emit(Numbered(n=n))
    assert emitter.flush()
    for handler in handlers:
        assert numbers(handler) == list(range(300))
        assert handler.flushed == 1
    assert emitter.ledger().is_settled


@pytest.mark.parametrize("delivery", ["queued", "durable"])
def test_flush_waits_for_the_batch_that_it_stands_behind(emitter, delivery):
    """A flush returns after the handler has handled what came before it, also where both were taken together."""
    handler = emitter.add_handler(Collect(act=lambda _: time.sleep(0.1), delivery=delivery, linger_s=0.2))
    for n in range(2):
        emitter.emit(Numbered(n=n))
    assert emitter.flush(20)
    assert numbers(handler) == [0, 1]
    assert row_of(emitter, handler).delivered == 2


@pytest.mark.parametrize("delivery", ["queued", "durable"])
def test_flush_waits_for_what_is_emitted_meanwhile(emitter, delivery):
    """A flush covers what handlers, and the bus about them, emit while it waits, from one to the next."""
    gate = threading.Event()

    def fail(_envelope):
        gate.wait(10)
        raise OSError("told to fail")

    def pass_on(event):
        def act(_envelope):
            time.sleep(0.01)
            emitter.emit(event)

        return act

    def add(events, act):
        return emitter.add_handler(Collect(act=act, events=events, delivery=delivery, linger_s=0))

    last = add("work", None)
    add("alarm", lambda _: emitter.operation(Work, n=1).__enter__().end())
    add("eventcore.handler", pass_on(Alarm()))
    emitter.add_handler(Collect(act=fail, events="numbered", linger_s=0))
    emitter.emit(Numbered(n=0))
    gate.set()
    assert emitter.flush(10)
    assert emitter.ledger().is_settled
    assert last.names == ["work"]


def test_flush_says_when_it_took_too_long(emitter, held):
    """A flush that takes longer than its timeout returns False, and does no harm."""
    handler = held()
    assert emitter.flush(0.02) is False
    handler.release.set()
    assert emitter.flush() is True


def test_a_flush_that_fails_is_reported(emitter):
    """A handler whose ``flush`` raises does not make ``flush`` raise, and is reported through the others."""

    class Leaky(Collect):
        def flush(self):
            raise OSError("disk full")

    other = emitter.add_handler(Collect(delivery="inline"))
    emitter.add_handler(Leaky(linger_s=0))
    emitter.add_handler(Leaky(delivery="inline"))
    emitter.emit(Numbered())
    emitter.flush()
    emitter.flush()
    reports = [e.event for e in other.got if e.name == "eventcore.handler"]
    assert sorted(r.handler for r in reports if r.what == "failed") == ["collect_2", "collect_3"]
    assert all("disk full" in r.reason for r in reports)


def test_a_handler_that_flushes_the_emitter_does_not_wait_for_itself(emitter):
    """A handler that flushes the emitter in its own worker is told False instead of waiting for itself."""
    answers = []
    emitter.add_handler(Collect(act=lambda envelope: answers.append(emitter.flush(30)), linger_s=0))
    emitter.emit(Numbered())
    assert eventually(lambda: answers == [False])


def test_flushing_what_is_idle_or_shut_down_returns_at_once(emitter):
    """Flushing an emitter that has nothing to do, or was shut down, is done at once."""
    assert ec.Emitter().flush(0)
    emitter.add_handler(Collect())
    assert emitter.flush(20)
    emitter.emit(Numbered())
    emitter.shutdown()
    assert emitter.flush(20)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_batch_that_fails_in_part_is_counted_in_part(emitter):
    """``PartialFailure`` says which of a batch failed; the others count as delivered."""

    def fail_some(envelopes):
        raise ec.PartialFailure([i for i, e in enumerate(envelopes) if e.event.n % 3 == 0], OSError("refused"))

    other = emitter.add_handler(Collect(delivery="inline"), name="other")
    handler = emitter.add_handler(CollectBatches(act=fail_some, batch_size=10), name="mine")
    for n in range(10):
        emitter.emit(Numbered(n=n))
    assert emitter.flush()
    assert [len(batch) for batch in handler.batches][:1] == [10]
    row = row_of(emitter, handler)
    assert (row.accepted, row.failed, row.delivered, row.pending) == (10, 4, 6, 0)
    reports = [e.event.reason for e in other.got if e.name == "eventcore.handler"]
    assert reports == ["OSError: refused"]


def test_a_batch_that_fails_is_counted_whole(emitter):
    """An exception from ``handle_batch`` fails the whole batch."""

    def fail(envelopes):
        raise OSError("refused")

    handler = emitter.add_handler(CollectBatches(act=fail, batch_size=10))
    for n in range(4):
        emitter.emit(Numbered(n=n))
    assert emitter.flush()
    row = row_of(emitter, handler)
    assert row.failed == sum(len(batch) for batch in handler.batches) == 4


def test_one_bad_event_does_not_fail_its_batch(emitter):
    """With ``handle`` each envelope is isolated: one that raises does not take its neighbours with it."""

    def fail_third(envelope):
        if envelope.event.n == 3:
            raise ValueError("three")

    handler = emitter.add_handler(Collect(act=fail_third))
    for n in range(6):
        emitter.emit(Numbered(n=n))
    assert emitter.flush()
    assert numbers(handler) == [0, 1, 2, 4, 5]
    row = row_of(emitter, handler)
    assert (row.failed, row.delivered) == (1, 5)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("handler_type", [Collect, CollectBatches])
def test_no_exception_ends_a_worker(emitter, error, handler_type):
    """Whatever a handler raises in its worker, cancellations and exits included, is counted, and the worker goes on."""
    first = [True]

    def act(_):
        if first:
            first.clear()
            raise error

    handler = emitter.add_handler(handler_type(act=act, linger_s=0))
    emitter.emit(Numbered(n=1))
    assert emitter.flush()
    emitter.emit(Numbered(n=2))
    assert emitter.flush()
    assert numbers(handler) == [2]
    row = row_of(emitter, handler)
    assert (row.failed, row.delivered, row.pending) == (1, 1, 0)


def test_a_failing_queued_handler_is_quarantined(emitter):
    """Repeated failure quarantines a queued handler: it is left alone, and what it missed is counted."""

    def fail(envelope):
        raise OSError("refused")

    handler = emitter.add_handler(Collect(act=fail, linger_s=0, batch_size=1))
    for n in range(30):
        emitter.emit(Numbered(n=n))
        assert emitter.flush()
    row = row_of(emitter, handler)
    assert handler.raised == row.failed < 30
    assert row.dropped["quarantined"] == 30 - handler.raised
    assert row.pending == 0


# -- handlers that emit ------------------------------------------------------------------------------------------------


def test_a_worker_may_emit_while_it_handles(emitter):
    """A handler may emit while it handles: the event reaches the others, in order, and does not come back to it."""
    other = emitter.add_handler(Collect(linger_s=0), name="other")

    def answer(envelope):
        emitter.emit(Alarm())

    handler = emitter.add_handler(Collect(act=answer, linger_s=0), name="mine")
    for n in range(50):
        emitter.emit(Numbered(n=n))
    assert emitter.flush()
    assert emitter.flush()
    assert other.names.count("alarm") == 50
    assert handler.names == ["numbered"] * 50
    assert dict(row_of(emitter, handler, "alarm").dropped) == {"recursion": 50}


class Carrying(ec.Event, name="carrying", category="execution"):
    """An event that carries something."""

    thing: object


class Parting:
    """Emits when it is released."""

    def __init__(self, emitter):
        self.emitter = emitter

    def __del__(self):
        self.emitter.emit(Alarm())


@pytest.mark.parametrize("kind", ["handle", "handle_batch"])
def test_what_a_finalizer_emits_beside_the_handling_is_delivered(emitter, kind):
    """A payload that is released by the worker may emit: that is not the handler's doing, so the handler gets it."""
    seen = []

    class Forgetful(ec.Handler):
        """Keeps names, and no envelope."""

    if kind == "handle":
        Forgetful.handle = lambda self, envelope: seen.append(envelope.name)
    else:
        Forgetful.handle_batch = lambda self, envelopes: seen.extend([e.name for e in envelopes])
    handler = emitter.add_handler(Forgetful(linger_s=0))
    for _ in range(20):
        emitter.emit(Carrying(thing=Parting(emitter)))
    assert eventually(lambda: seen.count("alarm") == 20)
    assert emitter.flush()
    assert seen.count("carrying") == 20
    row = row_of(emitter, handler, "alarm")
    assert (row.delivered, row.dropped.total(), row.pending) == (20, 0, 0)


def test_a_blocking_queue_does_not_wait_for_itself(emitter, held):
    """A worker that emits into its own full queue is not held up by it."""
    handler = emitter.add_handler(
        Collect(
            act=lambda envelope: emitter.emit(Alarm()), queue_size=1, overflow="block", block_timeout_s=30, linger_s=0
        )
    )
    emitter.emit(Numbered())
    assert eventually(lambda: numbers(handler) == [0])


class Telling(ec.Operation, name="telling", category="execution"):
    """An operation whose validation, which is the worker's, emits."""

    n: int = 0

    @pydantic.field_validator("n")
    @classmethod
    def tell(cls, n):
        for _ in range(n):
            ec.get_emitter().emit(Numbered(n=n))
        return n


def test_a_validator_that_emits_into_the_full_queue_of_its_worker_does_not_wait(emitter):
    """Workers never block on their own queue: what a validator of a type emits there finds no room, and is counted."""
    ec.set_emitter(emitter)
    handler = emitter.add_handler(Collect(queue_size=1, overflow="block", block_timeout_s=50, linger_s=0))
    with emitter.operation(Telling, n=5):
        pass
    assert emitter.flush(20)
    assert handler.names == ["telling", "numbered"]
    assert row_of(emitter, handler).dropped == {"full": 4}
