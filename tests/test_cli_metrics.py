"""``eventcore metrics``: metrics of others, and never an empty registry."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app

MODULE = """
from typing import Annotated, Literal
import eventcore as ec

class Paid(ec.Event, name="till.paid", category="user"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]
    card: Annotated[str, ec.Sensitive] = ""

class Charge(ec.Operation, name="till.charge", category="integration"):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]

METRICS = [
    ec.Counter("till_paid_total", on=Paid, labels={"currency": "currency"}, help="Payments."),
    ec.Histogram("till_amount", on=Paid, value="amount", help="Amounts."),
    ec.Histogram("till_charge_duration_seconds", on=Charge, value="duration_s", help="Time to charge.",
                 labels={"provider": "provider", "status": "outcome", "error_type": ec.rename("error_type",
                 {"OSError": "os"}, other="other")}),
]
"""


@pytest.fixture(scope="module")
def till(tmp_path_factory):
    """Return a module of event types and instruments, imported once."""
    folder = tmp_path_factory.mktemp("till")
    (folder / "till_events.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    import till_events

    yield till_events
    sys.path.remove(str(folder))


OWN = ("--import", "till_events", "--instruments", "till_events:METRICS")


def run(*arguments, stdin=None):
    """Run the command here; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, ["metrics", *map(str, arguments)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def samples(text, prefix="till_"):
    """Return the samples of an exposition by name and labels, without times of creation."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(prefix) and not sample.name.endswith("_created")
    }


@contextmanager
def serving(*arguments, folder=None, **options):
    """Run the command as a process of its own; yield the process and its address."""
    environment = {"PYTHONPATH": str(folder or ""), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        [sys.executable, "-m", "eventcore", "metrics", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **options,
    ) as process:
        try:
            yield process, process.stdout.readline().decode().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def get(url, **headers):
    """Return status and text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# -- without a source --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no source: say whose metrics to serve"),
        (("--url", "http://127.0.0.1:1", "--stream", "x"), "--url and --stream: say whose metrics"),
        (("--url", "http://127.0.0.1:1"), "nothing answers at http://127.0.0.1:1"),
        (("--url", "nonsense"), "--url 'nonsense' is no address"),
        (("--dir", "none"), "none has no metrics of a handler 'metric'"),
        (("--dir", "."), ". has no metrics of a handler 'metric'; is it the multiprocess_dir of a process?"),
        (("--stream", "none.jsonl", "--pack", "tiny_dancer"), "--stream none.jsonl: No such file or directory"),
        (("--stream", "-"), "no instruments, so nothing would be counted"),
        (("--stream", "-", "--pack", "tiny_dancr"), "tiny_dancr"),
        (("--stream", "-", "--instruments", "no_such:METRICS"), "--instruments no_such:METRICS: ModuleNotFoundError"),
        (("--stream", "-", "--follow"), "--follow goes with --stream FILE"),
    ],
)
def test_without_a_source_there_is_one_clear_error(arguments, message):
    """No source, two, one that is not there or one that would count nothing: one error, and 2; nothing is served."""
    code, out, err = run("--port", 0, *arguments)
    assert (code, out) == (2, "")
    assert message in err


# -- a stream ----------------------------------------------------------------------------------------------------------


def test_a_log_is_counted_as_the_process_counted(till, tmp_path):
    """Folding the JSON log of a process gives the series that the process itself showed."""
    handlers = {"log": {"format": "json", "output": str(tmp_path / "till.jsonl")}, "metric": {}}
    with ec.configure(instruments=till.METRICS, handlers=handlers) as emitter:
        for number in range(50):
            emitter.emit(till.Paid(currency=("eur", "usd")[number % 2], amount=number / 10, card="4111 1111 1111 1111"))
        for number in range(10):
            with emitter.operation(till.Charge, provider="stripe") as charge:
                if number % 3 == 0:
                    charge.fail(OSError("refused"))
        ec.get_logger("till", shift="early").info("counted", drawer=3)
        ec.emit_event("till.drawer", message="opened", data={"drawer": 3})
        emitter.flush()
        expected = samples(emitter.handler("metric").render().decode())
    code, out, err = run("--stream", tmp_path / "till.jsonl", "--once", *OWN)
    found = samples(out)
    assert code == 0
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key[0] == "till_charge_duration_seconds_sum":
            assert found[key] == pytest.approx(value, abs=1e-5)  # the log has milliseconds, to three places
        elif key[0] != "till_charge_duration_seconds_bucket":
            assert found[key] == value
    assert "64 lines" in err
    assert "no events" not in err, "a logger's line is one, too"


def test_lines_may_come_from_anywhere(till):
    """A line needs a name and its fields; severity, time, duration and outcome are optional."""
    lines = [
        {"name": "till.paid", "currency": "eur", "amount": 1},
        {"name": "till.paid", "fields": {"currency": "usd", "amount": 2.5}, "severity": "warning", "timestamp": 1.5},
        {"name": "till.charge", "provider": "adyen", "duration_s": 0.25, "outcome": "failure", "error_type": "OSError"},
        {"name": "till.charge", "provider": "adyen", "event": "a start, which has no duration"},
    ]
    code, out, err = run("--stream", "-", "--once", *OWN, stdin="\n".join(map(json.dumps, lines)) + "\n\n")
    found = samples(out)
    labels = (("error_type", "os"), ("provider", "adyen"), ("status", "failure"))
    assert code == 0
    assert found["till_charge_duration_seconds_sum", labels] == 0.25
    assert found["till_paid_total", (("currency", "usd"),)] == 1
    assert found["till_amount_sum", ()] == 3.5
    assert "-: 4 lines, 3 events" in err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "no JSON"),
        ("[1]", "no JSON object, but a list"),
        ('{"event": "x"}', "no 'name' of an event"),
        ('{"name": "till.paid"}', "till.paid: field 'currency': Field required"),
        ('{"name": "till.paid", "currency": "gbp", "amount": 1}', "field 'currency': Input should be 'eur' or 'usd'"),
        ('{"name": "till.paid", "currency": "eur", "amount": 1, "level": "loud"}', "loud"),
        ('{"name": "till.paid", "currency": "eur", "amount": 1, "timestamp": "noon"}', "timestamp 'noon' is neither"),
        ('{"name": "till.charge", "provider": "adyen", "duration_s": -1}', "duration_s is -1: expected a number"),
        ('{"name": "till.charge", "provider": "adyen", "duration_s": 1, "outcome": "?"}', "outcome is '?': expected"),
        ('{"name": "till.paid", "currency": "eur", "amount": 1, "trace_id": "xyz"}', "till.paid: "),
    ],
)
def test_a_line_that_is_no_event_is_said_and_counted(till, line, reason):
    """Wrong lines end ``--once`` with 1 and the first reason; right ones count all the same."""
    good = '{"name": "till.paid", "currency": "eur", "amount": 1}'
    code, out, err = run("--stream", "-", "--once", *OWN, stdin=f"{line}\n{good}\n")
    assert code == 1
    assert samples(out)["till_paid_total", (("currency", "eur"),)] == 1
    first = err.partition("1 no events; first: line 1: ")[2]
    assert reason in first


def test_events_that_nobody_knows_are_counted(till):
    """A line of an unknown type is no mistake, for a log has many; it is counted, and the first is named."""
    code, _, err = run("--stream", "-", "--once", *OWN, stdin='{"name": "till.piad"}\n')
    assert code == 0
    assert "1 of unknown types" in err
    assert "did you mean 'till.paid'" in err


def test_nothing_is_lost_of_a_long_stream(till, monkeypatch):
    """A stream longer than any queue is counted whole."""
    monkeypatch.setattr("eventcore.cli.metric_sources.FLUSH_EVERY", 500)
    line = '{"name": "till.paid", "currency": "eur", "amount": 1}\n'
    code, out, _ = run("--stream", "-", "--once", *OWN, stdin=line * 5_000)
    assert (code, samples(out)["till_paid_total", (("currency", "eur"),)]) == (0, 5_000)


@pytest.mark.slow
def test_a_growing_file_is_followed(till, tmp_path):
    """With ``--follow`` lines count as they are written, half a line not before its end; health tells of wrong ones."""
    log = tmp_path / "till.jsonl"
    line = b'{"name": "till.paid", "currency": "eur", "amount": 1}\n'
    log.write_bytes(line)
    folder = Path(till.__file__).parent
    with serving("--stream", str(log), "--follow", *OWN, folder=folder, cwd=tmp_path) as (process, url):

        def paid():
            return samples(get(url)[1]).get(("till_paid_total", (("currency", "eur"),)))

        wait_for(lambda: paid() == 1)
        with log.open("ab") as file:
            file.write(line + line[:20])
            file.flush()
            wait_for(lambda: paid() == 2)
            file.write(line[20:] + b"nonsense\n")
            file.flush()
            wait_for(lambda: paid() == 3)
        health = url.replace("/metrics", "/health")
        wait_for(lambda: json.loads(get(health)[1])["checks"]["stream"]["status"] == "degraded")
        assert "no JSON" in json.loads(get(health)[1])["checks"]["stream"]["message"]
    assert process.returncode == 0


def wait_for(condition):
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@pytest.mark.slow
def test_other_handlers_see_nothing_of_it(till, tmp_path):
    """What is counted happened elsewhere: the log and the webhooks of the settings do not get it a second time."""
    (tmp_path / "eventcore.toml").write_text('[handlers.log]\noutput = "again.log"\n[handlers.metric]\n')
    line = '{"name": "till.paid", "currency": "eur", "amount": 1}\n'
    folder = Path(till.__file__).parent
    with serving("--stream", "-", *OWN, folder=folder, cwd=tmp_path, stdin=subprocess.PIPE) as (process, url):
        process.stdin.write(line.encode())
        process.stdin.close()
        wait_for(lambda: 'till_paid_total{currency="eur"} 1.0' in get(url)[1])
    assert not (tmp_path / "again.log").exists()


# -- a running process -------------------------------------------------------------------------------------------------


class Sold(ec.Event, name="stall.sold", category="user"):
    article: Annotated[Literal["chair", "table"], ec.Label]


SOLD = ec.Counter("stall_sold_total", on=Sold, labels={"article": "article"}, help="Sold.")


def test_a_running_process_is_passed_on_once(monkeypatch):
    """``--once`` prints what the process serves, and authenticates as other commands do."""
    emitter = ec.configure(instruments=[SOLD], handlers={"metric": {}}, http={"port": 0, "token": "t0ken"})
    emitter.emit(Sold(article="chair"))
    url = emitter.services["http"].url
    code, _, err = run("--url", url, "--once")
    assert code == 2
    assert "EVENTCORE_TOKEN" in err
    monkeypatch.setenv("EVENTCORE_TOKEN", "t0ken")
    code, out, _ = run("--url", url, "--once")
    assert (code, samples(out, "stall_")["stall_sold_total", (("article", "chair"),)]) == (0, 1)


def test_a_process_without_metrics_is_an_error():
    """A process that serves, and has no metric handler, is one error that says what it needs."""
    emitter = ec.configure(handlers={"buffer": {}}, http={"port": 0})
    code, out, err = run("--url", emitter.services["http"].url)
    assert (code, out) == (2, "")
    assert "status 404 and no metrics" in err
    assert "[handlers.metric]" in err


@pytest.mark.slow
def test_scrapes_are_passed_on_while_the_process_runs(tmp_path):
    """Each scrape shows the process as it is then, in the format asked for; when it is gone, a scrape fails."""
    emitter = ec.configure(instruments=[SOLD], handlers={"metric": {}}, http={"port": 0})
    with serving("--url", emitter.services["http"].url, cwd=tmp_path) as (process, url):
        for number in (1, 2):
            emitter.emit(Sold(article="table"))
            assert samples(get(url)[1], "stall_")["stall_sold_total", (("article", "table"),)] == number
        status, text = get(url, Accept="application/openmetrics-text;version=1.0.0")
        assert (status, text.endswith("# EOF\n")) == (200, True)
        ec.shutdown()
        status, text = get(url)
        assert status == 502
        assert "nothing answers at" in text
        assert get(url.replace("/metrics", "/readyz"))[0] == 503
        assert get(url.replace("/metrics", "/livez"))[0] == 200
    assert process.returncode == 0


# -- a folder of workers -----------------------------------------------------------------------------------------------

WORKER = """
import os, sys
import eventcore as ec
import till_events
emitter = ec.configure(handlers={"metric": {"multiprocess_dir": "shared"}}, instruments=till_events.METRICS)
for _ in range(int(sys.argv[1])):
    emitter.emit(till_events.Paid(currency="eur", amount=1.0))
emitter.flush()
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_folder_of_workers_is_summed_up(till, tmp_path):
    """Workers that were killed are in the sum, of a process that is none of them, printed or served."""
    (tmp_path / "worker.py").write_text(WORKER)
    folder = Path(till.__file__).parent
    for number in (3, 4):
        command = [sys.executable, "worker.py", str(number)]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        assert subprocess.run(command, check=False, env=environment).returncode == -signal.SIGKILL
    code, out, err = run("--dir", "shared", "--once")
    assert (code, samples(out).get(("till_paid_total", (("currency", "eur"),)))) == (0, 7), err
    with serving("--dir", "shared", cwd=tmp_path) as (process, url):
        assert samples(get(url)[1])["till_paid_total", (("currency", "eur"),)] == 7
        assert get(url, Accept="application/openmetrics-text;version=1.0.0")[1].endswith("# EOF\n")
        assert get(url.replace("/metrics", "/readyz"))[0] == 200
        for path in (tmp_path / "shared").iterdir():
            path.unlink()
        assert get(url)[0] == 503
    assert process.returncode == 0


def test_a_port_in_use_is_one_clear_error():
    """Where the port is taken it ends with 2 and the port; nothing is left running."""
    emitter = ec.configure(handlers={"metric": {}}, http={"port": 0})
    http = emitter.services["http"]
    code, out, err = run("--url", http.url, "--port", http.port)
    assert (code, out) == (2, "")
    assert f"port {http.port} on 127.0.0.1 is in use" in err
