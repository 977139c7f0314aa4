import gc
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eventcore as ec
from eventcore.ledger import DROP_REASONS
from tests.support.handlers import Collect, CollectBatches, CollectStarts, Held
from tests.support.numbered import Numbered, Work


class Warned(ec.Event, name="warned", category="system", severity="warning"):
    n: int = 0


MINE = ("numbered", "warned", "work")


def fails_sometimes(share, seed=1):
    """Return an act that fails for a share of the envelopes, and only for the test's own events."""
    draw = random.Random(seed)

    def act(envelope):
        if envelope.name in MINE and draw.random() < share:
            raise ValueError("sometimes")

    return act


def check(ledger):
    """Check both equations on every row, and that nothing is pending."""
    for row in ledger.rows:
        assert row.emitted == row.accepted + row.filtered + row.sampled, row
        assert row.accepted == row.delivered + row.failed + row.dropped.total() + row.pending, row
        assert row.pending == 0, row
        assert set(row.dropped) <= set(DROP_REASONS), row
    operations = ledger.operations
    assert operations.get("started", 0) == (
        operations.get("ended", 0) + operations.get("abandoned", 0) + ledger.open_operations
    )
    assert ledger.is_settled


def rows(ledger, handler):
    """Return one handler's rows by event, of ends of the test's own events."""
    return {row.event: row for row in ledger.rows if row.handler == handler and row.event in MINE}


def test_the_equations_hold_for_mixed_handlers(emitter):
    """Emitted = accepted + filtered + sampled out; accepted = delivered + pending + dropped + failed: exact at rest."""
    all_, warned = (emitter.add_handler(Collect(delivery=d), name=d) for d in ("inline", "queued"))
    emitter.add_handler(Collect(delivery="inline", min_severity="warning"), name="filters")
    sampling = emitter.add_handler(Collect(sampling=0.5), name="sampling")
    failing = emitter.add_handler(Collect(act=fails_sometimes(0.2)), name="failing")
    failing_inline = emitter.add_handler(Collect(act=fails_sometimes(0.2), delivery="inline"), name="failing_inline")
    batches = emitter.add_handler(CollectBatches(batch_size=3), name="batches")
    for n in range(300):
        emitter.emit(Numbered(n=n))
        if n % 3 == 0:
            emitter.emit(Warned(n=n))
        if n % 5 == 0:
            with emitter.operation(Work, n=n):
                pass
    assert emitter.flush()
    ledger = emitter.ledger()
    check(ledger)
    emitted = {"numbered": 300, "warned": 100, "work": 60}
    for handler in (all_, warned, batches):
        got = Counter(handler.names)
        for event, row in rows(ledger, handler.name).items():
            assert (row.emitted, row.delivered, got[event]) == (emitted[event],) * 3
    assert {event: row.filtered for event, row in rows(ledger, "filters").items()} == {
        "numbered": 300,
        "warned": 0,
        "work": 60,
    }
    for handler in (failing, failing_inline):
        mine = rows(ledger, handler.name).values()
        assert sum(row.failed for row in mine) == handler.raised
        assert sum(row.delivered for row in mine) == sum(name in MINE for name in handler.names)
    got = Counter(sampling.names)
    for event, row in rows(ledger, "sampling").items():
        assert row.delivered == row.accepted == got[event]
        assert row.sampled == emitted[event] - got[event]


def test_what_nobody_wants_costs_no_count(emitter):
    """What no handler wants makes no envelope, and so no entry in the account."""
    emitter.add_handler(Collect(events=("other",)))
    emitter.emit(Numbered())
    assert emitter.ledger().emitted == 0
    assert emitter.ledger().rows == ()


def test_eight_threads_are_counted_exactly(emitter):
    """Counts of eight threads at once are exact."""
    inline = emitter.add_handler(Collect(delivery="inline"), name="inline")
    queued = emitter.add_handler(Collect(), name="queued")
    failing = emitter.add_handler(Collect(act=fails_sometimes(0.3), delivery="inline"), name="failing")

    def emit():
        for n in range(300):
            emitter.emit(Numbered(n=n))
            with emitter.operation(Work, n=n):
                pass

    threads = [threading.Thread(target=emit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emitter.flush()
    ledger = emitter.ledger()
    check(ledger)
    for name in ("inline", "queued", "failing"):
        assert {event: row.emitted for event, row in rows(ledger, name).items()} == {"numbered": 2400, "work": 2400}
    for handler in (inline, queued, failing):
        delivered = sum(row.delivered for row in rows(ledger, handler.name).values())
        assert delivered == sum(name in MINE for name in handler.names)
    assert sum(row.failed for row in rows(ledger, "failing").values()) == failing.raised
    assert ledger.operations == {"started": 2400, "ended": 2400}


def test_dead_threads_are_folded(emitter):
    """Counters of dead threads are folded, not leaked: their numbers stay, their dictionaries do not."""
    emitter.add_handler(Collect(delivery="inline"))
    for _ in range(50):
        thread = threading.Thread(target=emitter.emit, args=(Numbered(),))
        thread.start()
        thread.join()
    assert emitter.ledger().handler("collect").delivered == 50
    assert len(emitter._ledger._state[0]) <= 1
    gc.collect()
    assert emitter.ledger().handler("collect").delivered == 50


def test_the_account_is_monotone_and_bounded_in_motion(emitter):
    """In motion no total ever goes down, and settled <= accepted <= emitted at every moment."""
    emitter.add_handler(Collect(delivery="inline"), name="inline")
    emitter.add_handler(Collect(linger_s=0, queue_size=50), name="queued")
    emitter.add_handler(Collect(sampling=0.5, linger_s=0), name="sampling")
    stop = threading.Event()

    def emit():
        while not stop.is_set():
            for n in range(20):
                emitter.emit(Numbered(n=n))
            stop.wait(0.0005)

    threads = [threading.Thread(target=emit) for _ in range(3)]
    for thread in threads:
        thread.start()
    before = Counter()
    try:
        while before["inline", "numbered", "emitted"] < 3000:
            ledger = emitter.ledger()
            now = Counter()
            for row in ledger.rows:
                assert 0 <= row.settled <= row.accepted <= row.emitted, row
                for what in ("emitted", "accepted", "delivered", "failed", "filtered", "sampled"):
                    now[row.handler, row.event, what] += getattr(row, what)
                for reason, number in row.dropped.items():
                    now[row.handler, row.event, reason] += number
            assert all(now[key] >= number for key, number in before.items())
            before = now
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert emitter.flush()
    check(emitter.ledger())


def test_starts_have_rows_of_their_own(emitter):
    """Starts of operations are counted apart from their ends, and only for those who asked."""
    emitter.add_handler(CollectStarts(delivery="inline"), name="starts")
    emitter.add_handler(Collect(delivery="inline"), name="ends")
    for _ in range(3):
        with emitter.operation(Work):
            pass
    counts = {(row.handler, row.phase): (row.emitted, row.delivered) for row in emitter.ledger().rows}
    assert counts == {("starts", "start"): (3, 3), ("starts", "end"): (3, 3), ("ends", "end"): (3, 3)}


def test_pending_is_what_waits(emitter):
    """``pending`` is what was accepted and is not settled yet."""
    handler = emitter.add_handler(Held(linger_s=0))
    for n in range(5):
        emitter.emit(Numbered(n=n))
    assert handler.entered.wait(10)
    ledger = emitter.ledger()
    assert ledger.handler("held").pending == 5
    assert not ledger.is_settled
    handler.release.set()
    assert emitter.flush()
    assert emitter.ledger().handler("held").pending == 0


def test_every_drop_has_a_reason_and_a_count(emitter):
    """Nothing is lost silently: every drop has a reason and a count, and the sum of them all is at hand."""
    handler = emitter.add_handler(Held(linger_s=0, queue_size=1, batch_size=1))
    emitter.emit(Numbered())
    assert handler.entered.wait(10)
    for _ in range(3):
        emitter.emit(Numbered())
    emitter.shutdown(0.05)
    emitter.emit(Numbered())
    ledger = emitter.ledger()
    assert ledger.handler("held").dropped == {"full": 2, "shutdown": 3}
    assert ledger.dropped == 5
    handler.release.set()


def test_a_removed_handlers_account_stays(emitter):
    """What a removed handler did stays in the account, and a later one of the same name goes on with it."""
    for _ in range(2):
        handler = emitter.add_handler(Collect(linger_s=0), name="mine")
        emitter.emit(Numbered())
        emitter.remove_handler(handler)
    row = emitter.ledger().handler("mine")
    assert (row.accepted, row.delivered) == (2, 2)


def test_a_ledger_prints_itself(emitter):
    """A ledger prints a line per handler, with its drops."""
    emitter.add_handler(Collect(delivery="inline"), name="mine")
    emitter.emit(Numbered())
    emitter.shutdown()
    emitter.emit(Numbered())
    text = str(emitter.ledger())
    header, line = text.splitlines()
    assert header.split() == ["handler", "accepted", "delivered", "pending", "failed", "filtered", "dropped"]
    assert line.split() == ["mine", "2", "1", "0", "0", "0", "shutdown", "1"]


def test_a_ledger_sums_its_handlers(emitter):
    """The account gives the sum of a handler's rows, for one name and for all; an unknown name is an empty row."""
    emitter.add_handler(Collect(delivery="inline"), name="mine")
    emitter.emit(Numbered())
    emitter.emit(Warned())
    ledger = emitter.ledger()
    assert ledger.emitted == 2
    assert list(ledger.handlers) == ["mine"]
    assert ledger.handlers["mine"].delivered == ledger.handler("mine").delivered == 2
    assert ledger.handler("nobody").emitted == 0


# -- over random lives -------------------------------------------------------------------------------------------------

HANDLER = st.fixed_dictionaries(
    {
        "delivery": st.sampled_from(["inline", "queued"]),
        "share": st.sampled_from([0.0, 0.0, 0.3, 1.0]),
        "batches": st.booleans(),
        "options": st.fixed_dictionaries(
            {
                "sampling": st.sampled_from([1.0, 1.0, 0.5, 0.0]),
                "queue_size": st.sampled_from([1, 5, 1000]),
                "overflow": st.sampled_from(["drop_newest", "drop_oldest", "block"]),
                "block_timeout_s": st.just(0.002),
                "batch_size": st.sampled_from([1, 3, 100]),
                "min_severity": st.sampled_from(["trace", "warning"]),
                "events": st.sampled_from([("*",), ("numbered",), ("w*",)]),
            }
        ),
    }
)
QUIET = st.one_of(
    st.tuples(st.just("emit"), st.integers(1, 30)),
    st.tuples(st.just("warn"), st.integers(1, 5)),
    st.tuples(st.just("work"), st.integers(1, 5)),
    st.tuples(st.just("fail_work"), st.integers(1, 2)),
    st.tuples(st.just("leave_open"), st.just(1)),
    st.tuples(st.just("flush"), st.just(1)),
)
STEP = st.one_of(
    QUIET,
    st.tuples(st.just("add"), HANDLER),
    st.tuples(st.just("remove"), st.integers(0, 3)),
    st.tuples(st.just("switch"), st.booleans()),
)


class Life:
    """An emitter whose handlers are counted from outside; each step is a method."""

    def __init__(self, *handlers):
        self.emitter = ec.Emitter()
        self.handlers = []
        self.open = []
        for handler in handlers:
            self.add(handler)

    def live(self, steps):
        """Do these steps."""
        for what, argument in steps:
            getattr(self, what)(argument)

    def emit(self, times):
        """Emit at INFO."""
        for n in range(times):
            self.emitter.emit(Numbered(n=n))

    def warn(self, times):
        """Emit at WARNING."""
        for n in range(times):
            self.emitter.emit(Warned(n=n))

    def work(self, times):
        """Run operations."""
        for n in range(times):
            with self.emitter.operation(Work, n=n):
                pass

    def fail_work(self, times):
        """Run operations that fail."""
        for n in range(times):
            self.emitter.operation(Work, n=n).__enter__().end("failure", ValueError())

    def leave_open(self, _):
        """Start an operation that nobody ends."""
        operation = self.emitter.operation(Work).__enter__()
        operation.suspend()
        self.open.append(operation)

    def add(self, about):
        """Add a handler."""
        kind = CollectBatches if about["batches"] else Collect
        act = fails_sometimes(about["share"]) if about["share"] and not about["batches"] else None
        handler = kind(act=act, delivery=about["delivery"], linger_s=0, **about["options"])
        self.handlers.append(self.emitter.add_handler(handler, name=f"h{len(self.handlers)}"))

    def remove(self, place):
        """Remove a handler, if there are so many."""
        if len(self.emitter.handlers) > place:
            self.emitter.remove_handler(self.emitter.handlers[place])

    def flush(self, _):
        """Wait for the workers."""
        assert self.emitter.flush()

    def switch(self, on):
        """Silence the emitter, or let it speak again."""
        self.emitter.is_enabled = on

    def check(self, report):
        """Check the equations, and the account of every handler against what it saw itself."""
        ledger = self.emitter.ledger()
        check(ledger)
        assert report.abandoned_operations == len(self.open) == ledger.operations.get("abandoned", 0)
        for handler in self.handlers:
            row = ledger.handler(handler.name)
            assert row.delivered == len(handler.got), handler.name
            assert row.failed == handler.raised, handler.name
            assert handler.closed == 1


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(first=HANDLER, steps=st.lists(STEP, max_size=25))
def test_the_ledger_balances_over_random_lives(first, steps):
    """Over random mixes of emits, failing handlers, overflow, sampling and removals, both equations are exact."""
    life = Life(first)
    try:
        life.live(steps)
    finally:
        report = life.emitter.shutdown()
    life.check(report)


def test_the_ledger_balances_over_lives_of_threads():
    """The equations are exact as well when threads do all that at once, and handlers are removed meanwhile."""
    for seed in range(60):  # plain random lives: threads do not repeat themselves, so there is nothing to shrink
        draw = random.Random(seed)
        life = Life(*(random_handler(draw) for _ in range(draw.randint(1, 3))))
        lives = [[random_step(draw) for _ in range(draw.randint(0, 6))] for _ in range(3)]
        with ThreadPoolExecutor(len(lives)) as pool:
            running = [pool.submit(life.live, steps) for steps in lives]
            for _ in range(draw.randint(0, 2)):
                life.remove(draw.randint(0, 2))
            for one in running:
                one.result()
        life.check(life.emitter.shutdown())


def random_handler(draw):
    """Return what a handler is to be like."""
    return {
        "delivery": draw.choice(["inline", "queued", "queued"]),
        "share": draw.choice([0.0, 0.0, 0.3, 1.0]),
        "batches": draw.random() < 0.3,
        "options": {
            "sampling": draw.choice([1.0, 1.0, 0.5]),
            "queue_size": draw.choice([1, 5, 1000]),
            "overflow": draw.choice(["drop_newest", "drop_oldest", "block"]),
            "block_timeout_s": 0.002,
            "batch_size": draw.choice([1, 3, 100]),
        },
    }


def random_step(draw):
    """Return a step that any thread may take."""
    what = draw.choice(["emit", "emit", "warn", "work", "fail_work", "leave_open", "flush"])
    return what, draw.randint(1, 10)
