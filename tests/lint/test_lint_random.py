"""Random expressions: what the linter claims of them is what a real Prometheus answers."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from eventcore.exposition import exposition_of
from eventcore_generate.lint_known import Vocabulary
from eventcore_generate.promql import check

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(180)]

NAMES = [
    "tiny_dancer_routing_requests_total",
    "tiny_dancer_errors_total",
    "tiny_dancer_confidence_scores_bucket",
    "tiny_dancer_confidence_scores_count",
    "tiny_dancer_confidence_scores_sum",
    "tiny_dancer_routing_decisions_total",
    "tiny_dancer_circuit_breaker_state",
    "eventcore_events_total",
    "eventcore_queue_size",
    "eventcore_handler_breaker_state",
    "process_open_fds",
    "up",
]
WRONG_NAMES = ["tiny_dancer_confidence_scores", "tiny_dancer_requests_total"]
LABELS = ["job", "instance", "status", "error_type", "decision_type", "le", "handler", "outcome", "reason", "nothing"]
EMPTY = {
    "histogram-by-bare-name",
    "never-joins",
    "quantile-over-no-histogram",
    "quantile-without-le",
    "unknown-label-value",
    "unknown-series",
}
"""Problems that leave nothing of an expression without ``or``, ``unless`` and negations."""

labels = st.lists(st.sampled_from(LABELS), max_size=3, unique=True).map(", ".join)


def matchers(values):
    """Return at most one matcher, with a value that there is, or one that there never is."""
    pairs = [(label, value) for label, known in values.items() for value in known]
    real = st.sampled_from(pairs).map(lambda pair: f'{{{pair[0]}="{pair[1]}"}}')
    wrong = st.sampled_from(['{nothing="x"}', '{status="never"}', '{error_type=~"never.*"}'])
    return st.one_of(st.just(""), st.just(""), real, wrong)


def expressions(values):
    """Return instant vectors, nested a few levels deep."""
    names = st.sampled_from(NAMES * 4 + WRONG_NAMES)
    selectors = st.builds(lambda name, matcher: name + matcher, names, matchers(values))
    rates = selectors.map(lambda selector: f"rate({selector}[5m])")
    aggregated = st.builds(
        "{}{}({})".format,
        st.sampled_from(["sum", "max", "avg"]),
        st.one_of(st.just(""), st.builds(" {} ({}) ".format, st.sampled_from(["by", "without"]), labels)),
        st.one_of(selectors, rates),
    )
    leaves = st.one_of(selectors, rates, aggregated)
    matching = st.one_of(
        st.just(""),
        st.builds(" {} ({})".format, st.sampled_from(["on", "ignoring"]), labels),
        st.builds(
            " {} ({}) {}".format,
            st.sampled_from(["on", "ignoring"]),
            labels,
            st.sampled_from(["group_left", "group_right"]),
        ),
    )
    joined = st.builds("({}) {}{} ({})".format, leaves, st.sampled_from(["/", "+", "*"]), matching, leaves)
    filtered = st.builds("({}) and ({})".format, leaves, leaves)
    deep = st.builds("sum by ({}) ({})".format, labels, st.one_of(joined, filtered))
    quantiles = leaves.map("histogram_quantile(0.9, {})".format)
    return st.one_of(leaves, joined, joined, filtered, deep, quantiles)


@pytest.fixture(scope="module")
def values(live):
    """Return the label values that there are in Prometheus, by label."""
    for _ in range(3):
        live.application.finish_round()
    return {label: live.prometheus.get(f"label/{label}/values") for label in LABELS if label not in {"instance", "le"}}


@pytest.fixture(scope="module")
def known(declared_everywhere):
    """Return the vocabulary of everything installed."""
    return Vocabulary(exposition_of(*declared_everywhere))


def test_claims_about_random_expressions_hold(live, known, values):
    """What the linter says has no result has none; what it has nothing against is no error, and has data."""
    drawn, moment = expressions(values), time.time()

    @settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(drawn)
    def holds(expression):
        codes = {problem.code for problem in check(expression, known)[1]}
        samples, refusal = live.prometheus.answer(expression, time=moment)
        event("refused" if refusal else "nothing" if not samples else "data")
        assert codes or not refusal, f"Prometheus refuses what the linter lets through: {refusal}"
        assert not (codes & EMPTY and samples), (expression, codes)
        if not codes and expression.count("{") < 2:  # two selections need not overlap in the data
            assert samples, expression

    holds()
