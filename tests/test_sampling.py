"""Sampling: which envelopes a handler takes of those that its filter lets through."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

import eventcore as ec
from eventcore.ids import Ids
from eventcore.sampling import TokenBucket
from tests.support.handlers import Clock, Collect, CollectStarts


class Said(ec.Event, name="sampling.said", category="user"):
    number: int = 0


class Job(ec.Operation, name="sampling.job", category="execution"):
    number: int = 0


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def emitter(clock):
    """Return an emitter whose ids and draws are the same in every run."""
    random.seed(7)
    emitter = ec.Emitter(clock=clock, ids=Ids(seed=7))
    yield emitter
    emitter.shutdown()


def account(emitter, name="collect"):
    """Return what was accepted, sampled out and delivered, after checking that nothing is missing."""
    row = emitter.ledger().handler(name)
    assert row.emitted == row.accepted + row.sampled + row.filtered
    assert row.pending == 0
    return row.accepted, row.sampled, row.delivered


# -- the share ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["random", "trace"])
@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_the_share_is_met_and_both_kinds_are_counted(emitter, by, delivery):
    """Emitted = accepted + sampled out, and what is accepted is about the share, outside a trace and inside."""
    handler = emitter.add_handler(Collect(sampling=0.3, sampling_by=by, delivery=delivery))
    for number in range(2_000):
        emitter.emit(Said(number=number))
        with emitter.operation(Job, number=number):
            pass
    assert emitter.flush()
    accepted, sampled, delivered = account(emitter)
    assert accepted == delivered == len(handler.got)
    assert accepted + sampled == 4_000
    shares = {name: number / 2_000 for name, number in Counter(handler.names).items()}
    assert shares == {"sampling.said": pytest.approx(0.3, abs=0.05), "sampling.job": pytest.approx(0.3, abs=0.05)}


@pytest.mark.parametrize("stride", [1, 2, 7, 610, 1024])
def test_events_outside_a_trace_are_spread_evenly(emitter, stride):
    """By their own id, every n-th event is taken as often as any other: the sequence number does not shine through."""
    handler = emitter.add_handler(Collect(sampling=0.5, sampling_by="trace", delivery="inline"))
    for number in range(400):
        emitter.emit(Said(number=number))
        for _ in range(stride - 1):
            emitter.ids.next_sequence()
    assert 140 < len(handler.got) < 260
    runs = [b.event.number - a.event.number for a, b in zip(handler.got, handler.got[1:], strict=False)]
    assert max(runs) < 20


def test_by_trace_all_events_of_a_trace_are_kept_or_left_together(emitter):
    """Hash-consistent by trace id: a trace is whole or absent, in each of several handlers alike."""
    first = emitter.add_handler(CollectStarts(sampling=0.4, sampling_by="trace", delivery="inline"), name="first")
    second = emitter.add_handler(Collect(sampling=0.4, sampling_by="trace"), name="second")
    traces = Counter()
    for number in range(200):
        with emitter.operation(Job, number=number) as outer:
            emitter.emit(Said(number=number))
            with emitter.operation(Job, number=number):
                emitter.emit(Said(number=number))
        traces[f"{outer.trace_id:032x}"] += 1
    assert emitter.flush()
    seen = Counter(envelope.trace_id for envelope in first.got)
    assert set(seen.values()) == {6}  # two starts, two ends, two events
    assert 40 < len(seen) < 120
    assert Counter(e.trace_id for e in second.got) == dict.fromkeys(seen, 4)


def test_at_one_ratio_the_traces_kept_are_those_whose_spans_are(emitter):
    """The decision is OpenTelemetry's TraceIdRatioBased, so a line that is kept has its span."""
    handler = emitter.add_handler(Collect(sampling=0.25, sampling_by="trace", delivery="inline"))
    theirs = TraceIdRatioBased(0.25)
    expected = []
    for number in range(200):
        with emitter.operation(Job, number=number) as job:
            pass
        if theirs.should_sample(None, job.trace_id, "job").decision.is_sampled():
            expected.append(number)
    assert [event.number for event in handler.events] == expected


def test_a_random_draw_takes_start_and_end_of_an_operation_together(emitter):
    """No line says that something started of which no line says how it ended."""
    handler = emitter.add_handler(CollectStarts(sampling=0.5, delivery="inline"))
    for number in range(200):
        with emitter.operation(Job, number=number):
            pass
    phases = Counter()
    for envelope in handler.got:
        phases[envelope.event.number] += 1 if envelope.is_start else 10
    assert set(phases.values()) == {11}
    assert 60 < len(phases) < 140


def test_children_of_one_trace_are_drawn_each_for_itself_at_random(emitter):
    """At random, events of one trace are independent: the trace id has no part in it."""
    handler = emitter.add_handler(Collect(sampling=0.5, delivery="inline"))
    with emitter.operation(Job):
        for number in range(200):
            with emitter.operation(Job, number=number):
                emitter.emit(Said(number=number))
    kinds = Counter(handler.names)
    assert 60 < kinds["sampling.said"] < 140
    assert 60 < kinds["sampling.job"] < 140


# -- so many per second ------------------------------------------------------------------------------------------------


def test_a_limit_lets_a_second_s_worth_through_at_once_and_then_as_many_per_second(emitter, clock):
    """``max_per_second`` is a token bucket: its burst is one second, it refills with the emitter's clock."""
    handler = emitter.add_handler(Collect(max_per_second=10, delivery="inline"))
    for _ in range(50):
        emitter.emit(Said())
    assert len(handler.got) == 10
    clock.advance(0.35)
    for _ in range(50):
        emitter.emit(Said())
    assert len(handler.got) == 13
    clock.advance(3600)
    for _ in range(50):
        emitter.emit(Said())
    assert account(emitter) == (23, 127, 23)


@pytest.mark.parametrize("rate", [0.5, 1, 3, 7, 13.5, 999, 5_000])
def test_a_bucket_gives_what_its_rate_says(rate):
    """At any rate, below one per second too, the first burst is a second's worth, and the long run meets the rate."""
    clock = Clock()
    bucket = TokenBucket(rate, clock.monotonic_ns)
    burst = 0
    while bucket.take():
        burst += 1
    assert burst == max(1, int(rate))
    taken = 0
    for _ in range(2_000):
        clock.advance(0.02)
        while bucket.take():
            taken += 1
    assert taken == pytest.approx(40 * rate, rel=0.01, abs=1)


def test_one_bucket_serves_all_routes_of_a_handler_and_outlives_their_compilation(emitter):
    """The limit is the handler's: another type, another severity or another handler do not fill it anew."""
    handler = emitter.add_handler(Collect(max_per_second=5, delivery="inline"))
    emitter.emit(Said())
    emitter.emit(Said(), severity="error")
    with emitter.operation(Job):
        pass
    emitter.add_handler(Collect(), name="another")
    for _ in range(5):
        emitter.emit(Said())
    assert len(handler.got) == 5


def test_a_limit_is_exact_under_threads(emitter):
    """Eight threads together get one second's worth, and every other envelope is counted as sampled out."""
    handler = emitter.add_handler(Collect(max_per_second=1_000, queue_size=100_000))
    threads = [threading.Thread(target=lambda: [emitter.emit(Said()) for _ in range(1_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emitter.flush()
    assert account(emitter) == (1_000, 7_000, 1_000)
    assert len(handler.got) == 1_000


def test_the_bucket_does_not_wait_for_itself_in_a_signal_handler():
    """An emit from a signal handler that interrupts one in the bucket goes on: the lock is re-entrant."""
    clock = Clock()
    inside = []

    def interrupted():
        if not inside:
            inside.append(None)
            signal.raise_signal(signal.SIGUSR1)
        return clock.monotonic_ns()

    bucket = TokenBucket(2, clock.monotonic_ns)
    bucket._clock_ns = interrupted

    def hangs(*_):
        raise AssertionError("the bucket waits for itself")

    before = {
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda *_: inside.append(bucket.take())),
        signal.SIGALRM: signal.signal(signal.SIGALRM, hangs),
    }
    signal.alarm(5)
    try:
        assert bucket.take()
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert inside == [None, True]


def test_a_forked_child_does_not_inherit_a_held_bucket():
    """A forked child starts with fresh locks: a bucket that a thread of the parent held is free in it."""
    bucket = TokenBucket(1_000, Clock().monotonic_ns)
    held, done = threading.Event(), threading.Event()

    def hold():
        with bucket._lock:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        signal.alarm(10)
        os._exit(0 if bucket.take() else 1)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- in combination ----------------------------------------------------------------------------------------------------


def test_what_the_share_leaves_out_costs_no_token(emitter):
    """The order is: severity, share, limit; so the limit is met by what the share has left."""
    handler = emitter.add_handler(Collect(sampling=0.5, max_per_second=100, delivery="inline"))
    for _ in range(150):
        emitter.emit(Said())
    passed = len(handler.got)
    assert 50 < passed < 100  # with the limit first it would be a half of 100
    for _ in range(400):
        emitter.emit(Said())
    assert account(emitter) == (100, 450, 100)


def test_from_keep_from_on_everything_is_taken(emitter):
    """``keep_from`` exempts from share and limit, and what it exempts costs no token."""
    handler = emitter.add_handler(
        Collect(sampling=0.0, max_per_second=1, keep_from="warning", delivery="inline", min_severity="trace")
    )
    for severity in ec.Severity:
        for _ in range(5):
            emitter.emit(Said(), severity=severity)
    with pytest.raises(KeyError), emitter.operation(Job):
        raise KeyError
    assert Counter(envelope.severity.name for envelope in handler.got) == {"WARNING": 5, "ERROR": 6, "CRITICAL": 5}
    assert account(emitter) == (16, 15, 16)


def test_by_default_severe_events_are_sampled_like_any_other(emitter):
    """A share is a share and a limit a limit of everything, unless ``keep_from`` says otherwise."""
    handler = emitter.add_handler(Collect(max_per_second=1, delivery="inline"))
    for _ in range(3):
        emitter.emit(Said(), severity="critical")
    assert len(handler.got) == 1


def test_without_sampling_there_is_nothing_in_the_route(emitter):
    """Whoever does not sample pays nothing: the sink in the route is the handler's own, also above ``keep_from``."""
    plain = emitter.add_handler(Collect(delivery="inline"), name="plain")
    kept = emitter.add_handler(Collect(delivery="inline", sampling=0.1, keep_from="error"), name="kept")
    route = emitter._routes[Said, ec.Severity.ERROR]
    assert [sink for sink, _ in route.sinks] == [plain.handle, kept.handle]
    assert emitter._routes[Said, None].sinks[1][0] != kept.handle


def test_a_sampling_handler_that_fails_is_counted_as_failing(emitter):
    """Sampling and isolation together: what was taken and failed is failed, what was left out is sampled."""

    def fail(_):
        raise ValueError("no")

    handler = emitter.add_handler(Collect(act=fail, max_per_second=3, delivery="inline", events="sampling.*"))
    for _ in range(10):
        emitter.emit(Said())
    row = emitter.ledger().handler("collect")
    assert (row.accepted, row.failed, row.sampled, handler.raised) == (3, 3, 7, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_by": "name"}, "option 'sampling_by' is 'name': .*'random' or 'trace'"),
        ({"max_per_second": 0}, "option 'max_per_second' is 0: .*greater than 0"),
        ({"max_per_second": float("inf")}, "option 'max_per_second' is inf: .*finite"),
        ({"keep_from": "loud"}, "option 'keep_from' is 'loud': .*unknown severity 'loud'"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options, message):
    """A wrong sampling option names handler, option, value and what was expected."""
    with pytest.raises(ec.ConfigurationError, match=f"^Collect: {message}"):
        Collect(**options)
