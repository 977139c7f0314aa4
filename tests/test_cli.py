"""The command line: in this process, as a process of its own, and against a running one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from tests.support.handlers import workers

SETTINGS = """
service = "shop"
[handlers.log]
format = "json"
output = "logs/shop.jsonl"
[handlers.metric]
packs = ["tiny_dancer"]
[handlers.span]
exporter = "file"
path = "spans.jsonl"
sampling_ratio = 0.01
[handlers.oncall]
use = "webhook"
url = "http://127.0.0.1:1/t0ken"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
events = ["circuit.*"]
min_severity = "error"
allow_private = true
max_attempts = 1
"""

SECRETS = ("t0ken", "whsec", "MfKQ9r8")

PROGRAM = """
import sys
import eventcore as ec

class Sold(ec.Event, name="desk.sold", category="user", message="{article} sold"):
    article: str

class Wrapped(ec.Operation, name="desk.wrap", category="execution"):
    pass

if __name__ == "__main__":
    with ec.configure(http={"port": 0}) as emitter:
        for article in ("chair", "table"):
            emitter.emit(Sold(article=article))
        emitter.flush()
        with emitter.operation(Wrapped):
            print(emitter.services["http"].url, flush=True)
            sys.stdin.read()
"""


def run(*arguments):
    """Run the command line in this process; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def ask(*arguments):
    """Run a command with ``--json`` and return what it says."""
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def words(text):
    """Return ``text`` as one line, however it was wrapped."""
    return " ".join(text.split())


def spawn(*arguments, **options):
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "eventcore", *arguments], check=False, capture_output=True, text=True, **options
    )


@pytest.fixture
def settings(tmp_path):
    """Put settings where commands find them; return the folder."""
    (tmp_path / "eventcore.toml").write_text(SETTINGS)
    return tmp_path


@pytest.fixture
def running(settings):
    """Run a program of its own with these settings; return its URL."""
    (settings / "desk.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, "desk.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(20) == 0


@contextmanager
def serving(status, body, content_type="application/json"):
    """Run a server that answers everything alike; yield its URL."""

    class Always(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Always)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- what is installed -------------------------------------------------------------------------------------------------


def test_handlers_lists_what_is_installed():
    """Without ``--url`` it lists the installed kinds, with what each does."""
    rows = {row["kind"]: row for row in ask("handlers")}
    assert {"log", "metric", "span", "buffer", "webhook"} <= set(rows)
    assert set(rows["log"]) == {"kind", "plugin", "version", "delivery", "about", "problem"}
    assert "webhook" in run("handlers")[1]


def test_catalog_lists_types_and_packs():
    """It lists event types of installed plugins with their fields, and the instruments of each pack."""
    answer = ask("catalog")
    (route,) = [event for event in answer["events"] if event["name"] == "router.route"]
    assert (route["operation"], route["fields"]["candidate_count"]["role"]) == (True, "measure")
    assert len(answer["packs"]["tiny_dancer"]) == 10
    text = run("catalog")[1]
    assert "router.route (operation)" in words(text)
    assert "tiny_dancer" in text


# -- explain -----------------------------------------------------------------------------------------------------------


def test_explain_answers_for_each_handler(settings):
    """It says who takes an event, which clause stops it elsewhere, and an example of each output."""
    answer = ask("explain", "circuit.opened", "--severity", "info")
    handlers = {handler["name"]: handler for handler in answer["handlers"]}
    assert answer["source"] == "fresh"
    assert json.loads(handlers["log"]["output"])["name"] == "circuit.opened"
    assert handlers["metric"]["output"] == "tiny_dancer_circuit_breaker_state 2.0"
    assert [stop["clause"] for stop in handlers["span"]["stopped_by"]] == ["handler"]
    assert handlers["oncall"]["stopped_by"] == [{"clause": "min_severity", "why": "info is below error"}]
    assert json.loads(of(ask("explain", "circuit.opened", "--severity", "error"), "oncall")["output"])["type"]
    text = words(run("explain", "circuit.opened", "--severity", "info")[1])
    assert "A fresh emitter, not a running one" in text
    assert str(settings / "eventcore.toml") in text.replace(" ", "")
    assert "stopped by min_severity: info is below error" in text


def of(answer, name):
    """Return what an answer says of one handler."""
    (found,) = [handler for handler in answer["handlers"] if handler["name"] == name]
    return found


@pytest.mark.parametrize(
    "command",
    [
        ("explain", "router.route"),
        ("debug", "inspect"),
        ("catalog",),
        ("health",),
        ("handlers",),
    ],
)
def test_looking_opens_nothing(settings, command):
    """Commands that look write to no configured file, make no folder and call no webhook, and show no secret."""
    for arguments in (command, (*command, "--json")):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert not any(secret in out for secret in SECRETS)
    assert [path.name for path in settings.iterdir()] == ["eventcore.toml"]


def test_an_unknown_event_is_an_error_with_a_suggestion():
    """An unknown name ends with 2 and the likeliest one; ``--import`` makes types of one's own known."""
    code, out, err = run("explain", "circuit.opend")
    assert (code, out) == (2, "")
    assert "did you mean 'circuit.opened'?" in err
    assert "--import" in err


def test_types_of_an_application_are_imported_on_request(tmp_path):
    """``--import`` names a module of the working directory; one that is not there is an error."""
    (tmp_path / "desk_types.py").write_text(PROGRAM.replace("desk.", "desk_types."))
    done = spawn("explain", "desk_types.sold", "--import", "desk_types", "--json")
    assert json.loads(done.stdout)["example"] == {"article": "example"}, done.stderr
    assert run("explain", "desk.sold", "--import", "no_such_module")[0] == 2


@pytest.mark.parametrize("command", [("explain", "router.route"), ("debug", "inspect"), ("health",), ("catalog",)])
def test_a_mistake_in_the_settings_is_one_error(tmp_path, command):
    """Wrong settings end every command with 2 and the error that names file, key and remedy."""
    (tmp_path / "eventcore.toml").write_text("[handlers.log]\nfromat = 'json'\n")
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "eventcore.toml" in err
    assert "did you mean 'format'" in err
    assert run(*command, "--config", "none.toml")[0] == 2


# -- debug inspect -----------------------------------------------------------------------------------------------------


def test_inspect_prints_the_guides_fields(settings):
    """``debug inspect`` prints the fields of the TinyLLM guide, and the account of every handler."""
    lines = [line.strip() for line in run("debug", "inspect")[1].splitlines()]
    for line in (
        "Metrics System:",
        "Collector: prometheus",
        "Total metrics: 10",
        "Cardinality Stats:",
        "Max cardinality: 1000 per metric",
        "Per-Metric Cardinality:",
        "tiny_dancer_routing_requests_total: 2 combinations, 0 dropped",
        "Event System:",
        "Enabled: True",
        "Telemetry System:",
        "Logging System:",
        "Configured: True",
    ):
        assert line in lines
    text = words("\n".join(lines))
    assert "Registry: own, of handler 'metric'" in text
    assert "Handlers: LogHandler (log), MetricHandler (metric), SpanHandler (span), WebhookHandler (oncall)" in text
    assert re.search(r"Total combinations: \d+", text)
    assert re.search(r"Processors: \d+ ", text)


@pytest.mark.parametrize(
    ("component", "heading", "kinds"),
    [
        ("metrics", "Metrics System:", {"metric"}),
        ("events", "Event System:", {"log", "metric", "span", "webhook"}),
        ("telemetry", "Telemetry System:", {"span"}),
        ("logs", "Logging System:", {"log"}),
    ],
)
def test_inspect_can_be_limited(settings, component, heading, kinds):
    """``--component`` prints that part alone, and ``--json`` has that part's handlers."""
    headings = re.findall(r"^\w+ System:", run("debug", "inspect", "--component", component)[1], re.MULTILINE)
    assert headings == [heading]
    answer = ask("debug", "inspect", "--component", component)
    assert {handler["kind"] for handler in answer["handlers"]} == kinds


def test_inspect_says_what_is_not_there(tmp_path):
    """Without metric, span and log handlers it says so, and speaks of defaults where no settings are found."""
    (tmp_path / "mine.toml").write_text("[handlers.buffer]\n")
    text = run("debug", "inspect", "--config", "mine.toml")[1]
    assert "Collector: none" in text
    assert "Enabled: False" in text
    assert "Configured: False" in text
    assert "settings: defaults, no file found" in words(run("debug", "inspect")[1])


# -- debug emit-event, test-trace --------------------------------------------------------------------------------------


def test_emit_event_goes_through_the_configured_handlers(settings):
    """The event is really written, and it says what each handler did and what stopped it elsewhere."""
    code, out, _ = run("debug", "emit-event", "test.event", "This is a test event", "--severity", "info")
    assert code == 0
    written = [json.loads(line) for line in (settings / "logs" / "shop.jsonl").read_text().splitlines()]
    assert [line["category"] for line in written if line["event"] == "This is a test event"] == ["system"]
    text = words(out)
    assert "log delivered" in text
    assert "oncall filtered by min_severity: info is below error" in text
    assert not any(secret in out for secret in SECRETS)


def test_emit_event_says_who_failed(settings):
    """A handler that fails ends it with 1, with the reason."""
    code, out, _ = run("debug", "emit-event", "circuit.test", "x", "--severity", "error", "--json")
    done = of(json.loads(out), "oncall")
    assert (code, done["did"]) == (1, "failed")
    assert "refused" in done["why"]
    assert not any(secret in out for secret in SECRETS)


@pytest.mark.parametrize(
    ("option", "value", "remedy"), [("severity", "infoo", "info"), ("category", "sytem", "system")]
)
def test_emit_event_refuses_what_it_does_not_know(settings, option, value, remedy):
    """An unknown severity or category ends it with 2 and a suggestion, before anything is emitted."""
    code, _, err = run("debug", "emit-event", "a.b", "x", f"--{option}", value)
    assert code == 2
    assert f"did you mean '{remedy}'" in err
    assert not (settings / "logs").exists()


def test_test_trace_shows_that_ids_correlate(settings):
    """The log line and the span that are written carry the ids it shows, however few traces are sampled."""
    answer = ask("debug", "test-trace")
    assert answer["correlated"] is True
    lines = [json.loads(line) for line in (settings / "logs" / "shop.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["name"] == "log.record"]
    (batch,) = (settings / "spans.jsonl").read_text().splitlines()
    (span,) = json.loads(batch)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ids = (answer["trace_id"], answer["span_id"])
    assert ids == (line["trace_id"], line["span_id"]) == (span["traceId"], span["spanId"])
    assert "Trace ids correlate." in run("debug", "test-trace")[1]


def test_test_trace_fails_where_no_line_has_the_ids(settings, monkeypatch):
    """Where no handler puts the line out, the ids do not correlate: 1, and which clause stopped it."""
    monkeypatch.setenv("EVENTCORE_HANDLERS__LOG__MIN_SEVERITY", "error")
    code, out, _ = run("debug", "test-trace")
    assert code == 1
    assert "log filtered by min_severity: info is below error" in words(out)
    assert "do not correlate" in words(out)


ELSEWHERE = """
[handlers.log]
output = "otlp"
client_certificate = "/run/secrets/no_such_cert.pem"
client_key = "/run/secrets/no_such_key.pem"
[handlers.oncall]
use = "webhook"
url = "https://example.com/hook"
secret = ["env:NO_SUCH_SECRET"]
[http]
token = "env:NO_SUCH_TOKEN"
[health]
memory = false
disk_space = false
[health.external.db]
url = "http://127.0.0.1:1/"
token = "env:NO_SUCH_TOKEN_OF_DB"
"""


@pytest.mark.parametrize(
    "command", [["explain", "log.record"], ["handlers"], ["doctor"], ["health"], ["debug", "inspect"]], ids=" ".join
)
def test_commands_need_no_secret_of_the_place_where_the_settings_belong(tmp_path, command):
    """Questions are answered where a secret of the settings, a variable or a file, is not there; and that is said."""
    (tmp_path / "eventcore.toml").write_text(ELSEWHERE)
    code, out, err = run(*command)
    assert code == (1 if command in (["health"], ["doctor"]) else 0), err  # the database cannot be asked
    if command != ["handlers"]:
        assert "oncall" in out
        said = words(out if command == ["doctor"] else err)
        assert "NO_SUCH_SECRET (eventcore.toml: [handlers.oncall], option 'secret')" in said
        assert "NO_SUCH_TOKEN (eventcore.toml: [http], option 'token')" in said
        assert "NO_SUCH_TOKEN_OF_DB (eventcore.toml: [health.external.db], option 'external.db.token')" in said
    if command == ["health"]:
        assert re.search(r"db +unhealthy", out)
    assert workers() == [], "a check that has changed is an event, and nobody is there for it"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("handlers.oncall", "[handlers.oncall]: option 'secret' names the environment variable 'NO_SUCH_SECRET'"),
        ("handlers.log", "[handlers.log]: option 'client_certificate' is '/run/secrets/no_such_cert.pem': there is no"),
        ("http", "[http]: option 'token' names the environment variable 'NO_SUCH_TOKEN', which is not set"),
        ("health", "option 'external.db.token' names the environment variable 'NO_SUCH_TOKEN_OF_DB', which is not set"),
    ],
)
def test_a_process_needs_them(tmp_path, table, message):
    """``configure()`` with such a secret missing is an error that says where; nothing is left running."""
    before = set(threading.enumerate())
    tables = re.split(r"^(?=\[)", ELSEWHERE, flags=re.MULTILINE)
    (tmp_path / "eventcore.toml").write_text("".join(part for part in tables if part.startswith(f"[{table}")))
    with pytest.raises(ec.ConfigurationError) as caught:
        ec.configure()
    assert message in str(caught.value)
    assert set(threading.enumerate()) <= before


def test_trials_leave_the_servers_port_alone(settings):
    """A trial starts no server: the process that is asked about may hold its port."""
    with serving(200, b"") as url, (settings / "eventcore.toml").open("a") as file:
        file.write(f"[http]\nport = {url.rpartition(':')[2]}\n")
        file.flush()
        assert run("debug", "emit-event", "a.b", "x")[0] == 0
        assert run("debug", "test-trace")[0] == 0
    assert ec.get_emitter().handlers[0].kind == "last_resort"


def test_trials_leave_the_journal_alone(tmp_path):
    """Durable handlers get the event by way of a journal of the trial's own, which is gone afterwards."""
    (tmp_path / "eventcore.toml").write_text(
        '[handlers.audit]\nuse = "buffer"\ndelivery = "durable"\n[journal]\npath = "real.db"\n'
    )
    code, out, _ = run("debug", "emit-event", "a.b", "x", "--json")
    assert (code, of(json.loads(out), "audit")["did"]) == (0, "delivered")
    assert [path.name for path in tmp_path.iterdir()] == ["eventcore.toml"]


# -- a running process -------------------------------------------------------------------------------------------------


def test_a_running_process_answers_for_itself(running):
    """With ``--url`` every command speaks of that process: its ledger, its types, its open operations."""
    answer = ask("debug", "inspect", "--url", running)
    assert (answer["source"], answer["service"]["name"]) == (running, "shop")
    assert answer["pid"] != os.getpid()
    rows = {(row["handler"], row["event"]): row for row in answer["ledger"]["rows"]}
    assert rows["log", "desk.sold"]["delivered"] == 2
    assert [operation["event"] for operation in answer["open_operations"]] == ["desk.wrap"]
    assert not any(secret in json.dumps(answer) for secret in SECRETS)

    assert of(ask("explain", "desk.sold", "--url", running), "log")["takes"] is True
    assert "desk.sold" in [event["name"] for event in ask("catalog", "--url", running)["events"]]
    assert [handler["name"] for handler in ask("handlers", "--url", running)] == ["log", "metric", "span", "oncall"]
    assert ask("health", "--url", f"{running}/")["status"] == "healthy"

    for command in (("debug", "inspect"), ("explain", "desk.sold"), ("handlers",)):
        assert f"Running process at {running} (service shop" in words(run(*command, "--url", running)[1])
    code, _, err = run("explain", "desk.sould", "--url", running)
    assert code == 2
    assert "did you mean 'desk.sold'" in err
    assert "did you mean 'error'" in run("explain", "desk.sold", "--severity", "eror", "--url", running)[2]
    assert ask("debug", "inspect", "--url", running)["ledger"]["rows"] == answer["ledger"]["rows"], (
        "asking emits nothing"
    )


def test_an_unhealthy_process_ends_health_with_1():
    """``health`` ends with 1 when the process says that it is unhealthy, and shows the check."""

    class Ill:
        @ec.hookimpl
        def eventcore_health_checks(self):
            return [ec.HealthCheck("disk", lambda: ec.HealthResult(ec.HealthStatus.UNHEALTHY, "disk is full"))]

    emitter = ec.configure(handlers={"buffer": {}}, http={"port": 0}, plugins=[Ill()])
    code, out, _ = run("health", "--url", emitter.services["http"].url)
    assert code == 1
    assert "disk is full" in out
    code, out, _ = run("health", "--json", "--url", emitter.services["http"].url)
    assert (code, json.loads(out)["checks"]["disk"]["status"]) == (1, "unhealthy")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>hello</html>"),
        (404, b"not found"),
        (200, b"{}"),
        (200, b"[1, 2]"),
        (200, b"\xff\xfe"),
        (500, b""),
        (200, b'{"error": "no"}'),
    ],
)
def test_a_server_that_is_not_eventcore_is_one_error(status, body):
    """Whatever another server answers, it is one error with a remedy, and 2."""
    with serving(status, body) as url:
        for command in (("debug", "inspect"), ("explain", "a.b"), ("catalog",), ("handlers",), ("health",)):
            code, out, err = run(*command, "--url", url)
            assert (code, out) == (2, "")
            assert "not as eventcore does" in err
            assert err.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://no-such-host.invalid", "127.0.0.1:9090", "file:///x", ""]
)
def test_a_server_that_is_not_there_is_one_error(url):
    """Nobody there, no such host, no address: one error with a remedy, and 2."""
    code, out, err = run("debug", "inspect", "--url", url)
    assert (code, out) == (2, "")
    assert "start the process with [http]" in err or "write it like http://" in err


def test_url_and_config_exclude_each_other():
    """A running process has its own settings, so ``--url`` with ``--config`` is refused."""
    code, _, err = run("debug", "inspect", "--url", "http://127.0.0.1:1", "--config", "x.toml")
    assert code == 2
    assert "leave out --config" in err


# -- how it speaks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("handlers",),
        ("catalog",),
        ("explain", "router.route"),
        ("debug", "inspect"),
        ("debug", "test-trace"),
        ("health",),
        ("explain", "--help"),
        ("debug", "emit-event", "--help"),
    ],
)
def test_output_fits_80_columns(settings, command):
    """No line of text is longer than 80 columns."""
    code, out, _ = run(*command)
    assert code == 0
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_text_from_elsewhere_cannot_steer_the_terminal():
    """Control characters in what a server says are shown escaped."""
    body = json.dumps({"eventcore": "1", "error": "\x1b[2Jgone\nerror: two"}).encode()
    with serving(404, body) as url:
        code, _, err = run("debug", "inspect", "--url", url)
    assert code == 2
    assert "\x1b" not in err
    assert "\\x1b[2Jgone\\nerror" in err


def test_no_color_is_honoured(settings):
    """Colours are used where a terminal asks for them, and never with NO_COLOR."""
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    assert "\x1b[31m" in spawn("explain", "no.such", env=environment).stderr
    done = spawn("explain", "no.such", env={**environment, "NO_COLOR": "1"})
    assert "\x1b[31m" not in done.stderr
    assert done.returncode == 2


def test_the_command_is_a_process(settings):
    """As a process of its own it ends with the same codes: 0, 1 for a bad answer, 2 for none."""
    assert spawn("debug", "inspect", "--json").returncode == 0
    bad = spawn("debug", "emit-event", "circuit.x", "x", "--severity", "error")
    assert (bad.returncode, bad.stderr) == (1, "")
    none = spawn("health", "--url", "http://127.0.0.1:1")
    assert (none.returncode, none.stdout) == (2, "")
    assert "Traceback" not in none.stderr


@pytest.mark.skipif(importlib.util.find_spec("typer") is None, reason="needs the extra cli")
@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_bare_install_names_the_extra(missing):
    """Without typer or rich the command says what to install, and ends with 2."""
    program = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "sys.argv = ['eventcore', '--help']\n"
        "from eventcore.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'eventcore[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
