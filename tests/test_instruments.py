import math
from typing import Annotated, Literal

import pytest

import eventcore as ec
from eventcore.catalog import Catalog


class Routed(
    ec.Operation,
    name="shop.routed",
    category="execution",
):
    model: Annotated[str, ec.Label]
    decision: Literal["light", "powerful"] = ec.unset
    cached: bool = False
    candidates: Annotated[int, ec.Measure(unit="1")] = ec.unset
    reason: str = ""
    user: Annotated[str, ec.Sensitive] = ec.unset
    scores: Annotated[ec.Array[float], ec.Measure(unit="1")] = ()
    kinds: ec.Array[Literal["a", "b"]] = ()


class Moved(ec.Event, name="shop.moved", category="system"):
    state: Literal["closed", "half_open", "open"]
    load: float = 0.0
    place: str = ""


def counter(**options):
    """Return a counter over Routed, changed as told."""
    return ec.Counter("shop_total", **{"on": Routed, "help": "h", **options})


def read(source, **values):
    """Return what a source reads where fields have these values (and are unset otherwise)."""
    return source.read(lambda name: values.get(name, ec.unset))


# -- sources -----------------------------------------------------------------------------------------------------------


def test_a_field_is_a_source_by_its_name():
    """A source is a field by its name; its values are those of the field's type."""
    instrument = counter(labels={"decision": "decision", "cached": "cached"})
    assert instrument.label_values("decision") == ("light", "powerful")
    assert instrument.label_values("cached") == (False, True)
    assert read(instrument.label_sources["decision"], decision="light") == "light"
    assert read(instrument.label_sources["decision"]) is ec.unset


def test_a_label_by_role_need_not_be_finite():
    """The ``Label`` role makes any field a label, though its values are not known beforehand."""
    assert counter(labels={"model": "model"}).label_values("model") is None


@pytest.mark.parametrize(
    ("fact", "values"),
    [
        ("outcome", ("success", "failure", "cancelled", "abandoned")),
        ("severity", ("trace", "debug", "info", "warning", "error", "critical")),
        ("category", ("execution",)),
        ("event", ("shop.routed",)),
        ("error_type", None),
    ],
)
def test_an_envelope_fact_is_a_source_by_its_name(fact, values):
    """Instruments name envelope facts like fields."""
    assert counter(labels={"fact": fact}).label_values("fact") == values


def test_const_is_always_the_same():
    """``ec.const("total")`` is one value, for every event."""
    instrument = counter(labels={"scope": ec.const("total")})
    assert instrument.label_values("scope") == ("total",)
    assert read(instrument.label_sources["scope"]) == "total"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (-3, "1-10"),
        (0, "1-10"),
        (1, "1-10"),
        (10, "1-10"),
        (10.5, "11-50"),
        (11, "11-50"),
        (50, "11-50"),
        (51, "51-100"),
        (100, "51-100"),
        (101, "100+"),
        (10**9, "100+"),
    ],
)
def test_bins_are_ranges(number, text):
    """``ec.bins("candidates", [10, 50, 100])`` gives 1-10, 11-50, 51-100, 100+."""
    assert read(ec.bins("candidates", [10, 50, 100]), candidates=number) == text


def test_bins_know_all_their_values():
    """The catalog knows every range before anything is emitted; an unset number falls into none."""
    instrument = counter(labels={"size": ec.bins("candidates", [10, 50, 100])})
    assert instrument.label_values("size") == ("1-10", "11-50", "51-100", "100+")
    assert read(instrument.label_sources["size"]) is ec.unset


@pytest.mark.parametrize("edges", [[], [10, 5], [5, 5], [0, 5], [-1]])
def test_edges_of_bins_increase_from_one(edges):
    """Edges that do not increase from 1 are an error that names the field and the edges."""
    with pytest.raises(ec.InstrumentError, match=r"bins\('candidates'\): edges must be increasing"):
        ec.bins("candidates", edges)


def test_codes_give_states_numbers():
    """``ec.codes("state", closed=0, half_open=1, open=2)`` gives each state a number."""
    source = ec.codes("state", closed=0, half_open=1, open=2, initial="closed")
    gauge = ec.Gauge("state", on=Moved, value=source, help="h")
    assert source.initial == "closed"
    assert source.values(Moved.__event__) == (0, 1, 2)
    assert read(gauge.value_source, state="half_open") == 1
    assert math.isnan(read(source, state="elsewhere"))
    assert read(source) is ec.unset


def test_the_initial_state_has_a_code():
    """An initial state without a code is an error that names field, state and the likely one."""
    with pytest.raises(ec.InstrumentError, match=r"codes\('state'\): initial state 'close' has no code.*'closed'"):
        ec.codes("state", closed=0, open=2, initial="close")


def test_rename_gives_values_other_names():
    """``ec.rename`` gives listed values other names and leaves the rest as it is."""
    instrument = counter(labels={"to": ec.rename("decision", {"light": "small"})})
    assert instrument.label_values("to") == ("small", "powerful")
    assert read(instrument.label_sources["to"], decision="light") == "small"
    assert read(instrument.label_sources["to"], decision="powerful") == "powerful"
    assert read(instrument.label_sources["to"]) is ec.unset


def test_rename_with_other_makes_free_text_finite():
    """``ec.rename(…, other="other")`` bounds free text: what is not listed shares one name."""
    instrument = counter(labels={"error": ec.rename("error_type", {"TimeoutError": "timeout"}, other="other")})
    assert instrument.label_values("error") == ("timeout", "other")
    assert read(instrument.label_sources["error"], error_type="KeyError") == "other"


def test_rename_lists_each_name_once():
    """Values that are given one name are one label value."""
    source = ec.rename("state", {"half_open": "ajar", "open": "ajar"})
    assert source.values(Moved.__event__) == ("closed", "ajar")


# -- what an instrument may be -----------------------------------------------------------------------------------------


def test_an_instrument_observes_one_type_or_several():
    """``on`` is one or several types; a label's values are those of all of them."""
    instrument = ec.Counter("all_total", on=(Routed, Moved), labels={"event": "event", "category": "category"}, help="")
    assert instrument.types == (Routed, Moved)
    assert instrument.label_values("event") == ("shop.routed", "shop.moved")
    assert instrument.label_values("category") == ("execution", "system")
    assert counter().types == (Routed,)


def test_a_histogram_takes_a_duration_by_default_buckets():
    """``value="duration_s"`` reads the duration that the bus measured; default buckets are seconds."""
    instrument = ec.Histogram("d_seconds", on=Routed, value="duration_s", help="h")
    assert read(instrument.value_source, duration_s=0.25) == 0.25
    assert instrument.buckets[0] == 0.005
    assert instrument.kind == "histogram"


def test_a_gauge_may_count_what_is_in_flight():
    """``phase="start"`` serves in-flight gauges, which need no value."""
    assert ec.Gauge("in_flight", on=Routed, phase="start", help="h").value_source is None


def test_each_lets_array_fields_be_observed():
    """``each=`` observes once per element of aligned array fields, as values and as labels."""
    instrument = ec.Histogram(
        "s", on=Routed, value="scores", labels={"kind": "kinds"}, each=("scores", "kinds"), help="h"
    )
    assert instrument.label_values("kind") == ("a", "b")


@pytest.mark.parametrize("where", [{"decision": "light"}, {"outcome": ("failure", "cancelled")}, {"reason": "any"}])
def test_where_selects(where):
    """``where={field: value}`` selects by a field's or fact's value, or one of several."""
    assert counter(where=where).where == where


def test_an_instrument_is_frozen():
    """An instrument is pure data: it cannot be changed once it is checked."""
    with pytest.raises(AttributeError):
        counter().name = "another"


# -- errors of definition: each names the instrument, the event and the field ------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": {"m": "modle"}}, r"'shop_total': label 'm' reads 'modle', which 'shop.routed' does not .*'model'"),
        ({"value": "candidats"}, r"'shop_total': value reads 'candidats', which 'shop.routed' does .*'candidates'"),
        ({"where": {"decison": "light"}}, r"'shop_total': where reads 'decison', .*'shop.routed'.*'decision'"),
        ({"labels": {"b": ec.bins("candidats", [1])}}, r"'shop_total': label 'b' reads 'candidats'.*'candidates'"),
        ({"labels": {"b": ec.rename("modle", {}, other="o")}}, r"'shop_total': label 'b' reads 'modle'"),
        ({"value": ec.codes("sate", open=1)}, r"'shop_total': value reads 'sate'"),
        ({"each": ("score",)}, r"'shop_total': each='score' is no array field of 'shop.routed'"),
        ({"each": ("candidates",)}, r"'shop_total': each='candidates' is no array field of 'shop.routed'"),
    ],
)
def test_an_unknown_field_is_an_error(options, message):
    """A metric over an unknown field is an error at definition naming instrument, field, event and the likely one."""
    with pytest.raises(ec.InstrumentError, match=message):
        counter(**options)


@pytest.mark.parametrize("source", ["reason", ec.rename("reason", {"x": "y"})])
def test_a_label_over_an_unbounded_field_is_an_error(source):
    """A label without the ``Label`` role or a finite set is an error that names all three and the remedy."""
    with pytest.raises(
        ec.InstrumentError,
        match=r"'shop_total': label 'why' reads 'reason' of 'shop.routed', which has neither the Label role nor a "
        r"finite set of values; mark it Annotated\[…, ec.Label\], or use ec.bins or ec.rename",
    ):
        counter(labels={"why": source})


@pytest.mark.parametrize("fact", ["duration_s", "id", "trace_id", "time", "correlation_id"])
def test_an_unbounded_fact_is_no_label(fact):
    """An id, a time or a duration is no label."""
    with pytest.raises(ec.InstrumentError, match=f"reads '{fact}'"):
        counter(labels={"fact": fact})


@pytest.mark.parametrize(
    "options",
    [
        {"labels": {"u": "user"}},
        {"labels": {"u": ec.rename("user", {}, other="other")}},
        {"value": "user"},
        {"where": {"user": "ada"}},
    ],
)
def test_nothing_sensitive_is_ever_a_label(options):
    """Nothing sensitive is ever a label, a value or a condition."""
    with pytest.raises(ec.InstrumentError, match=r"reads 'user' of 'shop.routed', which is sensitive"):
        counter(**options)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"decision": "lihgt"}, r"'shop_total': where='decision' is never 'lihgt' in 'shop.routed'.*'light'"),
        ({"outcome": "sucess"}, r"'shop_total': where='outcome' is never 'sucess' in 'shop.routed'.*'success'"),
        ({"outcome": ("failure", "abort")}, r"where='outcome' is never 'abort'"),
        ({"event": "shop.moved"}, r"where='event' is never 'shop.moved'"),
        ({"severity": "eror"}, r"where='severity' is never 'eror'.*'error'"),
    ],
)
def test_a_condition_that_can_never_hold_is_an_error(where, message):
    """A wrong ``where`` or ``outcome`` value is an error at definition, with the likely one."""
    with pytest.raises(ec.InstrumentError, match=message):
        counter(where=where)


def test_plain_events_have_no_outcome():
    """A fact that only operations have is unknown on a plain event."""
    with pytest.raises(ec.InstrumentError, match=r"reads 'outcome', which 'shop\.moved' does not have"):
        ec.Counter("moved_total", on=Moved, labels={"o": "outcome"}, help="h")


def test_a_field_that_one_of_several_types_lacks_is_an_error():
    """An instrument over several types reads only what all of them have."""
    with pytest.raises(ec.InstrumentError, match=r"reads 'model', which 'shop\.moved' does not have"):
        ec.Counter("all_total", on=(Routed, Moved), labels={"m": "model"}, help="h")


def test_codes_that_lack_a_state_are_an_error():
    """Codes lacking a state are an error that names instrument, field and the state."""
    with pytest.raises(ec.InstrumentError, match=r"'state': codes\('state'\) lacks a number for \['half_open'\]"):
        ec.Gauge("state", on=Moved, value=ec.codes("state", closed=0, open=2), help="h")


@pytest.mark.parametrize("value", ["reason", "decision", "outcome", "trace_id"])
def test_a_value_is_a_number(value):
    """A value that is no number is an error at definition."""
    with pytest.raises(ec.InstrumentError, match=f"'shop_total': .*'{value}'.* no number"):
        counter(value=value)


@pytest.mark.parametrize("field", ["place", "state"])
def test_bins_over_what_is_no_number_are_an_error(field):
    """Bins over a field that holds no numbers are an error at definition, not when the first event is read."""
    with pytest.raises(ec.InstrumentError, match=f"'b_total'.*{field!r}"):
        ec.Counter("b_total", on=Moved, labels={"b": ec.bins(field, [1, 2])}, help="h")


def test_an_array_field_needs_each():
    """Reading an array field without ``each=`` is an error that says so."""
    with pytest.raises(ec.InstrumentError, match=r"reads 'scores' of 'shop.routed', an array field; name it in each"):
        ec.Histogram("s", on=Routed, value="scores", help="h")


@pytest.mark.parametrize("name", ["", "2nd_total", "shop-total", "shop total", "größe_total"])
def test_a_metric_name_is_checked(name):
    """A name that Prometheus would refuse is an error."""
    with pytest.raises(ec.InstrumentError, match="is no metric name"):
        ec.Counter(name, on=Routed, help="h")


@pytest.mark.parametrize("label", ["", "le", "__name__", "status-code", "2nd", "größe"])
def test_a_label_name_is_checked(label):
    """A label name that Prometheus would refuse or keeps for itself is an error that names the instrument."""
    with pytest.raises(ec.InstrumentError, match=r"'shop_total': .* is no label name"):
        counter(labels={label: "decision"})


@pytest.mark.parametrize("on", [str, "Routed", ec.Event, [Routed], ()])
def test_an_instrument_is_over_event_types_with_names(on):
    """``on`` that is no named event type, or empty, is an error."""
    with pytest.raises(ec.InstrumentError, match="'shop_total'"):
        counter(on=on)


def test_only_operations_have_a_start():
    """``phase="start"`` over a plain event is an error."""
    with pytest.raises(ec.InstrumentError, match=r"'shop\.moved' is no operation, it has no start"):
        ec.Counter("m_total", on=Moved, phase="start", help="h")


def test_a_misspelt_phase_is_an_error():
    """A phase other than start and end is an error."""
    with pytest.raises(ec.InstrumentError, match="phase is 'start' or 'end', not 'begin'"):
        counter(phase="begin")


@pytest.mark.parametrize("buckets", [(), (1.0, 1.0), (2.0, 1.0)])
def test_buckets_increase(buckets):
    """Buckets that do not increase are an error that shows them."""
    with pytest.raises(ec.InstrumentError, match="histogram 'd': buckets must increase"):
        ec.Histogram("d", on=Routed, value="duration_s", buckets=buckets, help="h")


def test_a_histogram_and_a_gauge_need_a_value():
    """A histogram or gauge without a value is an error with the remedy."""
    with pytest.raises(ec.InstrumentError, match="histogram 'd' needs a value="):
        ec.Histogram("d", on=Routed, help="h")
    with pytest.raises(ec.InstrumentError, match="gauge 'g' needs a value="):
        ec.Gauge("g", on=Routed, help="h")


# -- the catalog -------------------------------------------------------------------------------------------------------


def test_a_duplicate_name_is_an_error_when_registered():
    """A duplicate name is an error that names the instrument, both event types and the remedy."""
    other = ec.Counter("shop_total", on=Moved, help="h")
    with pytest.raises(ec.InstrumentError, match=r"'shop_total' over 'shop.moved' exists already, over 'shop.routed'"):
        Catalog(instruments=[counter(), other])


def test_the_same_instrument_may_be_registered_twice():
    """Two packs may share an instrument: the same one again is no error and is kept once."""
    catalog = Catalog(instruments=[counter(), counter()])
    assert list(catalog.instruments) == ["shop_total"]
    assert catalog.instruments_of(Routed) == (counter(),)


def test_instruments_bring_their_event_types():
    """Registering an instrument registers the event types it observes."""
    catalog = Catalog(instruments=[counter()])
    assert catalog.events == {"shop.routed": Routed}
    assert catalog.instruments_of(Moved) == ()


def test_two_event_types_of_one_name_are_an_error():
    """One event name for two types is an error that names both."""

    class Other(ec.Event, name="shop.moved", category="data"):
        pass

    with pytest.raises(ec.DefinitionError, match=r"'shop.moved' is used by two types: .*Moved, .*Other"):
        Catalog(events=[Moved, Other])


def test_an_abstract_type_is_not_registered():
    """The catalog holds named types only."""
    with pytest.raises(ec.DefinitionError, match="is abstract"):
        Catalog(events=[ec.Event])


def test_a_pack_is_registered_when_it_is_chosen():
    """Metric packs are lists of instruments chosen by name; several may read the same events under other names."""
    second = ec.Counter("other_total", on=Routed, help="h")
    catalog = Catalog(packs={"first": [counter()], "second": [second]})
    assert catalog.packs == ("first", "second")
    assert not catalog.instruments
    assert catalog.pack("first") == (counter(),)
    assert catalog.pack("second") == (second,)
    assert catalog.instruments_of(Routed) == (counter(), second)


def test_an_unknown_pack_is_an_error_with_a_remedy():
    """An unknown pack is a configuration error that names the likely one."""
    with pytest.raises(ec.ConfigurationError, match=r"metric pack 'tiny_dancr'; did you mean 'tiny_dancer'\?"):
        Catalog(packs={"tiny_dancer": []}).pack("tiny_dancr")
