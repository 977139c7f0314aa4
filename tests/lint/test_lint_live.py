"""The linter's word against a real Prometheus that scrapes the live application."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from eventcore.exposition import exposition_of
from eventcore_generate.lint_files import Found, queries_in
from eventcore_generate.lint_known import Vocabulary
from eventcore_generate.promql import check
from tests.support.live import JOB

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(180)]

QUERIES = yaml.safe_load((Path(__file__).parent / "data" / "tiny_dancer_queries.yaml").read_text(encoding="utf-8"))
RUNNING = [row.get("corrected", row["original"]) for row in QUERIES]

WITH_DATA = [
    "tiny_dancer_routing_latency_seconds_sum / tiny_dancer_routing_latency_seconds_count",
    'sum(rate(tiny_dancer_routing_requests_total{status="failure"}[5m])) / sum(rate(tiny_dancer_errors_total[5m]))',
    "sum by (job) (tiny_dancer_errors_total) / on (job) group_left up",
    "tiny_dancer_errors_total / on (job, instance) group_left sum by (job, instance) (tiny_dancer_errors_total)",
    "sum without (error_type) (tiny_dancer_errors_total) / sum without (status) (tiny_dancer_routing_requests_total)",
    'tiny_dancer_confidence_scores_bucket{le="+Inf"} / ignoring (le) tiny_dancer_confidence_scores_count',
    "label_replace(tiny_dancer_routing_decisions_total, 'to', '$1', 'model_type', '(.*)') and on (job) up",
    'histogram_quantile(0.5, sum by (le, handler) (rate(eventcore_batch_duration_seconds_bucket{handler="log"}[5m])))',
    'eventcore_events_total{handler="log", outcome!="dropped"} and on (handler) eventcore_queue_size',
    f'scrape_samples_scraped{{job="{JOB}"}} > bool 10 * up',
    'absent(tiny_dancer_errors_total{error_type="storage_error"} > 0)',
    '{__name__=~"tiny_dancer_.*_total", job="tiny-dancer"}',
]

WITHOUT_DATA = [
    "tiny_dancer_routing_latency_seconds",
    "rate(tiny_dancer_routing_request_total[5m])",
    'tiny_dancer_routing_requests_total{state="success"}',
    'tiny_dancer_routing_requests_total{status="ok"}',
    'tiny_dancer_feature_engineering_duration_seconds_count{batch_size="0"}',
    '{__name__=~"tiny_dancers_.*"}',
    "tiny_dancer_errors_total / tiny_dancer_routing_requests_total",
    "rate(tiny_dancer_errors_total[5m]) / sum(rate(tiny_dancer_routing_requests_total[5m]))",
    "tiny_dancer_routing_decisions_total and tiny_dancer_confidence_scores_count",
    "tiny_dancer_errors_total / on (job) tiny_dancer_routing_requests_total",
    'tiny_dancer_routing_requests_total{status="success"} / tiny_dancer_routing_requests_total{status="failure"}',
    "sum by (error_type) (tiny_dancer_errors_total) > up",
    "histogram_quantile(0.95, sum by (operation) (rate(tiny_dancer_routing_latency_seconds_bucket[5m])))",
    "histogram_quantile(0.95, rate(tiny_dancer_routing_latency_seconds_sum[5m]))",
    'up{job="tiny-dancer", handler="log"}',
    "sum(tiny_dancer_errors_total",
]


@pytest.fixture(scope="module")
def known(declared_everywhere):
    """Return the vocabulary of everything installed."""
    return Vocabulary(exposition_of(*declared_everywhere))


def test_every_query_of_the_guide_has_a_row(seeds):
    """The data file lists every expression that the Tiny Dancer guide prints, as printed, in the guide's order."""
    text = (seeds / "tiny-dancer.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(tiny_dancer_\w+(?:\{.*\})?)$", text, re.MULTILINE)
    found = Found()
    queries_in("tiny-dancer.md", ".md", text, found)
    printed = [*listed, *(query.expression.strip() for query in found.queries)]
    assert [row["original"] for row in QUERIES] == printed
    assert all(("corrected" in row) == ("reason" in row) for row in QUERIES)


@pytest.mark.parametrize("expression", dict.fromkeys(RUNNING))
def test_queries_of_the_guide_return_data(live, known, expression):
    """Each expression of the guide, corrected where it could not, returns data from a real server."""
    assert check(expression, known)[1] == []
    assert live.prometheus.eventually(expression, 40)


@pytest.mark.parametrize("row", [row for row in QUERIES if "corrected" in row], ids=lambda row: row["original"])
def test_what_was_corrected_had_to_be(live, known, row):
    """As printed these return nothing from the server, and the linter says so."""
    assert check(row["original"], known)[1]
    assert live.prometheus.query(row["original"]) == []


@pytest.mark.parametrize("expression", WITH_DATA)
def test_what_the_linter_lets_through_has_data(live, known, expression):
    """Expressions that the linter has nothing against return data from the server."""
    assert check(expression, known)[1] == []
    assert live.prometheus.eventually(expression)


@pytest.mark.parametrize("expression", WITHOUT_DATA)
def test_what_the_linter_refuses_has_no_data(live, known, expression):
    """Expressions that the linter refuses return nothing from the server, or are refused by it, too."""
    assert check(expression, known)[1]
    samples, refusal = live.prometheus.answer(expression)
    assert samples == []
    assert not refusal or re.search("many-to-many|many-to-one|multiple matches|parse error", refusal)
