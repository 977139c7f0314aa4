import threading
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import eventcore as ec
from eventcore.breaker import BreakerState

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


class Seconds:
    """A clock in seconds that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Seconds()


@pytest.fixture
def moves():
    """Return the list of transitions that were reported."""
    return []


@pytest.fixture
def make(clock, moves):
    """Return a function that makes a breaker with that clock, whose transitions are noted."""

    def make(**options):
        options = {"open_s": 10.0, "half_open_permits": 2, **options}
        return ec.Breaker("api", clock=clock, on_transition=lambda b, *move: moves.append((b.name, *move)), **options)

    return make


def fail(breaker, times=1):
    """Make calls that fail."""
    for _ in range(times):
        permit = breaker.try_acquire()
        assert permit
        breaker.failure(permit)


def succeed(breaker, times=1):
    """Make calls that go well."""
    for _ in range(times):
        permit = breaker.try_acquire()
        assert permit
        breaker.success(permit)


# -- the life of a breaker ---------------------------------------------------------------------------------------------


def test_five_failures_in_a_row_open_it(make, moves):
    """By default five failures in a row open it, and it then refuses calls."""
    breaker = make()
    fail(breaker, 4)
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is OPEN
    assert not breaker.try_acquire()
    assert moves == [("api", CLOSED, OPEN)]


def test_a_success_between_failures_keeps_it_closed(make):
    """At a failure rate of 1.0 one success in the window keeps it closed."""
    breaker = make()
    fail(breaker, 4)
    succeed(breaker)
    fail(breaker, 4)
    assert breaker.state is CLOSED
    assert breaker.failures == 4


def test_a_rate_opens_it(make):
    """It opens when the share of failures among the last ``window`` outcomes reaches ``failure_rate``."""
    breaker = make(window=10, minimum_calls=4, failure_rate=0.5)
    succeed(breaker, 2)
    fail(breaker)
    assert breaker.state is CLOSED, "three outcomes are too few to judge"
    fail(breaker)
    assert breaker.state is OPEN


def test_old_outcomes_leave_the_window(make):
    """Only the last ``window`` outcomes count."""
    breaker = make(window=4, minimum_calls=4, failure_rate=0.75)
    fail(breaker, 2)
    succeed(breaker, 4)
    fail(breaker, 2)
    assert breaker.state is CLOSED
    assert breaker.failures == 2


def test_after_its_time_it_probes(make, clock, moves):
    """After ``open_s`` it hands out a limited number of probe permits (half-open)."""
    breaker = make()
    fail(breaker, 5)
    clock.now += 9.999
    assert not breaker.try_acquire()
    clock.now += 0.001
    assert breaker.try_acquire()
    assert breaker.state is HALF_OPEN
    assert breaker.try_acquire()
    assert not breaker.try_acquire(), "two permits are out"
    assert moves[1:] == [("api", OPEN, HALF_OPEN)]


def test_enough_successful_probes_close_it(make, clock, moves):
    """As many successful probes as there are permits close it, and it forgets the past."""
    breaker = make()
    fail(breaker, 5)
    clock.now += 10
    for _ in range(2):
        assert breaker.state is not CLOSED
        succeed(breaker)
    assert breaker.state is CLOSED
    assert breaker.failures == 0
    assert moves[-1] == ("api", HALF_OPEN, CLOSED)
    fail(breaker, 4)
    assert breaker.state is CLOSED


def test_one_failed_probe_opens_it_again(make, clock):
    """One failed probe opens it again, although another has succeeded."""
    breaker = make()
    fail(breaker, 5)
    clock.now += 10
    one, two = breaker.try_acquire(), breaker.try_acquire()
    breaker.success(one)
    breaker.failure(two)
    assert breaker.state is OPEN
    assert not breaker.try_acquire()
    clock.now += 20
    succeed(breaker)
    assert breaker.state is HALF_OPEN, "successes of the earlier probes do not count"
    succeed(breaker)
    assert breaker.state is CLOSED


def test_it_stays_open_longer_with_every_failed_probe(make, clock):
    """The open time doubles with every failed probe up to ``max_open_s``, and starts anew once it has closed."""
    breaker = make(open_s=10.0, max_open_s=35.0)
    fail(breaker, 5)
    for expected in (10.0, 20.0, 35.0, 35.0):
        assert breaker.retry_after_s == expected
        clock.now += expected - 0.5
        assert not breaker.try_acquire()
        clock.now += 0.5
        fail(breaker)
    clock.now += 35
    succeed(breaker, 2)
    fail(breaker, 5)
    assert breaker.retry_after_s == 10.0


def test_a_permit_may_be_given_back(make, clock):
    """``release`` gives a permit back without an outcome: the call was never made."""
    breaker = make(half_open_permits=1)
    fail(breaker, 5)
    clock.now += 10
    permit = breaker.try_acquire()
    assert permit
    assert not breaker.try_acquire()
    breaker.release(permit)
    assert breaker.state is HALF_OPEN
    succeed(breaker)
    assert breaker.state is CLOSED


def test_a_permit_of_an_earlier_period_changes_nothing(make, clock):
    """A permit of a period that is over is accepted and changes nothing, whichever outcome it is given."""
    breaker = make(half_open_permits=1)
    old = breaker.try_acquire()
    fail(breaker, 5)
    for outcome in (breaker.success, breaker.failure, breaker.release):
        outcome(old)
    assert breaker.state is OPEN
    assert not breaker.try_acquire()
    clock.now += 10
    probe = breaker.try_acquire()
    for outcome in (breaker.success, breaker.failure, breaker.release):
        outcome(old)
    assert breaker.state is HALF_OPEN
    assert not breaker.try_acquire(), "the one permit is still out"
    breaker.success(probe)
    assert breaker.state is CLOSED
    for outcome in (breaker.failure, breaker.success):
        outcome(old)
        outcome(probe)
    assert repr(breaker).endswith("0 failures in the last 0 calls>")


def test_reset_closes_it(make, moves):
    """``reset`` closes it, forgets the past, and reports a transition only where there was one."""
    breaker = make()
    fail(breaker, 4)
    breaker.reset()
    assert moves == []
    fail(breaker, 5)
    breaker.reset()
    assert breaker.state is CLOSED
    assert breaker.try_acquire()
    assert breaker.failures == 0
    assert moves == [("api", CLOSED, OPEN), ("api", OPEN, CLOSED)]


def test_reading_changes_nothing(make, clock, moves):
    """Reading its state changes nothing: an open breaker whose time is up stays open until somebody asks to call."""
    breaker = make()
    fail(breaker, 5)
    clock.now += 1000
    for _ in range(3):
        assert (breaker.state, breaker.failures, breaker.retry_after_s) == (OPEN, 5, 0.0)
        repr(breaker)
    assert len(moves) == 1
    assert breaker.try_acquire()


def test_a_clock_is_read_only_when_it_matters(clock):
    """While closed a breaker costs no look at the clock."""
    calls = []

    def reading():
        calls.append(1)
        return clock()

    breaker = ec.Breaker("api", clock=reading)
    succeed(breaker, 10)
    assert breaker.retry_after_s == 0.0
    assert calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failure_rate": 0}, "failure_rate is a share in"),
        ({"failure_rate": 1.5}, "failure_rate is a share in"),
        ({"minimum_calls": 6}, "1 <= minimum_calls <= window"),
        ({"minimum_calls": 0}, "1 <= minimum_calls <= window"),
        ({"half_open_permits": 0}, "must be positive"),
        ({"open_s": 0}, "must be positive"),
    ],
)
def test_wrong_limits_are_errors(options, message):
    """Limits that make no sense are errors that name the breaker."""
    with pytest.raises(ValueError, match=f"breaker 'api': .*{message}"):
        ec.Breaker("api", **options)


def test_a_breaker_prints_itself(make):
    """A breaker prints its name, state and failures."""
    breaker = make()
    fail(breaker, 2)
    assert repr(breaker) == "<Breaker api closed, 2 failures in the last 2 calls>"


# -- guarded calls -----------------------------------------------------------------------------------------------------


def test_a_guarded_call_records_its_outcome(make):
    """``call()`` records a block's outcome; any exception is a failure and goes on."""
    breaker = make(window=2, minimum_calls=2)
    with breaker.call():
        pass
    for _ in range(2):
        with pytest.raises(KeyError), breaker.call():
            raise KeyError
    assert breaker.state is OPEN


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_cancelled_call_is_a_failure(make, error):
    """A call that was cut off is a failure: it never leaves a permit behind."""
    breaker = make(window=1, minimum_calls=1)
    with pytest.raises(error), breaker.call():
        raise error
    assert breaker.state is OPEN


def test_a_refused_call_says_when_to_come_back(make, clock):
    """A refused call is BreakerOpen with the breaker's name and the time until it probes again."""
    breaker = make()
    fail(breaker, 5)
    clock.now += 4
    with pytest.raises(ec.BreakerOpen, match=r"'api' is open; it probes again in 6\.0 s") as caught, breaker.call():
        pytest.fail("the block must not run")
    assert (caught.value.name, caught.value.retry_after_s) == ("api", 6.0)


def test_a_call_from_before_it_opened_is_no_probe(make, clock):
    """A guarded call that began before the breaker opened says nothing about a probe, whichever way it ends."""
    breaker = make(half_open_permits=1, window=1, minimum_calls=1)
    good, bad = breaker.call(), breaker.call()
    good.__enter__()
    bad.__enter__()
    fail(breaker)
    clock.now += 10
    probe = breaker.try_acquire()
    good.__exit__(None, None, None)
    assert breaker.state is HALF_OPEN
    assert not breaker.try_acquire(), "the one permit is still out"
    assert not bad.__exit__(KeyError, KeyError(), None), "the exception goes on"
    assert breaker.state is HALF_OPEN
    breaker.success(probe)
    assert breaker.state is CLOSED


# -- threads -----------------------------------------------------------------------------------------------------------


def together(work, threads=8):
    """Run ``work`` in threads that start at the same moment."""
    barrier = threading.Barrier(threads)

    def start():
        barrier.wait()
        work()

    running = [threading.Thread(target=start) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def test_concurrent_probes_are_exact(make, clock, moves):
    """However many threads ask at once, exactly as many probes pass as there are permits; one transition is told."""
    breaker = make(half_open_permits=3)
    for round_ in range(20):
        moves.clear()
        breaker.reset()
        fail(breaker, 5)
        clock.now += 10
        passed = []

        def ask(breaker=breaker, passed=passed):
            for _ in range(5):
                if breaker.try_acquire():
                    passed.append(1)

        together(ask)
        assert len(passed) == 3, f"round {round_}"
        assert [move[2] for move in moves].count(HALF_OPEN) == 1


def test_concurrent_failures_open_it_once(make, moves):
    """Eight threads that report failures at once open it once."""
    breaker = make()
    permit = breaker.try_acquire()
    together(lambda: breaker.failure(permit), threads=8)
    assert breaker.state is OPEN
    assert moves == [("api", CLOSED, OPEN)]


def test_the_lock_is_not_held_during_a_report(clock):
    """The transition is reported outside the lock: the callback may use the breaker."""
    seen = []
    breaker = ec.Breaker(
        "api",
        clock=clock,
        minimum_calls=1,
        on_transition=lambda b, *_: seen.append((b.state, b.try_acquire(), b.retry_after_s)),
    )
    fail(breaker)
    assert seen == [(OPEN, 0, 60.0)]


# -- against a model ---------------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """A breaker beside the plainest description of what it promises."""

    @initialize(
        window=st.integers(1, 6),
        minimum=st.integers(1, 6),
        rate=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        permits=st.integers(1, 3),
    )
    def start(self, window, minimum, rate, permits):
        """Make a breaker and forget everything."""
        self.clock, self.moves = Seconds(), []
        self.minimum, self.rate, self.permits = min(minimum, window), rate, permits
        self.breaker = ec.Breaker(
            "model",
            window=window,
            minimum_calls=self.minimum,
            failure_rate=rate,
            open_s=4.0,
            max_open_s=20.0,
            half_open_permits=permits,
            clock=self.clock,
            on_transition=lambda _, *move: self.moves.append(move),
        )
        self.state, self.outcomes, self.opened, self.until = CLOSED, deque(maxlen=window), 0, 0.0
        self.good, self.expected = 0, []
        self.held, self.stale = [], []

    def enter(self, state):
        """Move the model."""
        self.expected.append((self.state, state))
        self.state, self.good = state, 0
        self.stale += self.held
        self.held = []
        if state is OPEN:
            self.opened += 1
            self.until = self.clock.now + min(4.0 * 2 ** (self.opened - 1), 20.0)
        elif state is CLOSED:
            self.opened = 0
            self.outcomes.clear()

    def may_report(self):
        """Whether a call of this period is out, whose outcome is to be reported."""
        return bool(self.held)

    @rule()
    def ask(self):
        """Ask for a call."""
        if self.state is OPEN and self.clock.now >= self.until:
            self.enter(HALF_OPEN)
        allowed = self.state is CLOSED or (self.state is HALF_OPEN and len(self.held) < self.permits)
        permit = self.breaker.try_acquire()
        assert bool(permit) is allowed
        if permit:
            self.held.append(permit)

    @precondition(may_report)
    @rule()
    def succeed(self):
        """Report a success."""
        self.breaker.success(self.held.pop())
        if self.state is CLOSED:
            self.outcomes.append(True)
            return
        self.good += 1
        if self.good == self.permits:
            self.enter(CLOSED)

    @precondition(may_report)
    @rule()
    def fail(self):
        """Report a failure."""
        self.breaker.failure(self.held.pop())
        if self.state is HALF_OPEN:
            self.enter(OPEN)
            return
        self.outcomes.append(False)
        known = len(self.outcomes)
        if known >= self.minimum and self.outcomes.count(False) / known >= self.rate:
            self.enter(OPEN)

    @precondition(may_report)
    @rule()
    def give_back(self):
        """Give a permit back."""
        self.breaker.release(self.held.pop())

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def report_late(self, data):
        """Report the outcome of a call from an earlier period: it changes nothing."""
        outcome = data.draw(st.sampled_from(["success", "failure", "release"]))
        getattr(self.breaker, outcome)(self.stale.pop())

    @rule(seconds=st.sampled_from([0.5, 4.0, 8.0, 20.0]))
    def wait(self, seconds):
        """Let time pass."""
        self.clock.now += seconds

    @rule()
    def reset(self):
        """Close it by hand."""
        self.breaker.reset()
        if self.state is not CLOSED:
            self.enter(CLOSED)
        self.outcomes.clear()

    @invariant()
    def agree(self):
        """Compare all that can be seen, twice: looking changes nothing."""
        for _ in range(2):
            assert self.breaker.state is self.state
            left = max(0.0, self.until - self.clock.now) if self.state is OPEN else 0.0
            assert self.breaker.retry_after_s == pytest.approx(left)
            assert self.moves == self.expected
            if self.state is CLOSED:
                assert self.breaker.failures == self.outcomes.count(False)


class TestModel(Model.TestCase):
    """The breaker does what the model does, over random sequences of calls, outcomes and waits."""

    settings = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)
