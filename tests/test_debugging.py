"""``debug = true``: what it switches on, and that it switches nothing else."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from eventcore.debugging import detailed


class Boil(ec.Operation, name="kitchen.boil", category="execution"):
    dish: Annotated[Literal["soup", "tea"], ec.Label]


BOILED = ec.Counter("kitchen_boiled_total", on=Boil, labels={"dish": "dish"}, help="Boiled.")


def configured(tmp_path, **more):
    """Return an emitter in debug mode that logs into a file."""
    handlers = {"log": {"format": "json", "output": str(tmp_path / "kitchen.jsonl")}, "metric": {}}
    return ec.configure(debug=True, instruments=[BOILED], handlers=handlers, **more)


def series(emitter):
    """Return the debug samples by name and labels."""
    text = emitter.handler("metric").render().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("eventcore_debug_") and not sample.name.endswith("_bucket")
    }


def test_debug_lines_are_logged(tmp_path):
    """DEBUG lines are in the log, though its own settings begin at INFO."""
    with configured(tmp_path) as emitter:
        ec.get_logger("cook").debug("peeling")
        emitter.flush()
    levels = [json.loads(line)["level"] for line in (tmp_path / "kitchen.jsonl").read_text().splitlines()]
    assert "debug" in levels


def test_a_log_that_says_more_says_more(tmp_path):
    """A log that begins at TRACE still does; one that begins at ERROR begins at DEBUG."""
    handlers = {
        "log": {"output": str(tmp_path / "a"), "min_severity": "trace"},
        "errors": {"use": "log", "output": str(tmp_path / "b"), "min_severity": "error"},
    }
    emitter = ec.configure(debug=True, handlers=handlers)
    found = [emitter.handler(name).config.min_severity.name for name in ("log", "errors")]
    assert found == ["TRACE", "DEBUG"]


def test_spans_are_written_to_the_console(tmp_path, capfd):
    """Every span is on the console, beside whatever other span handlers do; one of one's own is enough."""
    with configured(tmp_path) as emitter:
        with emitter.operation(Boil, dish="tea"):
            pass
        emitter.flush()
    shown = capfd.readouterr()
    assert "kitchen.boil" in shown.out + shown.err
    emitter = ec.configure(debug=True, handlers={"mine": {"use": "span", "exporter": "console"}})
    assert [handler.name for handler in emitter.handlers] == ["mine"]


def test_the_detailed_series_are_counted(tmp_path):
    """Durations of every operation and profiled section, and what the bus says of itself, are series."""
    with configured(tmp_path) as emitter:
        with emitter.operation(Boil, dish="tea"):
            pass
        with ec.profile("peeling"):
            pass
        emitter.health.add_check(ec.HealthCheck("gas", lambda: ec.HealthResult(ec.HealthStatus.DEGRADED, "low")))
        emitter.health.report()
        operation = emitter.operation(Boil, dish="soup").__enter__()
        operation.end()
        operation.end()
        emitter.flush()
        found = series(emitter)
    assert found["eventcore_debug_operation_duration_seconds_count", "kitchen.boil", "success"] == 2
    assert found["eventcore_debug_profile_duration_seconds_count", "peeling"] == 1
    assert found["eventcore_debug_health_changes_total", "healthy", "degraded"] == 1
    assert found["eventcore_debug_misuses_total", "ended_twice"] == 1


class Odd(ec.Operation, name="kitchen.odd", category="execution"):
    outcome: str = "a payload field, not the fact"


def test_types_that_cannot_be_measured_are_left_out():
    """A payload field may bear a fact's name; such a type has no duration here, and debug mode works."""
    (durations, *_) = detailed([Boil, Odd])
    assert durations.types == (Boil,)
    assert detailed([Odd])[0].types != (Odd,)


def test_without_it_there_are_none_of_them(tmp_path):
    """Debug mode is off by default: no such series, no span handler."""
    emitter = ec.configure(handlers={"metric": {}})
    assert series(emitter) == {}
    assert [handler.name for handler in emitter.handlers] == ["metric"]


def test_every_series_is_documented(checkout):
    """The documentation names every series that debug mode adds, and no other."""
    documented = set(re.findall(r"eventcore_debug_\w+", (checkout / "docs" / "operating.md").read_text()))
    assert documented - {"eventcore_debug_"} == {instrument.name for instrument in detailed([])}


@pytest.mark.parametrize("variable", ["true", "1"])
def test_it_is_a_setting(monkeypatch, variable):
    """``EVENTCORE_DEBUG`` switches it on, and a fresh emitter of the command line shows what it does."""
    monkeypatch.setenv("EVENTCORE_DEBUG", variable)
    Path("eventcore.toml").write_text("[handlers.log]\n[handlers.metric]\n")
    result = CliRunner().invoke(app, ["debug", "inspect", "--json"])
    handlers = {handler["name"]: handler for handler in json.loads(result.stdout)["handlers"]}
    assert handlers.keys() == {"log", "metric", "debug_spans"}
    assert handlers["log"]["filter"]["min_severity"] == "debug"
    assert "eventcore_debug_misuses_total" in handlers["metric"]["cardinality"]
