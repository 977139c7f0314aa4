"""One PromQL expression against the series that exist: what is found, and what is let through."""

from __future__ import annotations

import pytest

from eventcore.exposition import Exposition
from eventcore_generate.lint_known import Vocabulary, read_exposition
from eventcore_generate.promql import check

WRONG = [
    # what does not exist
    ("rate(shop_payed_total[5m])", "unknown-series", "no series 'shop_payed_total'", "did you mean 'shop_paid_total'"),
    ("shop_paid", "unknown-series", "no series 'shop_paid'", "did you mean 'shop_paid_total'"),
    ('{__name__="shop_payed_total"}', "unknown-series", "'shop_payed_total'", "'shop_paid_total'"),
    ('{__name__=~"shopp_.*"}', "unknown-series", "no series has a name like 'shopp_.*'", "correct"),
    ('shop_paid_total{currencey="eur"}', "unknown-label", "'currencey'", "did you mean 'currency'"),
    (
        'shop_paid_total{region=~"eu|us"}',
        "unknown-label",
        "'region', which is not on 'shop_paid_total' here",
        "there are 'currency'",
    ),
    ('up{provider="adyen"}', "unknown-label", "'provider', which is not on 'up' here", "'instance', 'job'"),
    ("sum by (provder) (shop_charges_total)", "unknown-label", "sum by (provder)", "did you mean 'provider'"),
    ("sum without (colour) (shop_paid_total)", "unknown-label", "'colour'", "there are 'currency'"),
    ('label_replace(shop_paid_total, "a", "$1", "b", "(.*)")', "unknown-label", "label_replace", "there are"),
    (
        "shop_paid_total / on (colour) group_left sum(shop_paid_total)",
        "unknown-label",
        "/ on or ignoring (colour)",
        "there are",
    ),
    (
        "shop_paid_total * on (job) group_left (version) sum by (job) (up)",
        "unknown-label",
        "group_left (version) names the label 'version', which is not on 'up' here",
        "there are 'job'",
    ),
    ('shop_paid_total{currency="euro"}', "unknown-label-value", "is never true for 'euro'", "did you mean 'eur'"),
    ('shop_paid_total{currency!="gbp"}', "unknown-label-value", "excludes nothing for 'gbp'", "'eur', 'usd'"),
    ('shop_paid_total{currency=~"eur|gbp"}', "unknown-label-value", "for 'gbp'", "'eur', 'usd'"),
    ('shop_paid_total{currency=~"(eur|gbp)"}', "unknown-label-value", "for 'gbp'", "'eur', 'usd'"),
    ('shop_paid_total{currency=~"g.*"}', "unknown-label-value", "for 'g.*'", "'eur', 'usd'"),
    ('shop_paid_total{currency!~"g.*"}', "unknown-label-value", "excludes nothing", "'eur', 'usd'"),
    ('shop_charge_seconds_bucket{le="0.2"}', "unknown-label-value", "'0.2'", "'+Inf', '0.1', '0.5', '1.0'"),
    ('shop_paid_total{currency="eur" or currency="gbp"}', "unknown-label-value", "'gbp'", "'eur', 'usd'"),
    # a function that does not fit
    (
        "shop_charge_seconds",
        "histogram-by-bare-name",
        "'shop_charge_seconds' is a histogram",
        "query shop_charge_seconds_bucket (with histogram_quantile), or one of shop_charge_seconds_count",
    ),
    ("avg_over_time(shop_charge_seconds[5m])", "histogram-by-bare-name", "is a histogram", "_bucket"),
    ("rate(shop_open[5m])", "rate-over-gauge", "'shop_open' is a gauge", "deriv()"),
    ("increase(shop_open[5m])", "increase-over-gauge", "'shop_open' is a gauge", "delta()"),
    ("delta(shop_paid_total[5m])", "delta-over-counter", "'shop_paid_total' is a counter", "increase()"),
    ("deriv(shop_charge_seconds_sum[5m])", "deriv-over-counter", "is a counter", "rate()"),
    (
        "histogram_quantile(0.95, sum by (provider) (rate(shop_charge_seconds_bucket[5m])))",
        "quantile-without-le",
        "needs the label 'le'",
        "sum by (le, …)",
    ),
    (
        "histogram_quantile(0.95, sum(rate(shop_charge_seconds_bucket[5m])))",
        "quantile-without-le",
        "needs the label 'le'",
        "sum by (le, …)",
    ),
    (
        "histogram_quantile(0.95, rate(shop_charge_seconds_sum[5m]))",
        "quantile-over-no-histogram",
        "needs the buckets of a histogram, and 'shop_charge_seconds_sum' has none",
        "…_bucket",
    ),
    ("shop_currency == 3", "unknown-value", "'== 3' is never true for 'shop_currency'", "its values are 1, 2"),
    ("shop_currency{} > 2", "unknown-value", "'> 2' is never true", "its values are 1, 2"),
    # two vectors that cannot join
    (
        "rate(shop_failed_total[5m]) / rate(shop_charges_total[5m])",
        "never-joins",
        "'/' never has a result: only the left side has 'why', only the right side has 'region'",
        "sum by (provider)",
    ),
    (
        "rate(shop_paid_total[5m]) / sum(rate(shop_paid_total[5m]))",
        "never-joins",
        "only the left side has 'currency', 'instance', 'job'",
        "sum(…) / sum(…)",
    ),
    ("shop_paid_total and shop_open", "never-joins", "'and' never has a result", "aggregate both sides"),
    ("shop_open unless shop_paid_total", "never-joins", "'unless' excludes nothing", "aggregate both sides"),
    (
        'shop_paid_total{currency="eur"} / shop_paid_total{currency="usd"}',
        "never-joins",
        "'currency' is 'eur' left and 'usd' right",
        "ignoring(currency)",
    ),
    ("sum by (currency) (shop_paid_total) > on (currency) shop_open", "never-joins", "only the left", "aggregate"),
    (
        "shop_failed_total / on (provider) shop_charges_total",
        "many-to-one",
        "'/' fails as soon as 'why' of the left side has two values",
        "group_left()",
    ),
    (
        "shop_open / on (provider) group_left shop_charges_total",
        "many-to-one",
        "'region' of the right side",
        "aggregate 'region' away on the right side",
    ),
    # what is no PromQL
    ("sum(shop_paid_total", "unparsable", "unclosed left parenthesis", "correct the expression"),
    ("rate(shop_paid_total)", "unparsable", "expected type matrix", "correct the expression"),
    ("rates(shop_paid_total[5m])", "unparsable", "unknown function", "correct the expression"),
]

RIGHT = [
    "rate(shop_paid_total[5m])",
    "shop_currency == 2 or shop_currency != 2 or shop_currency >= 2 or shop_open == 3",
    "sum(shop_currency) == 3 or shop_currency + 1 == 3",
    'sum by (currency) (rate(shop_paid_total{currency=~"eu.*", job="shop", instance!=""}[5m])) > 0.5',
    "histogram_quantile(0.95, rate(shop_charge_seconds_bucket[5m]))",
    "histogram_quantile(0.95, sum by (le, provider) (rate(shop_charge_seconds_bucket[5m]))) > 1",
    "rate(shop_charge_seconds_sum[5m]) / rate(shop_charge_seconds_count[5m])",
    "sum(rate(shop_failed_total[5m])) / sum(rate(shop_charges_total[5m]))",
    "sum by (provider) (rate(shop_failed_total[5m])) / sum by (provider) (rate(shop_charges_total[5m]))",
    "sum without (why) (shop_failed_total) / sum without (region) (shop_charges_total)",
    "sum without (why) (shop_failed_total) / ignoring (region) group_right shop_charges_total",
    "shop_charges_total / on (provider, job, instance) group_left shop_open",
    "shop_paid_total / on () group_left sum(shop_paid_total)",
    'shop_open * on (job, instance) group_left (currency) sum without () (shop_paid_total{currency="eur"})',
    'shop_paid_total{currency="eur"} / ignoring (currency) shop_paid_total{currency="usd"}',
    "rate(shop_paid_total[5m]) or vector(0)",
    "sum(shop_open) unless sum(shop_paid_total) > 5",
    "delta(shop_open[5m]) > 0 and deriv(shop_open[5m]) < 2 * 3",
    "max_over_time(rate(shop_paid_total[1m])[1h:5m] offset 1d)",
    'up{job="shop"} == 0 or absent(up{job="shop"})',
    'absent(shop_paid_total{currency="eur"}) * on (currency) shop_paid_total{currency="eur"}',
    "scrape_duration_seconds > 1 and on (instance) up == 1",
    'ALERTS{alertstate="firing", alertname="Anything", team="a"}',
    'count_values("version", shop_open) + topk by (version) (3, count_values("version", shop_open))',
    'label_join(shop_paid_total, "both", "-", "currency", "job") * on (both) group_left vector(1)',
    "shop_paid_total - shop_paid_total offset 1h",
    '{__name__=~"shop_.*_total"}',
    '{job="shop"}',
    "time() - scalar(max(shop_open)) > bool 3",
    "rate(shop_paid_total[$__rate_interval])",
    'sum by ($group) (rate(shop_paid_total{currency=~"$currency", job=~"${job:regex}"}[$__range]))',
    "topk($top, rate(shop_paid_total[$interval])) / $__interval_ms",
    "shop_$thing + [[other]]",
    'shop_charge_seconds_bucket{le="+Inf"} / ignoring (le) shop_charge_seconds_count',
]


@pytest.mark.parametrize(("expression", "code", "message", "remedy"), WRONG, ids=[case[0] for case in WRONG])
def test_what_cannot_return_data_is_found(known, expression, code, message, remedy):
    """Each kind of mistake is one problem that names what, and what to do."""
    (problem,) = check(expression, known)[1]
    assert problem.code == code
    assert message in problem.message
    assert remedy in problem.remedy


@pytest.mark.parametrize("expression", RIGHT)
def test_what_can_return_data_is_let_through(known, expression):
    """Expressions that a scraped shop answers raise nothing, Grafana's variables included."""
    assert check(expression, known)[1] == []


def test_two_mistakes_are_two_problems(known):
    """Every mistake of an expression is reported, not the first alone."""
    problems = check('rate(shop_payed_total[5m]) / shop_paid_total{currency="euro"}', known)[1]
    assert [problem.code for problem in problems] == ["unknown-series", "unknown-label-value"]


def test_nothing_is_claimed_of_unknown_series(known):
    """What is done to a series that nobody knows is not held against it."""
    problems = check('sum by (a) (rate(acme_total{b="c"}[5m])) + acme_total / on (d) max(shop_paid_total)', known)[1]
    assert {problem.token for problem in problems} == {"acme_total"}


def test_the_other_guides_faults_are_found(other_systems):
    """With their series known, TinyLLM's error rate, the MoE guide's FLOP panel and its histogram are still wrong."""
    known = Vocabulary(Exposition(other_systems))
    error_rate = check("rate(tinyllm_errors_total[5m])\n  / rate(tinyllm_requests_total[5m])", known)[1]
    assert [p.code for p in error_rate] == ["never-joins"]
    assert "only the left side has 'error_type', only the right side has 'request_type'" in error_rate[0].message
    assert "sum by (graph, model) (…)" in error_rate[0].remedy
    flops = "rate(dynamic_moe_flops_saved_total[5m]) / rate(dynamic_moe_flops_computed_total[5m]) * 100"
    assert [(p.code, p.message) for p in check(flops, known)[1]] == [
        ("never-joins", "'/' never has a result: only the right side has 'layer_type'")
    ]
    assert [p.code for p in check("dynamic_moe_experts_used_per_token", known)[1]] == ["histogram-by-bare-name"]


def test_series_of_other_exporters_can_be_made_known(shop):
    """A scrape tells names, kinds and labels; what is not in every sample of a series is not certain."""
    text = (
        "# HELP node_load1 1m load average.\n# TYPE node_load1 gauge\nnode_load1 0.21\n"
        "# TYPE node_cpu_seconds_total counter\n"
        'node_cpu_seconds_total{cpu="0",mode="idle"} 1.5e+06 1700000000\nnode_cpu_seconds_total{cpu="1",mode="a}b"} 2\n'
        '# TYPE rpc_seconds histogram\nrpc_seconds_bucket{le="+Inf"} 1\nrpc_seconds_sum 1\nrpc_seconds_count 1\n'
        '# TYPE node_uname gauge\nnode_uname{release=""} 1\nnode_uname{release="6.1"} 1\n# TYPE node_rare gauge\n'
    )
    known = Vocabulary(shop, others=read_exposition(text))
    right = (
        'rate(node_cpu_seconds_total{mode="idle"}[5m]) + on (instance) group_left node_load1',
        "histogram_quantile(0.9, rate(rpc_seconds_bucket[5m]))",
        'node_uname{release="6.2"} * on (instance) node_load1 + on (instance) node_rare{colour="red"}',
        "node_uname / node_load1",
    )
    assert [check(expression, known)[1] for expression in right] == [[]] * 4
    wrong = {
        'node_cpu_seconds_total{core="0"}': "unknown-label",
        "rate(node_load1[5m])": "rate-over-gauge",
        "node_cpu_seconds_total / node_load1": "never-joins",
        "rate(node_memory_bytes[5m])": "unknown-series",
        "histogram_quantile(0.9, rate(rpc_seconds_sum[5m]))": "quantile-over-no-histogram",
    }
    assert {expression: check(expression, known)[1][0].code for expression in wrong} == wrong
