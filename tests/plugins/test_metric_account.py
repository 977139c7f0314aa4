"""The bus's own account as metrics: every series that is declared is fed, and says what the ledger says."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections import Counter
from math import inf

import pytest

import eventcore as ec
from eventcore.timing import NOT_TIMED, TIMED_MASK
from eventcore_metric.account import BusAccount
from eventcore_metric.declared import BUS
from eventcore_metric.handler import MetricHandler
from eventcore_metric.prometheus import families_of
from tests.support.handlers import Clock, Collect, CollectBatches, CollectStarts, Held, eventually


class Said(ec.Event, name="account.said", category="user"):
    number: int = 0


class Job(ec.Operation, name="account.job", category="execution"):
    pass


METRICS = [ec.Counter("said_total", on=Said, help="Said.")]


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def emitter(clock):
    """Return an emitter with a metric handler."""
    emitter = ec.Emitter(clock=clock, catalog=ec.Catalog(instruments=METRICS))
    emitter.add_handler(MetricHandler(linger_s=0))
    yield emitter
    emitter.shutdown()


def samples(emitter):
    """Return every sample of the bus's account by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families_of(BusAccount(emitter, 1000).read())
        for sample in family.samples
    }


def buckets(emitter, name, *labels):
    """Return the cumulative counts of a histogram by upper bound."""
    return {
        float(key[-1]): value
        for key, value in samples(emitter).items()
        if key[0] == f"{name}_bucket" and key[1:-1] == labels
    }


def test_every_declared_series_is_fed(emitter, promtool):
    """Declared and never emitted does not exist here: in one run each metric of the bus moves, and promtool agrees."""
    held = emitter.add_handler(Held(linger_s=0, events="account.job"), name="held")
    broken = emitter.add_handler(Collect(act=lambda _: 1 / 0, linger_s=0, batch_size=1), name="broken")
    emitter.add_handler(Collect(sampling=0.5, linger_s=0, queue_size=1), name="sampling")
    for _ in range(2_100):
        emitter.emit(Said())
    with contextlib.suppress(KeyError), emitter.operation(Job):
        raise KeyError
    still_open = emitter.operation(Job)
    still_open.__enter__()
    abandoned = emitter.operation(Job)
    abandoned.__enter__()
    abandoned.end("abandoned")
    assert held.entered.wait(5)
    assert eventually(lambda: broken.raised >= 5)
    metric = emitter.handler("metric")
    assert eventually(lambda: metric.value("eventcore_handler_breaker_state", {"handler": "broken"}) == 2)
    readings = BusAccount(emitter, 1000).read()
    moved = {reading.metric.name for reading in readings if any(p.value > 0 or sum(p.counts) for p in reading.points)}
    assert moved == {metric.name for metric in BUS}
    fed = {key[2:] for key, value in samples(emitter).items() if key[0] == "eventcore_events_total" and value}
    assert {("delivered", ""), ("failed", ""), ("filtered", ""), ("sampled", ""), ("dropped", "quarantined")} <= fed
    result = subprocess.run([promtool, "check", "metrics"], input=metric.render(), capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    held.release.set()
    still_open.__exit__(None, None, None)


def test_emitted_is_counted_by_event_category_and_severity(emitter):
    """``eventcore_emitted_total`` counts each event once, however many handlers take it, and no starts."""
    emitter.add_handler(CollectStarts(delivery="inline"), name="one")
    emitter.add_handler(Collect(sampling=0.1, events="account.said"), name="two")
    expected = Counter()
    for number in range(60):
        severity = list(ec.Severity)[number % 5]
        emitter.emit(Said(), severity=severity)
        expected["eventcore_emitted_total", "account.said", "user", severity.name.lower()] += 1
        with contextlib.suppress(KeyError), emitter.operation(Job):
            if number % 3 == 0:
                raise KeyError
        expected["eventcore_emitted_total", "account.job", "execution", "info" if number % 3 else "error"] += 1
    got = {key: value for key, value in samples(emitter).items() if key[0] == "eventcore_emitted_total"}
    assert got == expected


def test_what_nobody_wants_is_not_counted(emitter):
    """A type without a route is not counted: that is what makes its emit cost close to nothing."""
    with emitter.operation(Job):
        pass
    assert not [key for key in samples(emitter) if key[:2] == ("eventcore_emitted_total", "account.job")]
    assert samples(emitter)["eventcore_operations_ended_total",] == 1


def test_operations_started_are_those_ended_abandoned_and_open(emitter):
    """Operations started = ended + abandoned + open, at any moment."""
    operations = [emitter.operation(Job) for _ in range(6)]
    seen = []

    def balance():
        got = samples(emitter)
        started, ended, abandoned, still_open = (
            got[f"eventcore_operations_{what}",] for what in ("started_total", "ended_total", "abandoned_total", "open")
        )
        assert started == ended + abandoned + still_open
        seen.append((ended, abandoned, still_open))

    balance()
    for operation in operations:
        operation.__enter__()
        balance()
    for index, operation in reversed(list(enumerate(operations))):
        operation.end("abandoned" if index < 2 else None)
        balance()
    assert seen[0] == (0, 0, 0)
    assert seen[6] == (0, 0, 6)
    assert seen[-1] == (4, 2, 0)


def test_the_breaker_of_a_handler_is_seen_to_open_and_to_close(emitter, clock):
    """A handler in quarantine shows as 2, and as 0 again when it works."""
    is_broken = True

    def act(_):
        if is_broken:
            raise ValueError("no")

    emitter.add_handler(Collect(act=act, delivery="inline", events="account.said"), name="flaky")
    state = "eventcore_handler_breaker_state", "flaky"
    assert samples(emitter)[state] == 0
    for _ in range(10):
        emitter.emit(Said())
    assert samples(emitter)[state] == 2
    is_broken = False
    clock.advance(120)
    emitter.emit(Said())
    assert samples(emitter)[state] == 0


def test_batches_and_waits_are_those_that_the_handler_saw(emitter, clock):
    """One duration and one wait per batch, as the handler's worker saw them."""
    handler = emitter.add_handler(CollectBatches(linger_s=0, batch_size=10), name="batches")
    for _ in range(100):
        emitter.emit(Said())
    assert emitter.flush()
    got = samples(emitter)
    assert got["eventcore_batch_duration_seconds_count", "batches"] == len(handler.batches)
    assert got["eventcore_queue_wait_seconds_count", "batches"] == len(handler.batches)
    assert got["eventcore_batch_duration_seconds_sum", "batches"] > 0
    held = emitter.add_handler(Held(linger_s=0, batch_size=1), name="held")
    emitter.emit(Said())
    assert held.entered.wait(5)
    emitter.emit(Said())  # waits behind the first
    clock.advance(7)
    held.release.set()
    assert emitter.flush()
    waits = buckets(emitter, "eventcore_queue_wait_seconds", "held")
    assert (waits[0.001], waits[5], waits[10], waits[inf]) == (1, 1, 2, 2)
    assert samples(emitter)["eventcore_queue_wait_seconds_sum", "held"] == pytest.approx(7)


def test_a_clock_that_is_set_back_makes_no_negative_wait(emitter, clock):
    """The wall clock may be set back while an event waits; its wait counts as zero."""
    held = emitter.add_handler(Held(linger_s=0, batch_size=1), name="held")
    emitter.emit(Said())
    assert held.entered.wait(5)
    emitter.emit(Said())
    clock.advance(-3600)
    held.release.set()
    assert emitter.flush()
    assert samples(emitter)["eventcore_queue_wait_seconds_sum", "held"] == 0


def test_one_emit_of_1024_is_timed_in_every_thread(emitter):
    """The caller's time is a sample by sequence number: exact in number, whichever thread meets it, and no more."""
    threads = [threading.Thread(target=lambda: [emitter.emit(Said()) for _ in range(1_500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(200):
        with emitter.operation(Job):
            pass
    assert samples(emitter)["eventcore_emit_duration_seconds_count",] == 6_000 // 1024


def test_the_time_is_that_of_the_caller(emitter, clock):
    """What an inline handler takes is in the caller's time; operations are timed like events."""
    emitter.add_handler(Collect(act=lambda _: clock.advance(0.0004), delivery="inline"), name="slow")
    for _ in range(1_024):
        emitter.emit(Said())
    for _ in range(1_024):
        with emitter.operation(Job):
            pass
    times = buckets(emitter, "eventcore_emit_duration_seconds")
    assert (times[0.00025], times[0.0005], times[inf]) == (0, 2, 2)
    assert samples(emitter)["eventcore_emit_duration_seconds_sum",] == pytest.approx(0.0008)


def test_without_a_metric_handler_no_emit_is_timed():
    """Nobody shows the times, so nobody takes them."""
    emitter = ec.Emitter()
    emitter.add_handler(Collect(delivery="inline"))
    for _ in range(2_048):
        emitter.emit(Said())
    assert sum(emitter.emit_times.read().counts) == 0
    first, second = (emitter.add_handler(MetricHandler(), name=name) for name in ("first", "second"))
    emitter.remove_handler(first)
    assert emitter.timed_mask == TIMED_MASK
    emitter.remove_handler(second)
    assert emitter.timed_mask == NOT_TIMED
    emitter.shutdown()


@pytest.mark.parametrize("option", [{"sampling": 0.5}, {"sampling": 0}, {"max_per_second": 1}])
def test_a_metric_handler_refuses_to_sample(option):
    """Metrics stay exact: an option that would make the numbers wrong is an error that says what to do instead."""
    ((name, value),) = option.items()
    with pytest.raises(
        ec.ConfigurationError, match=rf"option '{name}' is {value}: .*metrics are exact.*remove '{name}'"
    ):
        MetricHandler(**option)
    MetricHandler(sampling=1.0, max_per_second=None)
