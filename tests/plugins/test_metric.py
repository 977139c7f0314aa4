import enum
import math
from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

import eventcore as ec
from eventcore.instruments import Field
from eventcore_metric.handler import MetricHandler
from eventcore_metric.sources import reader_of


class Mood(enum.Enum):
    CALM = "calm"
    TENSE = "tense"


class Paid(ec.Event, name="shop.paid", category="user"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")] = 1.0
    shop: Annotated[str | None, ec.Label] = None
    items: int = 1
    gift: bool = False
    mood: Mood = Mood.CALM


class Moved(ec.Event, name="shop.breaker", category="system"):
    state: Literal["closed", "half_open", "open"]
    breaker: Annotated[str, ec.Label] = "primary"


class Charge(ec.Operation, name="shop.charge", category="integration"):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    attempts: Annotated[int, ec.Measure(unit="1")] = ec.unset
    plan: Annotated[str, ec.Label] = ec.unset


class Scored(ec.Operation, name="shop.scored", category="model"):
    scores: ec.Array[float] = ec.unset
    chosen: ec.Array[bool] = ec.unset
    kind: Annotated[str, ec.Label] = "cheap"


class Odd(ec.Event, name="shop.odd", category="data"):
    tags: Annotated[Any, ec.Label]


def start(*instruments, **options):
    """Return a running emitter and its metric handler."""
    emitter = ec.configure(service="test", instruments=instruments, handlers={"metric": options})
    return emitter, emitter.handler("metric")


def series(metric, name):
    """Return the samples of one exported name: label values by order of label name, and the value."""
    families = parse_text(metric.render().decode())
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


# -- sources -----------------------------------------------------------------------------------------------------------


def test_one_operation_feeds_counter_gauge_and_histogram():
    """An operation emitted once is counted, measured and timed, without a second line of emitting code."""
    emitter, metric = start(
        ec.Counter("charges_total", on=Charge, labels={"provider": "provider", "status": "outcome"}, help="Charges."),
        ec.Histogram("charge_seconds", on=Charge, value="duration_s", buckets=(60.0,), help="Time."),
        ec.Gauge("last_attempts", on=Charge, value="attempts", help="Attempts."),
    )
    with emitter.operation(Charge, provider="stripe") as op:
        op.set(attempts=3)
    with pytest.raises(KeyError), emitter.operation(Charge, provider="adyen"):
        raise KeyError
    assert metric.value("charges_total", {"provider": "stripe", "status": "success"}) == 1
    assert metric.value("charges_total", {"provider": "adyen", "status": "failure"}) == 1
    assert metric.value("charge_seconds_count") == 2
    assert metric.value("charge_seconds_bucket", {"le": "60.0"}) == 2
    assert 0 < metric.value("charge_seconds_sum") < 60
    assert metric.value("last_attempts") == 3  # the failed one had none


SOURCES = [
    ("currency", {"currency": "usd"}, "usd"),
    ("shop", {"currency": "eur", "shop": "north"}, "north"),
    ("gift", {"currency": "eur", "gift": True}, "true"),
    ("mood", {"currency": "eur", "mood": Mood.TENSE}, "tense"),
    ("event", {"currency": "eur"}, "shop.paid"),
    ("category", {"currency": "eur"}, "user"),
    ("severity", {"currency": "eur"}, "info"),
    (ec.const("total"), {"currency": "eur"}, "total"),
    (ec.const(True), {"currency": "eur"}, "true"),
    (ec.bins("items", [10, 50]), {"currency": "eur", "items": 10}, "1-10"),
    (ec.bins("items", [10, 50]), {"currency": "eur", "items": 11}, "11-50"),
    (ec.bins("items", [10, 50]), {"currency": "eur", "items": 51}, "50+"),
    (ec.bins("items", [10, 50]), {"currency": "eur", "items": 0}, "1-10"),
    (ec.rename("currency", {"eur": "euro"}), {"currency": "eur"}, "euro"),
    (ec.rename("currency", {"eur": "euro"}), {"currency": "usd"}, "usd"),
    (ec.rename("currency", {"eur": "euro"}, other="else"), {"currency": "usd"}, "else"),
    (ec.rename("mood", {"calm": "fine", "tense": "bad"}), {"currency": "eur", "mood": Mood.TENSE}, "bad"),
    (ec.rename("gift", {True: "gift", False: "sale"}), {"currency": "eur", "gift": True}, "gift"),
]


@pytest.mark.parametrize(("source", "fields", "text"), SOURCES)
def test_every_kind_of_source_gives_its_label(source, fields, text):
    """A label shows what its source says: fields, facts, constants, ranges, other names; booleans and enums as text."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, labels={"x": source}, help="Payments."))
    emitter.emit(Paid(**fields))
    assert {labels: value for labels, value in series(metric, "paid_total").items() if value} == {(text,): 1}


@pytest.mark.parametrize("source", [*(source for source, _, _ in SOURCES), "amount", "time", "id", "correlation_id"])
def test_compiled_readers_agree_with_the_sources_own_definition(source):
    """What a compiled reader returns is what ``source.read`` returns, for every source and event."""
    source = Field(source) if isinstance(source, str) else source
    envelopes = []
    emitter = ec.Emitter()
    emitter.add_handler(Keep(envelopes))
    for fields in [fields for _, fields, _ in SOURCES]:
        emitter.emit(Paid(**fields))
    read = reader_of(source, Paid.__event__)
    for envelope in envelopes:
        expected = source.read(lambda name, e=envelope: plain(e.get(name)))
        assert plain(read(envelope, envelope.event.__dict__)) == expected


class Keep(ec.Handler):
    delivery = "inline"

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def handle(self, envelope):
        self.kept.append(envelope)


def plain(value):
    """Return the value of an enum member, anything else as it is."""
    return value.value if isinstance(value, enum.Enum) else value


def test_facts_of_an_operation_as_labels_and_values():
    """Outcome, error type and duration of an operation serve instruments like fields."""
    emitter, metric = start(
        ec.Counter("errors_total", on=Charge, labels={"type": "error_type"}, help="Errors."),
        ec.Gauge("last_end_timestamp_seconds", on=Charge, value="time", help="When."),
        ec.Counter("busy_seconds_total", on=Charge, value="duration_s", help="Time spent."),
    )
    with emitter.operation(Charge, provider="stripe"):
        pass
    with pytest.raises(KeyError), emitter.operation(Charge, provider="stripe"):
        raise KeyError
    assert series(metric, "errors_total") == {("KeyError",): 1}  # a success has no error type: no observation
    assert metric.value("last_end_timestamp_seconds") > 1.7e9
    assert metric.value("busy_seconds_total") > 0


def test_codes_give_states_numbers_from_the_start():
    """A gauge over codes shows its initial state before the first event, then the latest one."""
    emitter, metric = start(
        ec.Gauge(
            "breaker", on=Moved, value=ec.codes("state", initial="closed", closed=0, half_open=1, open=2), help="?"
        )
    )
    assert metric.value("breaker") == 0
    emitter.emit(Moved(state="open"))
    assert metric.value("breaker") == 2


def test_several_types_share_one_metric():
    """An instrument over several types adds them up, each with its own constants."""
    emitter, metric = start(ec.Counter("seen_total", on=(Paid, Moved), labels={"event": "event"}, help="Seen."))
    assert series(metric, "seen_total") == {("shop.paid",): 0, ("shop.breaker",): 0}
    emitter.emit(Paid(currency="eur"))
    emitter.emit(Moved(state="open"))
    emitter.emit(Moved(state="closed"))
    assert series(metric, "seen_total") == {("shop.paid",): 1, ("shop.breaker",): 2}


def test_many_labels_keep_their_order():
    """Three and more labels, constant ones between varying ones, end up under their own names."""
    emitter, metric = start(
        ec.Counter(
            "paid_total",
            on=Paid,
            labels={"a": "currency", "b": ec.const("k"), "c": ec.bins("items", [5]), "d": "gift"},
            help="Payments.",
        )
    )
    emitter.emit(Paid(currency="usd", items=6, gift=True))
    assert metric.value("paid_total", {"a": "usd", "b": "k", "c": "5+", "d": True}) == 1


# -- where, each, phase ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"currency": "eur"}, 2),
        ({"currency": ("eur", "usd")}, 3),
        ({"currency": "eur", "gift": True}, 1),
        ({"mood": "tense"}, 1),
        ({"severity": "error"}, 1),
        ({"items": 7}, 1),
    ],
)
def test_where_selects(where, expected):
    """Only events whose fields and facts have the wanted values are observed."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, where=where, help="Payments."))
    emitter.emit(Paid(currency="eur", gift=True))
    emitter.emit(Paid(currency="eur", mood=Mood.TENSE), severity="error")
    emitter.emit(Paid(currency="usd", items=7))
    assert metric.value("paid_total") == expected


@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_each_observes_every_element(make):
    """Aligned arrays are observed element by element: value, label and selection may all read them."""
    emitter, metric = start(
        ec.Counter("n_total", on=Scored, each=("chosen",), labels={"chosen": "chosen"}, help="Number."),
        ec.Histogram(
            "score",
            on=Scored,
            each=("scores", "chosen"),
            value="scores",
            where={"chosen": True},
            buckets=(0.5,),
            help="?",
        ),
        ec.Counter("elements_total", on=Scored, each=("scores",), labels={"kind": "kind"}, help="Number."),
    )
    with emitter.operation(Scored, scores=make([0.25, 0.5, 0.75]), chosen=make([True, False, True])):
        pass
    assert series(metric, "n_total") == {("true",): 2, ("false",): 1}
    assert (metric.value("score_count"), metric.value("score_sum")) == (2, 1.0)
    assert metric.value("score_bucket", {"le": "0.5"}) == 1
    assert metric.value("elements_total", {"kind": "cheap"}) == 3


def test_each_over_arrays_that_do_not_fit():
    """Arrays of unequal length are left out and counted; unset ones are simply no observation."""
    emitter, metric = start(ec.Counter("n_total", on=Scored, each=("scores", "chosen"), help="Number."))
    with emitter.operation(Scored, scores=[1.0, 2.0], chosen=[True]):
        pass
    with emitter.operation(Scored):
        pass
    assert metric.value("n_total") == 0
    assert metric.size()["rejected"] == 1
    assert metric.value("eventcore_metric_rejected_total", {"metric": "n_total"}) == 1
    assert emitter.ledger().handler("metric").failed == 0


def test_phase_start_counts_starts():
    """A counter with phase='start' counts an operation when it begins."""
    emitter, metric = start(
        ec.Counter("begun_total", on=Charge, phase="start", help="Begun."),
        ec.Counter("done_total", on=Charge, help="Done."),
    )
    with emitter.operation(Charge, provider="stripe"):
        assert (metric.value("begun_total"), metric.value("done_total")) == (1, 0)
    assert (metric.value("begun_total"), metric.value("done_total")) == (1, 1)


def test_gauge_of_what_is_in_flight():
    """A gauge with phase='start' adds at the start and subtracts at the end, however it ends."""
    emitter, metric = start(
        ec.Gauge("in_flight", on=Charge, phase="start", labels={"provider": "provider"}, help="Open."),
    )
    assert series(metric, "in_flight") == {("stripe",): 0, ("adyen",): 0}
    with emitter.operation(Charge, provider="stripe"):
        with suppress(KeyError), emitter.operation(Charge, provider="stripe"):
            assert series(metric, "in_flight") == {("stripe",): 2, ("adyen",): 0}
            raise KeyError
        assert series(metric, "in_flight") == {("stripe",): 1, ("adyen",): 0}
    assert series(metric, "in_flight") == {("stripe",): 0, ("adyen",): 0}


def test_in_flight_is_matched_by_operation():
    """Neither an end without a start nor a label that changes meanwhile leaves a wrong number in flight."""
    gauge = ec.Gauge("in_flight", on=Charge, phase="start", labels={"plan": "plan"}, help="Open.")
    emitter = ec.Emitter(catalog=ec.Catalog(instruments=[gauge]))
    early = emitter.operation(Charge, provider="stripe", plan="gold")
    early.__enter__()
    metric = emitter.add_handler(MetricHandler())
    early.end()
    with emitter.operation(Charge, provider="stripe", plan="gold") as op:
        op.set(plan="silver")
        assert series(metric, "in_flight") == {("gold",): 1}
    assert series(metric, "in_flight") == {("gold",): 0}
    emitter.shutdown()


def test_types_that_no_instrument_observes_cost_nothing():
    """The handler takes only types and phases that an instrument observes."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, help="Payments."))
    assert emitter.enabled(Paid)
    assert not emitter.enabled(Charge)
    assert metric.start_sink_for(Charge, ec.Severity.INFO) is None


# -- values that are none ----------------------------------------------------------------------------------------------


def test_unset_gives_no_observation():
    """A result that was not set is no observation: not as a value, not as a label, not for a selection."""
    emitter, metric = start(
        ec.Histogram("attempts", on=Charge, value="attempts", buckets=(1.0,), help="?"),
        ec.Counter("plans_total", on=Charge, labels={"plan": "plan", "provider": "provider"}, help="?"),
        ec.Counter("plan_total", on=Charge, labels={"plan": "plan"}, help="?"),
        ec.Counter("gold_total", on=Charge, where={"plan": "gold"}, help="?"),
    )
    with emitter.operation(Charge, provider="stripe"):
        pass
    assert metric.value("attempts_count") == 0
    assert series(metric, "plans_total") == series(metric, "plan_total") == {}
    assert metric.value("gold_total") == 0
    with emitter.operation(Charge, provider="stripe") as op:
        op.set(attempts=1, plan="gold")
    assert metric.value("attempts_count") == metric.value("gold_total") == 1
    assert series(metric, "plans_total") == {("gold", "stripe"): 1}


def test_none_is_an_empty_label():
    """A label field that is None is exported as an empty value."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, labels={"shop": "shop"}, help="?"))
    emitter.emit(Paid(currency="eur"))
    assert series(metric, "paid_total") == {("",): 1}


@pytest.mark.parametrize("amount", [math.nan, math.inf, -1.0])
def test_numbers_that_a_counter_cannot_take_are_counted_apart(amount):
    """One NaN does not make a total NaN for ever: it is left out, counted, and the handler goes on."""
    emitter, metric = start(ec.Counter("amount_total", on=Paid, value="amount", help="?"))
    emitter.emit(Paid(currency="eur", amount=amount))
    emitter.emit(Paid(currency="eur", amount=2.5))
    assert metric.value("amount_total") == 2.5
    assert metric.value("eventcore_metric_rejected_total", {"metric": "amount_total"}) == 1


def test_label_text_that_cannot_be_encoded_does_not_break_scrapes():
    """A lone surrogate, quotes and line breaks in a label leave the exposition valid."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, labels={"shop": "shop"}, help="?"))
    emitter.emit(Paid(currency="eur", shop='a"\n\\b'))
    emitter.emit(Paid.model_construct(currency="eur", shop="\ud800"))
    assert series(metric, "paid_total") == {('a"\n\\b',): 1, ("\\ud800",): 1}


def test_a_fold_that_raises_costs_its_own_observation_only():
    """What cannot be folded at all counts as failed; other instruments see the event, other events are unharmed."""
    emitter, metric = start(
        ec.Counter("tags_total", on=Odd, labels={"tags": "tags"}, help="A list is no label."),
        ec.Counter("odd_total", on=Odd, help="?"),
        ec.Counter("paid_total", on=Paid, help="?"),
    )
    emitter.emit(Odd(tags=["a"]))
    emitter.emit(Paid(currency="eur"))
    assert (metric.value("odd_total"), metric.value("paid_total")) == (1, 1)
    row = emitter.ledger().handler("metric")
    assert (row.delivered, row.failed) == (1, 1)
