import contextlib
import enum
import math
import os
import signal
import threading
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eventcore as ec
from eventcore_metric.compiled import whole_fold
from eventcore_metric.folding import folds_of
from eventcore_metric.series import family_of
from tests.support.handlers import Collect


class Kind(enum.Enum):
    CARD = "card"
    CASH = "cash"


class Sold(ec.Event, name="compiled.sold", category=ec.Category.DATA):
    kind: Kind
    shop: Annotated[str, ec.Label]
    amount: Annotated[Any, ec.Measure(unit="1")] = ec.unset


class Served(ec.Operation, name="compiled.served", category=ec.Category.DATA):
    table: Annotated[Literal["one", "two"], ec.Label]
    amount: Annotated[Any, ec.Measure(unit="1")] = ec.unset


SHOPS = {"shop": "shop", "kind": "kind"}
INSTRUMENTS = [
    ec.Counter("sold_total", on=Sold, help="Sold.", labels={"kind": "kind"}),
    ec.Counter("sold_everywhere_total", on=Sold, help="Sold.", labels={"where": ec.const("all")}),
    ec.Counter("sold_amount_total", on=Sold, help="Amount.", labels=SHOPS, value="amount"),
    ec.Counter("sold_for_cash_total", on=Sold, help="Cash.", labels={"shop": "shop"}, where={"kind": "cash"}),
    ec.Histogram("sold_amount", on=Sold, help="Amounts.", labels={"shop": "shop"}, value="amount", buckets=(1, 10)),
    ec.Gauge("sold_last", on=Sold, help="The last.", value="amount"),
]
OPERATIONS = [
    ec.Counter("served_total", on=Served, help="Served.", labels={"table": "table", "outcome": "outcome"}),
    ec.Histogram("served_seconds", on=Served, help="Time.", labels={"table": "table"}, value="duration_s"),
    ec.Counter(
        "served_errors_total", on=Served, help="Errors.", labels={"error": ec.rename("error_type", {}, other="x")}
    ),
]

values = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.none(),
    st.just(ec.unset),
    st.just("12"),
    st.just(10**400),
)


def readings(instruments, envelopes, event_type, *, is_whole, exemplars="trace_based"):
    """Return what the families show after the envelopes were folded, one fold at a time or by the compiled function."""
    families = [family_of(instrument, 3) for instrument in instruments]
    for instrument, family in zip(instruments, families, strict=True):
        family.exemplars = exemplars
        family.initialise(instrument)
    folds = [(i, family, folds_of(i, event_type, family).end) for i, family in zip(instruments, families, strict=True)]
    whole = whole_fold(event_type, folds)
    for envelope in envelopes:
        fields = envelope.event.__dict__
        if is_whole:
            assert whole(envelope, fields) is None
        else:
            for _, _, fold in folds:
                fold(envelope, fields)
    return [(repr(family.read().points), family.overflowed, family.rejected) for family in families]


@given(st.lists(st.tuples(st.sampled_from(Kind), st.sampled_from(["a", "b", "c", "d", "e"]), values)))
def test_compiled_folds_do_what_the_folds_do(sold):
    """Whatever the values: series, overflow and rejections are those of the folds that are called one by one."""
    emitter = ec.Emitter()  # its handler is inline: nothing to shut down
    seen = emitter.add_handler(Collect(delivery="inline"))
    for kind, shop, amount in sold:
        emitter.emit(Sold(kind=kind, shop=shop, amount=amount))
    envelopes = seen.got
    assert len(envelopes) == len(sold)
    one_by_one = readings(INSTRUMENTS, envelopes, Sold, is_whole=False)
    assert readings(INSTRUMENTS, envelopes, Sold, is_whole=True) == one_by_one


@pytest.mark.parametrize("exemplars", ["trace_based", "always_on", "always_off"])
def test_compiled_folds_read_the_facts_of_operations(exemplars):
    """Durations, outcomes, errors and the exemplars of operations are those of the folds that are called one by one."""
    emitter = ec.Emitter()  # its handler is inline: nothing to shut down
    seen = emitter.add_handler(Collect(delivery="inline"))
    emitter.trace_bound = 1 << 63
    for number in range(40):
        operation = emitter.operation(Served, table="one" if number % 2 else "two")
        with contextlib.suppress(OSError), operation:
            if number % 3:
                raise OSError("no")
    one_by_one = readings(OPERATIONS, seen.got, Served, is_whole=False, exemplars=exemplars)
    assert readings(OPERATIONS, seen.got, Served, is_whole=True, exemplars=exemplars) == one_by_one
    assert ("Exemplar" in repr(one_by_one)) == (exemplars != "always_off")


def test_a_fold_that_raises_costs_its_own_observation():
    """The first error is returned, and the other instruments of the type have counted all the same."""
    emitter = ec.Emitter()  # its handler is inline: nothing to shut down
    seen = emitter.add_handler(Collect(delivery="inline"))
    emitter.emit(Sold(kind=Kind.CARD, shop="a", amount=1.0))
    (envelope,) = seen.got
    families = [family_of(instrument, 3) for instrument in INSTRUMENTS]
    whole = whole_fold(Sold, [(i, f, folds_of(i, Sold, f).end) for i, f in zip(INSTRUMENTS, families, strict=True)])
    fields = {key: value for key, value in envelope.event.__dict__.items() if key != "shop"}
    error = whole(envelope, fields)
    assert isinstance(error, KeyError)
    assert families[0].at(("card",)).value == 1
    assert math.isclose(families[5].at(()).value, 1.0)


class Hit(ec.Event, name="compiled.hit", category=ec.Category.CACHE):
    shop: Annotated[str, ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")] = 1.0


class Looked(ec.Operation, name="compiled.looked", category=ec.Category.CACHE):
    shop: Annotated[str, ec.Label]


BOTH = [
    ec.Counter("hits_total", on=(Hit, Looked), help="Hits.", labels={"shop": "shop"}),
    ec.Histogram("hit_amount", on=Hit, help="Amounts.", labels={"shop": "shop"}, value="amount", buckets=(1, 2)),
]


def with_metrics(instruments, **handlers):
    """Return an emitter in use with a metric handler over ``instruments``."""
    return ec.configure(service="t", instruments=instruments, handlers={"metric": {}, **handlers}, replace=True)


@pytest.fixture
def emitter():
    """An emitter whose only handler is the metric handler."""
    with with_metrics(BOTH) as emitter:
        yield emitter


def test_events_that_are_only_measured_are_folded_in_the_caller(emitter):
    """They are in the series when ``emit`` returns, and no worker was started for them."""
    emitter.emit(Hit(shop="a"))
    (attachment,) = emitter.attachments
    assert attachment.queue.depth == 0
    assert attachment.handler.value("hits_total", {"shop": "a"}) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "eventcore-metric"]
    assert emitter.ledger().handler("metric").delivered == 1


def test_callers_and_the_worker_add_to_the_same_series_exactly(emitter):
    """Eight threads that emit events, and operations folded by the worker at the same time: no increment is lost."""
    many = 5_000

    def run():
        for number in range(many):
            emitter.emit(Hit(shop="a", amount=number % 3))
            if number % 5 == 0:
                with emitter.operation(Looked, shop="a"):
                    pass

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emitter.flush(30)
    handler = emitter.handler("metric")
    assert handler.value("hits_total", {"shop": "a"}) == 8 * many + 8 * many / 5
    assert handler.value("hit_amount_count", {"shop": "a"}) == 8 * many
    assert handler.value("hit_amount_sum", {"shop": "a"}) == 8 * sum(number % 3 for number in range(many))
    assert emitter.ledger().is_settled


def test_a_value_that_no_metric_can_take_is_rejected_in_the_caller_too(emitter):
    """NaN does not reach a sum by the direct way either; the event counts as delivered."""
    emitter.emit(Hit(shop="a", amount=math.nan))
    handler = emitter.handler("metric")
    assert handler.value("hits_total", {"shop": "a"}) == 1
    assert not handler.value("hit_amount_count", {"shop": "a"})
    assert handler.size()["rejected"] == 1


@pytest.mark.parametrize(
    "instrument",
    [
        ec.Gauge("g", on=Hit, help="Order matters.", labels={"shop": "shop"}, value="amount"),
        ec.Counter("c_total", on=Hit, help="A fact of the envelope.", labels={"severity": "severity"}),
        ec.Counter("o_total", on=Looked, help="An operation is validated by the worker.", labels={"shop": "shop"}),
    ],
    ids=lambda instrument: instrument.name,
)
def test_what_needs_more_than_fields_and_sums_goes_to_the_worker(instrument):
    """Gauges, facts of the envelope and operations have no direct way."""
    with with_metrics([instrument]) as emitter:
        handler = emitter.handler("metric")
        for event_type in instrument.types:
            assert handler.direct_sink_for(event_type, ec.Severity.INFO) is None


def test_a_signal_handler_may_emit_while_its_thread_folds(emitter):
    """A signal handler that emits neither waits for the lock of the fold that it interrupts, nor loses anything."""
    heard = []

    def hear(*_):
        heard.append(None)
        emitter.emit(Hit(shop=f"shop {len(heard) % 50}"))

    many = 40_000
    before = signal.signal(signal.SIGALRM, hear)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for number in range(many):
            emitter.emit(Hit(shop=f"shop {number % 50}"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    handler = emitter.handler("metric")
    counted = sum(handler.value("hits_total", {"shop": f"shop {number}"}) for number in range(50))
    assert heard
    assert counted == many + len(heard)
    assert emitter.ledger().handler("metric").delivered == many + len(heard)


def test_series_in_files_are_left_to_the_worker(tmp_path):
    """With ``multiprocess_dir`` nothing is folded in the caller: a new series in a file takes locks."""
    with ec.configure(
        service="t", instruments=BOTH, handlers={"metric": {"multiprocess_dir": str(tmp_path)}}, replace=True
    ) as emitter:
        assert emitter.handler("metric").direct_sink_for(Hit, ec.Severity.INFO) is None


def test_a_fork_leaves_no_lock_taken(emitter):
    """A thread that folds while another forks holds a lock that the child does not wait for."""
    handler = emitter.handler("metric")
    lock = handler.direct_sink_for(Hit, ec.Severity.INFO).__globals__["lock"]
    taken, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(30)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        signal.alarm(10)
        emitter.emit(Hit(shop="a"))
        os._exit(0 if handler.value("hits_total", {"shop": "a"}) == 1 else 1)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
