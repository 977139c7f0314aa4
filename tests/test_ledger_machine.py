import os
import threading
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import eventcore as ec
from eventcore.ledger import DROP_REASONS
from tests.support.handlers import Collect


class Told(ec.Event, name="machine.told", category="data"):
    n: int = 0


class Warned(ec.Event, name="machine.warned", category="system", severity="warning"):
    n: int = 0


class Work(ec.Operation, name="machine.work", category="execution"):
    n: int = 0


MINE = {"machine.told", "machine.warned", "machine.work"}
OPTIONS = st.fixed_dictionaries(
    {
        "delivery": st.sampled_from(["inline", "queued", "queued"]),
        "sampling": st.sampled_from([1.0, 1.0, 0.5, 0.0]),
        "queue_size": st.sampled_from([1, 4, 1000]),
        "overflow": st.sampled_from(["drop_newest", "drop_oldest", "block"]),
        "block_timeout_s": st.just(0.001),
        "batch_size": st.sampled_from([1, 3, 100]),
        "min_severity": st.sampled_from(["trace", "warning"]),
        "linger_s": st.just(0),
    }
)
PLACE = st.integers(0, 3)


class Gated(Collect):
    """Waits at a gate that the machine closes and opens, then fails if it is told to."""

    def __init__(self, **options):
        super().__init__(act=self._pass, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False

    def _pass(self, _envelope):
        if not self.gate.wait(20):
            raise TimeoutError("nobody opened the gate")
        if self.fails:
            raise OSError("told to fail")


class LedgerMachine(RuleBasedStateMachine):
    """One life of an emitter: the ledger against counts that are kept beside it by callers, sinks and queues."""

    def __init__(self):
        super().__init__()
        self.emitter = ec.Emitter()
        self.mine = []  # every handler there ever was; a name may come back
        self.names = 0
        self.open = []
        self.started = 0
        self.emitted = Counter()  # (handler, event): what the machine itself has emitted while it was attached
        self.forks = 0
        self.is_shut = False
        self.before = Counter()

    # -- what may happen ---------------------------------------------------------------------------------------------

    @initialize(options=OPTIONS)
    def begin(self, options):
        """Begin with one handler."""
        self._add(options)

    def _add(self, options, name=None):
        self.names += name is None
        self.mine.append(self.emitter.add_handler(Gated(**options), name=name or f"h{self.names}"))

    @precondition(lambda self: len(self.emitter.handlers) < 4 and not self.is_shut)
    @rule(options=OPTIONS)
    def add(self, options):
        """Add a handler."""
        self._add(options)

    @precondition(lambda self: self.emitter.handlers and not self.is_shut)
    @rule(place=PLACE)
    def remove(self, place):
        """Remove a handler; what it had accepted it still gets."""
        handler = self._handler(place)
        handler.gate.set()
        assert self.emitter.remove_handler(handler) == 0

    @precondition(lambda self: self.emitter.handlers and not self.is_shut)
    @rule(place=PLACE, options=OPTIONS)
    def reconfigure(self, place, options):
        """Put another handler in the place of one, under the same name."""
        handler = self._handler(place)
        self.remove(place)
        self._add(options, handler.name)

    def _handler(self, place):
        handlers = self.emitter.handlers
        return handlers[place % len(handlers)]

    @rule(event_type=st.sampled_from([Told, Warned]), times=st.integers(1, 12))
    def emit(self, event_type, times):
        """Emit, and count for every handler that is there; what nobody wants is not counted."""
        spec = event_type.__event__
        if self.emitter.enabled(event_type):
            for handler in self.emitter.handlers:
                self.emitted[handler.name, spec.name] += times
        for n in range(times):
            self.emitter.emit(event_type(n=n))

    @rule()
    def start(self):
        """Start an operation."""
        operation = self.emitter.operation(Work).__enter__()
        operation.suspend()
        self.started += 1
        self.open.append(operation)

    @precondition(lambda self: self.open)
    @rule(outcome=st.sampled_from(["success", "failure", "cancelled"]))
    def end(self, outcome):
        """End an operation."""
        self.open.pop().end(outcome)

    @precondition(lambda self: self.emitter.handlers)
    @rule(place=PLACE, fails=st.booleans())
    def fail(self, place, fails):
        """Have a handler fail from now on, or work again."""
        self._handler(place).fails = fails

    @precondition(lambda self: self.emitter.handlers and not self.is_shut)
    @rule(place=PLACE)
    def hold(self, place):
        """Close the gate of a queued handler: its queue fills and overflows."""
        handler = self._handler(place)
        if handler.config.delivery == "queued":
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
            handler.gate.set()
        assert self.emitter.flush(20)
        self.exact()

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
            handler.fails = False
            got[handler.name] = len(handler.got)
        for n in range(3):
            self.emitter.emit(Told(n=n))
        flushed = self.emitter.flush(10)
        after = self.emitter.ledger()
        return (
            empty
            and flushed
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

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def bounded_and_monotone(self):
        """At any time totals are monotone, and settled <= accepted <= emitted."""
        now = Counter()
        for row in self.emitter.ledger().rows:
            assert 0 <= row.settled <= row.accepted <= row.emitted, row
            key = (row.handler, row.event, row.phase)
            for what in ("emitted", "accepted", "filtered", "sampled", "delivered", "failed"):
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
            if attachment.queue is None or handler.gate.is_set():
                continue
            row = self.emitter.ledger().handler(handler.name)
            assert row.pending == attachment.queue.depth <= handler.config.queue_size + handler.config.batch_size + 1

    def exact(self):
        """At a barrier both equations are exact, against callers and sinks."""
        ledger = self.emitter.ledger()
        for row in ledger.rows:
            assert row.emitted == row.accepted + row.filtered + row.sampled, row
            assert row.accepted == row.delivered + row.failed + row.dropped.total(), row
            assert set(row.dropped) <= set(DROP_REASONS), row
            if row.event in {"machine.told", "machine.warned"}:
                assert row.emitted == self.emitted[row.handler, row.event], row
            if row.event in MINE:
                received = (e for h in self.mine if h.name == row.handler for e in h.got)
                assert row.delivered == sum(e.name == row.event for e in received), row
        for name in {handler.name for handler in self.mine}:
            assert ledger.handler(name).failed == sum(h.raised for h in self.mine if h.name == name)
        assert ledger.operations.get("started", 0) == self.started
        assert ledger.open_operations == len(self.open) == len(self.emitter.open_operations())

    def teardown(self):
        """Every life ends with an account that balances."""
        self._end()
        for handler in self.mine:
            assert handler.closed == 1


LedgerMachine.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,
    suppress_health_check=list(HealthCheck),
)


class TestLedgerMachine(LedgerMachine.TestCase):
    """Over emits, operations, flush, failure, overflow, reconfiguration, fork and shutdown the ledger balances.

    The invariants and ``exact`` say what that means.
    """
