"""The log plugin: JSON lines with the field names that each guide's queries, greps and tools expect."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventcore as ec
from eventcore_log.formats import json_format
from eventcore_log.lines import Lines
from tests.support.log_lines import FILE, Bare, Keep, Note, Work, configure, emitting, logged, read

SCHEMAS = ["tinyllm", "moe", "tracing", "ecs"]


class Routed(
    ec.Operation,
    name="routing.complete",
    category="model",
    message="Routing {outcome}",
    failure_message="Routing failed",
    logger="dynamic_moe_router",
):
    message: str = "payload"
    outcome_note: str = ""
    tokens: int = ec.unset


def everything(emitter):
    """Emit what touches every field of every schema."""
    with (
        ec.bound(user="u-1", name="bound name", correlation_id="c-1"),
        emitter.operation(Routed, message="mine") as routed,
    ):
        routed.set(tokens=128)
        emitter.emit(Note(text="hello"), tags=["a"])
    with contextlib.suppress(LookupError), emitter.operation(Routed):
        raise LookupError("no such route")
    ec.emit_event("task.done", message="All done", data={"level": "deep", "a.b*c": {"x": [1, None]}, "exception": 3})
    ec.get_logger("app").error("bad", severity="critical")
    emitter.emit(Bare(), severity="critical")


def run(*command):
    """Run a real tool and return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.fixture
def jq():
    """Return the path of jq (Debian: jq), or skip."""
    path = shutil.which("jq")
    if path is None:
        pytest.skip("jq is not installed (Debian package jq)")
    return path


# -- each guide's own lines --------------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("schema", ["tracing", "moe"])
def test_the_grep_of_the_tiny_dancer_guide_finds_the_errors(jq, schema):
    """``grep "ERROR" logs.txt | jq .`` shows every error and nothing else, as valid JSON."""

    def code(emitter):
        emitter.emit(Note(text="all is well"))
        everything(emitter)

    wanted = [line for line in logged(code, schema=schema) if line["level"] == "ERROR"]
    FILE.rename("logs.txt")
    shown = run("sh", "-c", f'grep "ERROR" logs.txt | {jq} -c .')
    assert [json.loads(line) for line in shown.splitlines()] == wanted
    assert len(wanted) == (2 if schema == "moe" else 3)  # Rust's tracing has no level above ERROR


@pytest.mark.server
def test_the_watcher_of_the_moe_guide_finds_routing_errors(jq):
    """Its query (``event.type`` is ``routing.error``, ``timestamp`` of the last five minutes) selects those lines."""

    def code(emitter):
        ec.emit_error_event("Routing failed", error=LookupError("no expert"))
        ec.emit_event("routing.error", category="model", severity="error", message="Routing failed")
        everything(emitter)

    logged(code, schema="moe")
    since = (dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    query = f'select(.event.type == "routing.error" and .timestamp >= "{since}") | .event.message'
    assert run(jq, "-c", query, str(FILE)).splitlines() == ['"Routing failed"']


def test_the_filebeat_input_of_the_tinyllm_guide_gets_flat_objects():
    """``json.keys_under_root`` lifts a line's keys to the root: none is one of Filebeat's own, and each line is one."""
    filebeats = {"@timestamp", "@metadata", "agent", "ecs", "host", "input", "log"}
    for line in logged(everything):
        assert not filebeats & line.keys()
        assert {"event", "level", "timestamp", "app", "version"} <= line.keys()


def test_the_moe_record_has_the_kits_fields():
    """timestamp, level, service, event, process, correlation_id, data, exception and metadata, as in the kit."""
    with ec.configure(
        service="moe",
        version="2",
        environment="production",
        handlers={"log": {"format": "json", "output": FILE, "schema": "moe", "exclude": "eventcore.*"}},
    ) as emitter:
        thread = threading.Thread(target=everything, args=(emitter,), name="router-7")
        thread.start()
        thread.join()
    note, good, bad, task, *_ = read()
    assert list(good) == ["timestamp", "level", "service", "event", "process", "correlation_id", "data", "metadata"]
    assert good["service"] == {"name": "moe", "version": "2", "environment": "production"}
    assert good["event"] == {"type": "routing.complete", "message": "Routing success"}
    assert good["process"] == {"pid": os.getpid(), "thread": "router-7"}
    duration = good["data"].pop("duration_ms")
    assert duration > 0
    assert good["data"] == {
        "message": "mine",
        "outcome_note": "",
        "tokens": 128,
        "user": "u-1",
        "name": "bound name",
        "outcome": "success",
    }
    assert good["metadata"]["trace_id"] == note["metadata"]["trace_id"]
    assert note["metadata"]["tags"] == ["a"]
    assert bad["level"] == "ERROR"
    assert bad["exception"]["type"] == "LookupError"
    assert bad["exception"]["traceback"].endswith("LookupError: no such route")
    assert task["data"] == {"level": "deep", "a.b*c": {"x": [1, None]}, "exception": 3}
    assert "exception" not in task


def test_tracing_lines_have_the_shape_of_tracing_subscribers_json():
    """timestamp, level, fields (the message first) and target, and what collides stands apart."""
    note, good, bad, task, line, bare = logged(everything, schema="tracing")
    assert all(list(record) == ["timestamp", "level", "fields", "target"] for record in (note, good, bad, task, line))
    assert next(iter(good["fields"].items())) == ("message", "Routing success")
    assert good["fields"]["fields"] == {"message": "mine", "name": "bound name"}
    assert (good["target"], good["fields"]["tokens"], good["fields"]["outcome"]) == (
        "dynamic_moe_router",
        128,
        "success",
    )
    assert (bad["level"], bare["level"]) == ("ERROR", "ERROR")
    assert bad["fields"]["exception"].startswith("Traceback")


# -- ECS ---------------------------------------------------------------------------------------------------------------

# The rules of ecs-logging's specification: type, whether required, place in the line, whether it may be nested.
ECS_RULES = {
    "@timestamp": (dt.datetime, True, 0, True),
    "log.level": (str, True, 1, False),
    "message": (str, True, 2, True),
    "ecs.version": (str, True, None, True),
    "labels": (dict, False, None, True),
    "trace.id": (str, False, None, True),
    "service.name": (str, False, None, True),
    "event.dataset": (str, False, None, True),
}
# Types of the other fields, from the Elastic Common Schema's field reference.
ECS_FIELDS = {
    "error.message": str,
    "error.stack_trace": str,
    "error.type": str,
    "event.action": str,
    "event.duration": int,
    "event.id": str,
    "event.outcome": str,
    "log.logger": str,
    "process.pid": int,
    "process.thread.name": str,
    "service.environment": str,
    "service.version": str,
    "span.id": str,
    "tags": list,
}


def test_ecs_lines_keep_to_ecs_logging():
    """Each field has its type and place, ``labels`` holds text under keys without dots, the payload its own object."""
    records = logged(everything, schema="ecs")
    for record in records:
        keys = list(record)
        for name, (kind, is_required, place, _) in ECS_RULES.items():
            assert not is_required or name in record
            assert place is None or keys[place] == name
            if name in record and kind is dt.datetime:
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", record[name])
                dt.datetime.fromisoformat(record[name])
            elif name in record:
                assert isinstance(record[name], kind)
        assert all(isinstance(value, str) and not re.search(r"[.*\\]", key) for key, value in record["labels"].items())
        unknown = record.keys() - ECS_RULES.keys() - ECS_FIELDS.keys()
        assert unknown <= {"eventcore"}
        assert all(isinstance(record[name], kind) for name, kind in ECS_FIELDS.items() if name in record)
        assert record["event.dataset"] == f"{record['service.name']}.log"
        assert record.get("event.outcome") in {None, "success", "failure", "unknown"}
    _, good, bad, task, *_ = records
    assert good["eventcore"] == {
        "message": "mine",
        "outcome_note": "",
        "tokens": 128,
        "user": "u-1",
        "name": "bound name",
    }
    assert good["labels"]["correlation_id"] == "c-1"
    assert good["event.duration"] > 0
    assert (bad["error.type"], bad["event.outcome"]) == ("LookupError", "failure")
    assert bad["error.stack_trace"].endswith("LookupError: no such route")
    assert task["eventcore"]["exception"] == 3


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", SCHEMAS)
def test_no_schema_tells_a_secret_or_splits_a_line(schema):
    """What is redacted and escaped in one schema is so in all, and each names what was redacted."""

    def code(emitter):
        with ec.bound(user="Bearer abcdef1234567890", correlation_id="x\u2028y"):
            emitter.emit(Note(text="Bearer abcdef1234567890\nINFO forged"), tags=["\x1b[2K"])

    (line,) = logged(code, schema=schema)
    text = FILE.read_bytes().decode()
    assert len(text.splitlines()) == 1
    assert "abcdef1234567890" not in text
    assert "redacted" in json.dumps(line)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_lines_outside_an_operation_and_cancelled_ones_fit_every_schema(schema):
    """The least and the oddest lines are valid records too."""

    def code(emitter):
        emitter.emit(Bare())
        with contextlib.suppress(KeyboardInterrupt), emitter.operation(Work):
            raise KeyboardInterrupt

    assert len(logged(code, schema=schema)) == 2
    if schema == "ecs":
        assert read()[1]["event.outcome"] == "unknown"
        assert read()[1]["labels"]["outcome"] == "cancelled"


NAMES = (
    st.sampled_from(["message", "event", "level", "exception", "error_type", "outcome", "fields", "name"]) | st.text()
)
VALUES = st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.lists(st.integers(), max_size=2)


@pytest.mark.parametrize("schema", SCHEMAS)
@given(data=st.dictionaries(NAMES, VALUES, max_size=5), is_operation=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_data_makes_one_valid_record_that_tells_all_of_it(schema, data, is_operation):
    """Whatever the payload's names and values, a record parses, is one line, and each of the names is in it."""
    emitter = ec.Emitter()
    keep = emitter.add_handler(Keep())
    before = ec.set_emitter(emitter)
    if is_operation:
        with ec.span("some.work", **data):
            pass
    else:
        ec.emit_event("some.event", data=data)
    ec.set_emitter(before)
    (line,) = Lines(ec.Resource()).of(keep.kept[0])
    text = json_format(schema)(line).decode()
    assert len(text.splitlines()) == 1
    record = json.loads(text)
    told = set(names_in(record)) | ({"error_type", "exception"} if schema in {"moe", "ecs"} else set())
    assert {name.encode("utf-8", "backslashreplace").decode() for name in data} <= told


def names_in(value):
    """Yield all keys of nested data."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from names_in(item)


def test_an_unknown_schema_is_a_clear_error():
    """The error names the option and what there is."""
    with pytest.raises(ec.ConfigurationError, match=r"schema.*'tinyllm', 'moe', 'tracing' or 'ecs'"):
        configure(format="json", schema="esc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'schema' is 'ecs', and only JSON lines have one; add format = 'json'"),
        (
            {"format": "json", "output": "otlp"},
            "'schema' is 'ecs': only JSON lines have a schema, and output is 'otlp'",
        ),
        ({"output": "logging"}, "'schema' is 'ecs': only JSON lines have a schema, and output is 'logging'"),
    ],
)
def test_a_schema_that_no_line_can_have_is_a_clear_error(options, message):
    """A schema without ``format = "json"``, or where no lines are written, is refused and names the option."""
    with pytest.raises(ec.ConfigurationError, match=message):
        configure(schema="ecs", **options)


def test_a_format_for_people_leaves_a_schema_idle_with_a_warning(monkeypatch):
    """``LOG_FORMAT=console`` over a file that says JSON and a schema goes on, and says that the schema is idle."""
    Path("eventcore.toml").write_text('[handlers.log]\nformat = "json"\nschema = "ecs"\n')
    ec.configure().shutdown()
    monkeypatch.setenv("LOG_FORMAT", "console")
    with pytest.warns(UserWarning, match="handler 'log': no effect of 'schema', since format is 'console'"):
        ec.configure()


def test_the_schema_is_seen_in_a_preview():
    """``eventcore explain`` shows a line as it would be written."""
    with configure(format="json", output=FILE, schema="ecs") as emitter:
        keep = []
        emitter.handler("log").handle_batch = keep.extend
        emitting(Bare())(emitter)
        emitter.flush()
        (envelope,) = keep
        assert json.loads(emitter.handler("log").preview(envelope))["event.action"] == "bare.fact"
