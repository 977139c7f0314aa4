"""The command ``eventcore lint``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eventcore.cli import app

RULES = Path(__file__).parent / "data" / "rules.yml"
METRIC = '[handlers.metric]\npacks = ["tiny_dancer"]\n'


def run(*arguments):
    """Run the command line in this process."""
    return CliRunner().invoke(app, ["lint", *map(str, arguments)])


def test_without_findings_it_says_what_was_held_against_what():
    """Clean files exit 0; the last line counts expressions, files and series, so that silence means something."""
    result = run(RULES)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("0 findings in 3 expressions of 1 file, held against ")
    assert result.stdout.endswith(" series names (packs: router, tiny_dancer)\n")


def test_findings_are_lines_that_editors_understand(tmp_path):
    """Each finding is ``file:line: where: what; what to do`` on a line of its own, and the exit code is 1."""
    path = tmp_path / "r.yml"
    path.write_text(RULES.read_text().replace("circuit_breaker_state", "circuit_braker_state"))
    result = run(path)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == (
        f"{path}:6: alert 'CircuitBreakerOpen': no series 'tiny_dancer_circuit_braker_state' is in the catalog; did "
        "you mean 'tiny_dancer_circuit_breaker_state'?"
    )
    assert result.stdout.splitlines()[1].startswith("1 finding in 3 expressions")


def test_json_says_the_same(tmp_path):
    """``--json`` gives findings with file, line, place, kind, message, remedy and expression."""
    path = tmp_path / "r.yml"
    path.write_text(RULES.read_text().replace("== 2", "== tiny_dancer_confidence_scores"))
    result = run(path, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (answer["files"], answer["expressions"], answer["packs"]) == (1, 3, ["router", "tiny_dancer"])
    (finding,) = answer["findings"]
    assert finding.pop("remedy").startswith("query tiny_dancer_confidence_scores_bucket (with histogram_quantile)")
    assert finding == {
        "file": str(path),
        "line": 6,
        "where": "alert 'CircuitBreakerOpen'",
        "code": "histogram-by-bare-name",
        "message": "'tiny_dancer_confidence_scores' is a histogram, which has no series of that name",
        "expression": "tiny_dancer_circuit_breaker_state == tiny_dancer_confidence_scores",
    }


def test_the_settings_say_which_packs_count(tmp_path):
    """Where a metric handler is configured, its packs count, and a series of another pack says how to enable it."""
    (tmp_path / "eventcore.toml").write_text(
        METRIC.replace('"tiny_dancer"', "").replace("packs", "max_series = 9\npacks")
    )
    (tmp_path / "other.toml").write_text('[handlers.metric]\npacks = ["tiny_dancer"]\n')
    assert run(RULES, "--config", "other.toml").exit_code == 0
    assert run(RULES, "--pack", "tiny_dancer").exit_code == 0
    result = run(RULES)
    assert result.exit_code == 1
    assert "it is in the metric pack 'tiny_dancer': add it to packs in [handlers.metric]" in result.stdout
    assert result.stdout.endswith("(packs: none)\n")


def test_series_of_other_exporters_are_known_when_given(tmp_path):
    """``--known`` takes the scrape of another exporter."""
    (tmp_path / "node.prom").write_text("# TYPE node_load1 gauge\nnode_load1 0.2\n")
    path = tmp_path / "r.yml"
    path.write_text("groups: [{name: a, rules: [{alert: A, expr: 'node_load1 > 5'}]}]")
    assert run(path).exit_code == 1
    assert run(path, "--known", "node.prom").exit_code == 0


def test_labels_that_scraping_adds_are_known_when_named(tmp_path):
    """``--target-label`` names what a discovery adds to every series; the finding without it says so."""
    path = tmp_path / "r.yml"
    path.write_text("groups: [{name: a, rules: [{alert: A, expr: 'up{namespace=\"shop\"} == 0'}]}]")
    assert "if scraping adds it, say --target-label namespace" in run(path).stdout
    assert run(path, "--target-label", "namespace").exit_code == 0


def test_instruments_given_in_code_are_known_by_their_path(tmp_path, monkeypatch):
    """``--instruments MODULE:NAME`` names a list that an application gives to ``configure()``."""
    (tmp_path / "shop_metrics.py").write_text(
        "import eventcore as ec\n"
        "class Paid(ec.Event, name='lint.paid', category=ec.Category.USER):\n    amount: int\n"
        "METRICS = [ec.Counter('lint_paid_total', on=Paid, help='Payments.')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "r.yml"
    path.write_text("groups: [{name: a, rules: [{alert: A, expr: 'rate(lint_paid_total[5m]) > 5'}]}]")
    assert run(path).exit_code == 1
    assert run(path, "--instruments", "shop_metrics:METRICS").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yml"], "missing.yml cannot be read: No such file or directory; check the path"),
        (["missing"], "missing cannot be read: No such file or directory; check the path"),
        ([RULES, "--known", "missing.prom"], "--known missing.prom cannot be read"),
        ([RULES, "--pack", "tiny_dancr"], "did you mean 'tiny_dancer'?"),
        ([RULES, "--config", "missing.toml"], "missing.toml"),
    ],
)
def test_what_cannot_be_read_is_an_error(arguments, message):
    """Without an answer the exit code is 2, with one error on stderr."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
