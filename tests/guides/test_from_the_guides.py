"""docs/from-the-guides.md: whatever the four guides name has an answer, and each answer holds."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import eventcore as ec
from eventcore.cli import app
from eventcore.exposition import Exposition, Metric, exposition_of
from eventcore.plugins import Plugins
from eventcore.settings import Frame
from eventcore_buffer.handler import BufferHandler
from eventcore_generate.lint_known import Vocabulary
from eventcore_generate.promql import check
from eventcore_health.service import HealthService
from eventcore_http.service import HttpService
from eventcore_log.handler import LogHandler
from eventcore_metric.handler import MetricHandler
from eventcore_span.handler import SpanHandler
from eventcore_webhook.handler import WebhookHandler
from tests.guides.extraction import chapters_of, items_of
from tests.guides.page import COMMAND, PAGE, build, listed, load

ROWS = load()
GUIDES = list(ROWS)
"""The four."""
CHECKOUT = Path(__file__).parents[2]
FIELDS = {"here": {"here", "query", "test"}, "later": {"why", "query"}, "not": {"why"}, "example": {"why"}}


def rows_of(guide, *statuses):
    """Return the rows of a guide, of these statuses if any are given."""
    rows = [row for chapter in ROWS[guide].values() for row in chapter]
    return [row for row in rows if not statuses or row["status"] in statuses]


ALL = [row for guide in GUIDES for row in rows_of(guide)]


@pytest.fixture
def text_of(seeds):
    """Return a function that reads a guide."""
    return lambda guide: (seeds / f"{guide}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES)
def test_everything_a_guide_names_has_one_row(text_of, guide):
    """Every function, setting, command, endpoint, span, line, file, query and step has an answer; no row is idle."""
    items = {item.text: item.kind for item in items_of(text_of(guide))}
    answered = Counter(name for row in rows_of(guide) for name in row["names"])
    assert {text: kind for text, kind in items.items() if text not in answered} == {}, "without a row"
    assert [name for name in answered if name not in items] == [], "no such thing in the guide"
    assert [name for name, count in answered.items() if count > 1] == [], "in several rows"


@pytest.mark.parametrize("guide", GUIDES)
def test_rows_stand_in_the_guides_chapters(text_of, guide):
    """The page follows the guide: its chapters, in its order."""
    chapters = chapters_of(text_of(guide))
    assert list(ROWS[guide]) == [chapter for chapter in chapters if chapter in ROWS[guide]]


def test_every_guide_is_answered(text_of, seeds):
    """The data has the four guides and no other."""
    assert {path.stem for path in seeds.glob("*.md")} == set(GUIDES)


PLANTED = {
    "a function": ("```python\nplanted_function()\n```", "planted_function"),
    "a setting": ("```python\nconfigure(planted_setting=1)\n```", "planted_setting"),
    "an attribute": ("```python\nprint(event.planted_fact)\n```", "event.planted_fact"),
    "a Rust function": ("```rust\nlet x = planted::function()?;\n```", "planted::function"),
    "a Rust setting": ("```rust\nConfig {\n    planted_setting: 1,\n}\n```", "planted_setting"),
    "a command": ("```bash\nplanted \\\n  --command\n```", "planted --command"),
    "an endpoint": ("See http://localhost:9999/planted.", "http://localhost:9999/planted"),
    "a span": ("- `planted_span`: a span", "planted_span"),
    "a log line": ("```\nINFO planted: a line\n```", "INFO planted: a line"),
    "a file": ('```python\nopen_log(log_file="/var/planted.log")\n```', "/var/planted.log"),
    "a metric": ("```\ntinyllm_planted_total{model, graph}\n```", "tinyllm_planted_total{model, graph}"),
    "a metric of a table": ("| `orchestrator_planted_total` | `stage` | ? |", "orchestrator_planted_total{stage}"),
    "a query": ("```promql\n# rate\nrate(planted_total[5m])\n  / 2\n```", "rate(planted_total[5m]) / 2"),
    "a query of a panel": ('```json\n{"targets": [{"expr": "planted_total"}]}\n```', "planted_total"),
    "an alert": ("```yaml\n- alert: Planted\n```", "Planted"),
    "a key": ("```yaml\nstorage:\n  planted: 15d\n```", "storage.planted: 15d"),
    "a variable": ("```dockerfile\nENV PLANTED=true\n```", "ENV PLANTED=true"),
    "a step": ("1. Check the planted step:", "Check the planted step"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_a_guide_is_found(what):
    """A word of any kind that is added to a guide is found, and no row has it: the tests above would fail."""
    addition, name = PLANTED[what]
    assert name in {item.text for item in items_of(f"## Planted\n\n{addition}\n")}
    assert name not in {name for row in ALL for name in row["names"]}


def test_a_program_that_cannot_be_read_is_an_error():
    """A block of Python that does not parse is not passed over in silence."""
    with pytest.raises(SyntaxError):
        items_of("## Planted\n\n```python\nconfigure(planted=\n```\n")


def test_rows_are_complete():
    """A row has names and what its status asks for: an answer with a test, or a reason; no field is misspelt."""
    for row in ALL:
        asked = FIELDS[row["status"]]
        assert row.keys() - {"names", "status"} <= asked, row
        assert row["names"], row
        if row["status"] == "here":
            assert row.get("test"), row
            assert row.get("here") or row.get("query"), row
        else:
            assert row["why"], row


@cache
def _tests_in(path):
    tree = ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    named = {node.name: node for node in tree.body if isinstance(node, functions)}
    return {name for name, node in named.items() if name.startswith("test_") and ast.get_docstring(node)}


def test_every_test_exists():
    """What is said to be shown by a test is: the function is there, and says which promise it checks."""
    missing = []
    for test in {test for row in ALL for test in listed(row.get("test"))}:
        path, _, name = test.partition("::")
        if not (CHECKOUT / path).is_file() or name not in _tests_in(path):
            missing.append(test)
    assert missing == []


def _commands():
    spans = {
        code for row in ALL for code in re.findall(r"`(eventcore [^`]+)`", row.get("here", "") + row.get("why", ""))
    }
    return sorted(spans)


@pytest.mark.parametrize("command", _commands())
def test_every_command_exists(command):
    """A command that the page tells to run is one, with options that it has."""
    words = shlex.split(command)[1:]
    found = typer.main.get_command(app)
    depth = 0
    while hasattr(found, "get_command") and depth < len(words):
        found = found.get_command(typer.Context(found), words[depth])
        assert found is not None, f"no {words[depth]!r} in {command}"
        depth += 1
    assert CliRunner().invoke(app, [*words[:depth], "--help"]).exit_code == 0
    known = {option for parameter in found.params for option in parameter.opts}
    own = words[: words.index("--")] if "--" in words else words
    assert {word for word in own[depth:] if word.startswith("-")} <= known


CODE = sorted({code for row in ALL for code in re.findall(r"`([^`]+)`", row.get("here", "") + row.get("why", ""))})
HANDLERS = {
    "log": LogHandler,
    "metric": MetricHandler,
    "span": SpanHandler,
    "buffer": BufferHandler,
    "webhook": WebhookHandler,
    "oncall": WebhookHandler,
}
TABLES = {
    **{f"handlers.{name}": handler.Config for name, handler in HANDLERS.items()},
    "http": HttpService.Config,
    "health": HealthService.Config,
}


def test_every_name_in_code_exists():
    """What the page writes in Python is there: each ``ec.…``, and what emitters, handlers and checks are asked for."""
    emitter = ec.get_emitter()
    places = [(r"\bec\.([\w.]+)", ec), (r"\bemitter\.health\.(\w+)", emitter.health), (r"\bemitter\.(\w+)", emitter)]
    places += [(rf'handler\("{name}"\)\.(\w+)', handler) for name, handler in HANDLERS.items()]
    found = 0
    for code in CODE:
        for pattern, owner in places:
            for path in re.findall(pattern, code):
                operator.attrgetter(path.rstrip("."))(owner)  # AttributeError names what is missing
                found += 1
    assert found > 50


def test_every_setting_exists():
    """What the page writes in TOML is an option: of its table where one is named, else of any, or of the frame."""
    found = 0
    for code in CODE:
        written = re.match(r"(?:\[([\w.-]+)\] )?([a-z_]+)(?: = (?:[\"\d\[]|true|false)|$)", code)
        if written and (written[1] or " = " in code):
            names = [written[1]] if written[1] else [*TABLES, None]
            known = [_options(name) for name in names]
            assert any(written[2] in options for options in known), code
            found += 1
    assert found > 30


def _options(table):
    """Return the names of the options of a table of the settings."""
    if table is None:
        return set(Frame.model_fields)
    if table in TABLES:
        fields = TABLES[table].model_fields
        return {"use", *fields, *(field.alias for field in fields.values() if field.alias)}
    model = HealthService.Config.model_json_schema()["$defs"]
    return {option for definition in model.values() for option in definition.get("properties", {})}


def test_metrics_and_events_in_prose_exist():
    """A series or an event of the bus or the router that an answer names is in the catalog."""
    known, events = _catalog()
    for code in CODE:
        if re.fullmatch(r"(?:eventcore|process|host)_[a-z_]+[a-z]", code):
            assert known.get(code) or known.get(f"{code}_bucket"), code
        elif re.fullmatch(r"eventcore\.[a-z_]+|router\.model_[a-z]+", code):
            assert code in events, code


def _catalog():
    plugins = Plugins()
    catalog = ec.Catalog(packs=plugins.packs(), contributed=plugins.events)
    for pack in catalog.packs:
        catalog.pack(pack)
    return Vocabulary(exposition_of(catalog, plugins)), catalog.events


@pytest.mark.parametrize("guide", GUIDES)
def test_queries_that_run_here_name_what_exists(guide):
    """A query of a ``here`` row parses, names series, labels and values of the catalog, and can return data."""
    known, _ = _catalog()
    for row in rows_of(guide, "here"):
        for query in listed(row.get("query")):
            assert [problem.message for problem in check(query, known)[1]] == [], query


def _vocabulary(items):
    """Return what a guide's own list of metrics exposes: counters end in _total, what is timed is a histogram."""
    texts = [item.text for item in items]
    whole = "\n".join(texts)
    metrics = {}
    for name, labels in re.findall(r"(?m)^((?:orchestrator|tinyllm|dynamic_moe)_\w+)\{([\w, ]*)\}$", whole):
        timed = name.endswith("_seconds") or name == "dynamic_moe_experts_used_per_token"
        kind = "counter" if name.endswith("_total") else "histogram" if timed else "gauge"
        metrics[name] = Metric(
            name=name,
            kind=kind,
            help="?",
            labels=dict.fromkeys(label.strip() for label in labels.split(",") if label.strip()),
            buckets=(1.0,) if timed else (),
        )
    return Vocabulary(Exposition(metrics.values()))


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide != "tiny-dancer"])
def test_queries_that_cannot_return_data_are_corrected(text_of, guide):
    """Where the linter faults a guide's query over that guide's metrics, its row corrects it; others do not."""
    items = items_of(text_of(guide))
    known = _vocabulary(items)
    queries = {item.text for item in items if item.kind == "query"}
    for row in rows_of(guide, "later"):
        problems = {name: check(name, known)[1] for name in queries.intersection(row["names"])}
        faulty = [name for name, found in problems.items() if found]
        assert bool(faulty) == bool(row.get("query")), row
        for code in {problem.code for found in problems.values() for problem in found}:
            assert f"`{code}`" in row["why"], row
        for query in listed(row.get("query")):
            assert [problem.message for problem in check(query, known)[1]] == [], query


def test_the_page_is_what_the_data_says():
    """``docs/from-the-guides.md`` is built from the data; a stale page fails."""
    assert PAGE.read_text(encoding="utf-8") == build(ROWS), f"stale: run `{COMMAND}`"
