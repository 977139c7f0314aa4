"""Metrics that are no instruments: the process, the host, and the limit of series on the bus's own account."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Annotated

import pytest

import eventcore as ec
from eventcore.exposition import exposition_of
from eventcore.plugins import Plugins
from eventcore_metric.declared import HOST, OWN, PROCESS
from eventcore_metric.prometheus import families_of


class Said(ec.Event, name="own.said", category="user"):
    who: Annotated[str, ec.Label] = "me"


def start(**options):
    """Return a running emitter and its metric handler."""
    said = ec.Counter("own_said_total", on=Said, labels={"who": "who"}, help="Said.")
    emitter = ec.configure(service="test", instruments=[said], handlers={"metric": options})
    return emitter, emitter.handler("metric")


def test_the_process_is_shown_as_the_system_sees_it():
    """CPU time, memory, threads, descriptors and start of the process are the system's own figures."""
    _, metric = start()
    assert metric.value("process_cpu_seconds_total") == pytest.approx(time.process_time(), abs=0.5)
    assert metric.value("process_threads") >= threading.active_count()
    assert time.time() - 3600 < metric.value("process_start_time_seconds") < time.time() + 1
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert metric.value("process_resident_memory_bytes") == pytest.approx(resident, rel=0.1)
    assert metric.value("process_virtual_memory_bytes") > resident
    before = metric.value("process_open_fds")
    with Path("/dev/null").open():
        assert metric.value("process_open_fds") == before + 1
    assert metric.value("process_max_fds") >= before


def test_the_host_and_its_disks_are_shown(tmp_path):
    """CPU time and memory of the host, and the space at 'disks'; a path that is gone is left out."""
    gone = tmp_path / "gone"
    gone.mkdir()
    _, metric = start(disks=["/", str(tmp_path), str(gone)])
    gone.rmdir()
    cpu = {mode: metric.value("host_cpu_seconds_total", {"mode": mode}) for mode in ("user", "system", "idle")}
    assert all(value > 0 for value in cpu.values())
    total, available = metric.value("host_memory_total_bytes"), metric.value("host_memory_available_bytes")
    assert 0 < available < total
    disk = os.statvfs(tmp_path)
    assert metric.value("host_disk_total_bytes", {"path": str(tmp_path)}) == disk.f_blocks * disk.f_frsize
    assert metric.value("host_disk_free_bytes", {"path": "/"}) > 0
    assert metric.value("host_disk_free_bytes", {"path": str(gone)}) is None


def test_a_disk_that_is_not_there_is_refused():
    """A path in 'disks' that this machine does not have is an error that names it, unless the host is not shown."""
    with pytest.raises(ec.ConfigurationError, match=r"handlers\.metric.*option 'disks' names '/no/such/path'"):
        start(disks=["/", "/no/such/path"])
    start(disks=["/no/such/path"], host=False)


def test_process_and_host_can_be_switched_off():
    """Without 'process' and 'host' their series are not there, and the others are."""
    _, metric = start(process=False, host=False)
    shown = {reading.metric.name for reading in metric.read()}
    assert not shown & {metric.name for metric in (*PROCESS, *HOST)}
    assert "eventcore_operations_open" in shown


def test_the_catalog_knows_every_series_that_is_shown():
    """What a scrape shows is declared: names, kinds and labels, those of the bus, the process and the host too."""
    emitter, metric = start(max_series=1)
    for who in ("you", "he", "she"):
        emitter.emit(Said(who=who))
    metric.render()
    known = exposition_of(emitter.catalog, Plugins())
    for family in families_of(metric.read()):
        for sample in family.samples:
            series = known.series[sample.name]
            assert set(sample.labels) == set(series.labels), sample
            assert series.kind == family.type
            for label, value in sample.labels.items():
                allowed = series.labels[label]
                assert allowed is None or value in allowed or value == "other", sample
    assert {metric.name for metric in OWN} <= set(known.metrics)


def test_every_own_metric_has_data():
    """Nothing is declared that is never shown: on Linux each of them has a series, those of the limits when met."""
    emitter, metric = start(max_series=3)
    emitter.catalog.register([ec.Gauge("late", on=Said, value=ec.const(1), help="registered too late: not compiled")])
    for number in range(9):
        emitter.emit(Said(who=str(number)))
    shown = {reading.metric.name for reading in metric.read()}
    assert {metric.name for metric in OWN} - shown == {"eventcore_metric_rejected_total"}  # see test_metric.py


def test_the_bus_own_series_have_the_limit_too():
    """More event names than max_series share one overflow series, which is counted and warned of; no count is lost."""
    emitter, metric = start(max_series=10)
    warnings = emitter.add_handler(Warnings(events="eventcore.series_overflow"), name="warnings")
    emitter.add_handler(Warnings(delivery="inline", events="own.*", min_severity="critical"), name="all")
    for number in range(30):
        event_type = type(f"Flood{number}", (ec.Event,), {}, name=f"own.flood{number}", category="data")
        emitter.emit(event_type(), severity="critical")
    points = {p.labels: p.value for r in metric.read() if r.metric.name == "eventcore_emitted_total" for p in r.points}
    assert len(points) == 11
    assert sum(points.values()) == 30
    assert points["other", "other", "other"] == 20
    overflowed = metric.value("eventcore_metric_overflow_total", {"metric": "eventcore_emitted_total"})
    assert overflowed == 21  # the warning is an event too
    metric.render()
    metric.render()
    emitter.flush()
    assert [metric for metric in warnings.of if metric == "eventcore_emitted_total"] == ["eventcore_emitted_total"]
    assert metric.get_cardinality_stats()["metrics"]["eventcore_emitted_total"]["cardinality"] == 11


class Warnings(ec.Handler):
    def __init__(self, **options):
        super().__init__(**options)
        self.of = []

    def handle(self, envelope):
        self.of.append(getattr(envelope.event, "metric", None))


def test_cardinality_stats_are_as_the_guide_prints_them():
    """``get_cardinality_stats()`` has the fields of the TinyLLM guide: total, maximum, and per metric what it has."""
    emitter, metric = start(max_series=2)
    for who in ("you", "he", "she", "it"):
        emitter.emit(Said(who=who))
    metric.render()
    stats = metric.get_cardinality_stats()
    assert stats["max_cardinality"] == 2
    assert stats["metrics"]["own_said_total"] == {"cardinality": 3, "dropped": 2}
    assert stats["total_combinations"] == sum(one["cardinality"] for one in stats["metrics"].values())


FLOOD = """
    import sys
    from typing import Annotated
    import eventcore as ec
    from eventcore_metric.process import process_readings

    class Said(ec.Event, name="flood.said", category="user"):
        who: Annotated[str, ec.Label]

    class Warned(ec.Handler):
        count = 0
        def handle(self, envelope):
            self.count += envelope.event.metric == "flood_said_total"

    def resident():
        return {r.metric.name: r.points[0].value for r in process_readings()}["process_resident_memory_bytes"]

    METRICS = [
        ec.Counter("flood_said_total", on=Said, labels={"who": "who"}, help="Said."),
        ec.Histogram("flood_lengths", on=Said, value=ec.const(3), labels={"who": "who"}, help="Lengths."),
    ]
    emitter = ec.configure(service="flood", instruments=METRICS, handlers={"metric": {}})
    warned = emitter.add_handler(Warned(events="eventcore.series_overflow"), name="warned")
    metric = emitter.handler("metric")
    for number in range(5_000):
        emitter.emit(Said(who=f"value {number}"))
    metric.render()
    before = resident()
    for number in range(5_000, 100_000):
        emitter.emit(Said(who=f"value {number}"))
        if number % 5_000 == 0:
            metric.render()
    metric.render()
    emitter.flush()
    text = metric.render().decode()
    print(int(resident() - before), warned.count, metric.value("flood_said_total", {"who": "other"}),
          metric.value("eventcore_metric_overflow_total", {"metric": "flood_said_total"}),
          sum(line.startswith("flood_said_total{") for line in text.splitlines()))
"""


@pytest.mark.slow
def test_a_flood_of_100_000_label_values_leaves_the_process_bounded():
    """Past the limit, 95,000 further label values cost no memory; the overflow shows, and the warning came once."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FLOOD)], capture_output=True, text=True, check=True, timeout=120
    )
    grown, warned, other, overflowed, shown = (float(word) for word in result.stdout.split()[-5:])
    print(f"grown by {grown / 1e6:.1f} MB over 95,000 label values beyond the limit")  # noqa: T201 - the measurement
    assert grown < 8_000_000  # each would cost 0.6 kB as a counter and 3.9 kB as a histogram: 430 MB without the limit
    assert (warned, other, overflowed, shown) == (1, 99_000, 99_000, 1_001)
