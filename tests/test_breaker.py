import asyncio
import math
import random
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
        ({"slow_rate": 0}, "slow_rate is a share in"),
        ({"slow_call_s": 0}, "must be positive, or None"),
        ({"window_s": 0}, "must be positive, or None"),
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


# -- windows of seconds, slow calls, forced states ---------------------------------------------------------------------


def test_a_window_of_seconds_forgets_by_time(make, clock):
    """With ``window_s`` the outcomes of the last seconds count, however many they are; older ones are forgotten."""
    breaker = make(window_s=10.0, minimum_calls=100, failure_rate=0.5)
    succeed(breaker, 60)
    clock.now += 5
    fail(breaker, 55)
    assert breaker.state is CLOSED, "55 of 115 is below one half"
    assert breaker.failures == 55
    clock.now += 5
    assert tuple(breaker.outcomes) == (55, 55, 0), "the successes are too old; looking changes nothing"
    succeed(breaker, 44)
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is OPEN, "100 calls are known, 56 failed"


def test_slow_calls_open_it(make, clock):
    """Calls of ``slow_call_s`` or longer that go well open it once their share is reached."""
    breaker = make(window=4, minimum_calls=4, slow_call_s=2.0, slow_rate=0.5)
    for seconds in (1.999, 2.0, 0.0):
        with breaker.call():
            clock.now += seconds
    assert tuple(breaker.outcomes) == (3, 0, 1)
    with breaker.call():
        clock.now += 30
    assert breaker.state is OPEN


def test_a_slow_probe_is_a_failed_one(make, clock):
    """A backend that answers, but too late, is not let back."""
    breaker = make(slow_call_s=2.0)
    fail(breaker, 5)
    clock.now += 10
    with breaker.call():
        clock.now += 2
    assert breaker.state is OPEN


def test_forced_open_it_refuses_until_reset(make, clock, moves):
    """Forced open it refuses calls for ever, and says so; ``reset`` lets outcomes move it again."""
    breaker = make()
    breaker.force_open()
    clock.now += 1e9
    assert not breaker.try_acquire()
    assert (breaker.is_forced, breaker.retry_after_s) == (True, math.inf)
    assert repr(breaker) == "<Breaker api forced open, 0 failures in the last 0 calls>"
    breaker.reset()
    succeed(breaker)
    assert moves == [("api", CLOSED, OPEN), ("api", OPEN, CLOSED)]


def test_forced_closed_it_counts_and_stays(make, moves):
    """Forced closed it counts outcomes but lets every call pass; after ``reset`` it starts from nothing."""
    breaker = make()
    breaker.force_closed()
    fail(breaker, 50)
    assert (breaker.state, breaker.failures, moves) == (CLOSED, 5, [])
    breaker.reset()
    fail(breaker, 4)
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is OPEN


def test_probes_that_never_come_back_do_not_block_it(make, clock, moves):
    """Permits that were lost are given up after the time it was open for: new probes pass; no transition is told."""
    breaker = make(half_open_permits=1)
    fail(breaker, 5)
    clock.now += 10
    lost = breaker.try_acquire()
    clock.now += 9.9
    assert not breaker.try_acquire()
    clock.now += 0.1
    probe = breaker.try_acquire()
    assert probe not in (0, lost)
    breaker.failure(lost)
    assert breaker.state is HALF_OPEN, "the lost probe came back too late to matter"
    breaker.success(probe)
    assert [after for _, _, after in moves] == [OPEN, HALF_OPEN, CLOSED]


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


def test_functions_are_guarded_plain_and_async(make):
    """``guard`` keeps a function's name and result, counts its failures, and refuses it while open."""
    breaker = make(window=2, minimum_calls=2)

    @breaker.guard
    def double(value):
        return 2 * value

    @breaker.guard
    async def fails():
        raise LookupError

    async def main():
        for _ in range(2):
            with pytest.raises(LookupError):
                await fails()
        with pytest.raises(ec.BreakerOpen):
            await fails()

    assert (double(4), double.__name__) == (8, "double")
    asyncio.run(main())
    with pytest.raises(ec.BreakerOpen):
        double(1)


def test_timeouts_and_cancellations_count(make):
    """A call that a timeout or a cancelled task cuts off is a failure: a hanging backend opens the breaker."""
    breaker = make(window=4, minimum_calls=4)

    async def hang():
        async with breaker.call():
            await asyncio.sleep(60)

    async def main():
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(hang(), 0.01)
        for _ in range(2):
            task = asyncio.create_task(hang())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert breaker.state is OPEN


def test_the_orchestrators_fifty_requests(make, clock, moves):
    """The guide's scenario: requests 8 to 27 of the backend fail, 50 are made, and it rests 250 ms after number 29.

    It opens at number 12, refuses until the rest, the probe, number 30, fails, and 14 requests reach the backend.
    """
    breaker = make(open_s=0.2, half_open_permits=1)
    reached, refused = [], []

    @breaker.guard
    def backend(number):
        reached.append(number)
        if 8 <= len(reached) - 1 <= 27:
            raise ConnectionError

    for number in range(50):
        try:
            backend(number)
        except ConnectionError:
            pass
        except ec.BreakerOpen:
            refused.append(number)
        if number == 12:
            assert breaker.state is OPEN
        if number == 29:
            clock.now += 0.25
    assert reached == [*range(13), 30]
    assert refused == [*range(13, 30), *range(31, 50)]
    assert [after for _, _, after in moves] == [OPEN, HALF_OPEN, OPEN]


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


def test_under_32_threads_no_call_is_lost_or_counted_twice():
    """32 threads make calls of which a third fail: what the window counted is what they did, to the last call."""
    breaker = ec.Breaker("busy", window=1_000_000, minimum_calls=1_000_000)
    done = []

    @breaker.guard
    def call(draw):
        if draw < 1 / 3:
            raise KeyError

    def work():
        draws = random.Random(threading.get_ident())
        failed = 0
        for _ in range(500):
            try:
                call(draws.random())
            except KeyError:
                failed += 1
        done.append(failed)

    together(work, threads=32)
    assert tuple(breaker.outcomes) == (16_000, sum(done), 0)


def test_under_asyncio_no_probe_too_many_passes(make, clock):
    """500 tasks that ask at once while it is half-open: as many run as there are permits, the others are refused."""
    breaker = make(half_open_permits=3)
    fail(breaker, 5)
    clock.now += 10

    async def call(gate):
        async with breaker.call():
            await gate.wait()

    async def main():
        gate = asyncio.Event()
        tasks = [asyncio.create_task(call(gate)) for _ in range(500)]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert outcomes.count(None) == 3
    assert sum(isinstance(outcome, ec.BreakerOpen) for outcome in outcomes) == 497
    assert breaker.state is CLOSED


# -- against a model ---------------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """A breaker beside the plainest description of what it promises."""

    @initialize(
        window=st.integers(1, 6),
        window_s=st.sampled_from([None, 10.0]),
        minimum=st.integers(1, 6),
        rate=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        permits=st.integers(1, 3),
    )
    def start(self, window, window_s, minimum, rate, permits):
        """Make a breaker and forget everything."""
        self.clock, self.moves = Seconds(), []
        self.minimum, self.rate, self.permits = min(minimum, window), rate, permits
        self.breaker = ec.Breaker(
            "model",
            window=window,
            window_s=window_s,
            minimum_calls=self.minimum,
            failure_rate=rate,
            slow_call_s=1.0,
            slow_rate=0.5,
            open_s=4.0,
            max_open_s=20.0,
            half_open_permits=permits,
            clock=self.clock,
            on_transition=lambda _, *move: self.moves.append(move),
        )
        self.window_s = window_s
        self.outcomes = deque(maxlen=window if window_s is None else None)
        self.state, self.opened, self.until, self.forced = CLOSED, 0, 0.0, False
        self.good, self.expected = 0, []
        self.held, self.stale = [], []

    def enter(self, state):
        """Move the model."""
        if state is not self.state:
            self.expected.append((self.state, state))
        self.state, self.good = state, 0
        self.stale += self.held
        self.held = []
        self.opened += state is OPEN
        self.until = self.clock.now + min(4.0 * 2 ** (self.opened - 1), 20.0)
        if state is CLOSED:
            self.opened = 0
            self.outcomes.clear()

    def may_report(self):
        """Whether a call of this period is out, whose outcome is to be reported."""
        return bool(self.held)

    @rule()
    def ask(self):
        """Ask for a call."""
        nobody_may = self.state is OPEN or (self.state is HALF_OPEN and len(self.held) >= self.permits)
        if nobody_may and not self.forced and self.clock.now >= self.until:
            self.enter(HALF_OPEN)  # from open, or again: the probes of before are given up
        allowed = self.state is CLOSED or (self.state is HALF_OPEN and len(self.held) < self.permits)
        permit = self.breaker.try_acquire()
        assert bool(permit) is allowed
        if permit:
            self.held.append(permit)

    @precondition(may_report)
    @rule(good=st.booleans(), duration_s=st.sampled_from([None, 0.5, 1.0]))
    def end(self, good, duration_s):
        """Report an outcome, and perhaps how long it took."""
        (self.breaker.success if good else self.breaker.failure)(self.held.pop(), duration_s=duration_s)
        slow = duration_s == 1.0
        if self.state is CLOSED:
            self.outcomes.append((self.clock.now, not good, slow))
            calls, failures, slow_calls = self.current()
            too_much = failures / calls >= self.rate or slow_calls / calls >= 0.5
            if calls >= self.minimum and too_much and not self.forced:
                self.enter(OPEN)
        elif slow or not good:
            self.enter(OPEN)
        else:
            self.good += 1
            if self.good == self.permits:
                self.enter(CLOSED)

    def current(self):
        """Return calls, failures and slow calls in the window; seconds are forgotten in tenths of it, here one."""
        kept = [o for o in self.outcomes if self.window_s is None or o[0] // 1 > self.clock.now // 1 - 10]
        return len(kept), sum(failed for _, failed, _ in kept), sum(slow for _, _, slow in kept)

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
        self.forced = False
        if self.state is not CLOSED:
            self.enter(CLOSED)
        self.outcomes.clear()

    @rule(state=st.sampled_from([OPEN, CLOSED]))
    def force(self, state):
        """Force it open or closed: nothing moves it until it is reset."""
        (self.breaker.force_open if state is OPEN else self.breaker.force_closed)()
        self.forced = True
        self.enter(state)

    @invariant()
    def agree(self):
        """Compare all that can be seen, twice: looking changes nothing."""
        for _ in range(2):
            assert self.breaker.state is self.state
            left = max(0.0, self.until - self.clock.now, self.forced * math.inf) if self.state is OPEN else 0.0
            assert self.breaker.retry_after_s == pytest.approx(left)
            assert self.moves == self.expected
            assert self.breaker.is_forced is self.forced
            if self.state is CLOSED:
                assert tuple(self.breaker.outcomes) == self.current()


class TestModel(Model.TestCase):
    """The breaker does what the model does, over random sequences of calls, outcomes and waits."""

    settings = settings(max_examples=100, stateful_step_count=40, deadline=None, database=None)
