import contextlib
import enum
import math
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
    emitter = ec.Emitter()
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
    emitter = ec.Emitter()
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
    emitter = ec.Emitter()
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
