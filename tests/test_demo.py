"""The main job: the demo as a user runs it, and its signals held against each other."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import closing

import pytest
from prometheus_client.parser import text_string_to_metric_families

GUIDE = {
    "tiny_dancer_routing_requests": {"status": {"success", "failure"}},
    "tiny_dancer_routing_latency_seconds": {"operation": {"total"}},
    "tiny_dancer_feature_engineering_duration_seconds": {"batch_size": {"1-10", "11-50", "51-100", "100+"}},
    "tiny_dancer_model_inference_duration_seconds": {"model_type": {"fastgrnn"}},
    "tiny_dancer_circuit_breaker_state": {},
    "tiny_dancer_routing_decisions": {"model_type": {"lightweight", "powerful"}},
    "tiny_dancer_confidence_scores": {"decision_type": {"lightweight", "powerful"}},
    "tiny_dancer_uncertainty_estimates": {"decision_type": {"lightweight", "powerful"}},
    "tiny_dancer_candidates_processed": {"batch_size_range": {"1-10", "11-50", "51-100", "100+"}},
    "tiny_dancer_errors": {"error_type": {"inference_error", "circuit_breaker_open"}},
}
SPANS = {
    "routing_request",
    "prompt_assessment",
    "circuit_breaker_check",
    "feature_engineering",
    "model_inference",
    "uncertainty_estimation",
}
LINES = {
    "Initializing Tiny Dancer router": ("info", set()),
    "Circuit breaker enabled with threshold: 5": ("info", set()),
    "Processing routing request": ("info", {"candidate_count"}),
    "Extracting features": ("debug", {"batch_size"}),
    "Model inference completed": ("debug", {"candidate_id", "confidence"}),
    "Routing decision made": ("debug", {"candidate_id", "use_lightweight", "uncertainty"}),
    "Routing request completed successfully": (
        "info",
        {"inference_time_us", "lightweight_routes", "powerful_routes"},
    ),
}


REQUESTS = 335 + 300
"""Of the file, and the questions whose answers are known."""


def free_port():
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def demo(checkout, out, *arguments):
    """Start the demo as ``make demo`` does."""
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, str(checkout / "examples" / "demo"), "--out", str(out), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, text=True, env=environment
    )


def scrape(url):
    """Return the body at ``url``."""
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def served(request, tmp_path_factory):
    """Run the whole demo once, with ``--serve``; yield its metrics, output folder and text, scraped while it serves."""
    checkout = request.path.parents[1]
    out = tmp_path_factory.mktemp("demo")
    port = free_port()
    process = demo(checkout, out, "--serve", "--port", str(port))
    try:
        deadline = time.monotonic() + 50
        during = ""
        while time.monotonic() < deadline and process.poll() is None:
            try:
                during = during or scrape(f"http://127.0.0.1:{port}/metrics")
                health = json.loads(scrape(f"http://127.0.0.1:{port}/health"))
                text = scrape(f"http://127.0.0.1:{port}/metrics")
            except OSError:
                time.sleep(0.1)
                continue
            totals = samples(text)
            done = sum(v for (name, _), v in totals.items() if name == "tiny_dancer_routing_requests_total")
            if done == REQUESTS:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"the demo did not finish its stream: {process.communicate(timeout=5)[0]}")
        printed = ""
        for line in process.stdout:  # the summary comes first, and takes its time on a busy machine
            if line.startswith("serving http") and "serving http" not in printed:
                process.send_signal(signal.SIGINT)
            printed += line
        process.wait(15)
        yield {
            "during": during,
            "metrics": text,
            "health": health,
            "out": out,
            "printed": printed,
            "code": process.returncode,
        }
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def samples(text):
    """Return sample values by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
def test_demo_ends_by_itself_with_all_signals_in_agreement(served):
    """The demo serves until interrupted, exits with 0, and says that every signal agrees."""
    assert served["code"] == 0, served["printed"]
    assert "differs" not in served["printed"]
    assert served["printed"].count("agrees") == 16
    assert "circuit.opened 2; signatures verified, 0 refused" in served["printed"]


@pytest.mark.slow
def test_every_series_of_the_guide_is_scraped(served):
    """All ten metrics of the guide are there with their labels and label values, parsed by prometheus_client."""
    for text in (served["during"], served["metrics"]):
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert GUIDE.keys() <= families.keys()
    for name, labels in GUIDE.items():
        data = [sample for sample in families[name].samples if not sample.name.endswith("_created")]
        assert data, name
        for label, values in labels.items():
            assert values <= {sample.labels[label] for sample in data}, (name, label)
            assert {key for sample in data for key in sample.labels} - {"le"} == labels.keys(), name
    assert "_created" not in served["metrics"]


@pytest.mark.slow
@pytest.mark.server
def test_metrics_are_clean_under_promtool(served, promtool):
    """``promtool check metrics`` accepts what is scraped without a word."""
    check = subprocess.run(
        [promtool, "check", "metrics"], input=served["metrics"], capture_output=True, text=True, check=False, timeout=20
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


@pytest.mark.slow
def test_counts_agree_between_metrics_log_and_spans(served):
    """Requests, decisions and errors are the same numbers in /metrics, the JSON log and the span file."""
    totals = samples(served["metrics"])
    lines = [json.loads(line) for line in (served["out"] / "log.jsonl").read_text().splitlines()]
    messages = Counter(line["event"] for line in lines)
    routed = totals["tiny_dancer_routing_requests_total", (("status", "success"),)]
    failed = totals["tiny_dancer_routing_requests_total", (("status", "failure"),)]
    assert routed == messages["Routing request completed successfully"]
    assert failed == messages["Routing request failed"] > 0
    assert routed + failed == messages["Processing routing request"] == REQUESTS
    decided = Counter(str(line["use_lightweight"]) for line in lines if line["event"] == "Routing decision made")
    assert totals["tiny_dancer_routing_decisions_total", (("model_type", "lightweight"),)] == decided["True"] > 0
    assert totals["tiny_dancer_routing_decisions_total", (("model_type", "powerful"),)] == decided["False"] > 0
    kinds = Counter(line["error_type"] for line in lines if line["event"] == "Routing request failed")
    for kind, number in kinds.items():
        assert totals["tiny_dancer_errors_total", (("error_type", kind),)] == number
    spans = list(read_spans(served["out"] / "spans.jsonl"))
    names = Counter(span["name"] for span in spans)
    assert names.keys() == SPANS
    assert names["routing_request"] == names["circuit_breaker_check"] == REQUESTS
    assert names["model_inference"] >= decided.total()
    errors = [span for span in spans if span["name"] == "routing_request" and span.get("status", {}).get("code") == 2]
    assert len(errors) == failed


@pytest.mark.slow
def test_the_policy_spends_less_than_the_dear_one_and_is_right_more_often_than_the_cheap_one(served):
    """What the summary says: between the two alone in both, and the rate of harm near what was promised."""
    flat = " ".join(served["printed"].split())
    right, price, weak, strong = re.search(
        r"(\d+)% right at a mean price of ([\d.]+); weak alone (\d+)% at 1 and strong alone (\d+)% at 10", flat
    ).groups()
    assert float(weak) < float(right) <= float(strong)
    assert 1 < float(price) < 10
    harmed = re.search(r"at most 10% answered weakly and wrong in the long run: ([\d.]+)%", flat)[1]
    assert 0 < float(harmed) <= 10 + 100 * (0.1 + 0.05) / (0.05 * 300), "the bound of adaptive conformal inference"


@pytest.mark.slow
def test_feedback_and_drift_are_seen_in_every_signal(served):
    """As questions get harder their needs drift, until they are easy again; feedback is kept in the file."""
    totals = samples(served["metrics"])
    lines = [json.loads(line) for line in (served["out"] / "log.jsonl").read_text().splitlines()]
    assert totals["router_feedback_total", (("status", "accepted"),)] == 300
    assert totals["router_feedback_total", (("status", "duplicate"),)] == 1
    assert totals["router_drift_detected_total", (("kind", "needs"),)] == 1
    moves = [line["name"] for line in lines if line.get("kind") == "needs" and "measured" not in line["name"]]
    assert moves == ["router.drift_detected", "router.drift_ended"]
    assert "needs from question 150" in " ".join(served["printed"].split())
    with closing(sqlite3.connect(served["out"] / "history.db")) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT candidate_id) FROM outcome").fetchone() == (300, 2)


@pytest.mark.slow
def test_spans_are_nested_under_their_request(served):
    """The four inner spans of a routed request are children of its routing_request, in its trace."""
    spans = list(read_spans(served["out"] / "spans.jsonl"))
    roots = {span["spanId"]: span for span in spans if span["name"] == "routing_request"}
    for span in spans:
        if span["name"] == "routing_request":
            assert not span.get("parentSpanId")
        else:
            assert span["traceId"] == roots[span["parentSpanId"]]["traceId"]


@pytest.mark.slow
def test_log_lines_are_the_guides(served):
    """Each of the guide's log lines appears with its level, logger name and fields, and in its trace."""
    lines = [json.loads(line) for line in (served["out"] / "log.jsonl").read_text().splitlines()]
    by_message = {line["event"]: line for line in lines}
    for message, (level, fields) in LINES.items():
        line = by_message[message]
        assert (line["level"], line["logger"]) == (level, "tiny_dancer_router")
        assert fields <= line.keys()
        assert not any(isinstance(line[field], list) for field in fields)
    assert by_message["Routing decision made"]["trace_id"] is not None
    assert {line["level"] for line in lines if line["event"].startswith("Circuit breaker open")} == {"error"}


@pytest.mark.slow
def test_breaker_state_is_seen_moving(served):
    """The breaker's gauge is 0 at the end, after open, half-open and closed were logged."""
    lines = [json.loads(line) for line in (served["out"] / "log.jsonl").read_text().splitlines()]
    moves = [line["state"] for line in lines if line["name"].startswith("circuit.")]
    assert moves[:3] == ["open", "half_open", "open"]
    assert moves[-1] == "closed"
    assert samples(served["metrics"])["tiny_dancer_circuit_breaker_state", ()] == 0
    assert served["health"]["status"] in {"healthy", "degraded"}


@pytest.mark.slow
def test_bad_lines_are_named_and_the_rest_is_routed(checkout, tmp_path):
    """A stream with unusable lines routes the others, names each bad line with place and remedy, and exits with 2."""
    good = json.dumps({"prompt": "What is 3 + 4?", "metadata": {"task": "maths"}, "candidates": ["heron-mini"]})
    vector = {"id": "a", "embedding": [1.0, 0.0]}
    other = {"id": "b", "embedding": [1.0, 0.0, 0.0]}
    lines = [
        good,
        "{not json",
        json.dumps({"prompt": "x", "candidates": ["nobody"]}),
        json.dumps({"embedding": [1.0, 0.0], "candidates": [vector, other]}),
        json.dumps({"embedding": [float("nan"), 0.0], "candidates": [vector]}),
        good,
        "[1, 2]",
        json.dumps({"prompt": 3, "candidates": ["heron-mini"]}),
        json.dumps({"candidates": ["heron-mini"]}),
        json.dumps({"prompt": "x", "candidates": [{"id": "a", "embedding": "no"}]}),
        json.dumps({"prompt": "x", "candidates": [{"id": "a"}]}),
        json.dumps({"prompt": "x", "candidates": [7]}),
        json.dumps({"prompt": "x", "candidates": ["heron-mini"], "metadata": 3}),
        json.dumps({"prompt": "x", "candidates": ["heron-mini", "heron-mini"]}),
    ]
    process = demo(checkout, tmp_path / "out", "-", "--rate", "0", "--port", "0")
    printed, _ = process.communicate("\n".join(lines), timeout=40)
    assert process.returncode == 2, printed
    flat = " ".join(printed.split())
    assert "standard input:2: not JSON" in flat
    assert "standard input:3: unknown candidate 'nobody'" in flat
    assert "standard input:4: candidate 'b' at index 1" in flat
    assert "standard input:5: query_embedding[0] is nan" in flat
    assert "standard input:7: no request: expected an object, not [1, 2]" in flat
    assert "standard input:8: no request: prompt: Input should be a valid string" in flat
    assert 'standard input:9: no request: it needs "prompt" (text) or "embedding"' in flat
    assert "standard input:10: no request: candidates.0.embedding: Input should be a valid list" in flat
    assert "standard input:11: no request: candidates.0: candidate 'a' has neither a description nor" in flat
    assert "standard input:12: no request: candidates.0: expected an id or a table, not 7" in flat
    assert "standard input:13: no request: metadata: Input should be a valid dictionary" in flat
    assert "standard input:14: candidates at index 0 and 1 share the id 'heron-mini'" in flat
    assert "4: 2 routed, 2 failed" in flat
    assert "invalid_input 2" in flat


def test_port_in_use_is_one_clear_error(checkout, tmp_path):
    """A taken port given by the user is an error that names it and the remedy, with a failing exit code."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = demo(checkout, tmp_path / "out", "--port", str(port))
        printed, _ = process.communicate(timeout=40)
    assert process.returncode == 1
    assert f"port {port}" in printed
    assert "in use" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file; give a file of JSON lines, or - for standard input"),
        (["--candidates", "nowhere.toml"], "nowhere.toml cannot be read: No such file or directory"),
        (["--candidates", "{broken}"], "broken.toml: not valid TOML"),
        (["--candidates", "{nameless}"], "nameless.toml: candidates.0.id: Field required"),
        (["--candidates", "{better}"], "success_rate is 3.0, expected a number from 0 to 1"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such configuration file"),
        (["--out", "/dev/null"], "nothing can be written to /dev/null: File exists; choose another folder by --out"),
        (["--rate", "-1"], "-1 is no rate: give requests per second, or 0"),
        (["--rate", "fast"], "fast is no rate: give requests per second, or 0"),
    ],
)
def test_mistakes_are_one_clear_error(checkout, tmp_path, arguments, reason):
    """A file, folder or setting that cannot be used is named with what to do, and nothing is routed."""
    files = {
        "broken": "x = [",
        "nameless": '[[candidates]]\ndescription = "a"\n',
        "better": '[[candidates]]\nid = "a"\ndescription = "a"\nsuccess_rate = 3\n',
    }
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
    places = {name: str(tmp_path / f"{name}.toml") for name in files}
    process = demo(checkout, tmp_path / "out", *(argument.format(**places) for argument in arguments))
    printed, _ = process.communicate(timeout=40)
    assert process.returncode in {1, 2}
    assert reason in " ".join(printed.split())
    assert "Traceback" not in printed
    assert "agrees" not in printed


def read_spans(path):
    """Yield the spans of a file of OTLP JSON lines."""
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]
