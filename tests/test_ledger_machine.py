import os
import sqlite3
import tempfile
import threading
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import eventcore as ec
from eventcore.journal_config import JournalConfig
from eventcore.ledger import DROP_REASONS
from tests.support.handlers import Clock, Collect, eventually


class Told(ec.Event, name="machine.told", category="data"):
    n: int = 0


class Warned(ec.Event, name="machine.warned", category="system", severity="warning"):
    n: int = 0


class Work(ec.Operation, name="machine.work", category="execution"):
    n: int = 0


RECORDED = ec.Recording(Work, (Told,), lambda n: [ec.Past(0, 2, {"n": n}), ec.Past(1, 1, {"n": n})])
MINE = {"machine.told", "machine.warned", "machine.work"}
OPTIONS = st.fixed_dictionaries(
    {
        "delivery": st.sampled_from(["inline", "queued", "queued", "durable", "durable"]),
        "sampling": st.sampled_from([1.0, 1.0, 1.0, 0.5, 0.0]),
        "queue_size": st.sampled_from([1, 4, 1000]),
        "overflow": st.sampled_from(["drop_newest", "drop_oldest", "block"]),
        "block_timeout_s": st.just(0.001),
        "batch_size": st.sampled_from([1, 3, 100]),
        "min_severity": st.sampled_from(["trace", "trace", "warning"]),
        "linger_s": st.just(0),
    }
)
FAILS = st.sampled_from(["never", "never", "sometimes", "always"])
PLACE = st.integers(0, 3)
POISON = 3


class Gated(Collect):
    """Waits at a gate that the machine closes and opens, then fails if it is told to: for all events, or for some."""

    def __init__(self, fails, **options):
        super().__init__(act=self._pass, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.fails = fails

    @property
    def is_durable(self):
        """Whether it is behind the journal."""
        return self.config.delivery == "durable"

    def relent(self):
        """Let everything through that waits; what a durable handler fails on would wait for ever."""
        self.gate.set()
        if self.is_durable:
            self.fails = "never"

    def _pass(self, envelope):
        if not self.gate.wait(20):
            raise TimeoutError("nobody opened the gate")
        if self.fails == "always" or (self.fails == "sometimes" and envelope.get("n") == POISON):
            raise OSError("told to fail")


class LedgerMachine(RuleBasedStateMachine):
    """Lives of an emitter on one journal: the ledger against counts kept by callers, sinks, queues and the file."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "journal.db")
        self.forks = 0
        self.restarts = 0
        self._live()

    def _live(self):
        self.clock = Clock()
        self.emitter = ec.Emitter(clock=self.clock, journal=JournalConfig(path=self.path, max_attempts=2))
        self.left = self._in_file()  # by an earlier life
        self.mine = []  # every handler there ever was; a name may come back
        self.names = 0
        self.open = []
        self.started = 0
        self.emitted = Counter()  # (handler, event): what the machine itself has emitted while it was attached
        self.is_shut = False
        self.before = Counter()

    def _in_file(self):
        """Return how many rows are in the journal, by handler, event and phase, as SQLite itself sees it."""
        if not self.path.exists():
            return Counter()
        file = sqlite3.connect(self.path)
        try:
            rows = file.execute("SELECT handler, event, phase, count(*) FROM rows GROUP BY 1, 2, 3").fetchall()
        finally:
            file.close()
        return Counter({(handler, event, phase): number for handler, event, phase, number in rows})

    # -- what may happen ---------------------------------------------------------------------------------------------

    @initialize(options=OPTIONS, fails=FAILS)
    def begin(self, options, fails):
        """Begin with one handler."""
        self._add(options, fails)

    def _add(self, options, fails, name=None):
        self.names += name is None
        self.mine.append(self.emitter.add_handler(Gated(fails, **options), name=name or f"h{self.names}"))
        self._emit(Told, 5)  # else there is nothing to do for it in many lives

    @precondition(lambda self: len(self.emitter.handlers) < 4 and not self.is_shut)
    @rule(options=OPTIONS, fails=FAILS)
    def add(self, options, fails):
        """Add a handler."""
        self._add(options, fails)

    @precondition(lambda self: self.emitter.handlers and not self.is_shut)
    @rule(place=PLACE)
    def remove(self, place):
        """Remove a handler; what it had accepted it still gets."""
        handler = self._handler(place)
        handler.gate.set()  # one that is durable and fails leaves in the journal what it had accepted
        assert self.emitter.remove_handler(handler) == 0

    @precondition(lambda self: self.emitter.handlers and not self.is_shut)
    @rule(place=PLACE, options=OPTIONS, fails=FAILS)
    def reconfigure(self, place, options, fails):
        """Put another handler in the place of one, under the same name."""
        handler = self._handler(place)
        self.remove(place)
        self._add(options, fails, handler.name)

    def _handler(self, place):
        handlers = self.emitter.handlers
        return handlers[place % len(handlers)]

    @rule(event_type=st.sampled_from([Told, Warned]), times=st.integers(1, 12))
    def emit(self, event_type, times):
        """Emit."""
        self._emit(event_type, times)

    def _emit(self, event_type, times):
        self._expect(event_type, times)
        for n in range(times):
            self.emitter.emit(event_type(n=n))

    def _expect(self, event_type, times):
        """Count for every handler that is there; what nobody wants is not counted."""
        if self.emitter.enabled(event_type):
            for handler in self.emitter.handlers:
                self.emitted[handler.name, event_type.__event__.name] += times

    @rule()
    def start(self):
        """Start an operation."""
        operation = self.emitter.operation(Work).__enter__()
        operation.suspend()
        self.started += 1
        self.open.append(operation)

    @rule(times=st.integers(1, 4))
    def record(self, times):
        """Emit operations that are over, each with an event in it: one place in each queue, two envelopes."""
        self._expect(Told, times)
        self.started += times
        for n in range(times):
            self.emitter.record(RECORDED, n)

    @precondition(lambda self: self.open)
    @rule(outcome=st.sampled_from(["success", "failure", "cancelled"]))
    def end(self, outcome):
        """End an operation."""
        self.open.pop().end(outcome)

    @precondition(lambda self: self.emitter.handlers)
    @rule(place=PLACE, fails=FAILS)
    def fail(self, place, fails):
        """Have a handler fail from now on, always or on some events, or work again."""
        self._handler(place).fails = fails

    @precondition(lambda self: self.emitter.handlers and not self.is_shut)
    @rule(place=PLACE)
    def hold(self, place):
        """Close the gate of a handler with a worker: its queue fills and overflows, or the journal fills."""
        handler = self._handler(place)
        if handler.config.delivery != "inline":
            handler.gate.clear()

    @rule(on=st.booleans())
    def switch(self, on):
        """Silence the emitter, or let it speak again."""
        self.emitter.is_enabled = on

    @precondition(lambda self: not self.is_shut)
    @rule()
    def flush(self):
        """Open all gates and wait: a barrier, at which everything is exact."""
        for handler in self.emitter.handlers:
            handler.relent()
        assert eventually(self._flush, 20)
        self.exact()

    def _flush(self):
        self.clock.advance(120)  # ends every quarantine; what was failing at this moment may begin another one
        return self.emitter.flush(1)

    @precondition(lambda self: self.forks < 2 and not self.is_shut)
    @rule()
    def fork(self):
        """Fork: the child owes nothing of what waits here, and its own account is exact; the parent goes on."""
        self.forks += 1
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if self._lives_as_child() else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def _lives_as_child(self):
        before = self.emitter.ledger()
        empty = all(row.emitted == row.delivered == row.pending == 0 for row in before.rows)
        empty = empty and not before.operations and not self.emitter.open_operations()
        got = {}
        for handler in self.emitter.handlers:
            handler.gate = threading.Event()  # the parent's worker may have held its lock
            handler.gate.set()
            handler.fails = "never"
            got[handler.name] = len(handler.got)
        for n in range(3):
            self.emitter.emit(Told(n=n))
        flushed = self.emitter.flush(10)
        after = self.emitter.ledger()
        return (
            empty
            and flushed
            and self.emitter.shutdown(10).is_clean
            and all(row.pending == 0 for row in after.rows)
            and all(
                len(h.got) - got[h.name] == after.handler(h.name).delivered - before.handler(h.name).delivered
                for h in self.emitter.handlers
            )
        )

    @precondition(lambda self: not self.is_shut)
    @rule()
    def shut_down(self):
        """Shut down: what waits is delivered, what is open is abandoned, and what comes later is counted."""
        self._end()

    @precondition(lambda self: self.restarts < 3)
    @rule(options=OPTIONS, fails=FAILS)
    def restart(self, options, fails):
        """Live again on the same journal: durable handlers begin with what is left, under their names."""
        self.restarts += 1
        self._end()
        self._live()
        self._add(options, fails)

    def _end(self):
        for handler in self.emitter.handlers:
            handler.gate.set()
        report = self.emitter.shutdown(20)
        if not self.is_shut:
            assert report.abandoned_operations == len(self.open)
            assert not any(report.abandoned_envelopes.values())
            self.open.clear()
        self.is_shut = True
        self.exact()
        assert all(handler.closed == 1 for handler in self.mine)

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def bounded_and_monotone(self):
        """At any time totals are monotone, and settled <= accepted and recovered, accepted <= emitted."""
        now = Counter()
        for row in self.emitter.ledger().rows:
            assert 0 <= row.settled <= row.accepted + row.recovered, row
            assert row.accepted <= row.emitted, row
            key = (row.handler, row.event, row.phase)
            for what in ("emitted", "accepted", "filtered", "sampled", "recovered", "delivered", "failed"):
                now[*key, what] = getattr(row, what)
            for reason, number in row.dropped.items():
                now[*key, reason] = number
        assert all(now[key] >= number for key, number in self.before.items())
        self.before = now

    @invariant()
    def held_queues_hold_what_is_pending(self):
        """What is pending of a handler whose gate is closed is what its queue holds, within its bounds."""
        for attachment in self.emitter.attachments:
            handler = attachment.handler
            if attachment.queue is None or handler.is_durable or handler.gate.is_set():
                continue
            left = sum(number for key, number in self._in_file().items() if key[0] == handler.name)

            def is_held(handler=handler, queue=attachment.queue, left=left):
                pending = self.emitter.ledger().handler(handler.name).pending
                pending -= left if handler.name in self._durable() else 0
                bound = handler.config.queue_size + handler.config.batch_size + 1
                return pending == queue.depth and queue.size <= bound

            assert eventually(is_held), handler  # another worker may be reporting a failure at this moment

    def _durable(self):
        """Return the names that a durable handler has had in this life; what it left waits on, whoever has the name."""
        return {handler.name for handler in self.mine if handler.is_durable}

    def exact(self):
        """At a barrier both equations are exact, against callers, sinks and the file."""
        ledger = self.emitter.ledger()
        waiting = self._in_file()
        durable = self._durable()
        flushed = set() if self.is_shut else {handler.name for handler in self.emitter.handlers if handler.is_durable}
        for row in ledger.rows:
            pending = waiting[row.key()] if row.handler in durable - flushed else 0
            assert row.emitted == row.accepted + row.filtered + row.sampled, row
            assert row.accepted + row.recovered == row.delivered + row.failed + row.dropped.total() + pending, row
            assert row.recovered == (self.left[row.key()] if row.handler in durable else 0), row
            assert set(row.dropped) <= set(DROP_REASONS), row
            if row.event in {"machine.told", "machine.warned"}:
                assert row.emitted == self.emitted[row.handler, row.event], row
            if row.event in MINE:
                received = (e for h in self.mine if h.name == row.handler for e in h.got)
                assert row.delivered == sum(e.name == row.event for e in received), row
        for name in {handler.name for handler in self.mine}:
            raised = sum(h.raised for h in self.mine if h.name == name and not h.is_durable)  # durable: tried again
            assert ledger.handler(name).failed == raised
            left = sum(number for key, number in self.left.items() if key[0] == name)
            assert ledger.handler(name).recovered == (left if name in durable else 0)
        assert ledger.operations.get("started", 0) == self.started
        assert ledger.open_operations == len(self.open) == len(self.emitter.open_operations())

    def teardown(self):
        """Every life ends with an account that balances."""
        self._end()
        self.folder.cleanup()


LedgerMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,
    suppress_health_check=list(HealthCheck),
)


class TestLedgerMachine(LedgerMachine.TestCase):
    """Over emits, operations, flush, failure, overflow, reconfiguration, fork, shutdown and restart it balances.

    The invariants and ``exact`` say what that means.
    """
