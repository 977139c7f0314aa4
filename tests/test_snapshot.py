"""The catalog's snapshot, and the gate that says what a change would break."""

from __future__ import annotations

import copy
import enum
import json
import subprocess
import sys
from typing import Annotated, Literal

import pytest
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from eventcore.exposition import metric_of
from eventcore.snapshot import changes, snapshot_of, snapshot_text, type_text


class Colour(enum.Enum):
    RED = "red"


class Wrap(ec.Operation, name="desk.wrap", category="execution", span="wrap"):
    paper: Annotated[Literal["plain", "gift"], ec.Label]
    weight: Annotated[float, ec.Measure(unit="kg")] = 1.0
    note: str | None = None


METRICS = [
    ec.Counter("desk_wrapped_total", on=Wrap, labels={"paper": "paper"}, help="Wrapped."),
    ec.Histogram("desk_wrap_seconds", on=Wrap, value="duration_s", buckets=(0.1, 1.0), help="Time to wrap."),
]


def snapshot():
    """Return a snapshot of one operation and two metrics."""
    return snapshot_of([Wrap.__event__], map(metric_of, METRICS))


def edited(edit):
    """Return a snapshot after an edit."""
    made = copy.deepcopy(snapshot())
    edit(made["events"]["desk.wrap"], made["metrics"])
    return made


BREAKING = {
    "a field removed": (lambda e, m: e["fields"].pop("note"), "event 'desk.wrap', field 'note' is gone"),
    "a field's type": (lambda e, m: e["fields"]["note"].update(type="int"), "type was 'str | None', is 'int'"),
    "a unit": (lambda e, m: e["fields"]["weight"].update(unit="g"), "field 'weight': unit was 'kg', is 'g'"),
    "a role": (lambda e, m: e["fields"]["paper"].update(role="sensitive"), "role was 'label', is 'sensitive'"),
    "a value removed": (lambda e, m: e["fields"]["paper"].update(values=["plain"]), "value 'gift' is gone"),
    "values without bound": (lambda e, m: e["fields"]["paper"].update(values=None), "now any"),
    "a field required now": (lambda e, m: e["fields"]["note"].update(required=True), "field 'note' is required now"),
    "a new required field": (
        lambda e, m: e["fields"].update(size={**e["fields"]["note"], "required": True}),
        "field 'size' is new and required",
    ),
    "a category": (lambda e, m: e.update(category="user"), "category was 'execution', is 'user'"),
    "a severity": (lambda e, m: e.update(severity="debug"), "severity was 'info', is 'debug'"),
    "a span's name": (lambda e, m: e.update(span="wrapping"), "span was 'wrap', is 'wrapping'"),
    "durability": (lambda e, m: e.update(durable=True), "durable was False, is True"),
    "a metric removed": (lambda e, m: m.pop("desk_wrap_seconds"), "metric 'desk_wrap_seconds' is gone"),
    "a metric's kind": (lambda e, m: m["desk_wrapped_total"].update(kind="gauge"), "kind was 'counter', is 'gauge'"),
    "a metric's unit": (lambda e, m: m["desk_wrap_seconds"].update(unit=""), "unit was 'seconds', is ''"),
    "a label added": (lambda e, m: m["desk_wrapped_total"]["labels"].update(size=["s"]), "label 'size' is new"),
    "a label removed": (lambda e, m: m["desk_wrapped_total"]["labels"].clear(), "label 'paper' is gone"),
    "a label's value": (
        lambda e, m: m["desk_wrapped_total"]["labels"].update(paper=["plain"]),
        "label 'paper': value 'gift' is gone",
    ),
    "a bucket": (lambda e, m: m["desk_wrap_seconds"]["buckets"].remove(0.1), "bucket 0.1 is gone"),
}

ALLOWED = {
    "a new optional field": lambda e, m: e["fields"].update(size={**e["fields"]["note"]}),
    "a new value": lambda e, m: e["fields"]["paper"]["values"].append("foil"),
    "a field required no more": lambda e, m: e["fields"]["paper"].update(required=False),
    "a new metric": lambda e, m: m.update(other_total=m["desk_wrapped_total"]),
    "a new bucket": lambda e, m: m["desk_wrap_seconds"]["buckets"].append(10.0),
}


@pytest.mark.parametrize("case", BREAKING)
def test_a_breaking_change_is_named(case):
    """What takes a name away or gives it another meaning is one sentence that says what and where."""
    edit, words = BREAKING[case]
    found = changes(snapshot(), edited(edit))
    assert len(found) == 1
    assert words in found[0]


def test_an_event_removed_is_named():
    """An event type that is gone is named."""
    now = snapshot()
    del now["events"]["desk.wrap"]
    assert changes(snapshot(), now) == ["event 'desk.wrap' is gone: its routes, logs and receivers end"]


@pytest.mark.parametrize("case", ALLOWED)
def test_additions_are_allowed(case):
    """New events, optional fields, values, metrics and buckets break nobody."""
    assert changes(snapshot(), edited(ALLOWED[case])) == []


def test_a_new_event_is_allowed():
    """An event type more is no break."""
    assert changes({"events": {}, "metrics": {}}, snapshot()) == []


def test_a_snapshot_survives_its_file():
    """A snapshot is the same after a way through JSON, and its order does not depend on that of registration."""
    assert json.loads(snapshot_text(snapshot())) == snapshot()
    assert changes(json.loads(snapshot_text(snapshot())), snapshot()) == []
    assert snapshot_text(snapshot_of([Wrap.__event__], map(metric_of, reversed(METRICS)))) == snapshot_text(snapshot())


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (str | None, "str | None"),
        (Literal["a", 1], "str | int"),
        (list[str], "list[str]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Annotated[float, "x"], "float"),
        (Colour, "Colour"),
        (dict[str, Annotated[int, "y"]], "dict[str, int]"),
    ],
)
def test_types_read_as_in_code(annotation, text):
    """A field's type is written as Python would, without its roles."""
    assert type_text(annotation) == text


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments):
    """Run the command line in this process."""
    return CliRunner().invoke(app, ["catalog", *arguments])


def test_the_repositorys_snapshot_is_kept(checkout):
    """Nothing in this repository breaks those who use the names in ``catalog.json``."""
    result = run("--compare", str(checkout / "catalog.json"), "--json")
    assert json.loads(result.stdout) == {"compatible": True, "changes": []}
    assert result.exit_code == 0


def test_the_repositorys_snapshot_is_current(checkout, tmp_path):
    """What was added since is in ``catalog.json``, too, so that taking it away again is seen (``make generate``)."""
    saved = tmp_path / "catalog.json"  # of a process of its own, without the event types that tests make
    subprocess.run([sys.executable, "-m", "eventcore", "catalog", "--save", str(saved)], check=True, timeout=60)
    assert json.loads((checkout / "catalog.json").read_text()) == json.loads(saved.read_text()), "make generate"


def test_a_break_is_not_saved(tmp_path):
    """With ``--compare`` and ``--save`` a snapshot is renewed where nothing breaks, and left as it is otherwise."""
    file = tmp_path / "catalog.json"
    run("--save", str(file))
    known = json.loads(file.read_text())
    del known["events"]["router.route"]
    file.write_text(json.dumps(known))
    assert run("--compare", str(file), "--save", str(file)).exit_code == 0
    renewed = json.loads(file.read_text())
    assert "router.route" in renewed["events"]
    renewed["events"]["router.gone"] = renewed["events"]["router.route"]
    file.write_text(json.dumps(renewed))
    assert run("--compare", str(file), "--save", str(file)).exit_code == 1
    assert json.loads(file.read_text()) == renewed


def test_what_is_saved_compares_equal(tmp_path):
    """``--save`` writes what ``--compare`` accepts, the same bytes each time."""
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert run("--save", str(first)).exit_code == 0
    assert run("--save", str(second)).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert run("--compare", str(first)).exit_code == 0


def test_a_removed_field_fails_the_command(tmp_path):
    """``--compare`` ends with 1 and says which field of which event is gone, and how to accept that."""
    file = tmp_path / "catalog.json"
    run("--save", str(file))
    known = json.loads(file.read_text())
    known["events"]["router.route"]["fields"]["price"] = known["events"]["router.route"]["fields"]["request_id"]
    known["metrics"]["tiny_dancer_errors_total"]["labels"] = {}
    file.write_text(json.dumps(known))
    result = run("--compare", str(file))
    text = " ".join(result.stdout.split())
    assert result.exit_code == 1
    assert "event 'router.route', field 'price' is gone" in text
    assert "metric 'tiny_dancer_errors_total', label 'error_type' is new" in text
    assert "accept them with --save" in text


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be read"), ("{", "no JSON"), ("[]", "no snapshot")])
def test_a_file_that_is_no_snapshot_is_one_error(tmp_path, content, words):
    """A file that is missing, no JSON or something else ends with 2 and the command that makes one."""
    file = tmp_path / "catalog.json"
    if content is not None:
        file.write_text(content)
    result = run("--compare", str(file))
    assert result.exit_code == 2
    assert words in result.stderr
    assert f"--save {file}" in result.stderr


def test_a_snapshot_is_not_of_a_running_process(tmp_path):
    """``--url`` with ``--save`` is refused: a process knows the packs it uses, not all that is installed."""
    result = run("--url", "http://127.0.0.1:1", "--save", str(tmp_path / "catalog.json"))
    assert result.exit_code == 2
    assert "leave out --url" in result.stderr
