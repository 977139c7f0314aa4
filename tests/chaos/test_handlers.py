import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import eventcore as ec
from tests.chaos.account import Told, balance, in_order, row_of
from tests.support.handlers import Collect, CollectBatches, Held

THREADS = 4
EACH = 500


@pytest.fixture
def emitter():
    """Return an emitter of the test's own."""
    with ec.Emitter() as emitter:
        yield emitter


def storm(emitter, threads=THREADS, each=EACH):
    """Let threads emit at once and return how many events that were; fails if one of them does not come back."""

    def emit(thread):
        for n in range(1, each + 1):
            emitter.emit(Told(n=n, thread=thread))

    runners = [threading.Thread(target=emit, args=(thread,), daemon=True) for thread in range(threads)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(40)
        assert not runner.is_alive(), "an emitter is held up by a handler"
    return threads * each


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_handler_that_raises_costs_nobody_else_an_event(emitter, share, delivery):
    """A bad handler hurts only itself: under a storm of failures its neighbours get everything, and all is counted."""
    draw = random.Random(5)

    def act(envelope):
        if draw.random() < share:
            raise OSError("down")

    before = emitter.add_handler(Collect(delivery=delivery), name="before")
    bad = emitter.add_handler(Collect(act=act, delivery=delivery, linger_s=0, batch_size=7), name="bad")
    after = emitter.add_handler(Collect(), name="after")
    emitted = storm(emitter)
    assert emitter.flush(20)
    ledger = balance(emitter, emitted)
    for good in (before, after):
        assert row_of(ledger, good.name).delivered == emitted
    failed = sum(row.failed for row in ledger.rows if row.handler == "bad")
    assert failed == bad.raised > 0
    assert set(row_of(ledger, "bad").dropped) <= {"quarantined"}
    assert all(in_order(handler) for handler in (before, after) if delivery == "queued")


def test_a_batch_that_raises_fails_as_a_whole(emitter):
    """Nothing is lost silently when whole batches fail: what was not delivered is failed or quarantined."""
    draw = random.Random(6)

    def act(envelopes):
        if draw.random() < 0.3:
            raise OSError("down")

    handler = emitter.add_handler(CollectBatches(act=act, linger_s=0, batch_size=11))
    emitted = storm(emitter)
    assert emitter.flush(20)
    row = row_of(balance(emitter, emitted), handler.name)
    assert row.delivered + row.failed + row.dropped["quarantined"] == emitted


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_all_emitters_finish_while_a_handler_is_still_held(emitter, overflow):
    """``emit`` neither raises nor blocks because of a handler that hangs: every emitter ends while it is held."""
    held = emitter.add_handler(
        Held(linger_s=0, queue_size=100, batch_size=10, overflow=overflow, block_timeout_s=0.0005), name="held"
    )
    free = emitter.add_handler(Collect(linger_s=0), name="free")
    emitter.emit(Told(n=1, thread=-1))
    assert held.entered.wait(10)
    emitted = 1 + storm(emitter, each=100)
    assert not held.release.is_set(), "the handler must be held until here"
    assert held.got == []
    row = row_of(emitter.ledger(), "held")
    waiting = emitter.attachments[0].queue.depth
    assert row.pending == waiting <= 100 + 10 + THREADS, "capacity is exceeded by the emitting threads at most"
    assert row.dropped["full"] == emitted - waiting
    held.release.set()
    assert emitter.flush(20)
    row = row_of(balance(emitter, emitted), "held")
    assert row.delivered == waiting
    assert row_of(emitter.ledger(), "free").delivered == emitted
    assert in_order(free)
    assert in_order(held) or overflow == "block", "who waits for room may be overtaken by other threads only"


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_a_slow_handler_is_slow_for_itself_alone(emitter, overflow):
    """A bad handler hurts only itself: a slow one overflows by its own policy, and each drop is counted as full."""
    slow = emitter.add_handler(
        Collect(
            act=lambda _: time.sleep(0.0003),
            linger_s=0,
            queue_size=50,
            batch_size=5,
            overflow=overflow,
            block_timeout_s=10,
        ),
        name="slow",
    )
    fast = emitter.add_handler(Collect(), name="fast")
    emitted = storm(emitter)
    assert emitter.flush(20)
    ledger = balance(emitter, emitted)
    row = row_of(ledger, "slow")
    assert row.delivered + row.dropped["full"] == emitted
    assert (row.dropped["full"] == 0) == (overflow == "block"), "with block and time enough nothing is dropped"
    assert row_of(ledger, "fast").delivered == emitted
    assert in_order(slow)
    assert in_order(fast)


def test_a_hanging_handler_is_given_up_and_counted(emitter):
    """A handler that hangs cannot hang ``shutdown``; what it held is abandoned, counted once, and not again later."""
    held = emitter.add_handler(Held(linger_s=0, batch_size=3), name="held")
    free = emitter.add_handler(Collect(), name="free")
    emitted = storm(emitter, each=50)
    assert held.entered.wait(10)
    report = emitter.shutdown(0.3)
    assert report.abandoned_envelopes == {"held": emitted, "free": 0}
    before = row_of(emitter.ledger(), "held")
    assert (before.dropped["shutdown"], before.pending) == (emitted, 0)
    worker = emitter.attachments[0].queue._worker
    held.release.set()
    worker.join(10)
    assert not worker.is_alive()
    after = row_of(emitter.ledger(), "held")
    assert (after.delivered, after.failed, after.dropped) == (0, 0, before.dropped), "a late end changes no count"
    assert len(free.got) == emitted


def test_handlers_come_and_go_in_a_storm(emitter):
    """Nothing is lost silently while handlers are added and removed: each one's account ends at what it has got."""
    stays = emitter.add_handler(Collect(), name="stays")
    passing = []
    stop = threading.Event()

    def change():
        while not stop.is_set():
            handler = Collect(linger_s=0, delivery=("inline", "queued")[len(passing) % 2])
            passing.append(emitter.add_handler(handler, name=f"passing{len(passing)}"))
            stop.wait(0.002)
            emitter.remove_handler(handler)

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        emitted = storm(emitter)
        stop.set()
        changing.result(20)
    assert emitter.flush(20)
    ledger = balance(emitter, emitted)
    assert row_of(ledger, stays.name).delivered == emitted
    assert passing
    for handler in passing:
        row = ledger.handler(handler.name)
        assert row.delivered == len(handler.got)
        assert set(row.dropped) <= {"shutdown"}


@pytest.mark.slow
def test_eight_threads_with_100_000_events_each():
    """Eight threads with 100,000 events each: accepted = delivered + dropped, to the last of 800,000 events."""
    total = 8 * 100_000
    event = Told()

    class Count(ec.Handler):
        def __init__(self, **options):
            super().__init__(**options)
            self.seen = 0

        def handle_batch(self, envelopes):
            self.seen += len(envelopes)

    with ec.Emitter() as emitter:
        whole = emitter.add_handler(Count(queue_size=total), name="whole")
        small = emitter.add_handler(Count(queue_size=1_000), name="small")

        def emit():
            for _ in range(100_000):
                emitter.emit(event)

        threads = [threading.Thread(target=emit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert emitter.flush(50)
        ledger = emitter.ledger()
        for handler in (whole, small):
            row = row_of(ledger, handler.name)
            assert (row.emitted, row.accepted, row.pending) == (total, total, 0)
            assert row.delivered == handler.seen
            assert row.delivered + row.dropped["full"] == total
        assert whole.seen == total
