"""Prefork: one ``/metrics`` over all processes of a service, right through workers that are killed and recycled."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

import eventcore as ec
from eventcore import by_hand
from eventcore.errors import EventCoreError
from eventcore_metric.multiprocess import Directory, read_directory
from eventcore_metric.values_file import ValuesFile, entries_of
from tests.support.handlers import eventually

PROGRAM = Path(__file__).parents[1] / "programs" / "prefork_counting.py"


class Paid(ec.Event, name="mp.paid", category="user"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")] = 1.0
    shop: Annotated[str, ec.Label] = "a"


class Charge(ec.Operation, name="mp.charge", category="integration"):
    pass


METRICS = [
    ec.Counter("mp_paid_total", on=Paid, labels={"currency": "currency"}, help="Payments."),
    ec.Counter("mp_shops_total", on=Paid, labels={"shop": "shop"}, help="Payments by shop."),
    ec.Histogram("mp_amount", on=Paid, value="amount", buckets=(1.0, 10.0), help="Amounts."),
    ec.Gauge("mp_charging", on=Charge, phase="start", help="In flight."),
    ec.Gauge("mp_last", on=Paid, value="amount", help="Latest."),
    ec.Gauge("mp_worst", on=Paid, value="amount", across="max", help="Worst."),
    ec.Gauge("mp_least", on=Paid, value="amount", across="min", help="Least."),
]


@pytest.fixture(autouse=True)
def _own_declarations(monkeypatch):
    """Leave no declaration by hand behind for other tests."""
    monkeypatch.setattr(by_hand, "_declared", {})


@pytest.fixture
def folder(tmp_path):
    """Return a folder for the files of all processes."""
    return tmp_path / "shared" / "metrics"


def start(folder, **options):
    """Return a running emitter and its metric handler."""
    options = {"multiprocess_dir": str(folder), **options}
    emitter = ec.configure(service="mp", instruments=METRICS, handlers={"metric": options})
    return emitter, emitter.handler("metric")


def in_child(act):
    """Run ``act`` in a forked child that ends without saying goodbye; it must return."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - a child must not go on as the test
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def files(folder):
    """Return how many files of each kind there are."""
    return {
        suffix: len(list(folder.glob(f"metric*.{suffix}"))) for suffix in ("values", "totals", "new", "unready", "lock")
    }


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_counters_and_histograms_are_the_sum_over_all_processes(folder):
    """What children count joins what the parent counts, while they live and after they have died."""
    emitter, metric = start(folder)
    emitter.emit(Paid(currency="eur", amount=0.5))

    def child():
        for _ in range(3):
            emitter.emit(Paid(currency="eur", amount=5.0))
        emitter.flush()

    in_child(child)
    in_child(child)
    assert metric.value("mp_paid_total", {"currency": "eur"}) == 7
    assert metric.value("mp_paid_total", {"currency": "usd"}) == 0
    assert [metric.value("mp_amount_bucket", {"le": le}) for le in ("1.0", "10.0", "+Inf")] == [1, 7, 7]
    assert metric.value("mp_amount_sum") == 30.5
    assert files(folder) == {"values": 1, "totals": 1, "new": 0, "unready": 0, "lock": 1}


def test_gauges_of_the_dead_are_gone_and_those_of_the_living_are_one(folder):
    """In flight is the sum, others the latest, the largest or the smallest: of living processes only."""
    emitter, metric = start(folder)
    emitter.emit(Paid(currency="eur", amount=5.0))
    emitter.flush()
    ready = get_context("fork").Event()

    def child():
        operation = emitter.operation(Charge)
        operation.__enter__()
        emitter.emit(Paid(currency="eur", amount=2.0))
        emitter.flush()
        ready.set()
        signal.pause()

    process = get_context("fork").Process(target=child)
    process.start()
    assert ready.wait(10)
    names = ("mp_charging", "mp_last", "mp_worst", "mp_least")
    assert [metric.value(name) for name in names] == [1, 2, 5, 2]
    process.kill()
    process.join()
    assert [metric.value(name) for name in names] == [0, 5, 5, 5]
    assert metric.value("mp_paid_total", {"currency": "eur"}) == 2


def test_the_bus_account_is_that_of_all_processes(folder):
    """What each process emitted and delivered is in one account; a child's begins at zero, not with the parent's."""
    emitter, metric = start(folder)
    for _ in range(5):
        emitter.emit(Paid(currency="eur"))
    emitter.flush()

    def child():
        for _ in range(3):
            emitter.emit(Paid(currency="eur"))
        emitter.flush()
        metric.render()  # publishes; a process that is killed has published a second ago

    in_child(child)
    delivered = {"handler": "metric", "outcome": "delivered", "reason": ""}
    assert metric.value("eventcore_events_total", delivered) == 8
    assert metric.value("eventcore_emitted_total", {"event": "mp.paid", "category": "user", "severity": "info"}) == 8
    assert metric.value("eventcore_queue_wait_seconds_count", {"handler": "metric"}) >= 2


def test_what_is_published_never_goes_backwards(folder, monkeypatch):
    """Scrapes from several threads, and publishing all the while, show the bus's account once, and never less."""
    monkeypatch.setattr("eventcore_metric.shared.PUBLISH_INTERVAL_S", 0.0001)
    emitter, metric = start(folder, process=False, host=False)
    series = "eventcore_emitted_total", {"event": "mp.paid", "category": "user", "severity": "info"}
    seen = [[] for _ in range(4)]

    def look(shown):
        while not shown or shown[-1] < 2_000:
            shown.append(metric.value(*series) or 0)

    threads = [threading.Thread(target=look, args=(shown,)) for shown in seen]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(2_000):
            emitter.emit(Paid(currency="eur"))
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    for shown in seen:
        assert shown == sorted(shown)
        assert shown[-1] == 2_000


def test_process_metrics_are_those_of_all_processes(folder):
    """CPU time of dead workers is kept; memory is that of the living."""
    _, metric = start(folder)
    alone = metric.value("process_resident_memory_bytes")

    def child():
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        metric.render()

    in_child(child)
    assert metric.value("process_cpu_seconds_total") >= time.process_time() + 0.3 - 0.05
    assert metric.value("process_resident_memory_bytes") < alone * 1.5


def test_exemplars_are_shared_too(folder):
    """A trace id that a worker has seen is shown by whichever process is scraped, while the worker lives."""
    from tests.plugins.test_metric_otlp import Traced, exemplars_of

    emitter, metric = start(folder)
    emitter.add_handler(Traced(), name="traced")
    context = get_context("fork")
    ids, done = context.SimpleQueue(), context.Event()

    def child():
        with emitter.operation(Charge) as operation:
            emitter.emit(Paid(currency="eur", amount=5.0))
        emitter.flush()
        ids.put((f"{operation.trace_id:032x}", f"{operation.span_id:016x}"))
        done.wait(20)

    process = context.Process(target=child)
    process.start()
    trace_id, span_id = ids.get()
    expected = {"trace_id": trace_id, "span_id": span_id}
    assert exemplars_of(metric, "mp_amount_bucket")["10.0"].labels == expected
    assert exemplars_of(metric, "mp_amount_bucket")["10.0"].value == 5.0
    assert exemplars_of(metric, "mp_paid_total")[""].labels == expected
    done.set()
    process.join()
    assert exemplars_of(metric, "mp_amount_bucket") == {}


@pytest.mark.server
def test_the_exposition_is_valid(folder, promtool):
    """The check of promtool accepts what several processes show together."""
    emitter, metric = start(folder, max_series=3)
    for number in range(9):
        emitter.emit(Paid(currency="eur", shop=str(number)))
    metric.render()
    result = subprocess.run([promtool, "check", "metrics"], input=metric.render(), capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_the_limit_of_series_holds_over_all_processes(folder):
    """Workers with label values of their own, one after the other, leave a bounded file; no count is lost."""
    emitter, metric = start(folder, max_series=10)
    for worker in range(8):

        def child(worker=worker):
            for number in range(8):
                emitter.emit(Paid(currency="eur", shop=f"shop {worker} {number}"))
            emitter.flush()

        in_child(child)
    shops = {p.labels[0]: p.value for r in metric.read() if r.metric.name == "mp_shops_total" for p in r.points}
    assert len(shops) == 11
    assert sum(shops.values()) == 64
    assert shops["other"] == 54


# -- folding -----------------------------------------------------------------------------------------------------------


def test_a_clean_end_folds_its_own_file(folder):
    """After shutdown only the totals are left, and a later run goes on from there."""
    emitter, _ = start(folder)
    emitter.emit(Paid(currency="eur"))
    ec.shutdown()
    assert files(folder) == {"values": 0, "totals": 1, "new": 0, "unready": 0, "lock": 1}
    emitter, metric = start(folder)
    emitter.emit(Paid(currency="eur"))
    assert metric.value("mp_paid_total", {"currency": "eur"}) == 2


def test_a_fold_that_is_cut_off_counts_nothing_twice(folder):
    """Killed after the totals were replaced and before the dead file was removed: the file is known to be included."""
    emitter, metric = start(folder)
    in_child(lambda: (emitter.emit(Paid(currency="usd")), emitter.flush()))
    (dead,) = set(folder.glob("*.values")) - {metric._shared._file.path}
    copy = dead.with_suffix(".kept")
    shutil.copy(dead, copy)
    assert metric.value("mp_paid_total", {"currency": "usd"}) == 1
    assert not dead.exists()
    copy.rename(dead)  # as if it had not been removed yet
    assert metric.value("mp_paid_total", {"currency": "usd"}) == 1
    assert not dead.exists()
    assert metric.value("mp_paid_total", {"currency": "usd"}) == 1


def test_broken_files_do_not_stop_a_scrape(folder):
    """A file that is no values file, is empty or is cut off adds nothing, and is gone with the next fold."""
    emitter, metric = start(folder)
    emitter.emit(Paid(currency="eur"))
    for number, content in enumerate((b"", b"junk" * 10, b"ecvalue1" + (10**6).to_bytes(8, "little"))):
        (folder / f"metric.0.{number}.x.values").write_bytes(content)
    whole = metric._shared._file.path.read_bytes()
    (folder / "metric.0.9.x.values").write_bytes(whole[:40] + b"\xff" * 40)
    assert metric.value("mp_paid_total", {"currency": "eur"}) == 1
    assert files(folder)["values"] == 1


def test_changed_buckets_show_in_their_newest_form(folder):
    """After a deployment with other buckets both cannot be one histogram: the newest is shown, the page valid."""
    start(folder)
    ec.shutdown()
    changed = [ec.Histogram("mp_amount", on=Paid, value="amount", buckets=(2.0,), help="Amounts.")]
    emitter = ec.configure(instruments=changed, handlers={"metric": {"multiprocess_dir": str(folder)}})
    emitter.emit(Paid(currency="eur"))
    (family,) = [f for f in parse(emitter.handler("metric").render().decode()) if f.name == "mp_amount"]
    assert [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")] == ["2.0", "+Inf"]


def test_a_stopped_process_that_holds_the_lock_is_named(folder, monkeypatch):
    """A scrape waits for the lock only so long; the error says what may be the matter."""
    monkeypatch.setattr("eventcore_metric.multiprocess.LOCK_TIMEOUT_S", 0.1)
    _, metric = start(folder)
    with (
        Directory(folder, "metric")._locked(1.0),
        pytest.raises(EventCoreError, match=r"another process has held the lock for 0.1 s; is one stopped\?"),
    ):
        metric.read()


def test_values_grow_without_moving_what_was_handed_out(tmp_path):
    """A file of many chunks, with entries larger than one, is read back whole; cells stay where they are."""
    file = ValuesFile(tmp_path, "metric")
    rng = random.Random(5)
    handed = {}
    for number in range(400):
        key = json.dumps([number, "x" * rng.choice((3, 500, 70_000 if number % 100 == 0 else 8))]).encode()
        cells, _ = file.add(key, rng.choice((0, 1, 40)))
        handed[key] = cells
        for index in range(len(cells)):
            cells[index] = number + index / 8
    for cells in handed.values():
        for index in range(len(cells)):
            cells[index] += 1
    found = {key: list(cells.cast("d")) for key, cells in entries_of(file.path)}
    assert found == {key: list(cells) for key, cells in handed.items()}
    file.release()


def test_a_full_disk_costs_the_others_view_and_nothing_else(folder, monkeypatch):
    """Where the file cannot grow, the process counts on alone, and says so; emitting harms nobody."""
    emitter, metric = start(folder)
    emitter.emit(Paid(currency="eur"))
    emitter.flush()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eventcore_metric.values_file.os.posix_fallocate", full)
    total = ec.counter("mp_new_total", labels=("who",), help="?")
    for number in range(900):
        total.inc(who=f"{number} {'x' * 100}")
    assert emitter.flush()
    assert "No space left on device" in metric.describe()["problem"]
    assert metric.value("mp_paid_total", {"currency": "eur"}) == 1


# -- who reads ---------------------------------------------------------------------------------------------------------


def test_a_directory_can_be_read_without_a_process(folder):
    """``read_directory`` shows what a service has counted, running or not; a folder without files is an error."""
    emitter, _ = start(folder)
    emitter.emit(Paid(currency="eur"))
    emitter.flush()
    for _ in range(2):
        found = {reading.metric.name: reading for reading in read_directory(folder)}
        assert {p.labels: p.value for p in found["mp_paid_total"].points} == {("eur",): 1, ("usd",): 0}
        ec.shutdown()
    with pytest.raises(EventCoreError, match="has no metrics of a handler 'metric'"):
        read_directory(folder.parent)


def test_the_folder_is_that_of_prometheus_multiproc_dir(folder, monkeypatch):
    """The variable that client_python's users know is taken, and the folder made; a look at the settings makes none."""
    from eventcore.rehearsal import rehearse

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    Path("eventcore.toml").write_text("[handlers.metric]\n")
    rehearse()
    assert not folder.exists()
    metric = ec.configure(handlers={"metric": {}}).handler("metric")
    assert files(folder)["values"] == 1
    assert metric.describe()["multiprocess_dir"] == str(folder)


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path):
    """A file in its place: the error names option and folder."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(ec.ConfigurationError, match=r"multiprocess_dir '.*taken' cannot be used"):
        start(tmp_path / "taken")


# -- the whole, with processes that are killed -------------------------------------------------------------------------


def scrape(url):
    """Return the samples of ``/metrics`` by name and label values."""
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    return {(s.name, *s.labels.values()): s.value for family in parse(text) for s in family.samples}


class Prefork:
    """The program ``prefork_counting``: forks workers, which count and keep a tally of their own."""

    def __init__(self, folder, tallies):
        tallies.mkdir()
        self._tallies = tallies
        self._program = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), str(tallies), "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self._program.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._program.kill()
        self._program.communicate()

    def fork(self, amount):
        """Fork a worker that counts so many steps; return its process id."""
        self._program.stdin.write(f"{amount}\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())

    def tally(self, pid):
        """Return how far a worker has come."""
        path = self._tallies / str(pid)
        return int.from_bytes(path.read_bytes() if path.exists() else b"", sys.byteorder)

    def kill(self, pid):
        """Kill a worker; return how far it had come."""
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not Path(f"/proc/{pid}").exists())
        return self.tally(pid)


@pytest.mark.slow
def test_four_workers_killed_and_recycled_lose_no_increment(folder, tmp_path):
    """100,000 increments by 4 workers at a time, killed in the midst of it: exact, never backwards, files bounded."""
    rng = random.Random(7)
    target, done, kills, cut_short, shown, most = 100_000, 0, 0, 0, 0.0, 0
    workers = {}
    with Prefork(folder, tmp_path / "tallies") as prefork:
        while done < target or workers:
            while len(workers) < 4 and done + sum(workers.values()) < target:
                amount = min(rng.choice((5_000, 10_000, 15_000)), target - done - sum(workers.values()))
                workers[prefork.fork(amount)] = amount
            pid = rng.choice(list(workers))
            if kills < 20:
                time.sleep(rng.random() * 0.02)  # somewhere in its work
            else:
                assert eventually(lambda pid=pid: prefork.tally(pid) == workers[pid], timeout_s=30)
            counted = prefork.kill(pid)
            kills += 1
            done += counted
            cut_short += counted < workers.pop(pid)
            samples = scrape(prefork.url)
            total = sum(value for key, value in samples.items() if key[0] == "prefork_steps_total")
            assert total >= max(shown, done)
            shown = total
            most = max(most, sum(files(folder).values()))
    # A worker may be killed between an increment and its tally: at most one more than tallied, per kill.
    assert target == done <= total <= done + kills
    assert 0 <= samples["prefork_sizes_count",] - done <= kills
    # Bucket and sum are two stores: a kill may come between them.
    assert 0 <= samples["prefork_sizes_count",] - samples["prefork_sizes_sum",] <= kills
    assert ("prefork_busy",) not in samples  # a gauge of the dead
    stepped = sum(value for key, value in samples.items() if key[0] == "prefork_stepped_total")
    assert done - kills * 1_500 <= stepped <= done  # by event: a kill loses what waits in the queue
    assert most <= 4 + 1 + 3  # those alive, the parent's; totals, lock, and one being made
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 500_000
    assert cut_short
    report = f"{total:.0f} steps, {done} tallied, {kills} kills ({cut_short} in the midst), at most {most} files"
    sys.stdout.write(f"{report}, {size} bytes at the end\n")


GUNICORN = """
import eventcore as ec
import eventcore_http

HITS = ec.counter("guni_hits_total", help="Hits, by hand.")


class Hit(ec.Event, name="guni.hit", category="user"):
    pass


METRICS = [ec.Counter("guni_events_total", on=Hit, help="Hits, by event.")]
emitter = ec.configure(service="guni", instruments=METRICS, handlers={"metric": {}})
operations = eventcore_http.wsgi_app()


def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return operations(environ, start_response)
    HITS.inc()
    emitter.emit(Hit())
    emitter.flush()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["each-worker-configures", "preload"])
def test_gunicorn_workers_recycled_and_killed(folder, tmp_path, preload):
    """Behind gunicorn any worker shows the whole: no answered request is missing, none goes backwards."""
    pytest.importorskip("gunicorn", reason="gunicorn is not installed (extra dev)")
    (tmp_path / "guni.py").write_text(GUNICORN)
    address = tmp_path / "socket"
    command = ["-m", "gunicorn", "-w", "4", "--max-requests", "60", "--max-requests-jitter", "20", *preload]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    server = subprocess.Popen(
        [sys.executable, *command, "--no-control-socket", "--bind", f"unix:{address}", "guni:app"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert eventually(address.exists, timeout_s=20), server.stderr.read()
        rng = random.Random(11)
        sent = answered = kills = 0
        shown = 0.0
        for number in range(800):
            sent += 1
            answered += ask(address, "/")[0] == 200
            if number % 90 == 89:
                worker = rng.choice(eventually(lambda: children(server.pid)))
                os.kill(worker, signal.SIGKILL)
                kills += 1
            if number % 40 == 39:
                status, body = ask(address, "/metrics")
                if status:  # not asked of the worker that was killed just now
                    total = hits(body)["guni_hits_total"]
                    assert total >= max(shown, answered)
                    shown = total
        assert eventually(lambda: ask(address, "/metrics")[0] == 200)
        found = hits(ask(address, "/metrics")[1])
        assert kills == 8
        assert answered <= found["guni_hits_total"] <= sent
        assert answered <= found["guni_events_total"] <= sent
        assert files(folder)["values"] <= 4 + 1 + 1
    finally:
        server.terminate()
        server.wait(10)
        server.stderr.close()


def ask(address, path):
    """Send a request through a Unix socket; return status (0 where nobody answered) and body."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(str(address))
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return 0, ""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode()


def hits(text):
    """Return the samples without labels."""
    return {s.name: s.value for family in parse(text) for s in family.samples if not s.labels}


def children(pid):
    """Return the process ids of the children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
