"""The four guides through the linter, and mistakes planted in what resolves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eventcore_generate.lint import lint

DATA = Path(__file__).parent / "data"


@pytest.fixture
def guides(seeds):
    """Return the guides by name."""
    return {path.stem: path for path in seeds.glob("*.md")}


def test_the_tiny_dancer_guide_resolves(guides, tiny_dancer):
    """Its dashboard, its alerts and its query name only what the pack exposes, so the linter has nothing to say."""
    report = lint([guides["tiny-dancer"]], tiny_dancer)
    assert report.findings == ()
    assert report.expressions == 8


@pytest.mark.parametrize(
    ("guide", "names"),
    [
        (
            "tokio-prompt-orchestrator",
            {
                "orchestrator_errors_total",
                "orchestrator_queue_depth",
                "orchestrator_requests_shed_total",
                "orchestrator_requests_total",
                "orchestrator_stage_duration_seconds_bucket",
                "orchestrator_stage_duration_seconds_count",
                "orchestrator_stage_duration_seconds_sum",
                "orchestrator_tokens_generated_total",
            },
        ),
        (
            "tinyllm",
            {
                "tinyllm_cache_hits_total",
                "tinyllm_cache_misses_total",
                "tinyllm_errors_total",
                "tinyllm_node_execution_duration_seconds_bucket",
                "tinyllm_request_latency_seconds_bucket",
                "tinyllm_request_latency_seconds_count",
                "tinyllm_request_latency_seconds_sum",
                "tinyllm_requests_total",
            },
        ),
        (
            "dynamic-moe-router-kit",
            {
                "dynamic_moe_experts_used_per_token",
                "dynamic_moe_flops_computed_total",
                "dynamic_moe_flops_saved_total",
                "dynamic_moe_load_balance_score",
                "dynamic_moe_memory_usage_bytes",
                "dynamic_moe_routing_duration_seconds_bucket",
                "dynamic_moe_routing_errors_total",
                "dynamic_moe_routing_requests_total",
            },
        ),
    ],
)
def test_the_other_guides_are_reported_series_by_series(guides, tiny_dancer, guide, names):
    """Their packs are not here yet: every series that they query is named as not in the catalog, and nothing else."""
    path = guides[guide]
    report = lint([path], tiny_dancer)
    lines = path.read_text(encoding="utf-8").splitlines()
    reported = {}
    for finding in report.findings:
        assert finding.code == "unknown-series"
        name = re.search(r"'(\w+)'", finding.message)[1]
        assert name in lines[finding.line - 1]
        reported[name] = finding
    assert reported.keys() == names


PLANTED = {
    ("tiny_dancer_errors_total", "tiny_dancer_error_total"): "unknown-series",
    ("error_type", "errortype"): "unknown-label",
    ("inference_error", "inference_eror"): "unknown-label-value",
}


@pytest.mark.parametrize("right", PLANTED, ids=" to ".join)
def test_planted_mistakes_are_found_and_named(tmp_path, tiny_dancer, right):
    """A misspelt series, label and label value in rules that resolve are found, named, and put right."""
    rules = (DATA / "rules.yml").read_text()
    path = tmp_path / "rules.yml"
    path.write_text(rules)
    assert lint([path], tiny_dancer).findings == ()
    assert rules.count(right[0]) == 1
    path.write_text(rules.replace(*right))
    (finding,) = lint([path], tiny_dancer).findings
    assert (finding.code, finding.where) == (PLANTED[right], "alert 'InferenceFails'")
    assert repr(right[1]) in finding.message
    assert finding.remedy == f"did you mean {right[0]!r}?"
