import subprocess
import sys
import threading
from typing import Annotated, Literal

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import eventcore as ec
from eventcore_metric.handler import MetricHandler
from eventcore_metric.series import Family
from tests.support.handlers import Collect


class Paid(ec.Event, name="shop.paid", category="user"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")] = 1.0
    shop: Annotated[str | None, ec.Label] = None
    items: int = 1
    gift: bool = False


class Moved(ec.Event, name="shop.breaker", category="system"):
    state: Literal["closed", "half_open", "open"]
    breaker: Annotated[str, ec.Label] = "primary"


class Charge(ec.Operation, name="shop.charge", category="integration"):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]


class Keep(ec.Handler):
    delivery = "inline"

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def handle(self, envelope):
        self.kept.append(envelope)


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


# -- limits ------------------------------------------------------------------------------------------------------------


def test_overflow_goes_to_one_series_is_counted_and_warned_of_once():
    """Beyond max_series, label values are counted as 'other'; the total stays exact and one warning is emitted."""
    warnings = []
    emitter, metric = start(
        ec.Counter("paid_total", on=Paid, labels={"shop": "shop", "currency": "currency"}, help="?"), max_series=3
    )
    emitter.add_handler(Keep(warnings))
    for number in range(10):
        emitter.emit(Paid(currency="eur", shop=f"shop {number}"))
    emitter.emit(Paid(currency="eur", shop="shop 0"))
    exported = series(metric, "paid_total")
    assert exported == {("eur", "shop 0"): 2, ("eur", "shop 1"): 1, ("eur", "shop 2"): 1, ("other", "other"): 7}
    assert metric.cardinality_stats()["paid_total"] == {"series": 4, "limit": 3, "overflowed": 7}
    metric.render()
    found = [e.message for e in warnings if e.name == "eventcore.series_overflow"]
    assert found == ["metric paid_total has reached its limit of 3 series; further label values are counted as 'other'"]
    assert metric.value("eventcore_metric_overflow_total", {"metric": "paid_total"}) == 7


def test_a_flood_of_label_values_stays_bounded():
    """100,000 label values leave no more behind than the limit allows, and lose no count."""
    emitter, metric = start(
        ec.Histogram("amount", on=Paid, value="amount", labels={"shop": "shop"}, buckets=(1.0,), help="?"),
        max_series=100,
    )
    for number in range(100_000):
        emitter.emit(Paid.model_construct(currency="eur", amount=1.0, shop=str(number)))
        if number % 10_000 == 0:
            emitter.flush()
    counts = series(metric, "amount_count")
    assert len(counts) == 101
    assert sum(counts.values()) == 100_000
    assert counts["other",] == 99_900


def test_other_may_be_a_real_label_value():
    """A series that is called 'other' by itself and the overflow are one series, exported once."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, labels={"shop": "shop"}, help="?"), max_series=2)
    for shop in ("other", "a", "b", "c"):
        emitter.emit(Paid(currency="eur", shop=shop))
    assert series(metric, "paid_total") == {("other",): 3, ("a",): 1}
    assert metric.render().count(b'paid_total{shop="other"}') == 1


# -- what is there from the start --------------------------------------------------------------------------------------


MANY = {"a": "currency", "b": ec.bins("items", [1, 2, 3]), "c": "severity"}  # 2 × 4 × 6 = 48
TOO_MANY = {**MANY, "d": "gift"}


@pytest.mark.parametrize(
    ("instrument", "number"),
    [
        (ec.Counter("x_total", on=Paid, help="?"), 1),
        (ec.Counter("x_total", on=Paid, labels={"a": "currency", "b": "gift"}, help="?"), 4),
        (ec.Counter("x_total", on=Paid, labels={"a": "currency"}, where={"currency": "eur"}, help="?"), 1),
        (ec.Counter("x_total", on=Charge, labels={"a": ec.rename("error_type", {"K": "k"}, other="o")}, help="?"), 2),
        (ec.Counter("x_total", on=Paid, labels=MANY, help="?"), 48),
        (ec.Counter("x_total", on=Paid, labels=TOO_MANY, help="?"), 0),
        (ec.Counter("x_total", on=Paid, labels={"a": "currency", "b": "shop"}, help="?"), 0),
        (ec.Histogram("x_total", on=Charge, value="duration_s", labels={"a": "provider"}, help="?"), 2),
        (ec.Gauge("x_total", on=Paid, value="amount", help="?"), 0),
        (ec.Gauge("x_total", on=Paid, value="amount", labels={"a": "currency"}, help="?"), 0),
        (ec.Gauge("x_total", on=Paid, value="amount", labels={"a": ec.const("b")}, help="?"), 0),
        (ec.Gauge("x_total", on=Charge, phase="start", help="?"), 1),
        (ec.Gauge("x_total", on=Moved, value=ec.codes("state", closed=3, half_open=1, open=2), help="?"), 0),
    ],
)
def test_known_series_are_there_from_the_start(instrument, number):
    """Counters, histograms and in-flight gauges with few known label sets start at zero; others when first used."""
    _, metric = start(instrument)
    name = "x_total_count" if instrument.kind == "histogram" else "x_total"
    exported = series(metric, name)
    assert len(exported) == number
    assert not any(exported.values())


# -- exposition --------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # no timing is asserted
@given(st.lists(st.floats(-10, 10) | st.sampled_from([0.1, 0.5, 1.0]), max_size=30))
def test_histograms_agree_with_prometheus_client(values):
    """Buckets, count and sum are those of prometheus_client's own histogram for the same observations."""
    instrument = ec.Histogram("amount", on=Paid, value="amount", buckets=(0.1, 0.5, 1.0), help="?")
    emitter = ec.Emitter(catalog=ec.Catalog(instruments=[instrument]))
    metric = MetricHandler()
    metric.attached(emitter)
    peer = prometheus_client.Histogram("amount", "?", buckets=(0.1, 0.5, 1.0), registry=None)
    envelopes = []
    emitter.add_handler(Keep(envelopes))
    for value in values:
        emitter.emit(Paid(currency="eur", amount=value))
        peer.observe(value)
    metric.handle_batch(envelopes)
    for sample in next(iter(peer.collect())).samples:
        if not sample.name.endswith("_created"):
            assert metric.value(sample.name, sample.labels) == pytest.approx(sample.value)


INSTRUMENTS = (
    ec.Counter("shop_paid_total", on=Paid, labels={"currency": "currency"}, help="Payments.\nTwo lines."),
    ec.Histogram("shop_charge_seconds", on=Charge, value="duration_s", labels={"provider": "provider"}, help="Time."),
    ec.Gauge("shop_last_amount", on=Paid, value="amount", help="Latest amount."),
)


def fill(emitter):
    """Emit a little of everything that INSTRUMENTS observe."""
    for currency in ("eur", "usd", "eur"):
        emitter.emit(Paid(currency=currency, amount=4.5))
    with emitter.operation(Charge, provider="adyen"):
        pass


@pytest.mark.parametrize(
    ("accept", "parse", "content_type"),
    [
        ("", parse_text, "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", parse_text, "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0,text/plain", parse_openmetrics, "application/openmetrics-text"),
    ],
)
def test_exposition_round_trip(accept, parse, content_type):
    """prometheus_client's own parser reads back names, types, help and values, in either format."""
    emitter, metric = start(*INSTRUMENTS, process=False, host=False)  # theirs change between two scrapes
    fill(emitter)
    body, said = metric.scrape(accept)
    assert said.startswith(content_type)
    assert metric.render(accept) == body
    families = {family.name: family for family in parse(body.decode())}
    paid, seconds, amount = families["shop_paid"], families["shop_charge_seconds"], families["shop_last_amount"]
    assert (paid.type, seconds.type, amount.type) == ("counter", "histogram", "gauge")
    assert paid.documentation == "Payments.\nTwo lines."
    assert {(s.name, s.labels["currency"]): s.value for s in paid.samples} == {
        ("shop_paid_total", "eur"): 2,
        ("shop_paid_total", "usd"): 1,
    }
    counts = {s.labels["provider"]: s.value for s in seconds.samples if s.name == "shop_charge_seconds_count"}
    assert counts == {"stripe": 0, "adyen": 1}
    assert [s.value for s in amount.samples] == [4.5]
    assert b"_created" not in body
    assert b"_total_total" not in body


def test_units_never_change_a_name():
    """An instrument's unit is exported where its name ends with it, and never appended to a name."""
    _, metric = start(
        ec.Counter("a_seconds_total", on=Charge, value="duration_s", unit="seconds", help="?"),
        ec.Gauge("b", on=Paid, value="amount", unit="euros", help="?"),
        ec.Histogram("c_seconds", on=Charge, value="duration_s", unit="s", help="?"),
    )
    text = metric.render("application/openmetrics-text;version=1.0.0").decode()
    assert "# UNIT a_seconds seconds" in text
    assert "# TYPE b gauge" in text
    assert "# TYPE c_seconds histogram" in text
    assert "# UNIT c_seconds " not in text


@pytest.mark.server
def test_promtool_finds_nothing_to_complain_of(promtool):
    """``promtool check metrics`` accepts the exposition, the bus's own series included, without a remark."""
    emitter, metric = start(*INSTRUMENTS, max_series=1)
    fill(emitter)
    metric.render()  # its warning makes one more event
    result = subprocess.run([promtool, "check", "metrics"], input=metric.render(), capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_scrape_sees_what_was_emitted_before_it():
    """Rendering waits for the worker, so counts are those of the moment of the scrape."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, help="?"), linger_s=0.5)
    for number in range(1, 4):
        emitter.emit(Paid(currency="eur"))
        assert f"paid_total {float(number)}\n".encode() in metric.render()


def test_totals_are_exact_under_threads_and_scrapes():
    """Four emitting threads and a scraping one lose nothing, and no scrape sees a total go back."""
    emitter, metric = start(
        ec.Counter("paid_total", on=Paid, labels={"shop": "shop"}, help="?"),
        ec.Histogram("amount", on=Paid, value="amount", help="?"),
    )

    def emit(name):
        for number in range(2_000):
            emitter.emit(Paid(currency="eur", shop=f"{name} {number % 20}"))

    threads = [threading.Thread(target=emit, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    seen = [0.0]
    while any(thread.is_alive() for thread in threads):
        samples = {s.name: s.value for f in parse_text(metric.render().decode()) for s in f.samples if not s.labels}
        assert samples["amount_count"] >= seen[-1]
        seen.append(samples["amount_count"])
    counts = series(metric, "paid_total")
    assert (len(counts), sum(counts.values())) == (80, 8_000)
    assert metric.value("amount_count") == metric.value("amount_sum") == 8_000


def test_the_account_of_the_bus_is_exported():
    """``eventcore_events_total`` and the queue gauges say what the ledger says, at zero from the start."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, help="?"))
    labels = {"handler": "metric", "outcome": "dropped", "reason": "full"}
    assert metric.value("eventcore_events_total", labels) == 0
    for _ in range(3):
        emitter.emit(Paid(currency="eur"))
    emitter.emit(Moved(state="open"))
    exported = series(metric, "eventcore_events_total")
    row = emitter.ledger().handler("metric")
    assert exported["metric", "delivered", ""] == row.delivered == 3
    assert exported["metric", "filtered", ""] == row.filtered
    assert sum(exported.values()) == row.emitted
    assert metric.value("eventcore_queue_size", {"handler": "metric"}) == 0
    assert metric.value("eventcore_queue_capacity", {"handler": "metric"}) == 100_000


def test_drops_are_exported_with_their_reason():
    """What a full queue drops is seen in the next scrape."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, help="?"), queue_size=1, linger_s=1)
    emitter.add_handler(Collect())  # alone, the handler would take the events in the caller
    for _ in range(50):
        emitter.emit(Paid(currency="eur"))
    counted = metric.value("paid_total")
    dropped = metric.value("eventcore_events_total", {"handler": "metric", "outcome": "dropped", "reason": "full"})
    assert dropped > 0
    assert counted + dropped == 50


def test_series_can_be_read_after_shutdown():
    """After shutdown the last numbers are still there, without waiting for a worker that is gone."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, help="?"))
    emitter.emit(Paid(currency="eur"))
    ec.shutdown()
    assert metric.value("paid_total") == 1
    assert b"paid_total 1.0" in metric.render()


def test_summary_and_describe_are_for_people():
    """The handler says in a few facts how many series it has and where they are."""
    emitter, metric = start(*INSTRUMENTS)
    fill(emitter)
    metric.render()
    assert metric.size() == {"metrics": 3, "series": 5, "overflowed": 0, "rejected": 0}
    assert metric.describe() == {"exporter": "prometheus", "packs": (), "path": "/metrics", **metric.size()}


# -- configuration -----------------------------------------------------------------------------------------------------


class Pack:
    @ec.hookimpl
    def eventcore_packs(self):
        return {
            "shop": [ec.Counter("pack_paid_total", on=Paid, help="?")],
            "copy": [ec.Counter("copy_paid_total", on=Paid, help="?")],
        }


def test_packs_join_the_instruments_given_in_code():
    """A handler has the instruments given in code and those of its own packs, not those of another handler's packs."""
    emitter = ec.configure(
        instruments=[ec.Counter("code_paid_total", on=Paid, help="?")],
        handlers={"one": {"use": "metric", "packs": ["shop"]}, "two": {"use": "metric", "packs": ["copy"]}},
        plugins=[Pack()],
    )
    emitter.emit(Paid(currency="eur"))
    one, two = emitter.handler("one"), emitter.handler("two")
    assert [one.value(f"{name}_paid_total") for name in ("code", "shop", "pack", "copy")] == [1, None, 1, None]
    assert [two.value(f"{name}_paid_total") for name in ("code", "shop", "pack", "copy")] == [1, None, None, 1]
    assert [route.path for route in emitter.services.values()] == []


def test_several_metric_handlers_have_a_path_each():
    """The first metric handler is at /metrics, further ones at /metrics/<name>, those without exporter nowhere."""
    from eventcore_metric import eventcore_routes

    emitter = ec.configure(
        handlers={"a": {"use": "metric", "exporter": "none"}, "b": {"use": "metric"}, "c": {"use": "metric"}}
    )
    found = eventcore_routes(emitter)
    assert [route.path for route in found] == ["/metrics", "/metrics/c"]
    response = found[1].respond(ec.HttpRequest("/metrics/c", {}, {"accept": "application/openmetrics-text"}))
    assert response.body.endswith(b"# EOF\n")
    assert response.content_type.startswith("application/openmetrics-text")


def test_exporter_none_switches_the_handler_off():
    """With exporter = 'none' no event is taken and nothing is shown."""
    emitter, metric = start(ec.Counter("paid_total", on=Paid, help="?"), exporter="none")
    assert not emitter.enabled(Paid)
    assert metric.render() == b""
    assert metric.describe()["exporter"] == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exporter": "promtheus"}, "option 'exporter' is 'promtheus'"),
        ({"max_serie": 3}, "unknown option 'max_serie'; did you mean 'max_series'?"),
        ({"max_series": 0}, "option 'max_series' is 0"),
        ({"delivery": "inline"}, "option 'delivery' is 'inline': Input should be 'queued'"),
        (
            {"packs": ["tiny_dancr"]},
            "no installed plugin offers a metric pack 'tiny_dancr'; did you mean 'tiny_dancer'",
        ),
    ],
)
def test_mistakes_in_options_are_one_clear_error(options, message):
    """A wrong option says where it was given, what is wrong and what was expected."""
    with pytest.raises(ec.ConfigurationError, match=r"handlers\.metric.*") as caught:
        start(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        (
            ec.Histogram("x", on=Charge, value="duration_s", help="?"),
            ec.Gauge("x_count", on=Paid, value="amount", help="?"),
            "x_count",
        ),
        (ec.Counter("x_total", on=Paid, help="?"), ec.Counter("x", on=Paid, help="?"), "x_total"),
        (
            ec.Counter("y_total", on=Paid, help="?"),
            ec.Gauge("eventcore_queue_size", on=Paid, value="amount", help="?"),
            "eventcore_queue_size",
        ),
    ],
)
def test_two_metrics_of_one_exported_name_are_an_error(first, second, clash):
    """Instruments whose exported series would collide are refused when the handler is attached, by name."""
    with pytest.raises(ec.ConfigurationError, match=rf"series '{clash}' would be exposed twice.*rename one"):
        start(first, second)


def test_importing_the_plugin_imports_no_exporter():
    """Installing the plugin costs no import of prometheus_client until a metric handler is configured."""
    code = "import eventcore_metric, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_library_only_the_metric_handler_is_missing():
    """Where prometheus_client is not installed, HTTP serves the rest, and the handler's error names the extra."""
    code = """
import sys, urllib.request
sys.modules["prometheus_client"] = None
import eventcore as ec
class Nothing(ec.Handler):
    handle = print
with ec.configure(handlers={"nothing": Nothing(events="x")}, http={"port": 0}) as emitter:
    print(urllib.request.urlopen(emitter.services["http"].url + "/").status)
try:
    ec.configure(handlers={"metric": {}})
except ec.ConfigurationError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[0] == "200"
    assert "pip install 'eventcore[metric]'" in result.stdout


def test_families_print_themselves():
    """A family shows its kind, name and size."""
    _, metric = start(ec.Counter("paid_total", on=Paid, help="?"))
    (family,) = metric._families
    assert isinstance(family, Family)
    assert repr(family) == "<CounterFamily paid_total: 1 series>"
