"""Metrics over OTLP: what arrives, decoded with opentelemetry-proto, says what the exposition says."""

from __future__ import annotations

import os
import time
from typing import Annotated, Literal

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

import eventcore as ec
from eventcore import by_hand
from eventcore.exposition import Metric
from eventcore_metric.otlp import otel_name, otel_unit
from tests.support.handlers import eventually
from tests.support.otlp_receiver import Answer, GrpcReceiver, OtlpReceiver, attributes_of

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


class Paid(ec.Event, name="otlp.paid", category="user"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")] = 1.0
    shop: Annotated[str | None, ec.Label] = None


class Charge(ec.Operation, name="otlp.charge", category="integration"):
    pass


METRICS = [
    ec.Counter("otlp_paid_total", on=Paid, labels={"currency": "currency", "shop": "shop"}, help="Payments."),
    ec.Counter("otlp_paid_bytes_total", on=Paid, value="amount", help="Volume."),
    ec.Gauge("otlp_last_ratio", on=Paid, value="amount", help="Latest."),
    ec.Gauge("otlp_charging", on=Charge, phase="start", help="In flight."),
    ec.Histogram("otlp_charge_duration_seconds", on=Charge, value="duration_s", buckets=(0.5, 60.0), help="Time."),
    ec.Histogram("otlp_amount", on=Paid, value="amount", buckets=(1.0, 10.0), unit="euros", help="Amounts."),
]


@pytest.fixture
def receiver():
    """Return a receiver that listens."""
    with OtlpReceiver() as receiver:
        yield receiver


def start(receiver, **options):
    """Return a running emitter and its metric handler, which pushes when told to."""
    if options.get("exporter") != "prometheus":
        options = {"exporter": "otlp", "endpoint": receiver.endpoint, "interval_s": 600, **options}
    emitter = ec.configure(service="shop", instruments=METRICS, handlers={"metric": options})
    return emitter, emitter.handler("metric")


def metrics_of(received):
    """Return the metrics of one request by name."""
    (group,) = received.message.resource_metrics
    (scope,) = group.scope_metrics
    found = {metric.name: metric for metric in scope.metrics}
    assert len(found) == len(scope.metrics)
    return found


def values(points):
    """Return the values of number points by their attributes."""
    return {tuple(sorted(attributes_of(point.attributes).items())): point.as_double for point in points}


def test_every_kind_arrives_as_opentelemetry_has_it(receiver):
    """Counters are monotonic sums, gauges gauges, what is in flight a sum that may fall, histograms have bounds."""
    before = time.time_ns()
    emitter, metric = start(receiver)
    emitter.emit(Paid(currency="eur", amount=5.0))
    emitter.emit(Paid(currency="eur", amount=50.0, shop="north"))
    with emitter.operation(Charge):
        pass
    operation = emitter.operation(Charge)
    operation.__enter__()
    assert metric.push()
    operation.__exit__(None, None, None)
    found = metrics_of(receiver.requests[-1])

    paid = found["otlp_paid"]
    assert (paid.description, paid.unit) == ("Payments.", "")
    assert (paid.sum.is_monotonic, paid.sum.aggregation_temporality) == (True, CUMULATIVE)
    assert values(paid.sum.data_points) == {(("currency", "eur"),): 1, (("currency", "eur"), ("shop", "north")): 1}
    point = paid.sum.data_points[0]
    assert before <= point.start_time_unix_nano < point.time_unix_nano <= time.time_ns()

    assert found["otlp_paid_bytes"].unit == "By"  # the unit stays in the name, since otlp_paid is taken
    assert values(found["otlp_last"].gauge.data_points) == {(): 50.0}
    assert found["otlp_last"].unit == "1"
    charging = found["otlp_charging"].sum
    assert (charging.is_monotonic, charging.aggregation_temporality) == (False, CUMULATIVE)
    assert values(charging.data_points) == {(): 1}

    duration = found["otlp_charge_duration"]
    assert duration.unit == "s"
    (point,) = duration.histogram.data_points
    assert (list(point.explicit_bounds), list(point.bucket_counts), point.count) == ([0.5, 60.0], [1, 0, 0], 1)
    assert 0 < point.sum < 0.5
    (point,) = found["otlp_amount"].histogram.data_points
    assert (found["otlp_amount"].unit, list(point.bucket_counts), point.sum) == ("{euros}", [0, 1, 1], 55.0)


def test_the_resource_says_who_pushes(receiver):
    """The service, the process, and an instance id that tells processes of one service apart; scope is eventcore."""
    _, metric = start(receiver)
    metric.push()
    (group,) = receiver.requests[-1].message.resource_metrics
    resource = attributes_of(group.resource.attributes)
    assert (resource["service.name"], resource["process.pid"]) == ("shop", os.getpid())
    assert len(resource["service.instance.id"]) == 36
    assert group.scope_metrics[0].scope.name == "eventcore"
    assert receiver.requests[-1].path == "/v1/metrics"


NAMES = [
    ("counter", "tiny_dancer_routing_requests_total", "", "tiny_dancer_routing_requests", ""),
    ("histogram", "tiny_dancer_routing_latency_seconds", "", "tiny_dancer_routing_latency", "s"),
    ("counter", "network_received_bytes_total", "", "network_received", "By"),
    ("gauge", "cache_hit_ratio", "", "cache_hit", "1"),
    ("gauge", "queue_size", "", "queue_size", ""),
    ("gauge", "queue_size", "{item}", "queue_size", "{item}"),
    ("gauge", "cost", "euros", "cost", "{euros}"),
    ("gauge", "latency", "ms", "latency", "ms"),
    ("counter", "process_cpu_seconds_total", "", "process.cpu.time", "s"),
    ("gauge", "process_resident_memory_bytes", "", "process.memory.usage", "By"),
    ("gauge", "seconds", "seconds", "seconds", "s"),
]


@pytest.mark.parametrize(("kind", "name", "unit", "otel", "ucum"), NAMES)
def test_names_and_units_follow_opentelemetry(kind, name, unit, otel, ucum):
    """No ``_total``, no unit in the name, units in UCUM; where the semantic conventions have a name, that one."""
    metric = Metric(name=name, kind=kind, help="?", unit=unit, buckets=(1.0,) if kind == "histogram" else ())
    assert (otel_name(metric), otel_unit(metric)) == (otel, ucum)


def test_all_that_the_exposition_shows_is_pushed(receiver):
    """The bus's account, process and host go over OTLP as they show in Prometheus, metric by metric."""
    emitter, metric = start(receiver, exporter=["prometheus", "otlp"])
    hits = ec.counter("otlp_hits_total", help="By hand.")
    hits.inc(3)
    emitter.emit(Paid(currency="eur"))
    shown = {reading.metric.name for reading in metric.read()}
    assert metric.push()
    found = metrics_of(receiver.requests[-1])
    assert len(found) == len(shown)
    assert {"eventcore_emitted", "process.cpu.time", "system.cpu.time", "otlp_hits"} <= set(found)
    assert values(found["otlp_hits"].sum.data_points) == {(): 3}
    assert b"otlp_hits_total 3.0" in metric.render()


@pytest.fixture(autouse=True)
def _own_declarations(monkeypatch):
    """Leave no declaration by hand behind for other tests."""
    monkeypatch.setattr(by_hand, "_declared", {})


def test_exporters_are_chosen_by_configuration(receiver):
    """Prometheus, OTLP, both or none: one option, and only what it names is there."""
    from eventcore_metric import eventcore_routes

    for exporter, has_route, has_push in (
        ("prometheus", True, False),
        ("otlp", False, True),
        (["prometheus", "otlp"], True, True),
        ("none", False, False),
    ):
        emitter, metric = start(receiver, exporter=exporter)
        assert bool(eventcore_routes(emitter)) is has_route
        assert metric.push() is has_push
        ec.shutdown()


def test_the_environment_chooses_as_opentelemetry_says(receiver, monkeypatch):
    """``OTEL_METRICS_EXPORTER``, endpoint, interval and temporality are taken where the settings are silent."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    metric = ec.configure(instruments=METRICS, handlers={"metric": {}}).handler("metric")
    assert eventually(lambda: len(receiver.requests) >= 3)
    assert metrics_of(receiver.requests[0])["otlp_charge_duration"].histogram.aggregation_temporality == DELTA
    assert metric.describe()["push"]["interval_s"] == 0.05
    ec.shutdown()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    metric = ec.configure(instruments=METRICS, handlers={"metric": {}}).handler("metric")
    assert not metric.push()


def test_deltas_add_up_to_the_total(receiver):
    """With temporality = delta each push holds what was added since the last one that arrived, and says since when."""
    emitter, metric = start(receiver, temporality="delta")
    sums, ends = [], []
    for number in range(1, 4):
        for _ in range(number):
            emitter.emit(Paid(currency="eur", amount=2.0))
        if number == 2:
            receiver.answers.append(Answer(status=400))
            assert not metric.push()  # what it held comes with the next
            continue
        assert metric.push()
        found = metrics_of(receiver.requests[-1])
        (point,) = found["otlp_amount"].histogram.data_points
        (paid,) = found["otlp_paid"].sum.data_points
        assert found["otlp_paid"].sum.aggregation_temporality == DELTA
        assert point.count == paid.as_double
        sums.append(paid.as_double)
        ends.append((paid.start_time_unix_nano, paid.time_unix_nano))
    assert sums == [1, 5]
    assert ends[1][0] == ends[0][1]


def test_it_pushes_at_the_interval_and_once_more_at_the_end(receiver):
    """A push every ``interval_s``, and what came after the last one is pushed by shutdown."""
    emitter, _ = start(receiver, interval_s=0.05)
    assert eventually(lambda: len(receiver.requests) >= 3)
    emitter.emit(Paid(currency="eur"))
    ec.shutdown()
    # Its name is that of the first push, when it had no series yet.
    assert values(metrics_of(receiver.requests[-1])["otlp_paid"].sum.data_points) == {(("currency", "eur"),): 1}
    number = len(receiver.requests)
    time.sleep(0.2)
    assert len(receiver.requests) == number


class Keep(ec.Handler):
    def __init__(self, **options):
        super().__init__(**options)
        self.said = []

    def handle(self, envelope):
        self.said.append((envelope.event.what, envelope.severity.name, envelope.message))


def test_a_receiver_that_refuses_is_reported_once(receiver):
    """Failure and recovery are events at the change only; nobody who emits is harmed, and totals are whole again."""
    emitter, metric = start(receiver, timeout_s=0.2)
    keep = emitter.add_handler(Keep(events="eventcore.metric_export"), name="keep")
    receiver.answers.extend([Answer(status=400), Answer(status=400)])
    emitter.emit(Paid(currency="eur"))
    assert [metric.push(), metric.push(), metric.push(), metric.push()] == [False, False, True, True]
    emitter.flush()
    assert [(what, severity) for what, severity, _ in keep.said] == [("failed", "WARNING"), ("recovered", "INFO")]
    assert "HTTP 400" in keep.said[0][2]
    facts = metric.describe()["push"]
    assert (facts["exports"], facts["failures"]) == (2, 2)
    assert values(metrics_of(receiver.requests[-1])["otlp_paid"].sum.data_points) == {(("currency", "eur"),): 1}


def test_nobody_there_does_not_hold_up_shutdown(receiver):
    """With a receiver that hangs, shutdown ends within its time."""
    emitter, _ = start(receiver)
    receiver.answers.append(Answer(hang=True))
    began = time.monotonic()
    emitter.shutdown(1.0)
    assert time.monotonic() - began < 5


def test_it_speaks_grpc_too():
    """An endpoint for gRPC gets the same metrics."""
    with GrpcReceiver() as receiver:
        emitter, metric = start(receiver, protocol="grpc")
        emitter.emit(Paid(currency="usd"))
        assert metric.push()
        (received,) = receiver.requests
        assert values(metrics_of(received)["otlp_paid"].sum.data_points) == {(("currency", "usd"),): 1}


def test_a_forked_child_pushes_as_a_process_of_its_own(receiver):
    """A child has an instance id, a start time and totals of its own: nothing of the parent's is pushed twice."""
    emitter, metric = start(receiver)
    emitter.emit(Paid(currency="eur"))
    assert metric.push()
    pid = os.fork()
    if pid == 0:
        emitter.emit(Paid(currency="usd"))
        os._exit(0 if metric.push() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    parent, child = receiver.requests
    ids = [attributes_of(r.message.resource_metrics[0].resource.attributes) for r in (parent, child)]
    assert ids[0]["service.instance.id"] != ids[1]["service.instance.id"]
    assert ids[1]["process.pid"] == pid
    totals = values(metrics_of(child)["otlp_paid"].sum.data_points)
    assert {key: value for key, value in totals.items() if value} == {(("currency", "usd"),): 1}
    ours, theirs = (metrics_of(r)["otlp_paid"].sum.data_points[0].start_time_unix_nano for r in (parent, child))
    assert ours < theirs


def test_many_series_go_in_requests_of_bounded_size(receiver, monkeypatch):
    """A receiver takes only so much at once: what is more is pushed in several requests, and nothing is missing."""
    monkeypatch.setattr("eventcore_metric.pushing.MAX_REQUEST", 20_000)
    emitter, metric = start(receiver)
    for number in range(500):
        emitter.emit(Paid(currency="eur", shop=f"shop {number}"))
    shown = {reading.metric.name for reading in metric.read()}
    assert metric.push()
    assert len(receiver.requests) > 1
    assert len(set().union(*(metrics_of(request) for request in receiver.requests))) == len(shown)


@pytest.mark.parametrize(
    ("exporter", "message"),
    [
        ("promtheus", r"option 'exporter' is 'promtheus': .*expected 'prometheus', 'otlp', both in a list, or 'none'"),
        (["none", "otlp"], "both in a list, or 'none'"),
        ([], "both in a list, or 'none'"),
    ],
)
def test_a_wrong_exporter_is_one_clear_error(exporter, message):
    """What is no exporter, or none beside another, is refused when configured."""
    with pytest.raises(ec.ConfigurationError, match=message):
        ec.configure(handlers={"metric": {"exporter": exporter}})


OF_OTLP = [{"endpoint": "http://127.0.0.1:4318"}, {"interval_s": 5}, {"headers": {"a": "b"}}, {"temporality": "delta"}]


@pytest.mark.parametrize("options", OF_OTLP)
def test_what_is_for_otlp_asks_for_otlp(options):
    """An option of the exporter ``otlp`` where nobody chose an exporter is an error that names both, and no secret."""
    (name,) = options
    with pytest.raises(ec.ConfigurationError, match=f"option '{name}' is for exporter = 'otlp'; add that") as caught:
        ec.configure(handlers={"metric": options})
    assert "{" not in str(caught.value)


@pytest.mark.parametrize("options", OF_OTLP)
def test_exporters_are_swapped_by_one_option(options, monkeypatch):
    """Where ``prometheus`` is chosen over what is for ``otlp``, a warning says that it is idle."""
    (name,) = options
    idle = f"handler 'metric': no effect of '{name}', since exporter is 'prometheus'"
    with pytest.warns(UserWarning, match=idle):
        ec.configure(handlers={"metric": {"exporter": "prometheus", **options}})
    for exporter in ("none", ["prometheus", "otlp"]):
        ec.configure(handlers={"metric": {"exporter": exporter, **options}}, replace=True)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    with pytest.warns(UserWarning, match=idle):
        ec.configure(handlers={"metric": options}, replace=True)


# -- exemplars ---------------------------------------------------------------------------------------------------------


def exemplars_of(metric, name):
    """Return the exemplars of one sample name by le ('' where there is none), as Prometheus would read them."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse

    text = metric.render("application/openmetrics-text;version=1.0.0").decode()
    return {
        sample.labels.get("le", ""): sample.exemplar
        for family in parse(text)
        for sample in family.samples
        if sample.name == name and sample.exemplar
    }


def test_exemplars_lead_from_a_series_to_its_trace(receiver):
    """OpenMetrics and OTLP carry the ids of the sampled trace that an observation was made in; text format does not."""
    emitter, metric = start(receiver, exporter=["prometheus", "otlp"])
    emitter.add_handler(Traced(), name="traced")
    with emitter.operation(Charge) as operation:
        emitter.emit(Paid(currency="eur", amount=5.0))
    ids = {"trace_id": f"{operation.trace_id:032x}", "span_id": f"{operation.span_id:016x}"}
    assert {le: exemplar.labels for le, exemplar in exemplars_of(metric, "otlp_amount_bucket").items()} == {"10.0": ids}
    assert exemplars_of(metric, "otlp_amount_bucket")["10.0"].value == 5.0
    assert exemplars_of(metric, "otlp_paid_total")[""].labels == ids
    assert exemplars_of(metric, "otlp_charge_duration_seconds_bucket")["0.5"].labels == ids
    assert ids["trace_id"].encode() not in metric.render()
    assert metric.push()
    (point,) = metrics_of(receiver.requests[-1])["otlp_amount"].histogram.data_points
    (exemplar,) = point.exemplars
    assert (exemplar.trace_id.hex(), exemplar.span_id.hex(), exemplar.as_double) == (*ids.values(), 5.0)


class Traced(ec.Handler):
    """Samples every trace, as a span handler would."""

    sampling_ratio = 1.0

    def handle(self, envelope):
        pass


def test_only_sampled_traces_make_exemplars_unless_asked_otherwise(receiver, monkeypatch):
    """By default an exemplar leads to a trace that is kept; ``always_on`` takes all traces, ``always_off`` none."""
    for filtered, expected in (("trace_based", False), ("always_on", True), ("always_off", False)):
        monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", filtered)
        emitter, metric = start(receiver, exporter="prometheus")
        with emitter.operation(Charge):
            emitter.emit(Paid(currency="eur"))
        assert bool(exemplars_of(metric, "otlp_paid_total")) is expected
        ec.shutdown()
