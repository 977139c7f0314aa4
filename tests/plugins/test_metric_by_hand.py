"""Counters, gauges and histograms by hand: typed, catalogued, bounded and exported as instruments are."""

from __future__ import annotations

import enum
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from typing import Literal

import pytest

import eventcore as ec
from eventcore import by_hand
from eventcore.exposition import exposition_of
from eventcore.plugins import Plugins

NUMBERS = itertools.count()


class Tier(enum.Enum):
    MEMORY = "memory"
    DISK = "disk"


@pytest.fixture(autouse=True)
def _own_declarations(monkeypatch):
    """Leave no declaration behind for other tests: they live as long as the process."""
    monkeypatch.setattr(by_hand, "_declared", {})


@pytest.fixture
def name():
    """Return a metric name that no other test has."""
    return f"by_hand_{next(NUMBERS)}"


@pytest.fixture
def metric():
    """Return the metric handler of a running emitter."""
    return ec.configure(service="test", handlers={"metric": {"max_series": 20}}).handler("metric")


def test_the_three_kinds_record_what_they_are_told(metric, name):
    """A counter adds up, a gauge goes up and down, a histogram sorts observations into its buckets."""
    hits = ec.counter(f"{name}_hits_total", labels=("tier",), help="Hits.")
    size = ec.gauge(f"{name}_size", help="Size.")
    wait = ec.histogram(f"{name}_wait_seconds", help="Waits.", buckets=(0.1, 1.0))
    hits.inc(tier="memory")
    hits.inc(2.5, tier="memory")
    size.set(10)
    size.inc(5)
    size.dec()
    wait.observe(0.5)
    wait.observe(5)
    assert metric.value(f"{name}_hits_total", {"tier": "memory"}) == 3.5
    assert metric.value(f"{name}_size") == 14
    assert [metric.value(f"{name}_wait_seconds_bucket", {"le": le}) for le in ("0.1", "1.0", "+Inf")] == [0, 1, 2]
    assert metric.value(f"{name}_wait_seconds_sum") == 5.5


def test_a_block_is_timed_however_it_ends(metric, name):
    """``time()`` observes the seconds that a block takes, also when it raises."""
    wait = ec.histogram(f"{name}_seconds", help="Waits.")
    with wait.time():
        time.sleep(0.02)
    with pytest.raises(KeyError), wait.time():
        raise KeyError
    assert metric.value(f"{name}_seconds_count") == 2
    assert metric.value(f"{name}_seconds_sum") >= 0.02


def test_what_is_declared_before_configure_is_recorded_from_then_on(name):
    """Declared in a module at import, recorded by every handler attached later; without one a call does nothing."""
    early = ec.counter(f"{name}_total", help="?")
    early.inc()
    emitter = ec.configure(handlers={"one": {"use": "metric"}, "two": {"use": "metric"}})
    early.inc(2)
    one, two = emitter.handler("one"), emitter.handler("two")
    assert (one.value(f"{name}_total"), two.value(f"{name}_total")) == (2, 2)
    emitter.remove_handler("two")
    early.inc()
    assert (one.value(f"{name}_total"), two.value(f"{name}_total")) == (3, 2)
    ec.shutdown()
    early.inc()
    assert early.recorders == ()


def test_a_declaration_again_is_the_same_metric_and_another_is_an_error(name):
    """Two modules may declare one metric alike; declared otherwise, the error names the metric."""
    first = ec.counter(f"{name}_total", labels=("tier",), help="Hits.")
    assert ec.counter(name, labels=["tier"], help="Hits.") is first
    with pytest.raises(ec.InstrumentError, match=f"{name}_total.*declared already"):
        ec.counter(f"{name}_total", labels=("tier", "more"), help="Hits.")
    with pytest.raises(ec.InstrumentError, match="declared already"):
        ec.counter(f"{name}_total", labels=("tier",), help="Other.")


class Moved(ec.Event, name="by_hand.moved", category="data"):
    pass


def test_a_name_that_an_instrument_has_is_refused(name):
    """Declared while a handler exports an instrument of that name: an error. Declared before: the handler refuses."""
    ec.configure(instruments=[ec.Counter(f"{name}_total", on=Moved, help="?")], handlers={"metric": {}})
    with pytest.raises(ec.InstrumentError, match=f"series '{name}_total' would be exposed twice"):
        ec.counter(name, help="?")
    ec.shutdown()
    ec.counter(f"{name}_b_total", help="?")
    with pytest.raises(ec.ConfigurationError, match=f"series '{name}_b_total' would be exposed twice"):
        ec.configure(instruments=[ec.Counter(f"{name}_b_total", on=Moved, help="?")], handlers={"metric": {}})


def test_typed_labels_are_known_to_the_catalog_and_checked(metric, name):
    """Labels with a finite type have known values, show at zero before the first call, and take no others."""
    hits = ec.counter(
        f"{name}_total",
        labels={"tier": Tier, "ok": bool, "op": Literal["get", "put"], "zone": ["a", "b"]},
        help="Hits.",
    )
    hits.inc(tier=Tier.DISK, ok=True, op="get", zone="a")
    assert metric.value(f"{name}_total", {"tier": "disk", "ok": True, "op": "get", "zone": "a"}) == 1
    assert metric.value(f"{name}_total", {"tier": "memory", "ok": False, "op": "put", "zone": "b"}) == 0
    known = exposition_of(metric.emitter.catalog, Plugins()).metrics[f"{name}_total"]
    assert known.combinations == 16
    assert known.labels["tier"] == {"memory", "disk"}
    with pytest.raises(ec.InstrumentError, match=r"label 'tier' is never 'dusk'; did you mean 'disk'\?"):
        hits.inc(tier="dusk", ok=True, op="get", zone="a")


def test_wrong_labels_are_an_error_where_they_are_given(name):
    """A missing or an unknown label is a programming error: it raises at the call, handler or not, and names it."""
    hits = ec.counter(f"{name}_total", labels=("tier",), help="?")
    with pytest.raises(ec.InstrumentError, match=r"no label 'teir'; did you mean 'tier'\?"):
        hits.inc(teir="x")
    with pytest.raises(ec.InstrumentError, match="needs a value for its labels: tier"):
        hits.inc()
    wait = ec.histogram(f"{name}_seconds", labels=("op",), help="?")
    with pytest.raises(ec.InstrumentError, match="needs a value"), wait.time():
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: ec.counter("no name", help="?"), "is no metric name"),
        (lambda: ec.counter("x_total", labels=("le",), help="?"), "'le' is no label name"),
        (lambda: ec.counter("x_total", labels="tier", help="?"), r"is one text; write \('tier',\)"),
        (lambda: ec.counter("x_total", labels={"tier": int}, help="?"), "label 'tier' can be str, bool"),
        (lambda: ec.histogram("x", help="?", buckets=(1, 1)), "buckets must increase"),
        (lambda: ec.histogram("x", help="?", buckets=()), "buckets must increase"),
        (lambda: ec.gauge("x", help="?", across="mean"), "across is 'sum', 'max', 'min' or 'latest', not 'mean'"),
    ],
)
def test_a_wrong_declaration_is_one_clear_error(declare, message):
    """What cannot be a metric is refused when it is declared, in the caller's words."""
    with pytest.raises(ec.InstrumentError, match=message):
        declare()


def test_what_is_no_number_is_left_out_and_counted(metric, name):
    """NaN, infinity, text and negative increments would spoil a total: they are counted, and harm nobody."""
    total = ec.counter(f"{name}_total", help="?")
    wait = ec.histogram(f"{name}_seconds", help="?")
    level = ec.gauge(f"{name}_level", help="?")
    for wrong in (math.nan, math.inf, -1, "x", None):
        total.inc(wrong)
    for wrong in (math.nan, math.inf, "x"):
        wait.observe(wrong)
    level.set("x")
    level.set(math.inf)
    assert metric.value(f"{name}_total") == 0
    assert metric.value(f"{name}_seconds_count") == 0
    assert metric.value(f"{name}_level") == math.inf  # a gauge may be infinite, or NaN: it says so itself
    rejected = [
        metric.value("eventcore_metric_rejected_total", {"metric": f"{name}{suffix}"})
        for suffix in ("_total", "_seconds", "_level")
    ]
    assert rejected == [5, 3, 1]


def test_the_limit_of_series_holds_by_hand_too(metric, name):
    """Beyond max_series label values go to the overflow series; no count is lost, and the use is counted."""
    total = ec.counter(f"{name}_total", labels=("who",), help="?")
    for number in range(100):
        total.inc(who=str(number))
    assert metric.value(f"{name}_total", {"who": "other"}) == 80
    assert metric.value("eventcore_metric_overflow_total", {"metric": f"{name}_total"}) == 80
    assert metric.get_cardinality_stats()["metrics"][f"{name}_total"] == {"cardinality": 21, "dropped": 80}


def test_threads_lose_no_increment(metric, name):
    """Any thread may record: 8 threads with 5,000 increments and observations each make exactly 40,000."""
    total = ec.counter(f"{name}_total", labels=("who",), help="?")
    wait = ec.histogram(f"{name}_seconds", help="?", buckets=(1.0,))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def work(who):
            for _ in range(5_000):
                total.inc(who=who)
                wait.observe(0.5)

        threads = [threading.Thread(target=work, args=(str(number % 2),)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert [metric.value(f"{name}_total", {"who": who}) for who in "01"] == [20_000, 20_000]
    assert (metric.value(f"{name}_seconds_count"), metric.value(f"{name}_seconds_sum")) == (40_000, 20_000)


def test_a_forked_child_starts_at_zero(metric, name):
    """What the parent counted is the parent's: in the child totals start at zero, and its locks are free."""
    total = ec.counter(f"{name}_total", help="?")
    total.inc(5)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        total.inc()
        os.write(write, f"{metric.value(f'{name}_total')}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert float(os.read(read, 100)) == 1
    assert metric.value(f"{name}_total") == 5
    os.close(read)
    os.close(write)


def test_declaring_needs_no_exporter_library():
    """A library may declare metrics by hand without the metric plugin's dependency."""
    code = "import sys, eventcore as ec; ec.counter('a', help='?').inc(); sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
