"""``eventcore doctor``: each check finds what is planted, and is quiet where all is well."""

import json
import socket
import sys
from typing import Annotated, Literal

import pytest
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from tests.support import live
from tests.support.handlers import Collect, Held
from tests.support.otlp_receiver import OtlpReceiver


class Sold(ec.Event, name="shop.sold", category="user"):
    article: Annotated[Literal["chair", "table"], ec.Label]
    buyer: Annotated[str, ec.Label] = ""


SOLD = ec.Counter("shop_sold_total", on=Sold, labels={"article": "article"}, help="Sold.")
BUYERS = ec.Counter("shop_buyers_total", on=Sold, labels={"buyer": "buyer"}, help="Sold, by buyer.")


def doctor(*arguments):
    """Return exit code and findings by check."""
    result = CliRunner().invoke(app, ["doctor", "--json", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    answer = json.loads(result.stdout)
    found = {}
    for one in answer["findings"]:
        found.setdefault(one["check"], []).append((one["status"], one["message"], one["remedy"]))
    assert answer["summary"] == {
        status: sum(one["status"] == status for one in answer["findings"]) for status in ("ok", "warn", "fail")
    }
    assert all(one["remedy"] for one in answer["findings"] if one["status"] != "ok")
    assert result.exit_code == (1 if answer["status"] == "fail" else 0)
    return result.exit_code, found


def running(**options):
    """Return emitter and URL of this process, which serves."""
    emitter = ec.configure(service="shop", **{"instruments": [SOLD], "http": {"port": 0}, **options})
    return emitter, emitter.services["http"].url


def test_all_is_well(tmp_path):
    """A process with every signal has no warning."""
    with OtlpReceiver() as receiver:
        handlers = {
            "log": {"format": "json", "output": str(tmp_path / "shop.jsonl")},
            "metric": {},
            "span": {"exporter": "otlp", "endpoint": receiver.endpoint},
        }
        emitter, url = running(handlers=handlers)
        with ec.span("sale"):
            emitter.emit(Sold(article="chair"))
        emitter.flush()
        code, found = doctor("--url", url)
        ec.shutdown()  # while somebody takes the spans
    assert code == 0
    assert {status for findings in found.values() for status, *_ in findings} == {"ok"}
    assert found.keys() >= {
        "emitter",
        "handlers",
        "metrics",
        "cardinality metric",
        "tracing span",
        "OTLP span",
        "log log",
    }
    assert "lines have a trace id" in found["log log"][0][1]


def test_it_speaks_plainly():
    """Without ``--json`` each check is a line with its status, and what to do below it."""
    result = CliRunner().invoke(app, ["doctor", "--url", "http://127.0.0.1:1"])
    text = " ".join(result.stdout.split())
    assert result.exit_code == 1
    assert "process fail nothing answers at http://127.0.0.1:1" in text
    assert "→ start the process, with [http] in its settings" in text
    assert text.endswith("0 ok, 0 warn, 1 fail")


# -- settings and extras -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[handlers.log]\nfromat = 'json'\n", "did you mean 'format'"),
        ("[http]\nport = 70000\n", "option 'port' is 70000"),
        ("[health.memory]\nwarning_threshold = 2\n", "warning_threshold"),
        ("handlers = [\n", "not valid TOML"),
    ],
)
def test_settings_that_are_wrong(tmp_path, settings, message):
    """A mistake in the settings, of handlers or of services, is the finding, and it is the only one."""
    (tmp_path / "eventcore.toml").write_text(settings)
    code, found = doctor()
    assert (code, list(found)) == (1, ["configuration"])
    assert message in found["configuration"][0][1]


def test_an_address_of_prometheus_that_is_none():
    """What cannot be asked is one clear error, and nothing is looked at."""
    result = CliRunner().invoke(app, ["doctor", "--prometheus", "nonsense"])
    assert result.exit_code == 2
    assert "--prometheus 'nonsense' is no address; write it like http://localhost:9091" in " ".join(
        result.stderr.split()
    )


def test_an_extra_that_is_missing(tmp_path, monkeypatch):
    """An installed plugin whose library is missing is said; only where it is configured it is a mistake."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in ("system", "service"):
        monkeypatch.delitem(sys.modules, f"eventcore_health.{name}", raising=False)
    (tmp_path / "eventcore.toml").write_text("[handlers.buffer]\n")
    code, found = doctor()
    assert code == 0
    assert "not installed, and not configured: health" in found["extras"][0][1]


def test_settings_that_are_right(tmp_path):
    """Without ``--url`` the settings are looked at: what is not running is a warning, and nothing is opened."""
    (tmp_path / "eventcore.toml").write_text(
        f'[handlers.metric]\npacks = ["tiny_dancer"]\n[handlers.log]\nformat = "json"\noutput = "{tmp_path}/a.jsonl"\n'
        f"[http]\nport = {live.unused_port()}\n"
    )
    code, found = doctor()
    assert code == 0
    assert found["configuration"][0][0] == found["extras"][0][0] == "ok"
    assert found["metrics"][0][0] == "warn"
    assert found["log log"][0][1].endswith("No such file or directory")
    assert [path.name for path in tmp_path.iterdir()] == ["eventcore.toml"]


@pytest.mark.parametrize(
    ("http", "status"),
    [("host = '127.0.0.1'", "ok"), ("host = '0.0.0.0'", "warn"), ("host = '0.0.0.0'\ntoken = 't0ken'", "ok")],
)
def test_a_server_that_is_open_to_all(tmp_path, http, status):
    """A server that listens beyond loopback and asks nobody who reads is a warning."""
    (tmp_path / "eventcore.toml").write_text(f"[handlers.buffer]\n[http]\n{http}\n")
    assert doctor()[1]["http"][0][0] == status


# -- events not being recorded -----------------------------------------------------------------------------------------


def test_an_emitter_that_is_switched_off():
    """A disabled emitter fails."""
    emitter, url = running(handlers={"buffer": {}})
    emitter.is_enabled = False
    assert doctor("--url", url)[1]["emitter"][0][:2] == ("fail", "is switched off: no event is taken")


def test_no_handlers():
    """Where only the last resort takes events, that fails."""
    emitter, url = running(handlers={"buffer": {}})
    emitter.remove_handler("buffer")
    assert doctor("--url", url)[1]["handlers"][0][0] == "fail"


def test_a_handler_that_fails_or_drops():
    """A handler in quarantine fails; dropped events are a warning with their reasons."""

    def refuse(envelope):
        raise OSError("refused")

    held = Held(queue_size=1, linger_s=0, batch_size=1)
    emitter, url = running(handlers={"ill": Collect(act=refuse, delivery="inline"), "slow": held})
    for _ in range(20):
        emitter.emit(Sold(article="chair"))
    found = doctor("--url", url)[1]
    held.release.set()
    assert found["handler ill"][0][0] == "fail"
    assert "quarantine (open)" in found["handler ill"][0][1]
    assert any("dropped: full" in message for _, message, _ in found["handler slow"])


def test_filters_that_let_nothing_pass():
    """Where no handler takes any event, that is a warning."""
    _, url = running(handlers={"buffer": {"events": ["nothing.of.the.kind"]}})
    assert doctor("--url", url)[1]["routes"][0][0] == "warn"


def test_health_is_part_of_it():
    """What is unhealthy fails, what is degraded is a warning."""
    emitter, url = running(handlers={"buffer": {}})
    for name, status in (("db", "unhealthy"), ("cache", "degraded")):
        result = ec.HealthResult(ec.HealthStatus(status), f"{name} is {status}")
        emitter.health.add_check(ec.HealthCheck(name, lambda result=result: result))
    found = doctor("--url", url)[1]
    assert (found["health db"][0][:2], found["health cache"][0][0]) == (("fail", "db is unhealthy"), "warn")


# -- metrics not appearing, high cardinality ---------------------------------------------------------------------------


def test_metrics_that_are_not_served():
    """No metric handler is a warning; with one, the address and the number of its samples are shown."""
    _, url = running(handlers={"buffer": {}})
    assert doctor("--url", url)[1]["metrics"][0][0] == "warn"
    ec.shutdown()
    _, url = running(handlers={"metric": {}})
    status, message, _ = doctor("--url", url)[1]["metrics"][0]
    assert (status, message.startswith(f"{url}/metrics has ")) == ("ok", True)


def test_cardinality_at_and_near_its_limit():
    """A metric near its limit is a warning, one beyond it fails, with the metric's name."""
    emitter, url = running(instruments=[BUYERS], handlers={"metric": {"max_series": 10}})
    for number in range(9):
        emitter.emit(Sold(article="chair", buyer=f"b{number}"))
    emitter.flush()
    status, message, _ = doctor("--url", url)[1]["cardinality metric"][0]
    assert status == "warn"
    assert "shop_buyers_total (9 of 10)" in message
    for number in range(20):
        emitter.emit(Sold(article="chair", buyer=f"c{number}"))
    emitter.flush()
    status, message, _ = doctor("--url", url)[1]["cardinality metric"][0]
    assert status == "fail"
    assert "shop_buyers_total (" in message


@pytest.mark.server
@pytest.mark.slow
def test_prometheus_is_asked(tmp_path):
    """A real Prometheus says whether it scrapes this process: up, down with the reason, or not at all."""
    emitter, url = running(handlers={"metric": {}})
    emitter.emit(Sold(article="chair"))
    port = url.rpartition(":")[2]
    with live.prometheus(tmp_path, {"till": f"127.0.0.1:{port}"}) as server:
        server.eventually("shop_sold_total")
        found = doctor("--url", url, "--prometheus", server.url)[1]
        assert found["prometheus till"][0][0] == "ok"
        assert found["prometheus series"][0][0] == "ok"
        ec.shutdown()
        other = ec.configure(service="other", handlers={"metric": {}}, http={"port": 0})
        found = doctor("--url", other.services["http"].url, "--prometheus", server.url)[1]
        status, message, remedy = found["prometheus"][0]
        assert (status, "its jobs: till" in message) == ("fail", True)
        assert other.services["http"].url.removeprefix("http://") in remedy
        ec.shutdown()
        third = ec.configure(service="till", handlers={"metric": {}}, http={"port": 0})
        assert live.eventually(lambda: server.get("targets")["activeTargets"][0]["health"] == "down")
        found = doctor("--url", third.services["http"].url, "--prometheus", server.url)[1]
        assert found["prometheus till"][0][0] == "fail"
        assert "refused" in found["prometheus till"][0][1]


def test_what_is_no_prometheus():
    """Another server in its place is said to be none."""
    _, url = running(handlers={"metric": {}})
    status, message, _ = doctor("--url", url, "--prometheus", url)[1]["prometheus"][0]
    assert (status, "does not answer as Prometheus" in message) == ("fail", True)


# -- tracing data missing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "status"), [(0.0, "fail"), (0.0001, "warn"), (0.1, "ok")])
def test_the_sampling_ratio(ratio, status):
    """No trace sampled fails, few are a warning."""
    _, url = running(handlers={"span": {"exporter": "memory", "sampling_ratio": ratio}})
    assert doctor("--url", url)[1]["tracing span"][0][0] == status


def test_tracing_that_is_disabled(monkeypatch):
    """``OTEL_SDK_DISABLED`` is named."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    _, url = running(handlers={"span": {"exporter": "memory"}})
    assert doctor("--url", url)[1]["tracing span"][0][:2] == ("fail", "is disabled by OTEL_SDK_DISABLED")


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_collector_that_is_not_there(tmp_path, monkeypatch, by_variable):
    """Where nothing listens at the endpoint, of the settings or of ``OTEL_…``, that fails with host and port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    if by_variable:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    option = "" if by_variable else f'endpoint = "{endpoint}"\n'
    (tmp_path / "eventcore.toml").write_text(f'[handlers.span]\nexporter = "otlp"\n{option}')
    status, message, _ = doctor()[1]["OTLP span"][0]
    assert status == "fail"
    assert f"127.0.0.1, port {port}" in message


@pytest.mark.parametrize("kind", ["span", "metric", "log"])
def test_every_signal_has_its_collector(tmp_path, kind):
    """Spans, metrics and logs that go to a collector are each asked for theirs, before and while the process runs."""
    with OtlpReceiver() as receiver:
        option = "output" if kind == "log" else "exporter"
        address = receiver.endpoint.partition("//")[2].partition("/")[0].replace(":", ", port ")
        (tmp_path / "eventcore.toml").write_text(
            f'[handlers.{kind}]\n{option} = "otlp"\nendpoint = "{receiver.endpoint}"\n[http]\nport = 0\n'
        )
        assert doctor()[1][f"OTLP {kind}"][0][:2] == ("ok", f"{address}, can be reached")
        url = ec.configure().services["http"].url
        assert doctor("--url", url)[1][f"OTLP {kind}"][0][:2] == ("ok", f"{address}, can be reached")
        ec.shutdown()


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        (['{"event": "x"}'], "warn", "none of the latest 1 lines has a trace id"),
        (['{"event": "x"}', '{"trace_id": "abc"}'], "ok", "1 of the latest 2 lines have a trace id"),
        (['{"trace.id": "abc"}'], "ok", "1 of the latest 1 lines"),
        (['{"trace": {"id": "abc"}}'], "ok", "1 of the latest 1 lines"),
        (['{"event": "x"}', "print was here"], "fail", "1 of the latest 2 lines are no JSON"),
    ],
)
def test_log_files_are_read(tmp_path, lines, status, message):
    """The latest lines of a JSON log are read: whether they are JSON, and whether they have trace ids."""
    (tmp_path / "shop.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "eventcore.toml").write_text('[handlers.log]\nformat = "json"\noutput = "shop.jsonl"\n')
    found = doctor()[1]["log log"][0]
    assert found[0] == status
    assert message in found[1]


def test_a_large_log_is_read_from_its_end(tmp_path, monkeypatch):
    """Of a large log only the end is read; one that is huge and not rotated is a warning."""
    monkeypatch.setattr("eventcore.cli.diagnosis.TAIL_BYTES", 1000)
    monkeypatch.setattr("eventcore.cli.diagnosis.HUGE_LOG", 10_000)
    (tmp_path / "shop.jsonl").write_text("no json here\n" * 1000 + '{"trace_id": "abc"}\n' * 60)
    (tmp_path / "eventcore.toml").write_text('[handlers.log]\nformat = "json"\noutput = "shop.jsonl"\n')
    huge, traced = doctor()[1]["log log"]
    assert huge[0] == "warn"
    assert "not rotated" in huge[1]
    assert traced[0] == "ok"
