"""Expressions are found in dashboards, rules and guides, each with its line."""

from __future__ import annotations

import json

import pytest

from eventcore.errors import EventCoreError
from eventcore_generate.lint import files_in, lint
from eventcore_generate.lint_files import Found, queries_in

DASHBOARD = {
    "title": "Shop \U0001f6d2",
    "templating": {
        "list": [
            {"name": "currency", "type": "query", "query": "label_values(shop_paid_total, currency)"},
            {"name": "where", "type": "query", "query": {"query": "label_values(shop_charges_total, regio)"}},
            {"name": "instance", "type": "query", "query": "label_values(instance)"},
            {"name": "top", "type": "query", "query": "query_result(topk(3, shop_charges))"},
            {"name": "rate", "type": "interval", "query": "1m,5m"},
        ]
    },
    "annotations": {"list": [{"name": "restarts", "expr": "resets(shop_open[5m]) > 0"}]},
    "panels": [
        {"title": "Paid", "targets": [{"expr": 'rate(shop_paid_total{currency="$currency"}[$__rate_interval])'}]},
        {
            "title": "Row",
            "panels": [{"title": "Charges", "targets": [{"expr": "sum(shop_charge_seconds)\n/ sum(up)"}]}],
        },
        {
            "title": "Logs",
            "datasource": {"type": "loki"},
            "targets": [{"expr": '{app="shop"}'}, {"datasource": {"type": "prometheus"}, "expr": "nothing"}],
        },
        {"title": "More logs", "targets": [{"expr": 'count_over_time({app="shop"} |= "error" [5m])'}, {"expr": ""}]},
    ],
}

RULES = """\
# a comment
groups:
  - name: shop
    rules:
      - record: job:shop_paid:rate5m
        expr: sum by (job, currency) (rate(shop_paid_total[5m]))
        labels: {team: payments}
      - record: shop_paid_twice
        expr: shop_paid_twice + job:shop_paid:rate5m
      - alert: Quiet
        expr: |
          # what is paid: "job" | currency < gbp
          sum(job:shop_paid:rate5m{team="payments",
            currency="gbp"})
          < shop_open
        annotations: {summary: '{{ $value }}', expr: shop_nothing}
      - alert: Folded
        expr: >
          job:shop_paid:rate5m{teem="payments"}
          > 1
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
spec:
  groups:
    - name: more
      rules:
        - {alert: Missing, expr: 'absent(shop_nothing)'}
"""

GUIDE = """\
# A guide

Text with `shop_inline`.

1. In a list
   ```promql
   # first
   shop_first

   shop_second
     / shop_third
   ```

```json
{"dashboard": {"panels": [{"title": "P", "targets": [
  {"expr": "shop_fourth"}]}]}}
```

~~~yaml
scrape_configs:
  - job_name: shop
    static_configs: [{targets: ['localhost:9090'], labels: {env: test}}]
~~~

```yaml
- alert: A
  expr: up{job="shopp", env="test"} == shop_fifth
```

```yaml
apiVersion: {{ not yaml }}
```

```yaml
expr: [unclosed
```

```bash
grep shop_nothing
```
"""


def write(folder, **files):
    """Write files, suffixes after ``__``, and return their paths."""
    paths = []
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
        paths.append(path)
    return paths


def found_in(report):
    """Return line, place and kind of each finding."""
    return [(finding.line, finding.where, finding.code) for finding in report.findings]


def line_of(path, text):
    """Return the number of the only line with this text."""
    (line,) = [number for number, each in enumerate(path.read_text().splitlines(), start=1) if text in each]
    return line


def test_dashboards_are_read_whole(tmp_path, shop):
    """Panels, rows, variables and annotations of a bare dashboard are checked, what is LogQL is left out."""
    (path,) = write(tmp_path, shop__json=DASHBOARD)
    report = lint([path], shop)
    assert (report.expressions, report.left_out) == (7, 2)
    assert found_in(report) == sorted(
        [
            (line_of(path, "regio)"), "variable 'where'", "unknown-label"),
            (line_of(path, "query_result"), "variable 'top'", "unknown-series"),
            (line_of(path, "resets"), "dashboard 'Shop \U0001f6d2'", "resets-over-gauge"),
            (line_of(path, "sum(shop_charge_seconds)"), "panel 'Charges'", "histogram-by-bare-name"),
            (line_of(path, '"nothing"'), "panel 'Logs'", "unknown-series"),
        ]
    )


def test_a_dashboard_within_dashboard_is_the_same(tmp_path, shop):
    """``{"dashboard": …}``, as the HTTP interface takes it, is read like a bare one."""
    bare, wrapped = write(tmp_path, bare__json=DASHBOARD, wrapped__json={"dashboard": DASHBOARD, "overwrite": True})
    codes = [[finding.code for finding in lint([path], shop).findings] for path in (bare, wrapped)]
    assert codes[0] == codes[1]
    assert len(codes[0]) == 5


def test_rules_are_read_whole(tmp_path, shop):
    """Alerts and recording rules of all documents are checked at their own lines; recorded series are known."""
    (path,) = write(tmp_path, rules__yml=RULES)
    report = lint([path], shop)
    assert found_in(report) == [
        (line_of(path, 'currency="gbp"'), "alert 'Quiet'", "unknown-label-value"),
        (line_of(path, "< shop_open"), "alert 'Quiet'", "never-joins"),
        (line_of(path, "expr: >"), "alert 'Folded'", "unknown-label"),
        (line_of(path, "absent(shop_nothing)"), "alert 'Missing'", "unknown-series"),
    ]
    assert str(report.findings[0]) == (
        f"{path}:14: alert 'Quiet': {{currency=\"gbp\"}} is never true for 'gbp': label 'currency' of "
        "'job:shop_paid:rate5m' is never that; its values are 'eur', 'usd'"
    )


def test_recorded_series_are_known_to_other_files(tmp_path, shop):
    """A dashboard may query what a rule file given beside it records, and only what it records."""
    rules, panel = write(
        tmp_path,
        rules__yaml="groups: [{name: a, rules: [{record: 'shop:paid', expr: 'sum by (currency) (shop_paid_total)'}]}]",
        panel__json={"panels": [{"title": "P", "targets": [{"expr": 'shop:paid{currency="eur"} > shop:pay'}]}]},
    )
    assert [finding.code for finding in lint([panel], shop).findings] == ["unknown-series", "unknown-series"]
    (finding,) = lint([panel, rules], shop).findings
    assert "'shop:pay'" in finding.message
    assert "'shop:paid'" in finding.remedy


def test_guides_are_read_block_by_block(tmp_path, shop):
    """Queries, dashboards and rules in Markdown are checked at their lines; jobs and target labels are learnt."""
    (path,) = write(tmp_path, guide__md=GUIDE)
    report = lint([path], shop)
    assert found_in(report) == sorted(
        [
            (line_of(path, "shop_first"), "query", "unknown-series"),
            (line_of(path, "shop_second"), "query", "unknown-series"),
            (line_of(path, "shop_third"), "query", "unknown-series"),
            (line_of(path, "shop_fourth"), "panel 'P'", "unknown-series"),
            (line_of(path, "shop_fifth"), "alert 'A'", "unknown-label-value"),
            (line_of(path, "shop_fifth"), "alert 'A'", "unknown-series"),
            (line_of(path, "[unclosed"), "", "unreadable"),
        ]
    )
    assert "did you mean 'shop'?" in next(f.remedy for f in report.findings if f.code == "unknown-label-value")


def test_discovery_and_relabelling_open_the_labels_of_targets(tmp_path, shop):
    """Where targets are discovered, labels that are not known may exist; relabelled ones are known."""
    config = "scrape_configs: [{job_name: shop, %s: [%s]}]"
    expression = "groups: [{name: a, rules: [{alert: A, expr: 'up{pod=\"a\"}'}]}]"
    plain, relabelled, discovered = write(
        tmp_path,
        plain__yml=config % ("static_configs", "{targets: [a]}"),
        relabelled__yml=config % ("relabel_configs", "{target_label: pod}"),
        discovered__yml=config % ("kubernetes_sd_configs", "{role: pod}"),
    )
    (rules,) = write(tmp_path, rules__yml=expression)
    assert [len(lint([rules, path], shop).findings) for path in (plain, relabelled, discovered)] == [1, 0, 0]
    assert lint([rules, plain], shop, target_labels=["pod"]).findings == ()


def test_what_is_no_json_or_yaml_is_a_finding(tmp_path, shop):
    """A file that cannot be parsed is a finding at the line of the mistake."""
    paths = write(tmp_path, a__json='{"panels": [\n{"expr": "up"\n]}', b__yml="groups:\n  - name: a\n rules: []\n")
    assert [(f.line, f.code, f.message.partition(":")[0]) for f in lint(paths, shop).findings] == [
        (3, "unreadable", "this is no JSON"),
        (3, "unreadable", "this is no YAML"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "up", r"a\.txt: what is in it is told by its suffix; name it \.json or"),
        ("missing.json", None, r"missing\.json cannot be read: No such file"),
        ("latin.md", b"\xff\xfe\xfa", r"latin\.md cannot be read: 'utf-8'"),
        ("empty.yml", b"groups: []", r"no PromQL in .*empty\.yml: give dashboards"),
    ],
)
def test_files_that_are_no_answer_are_errors(tmp_path, shop, name, content, message):
    """A file that says nothing is one clear error, never a silent success."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EventCoreError, match=message):
        lint([path], shop)


def test_legends_and_texts_name_labels_that_are_there(tmp_path, shop):
    """A legend or an alert's text that names a label which the result does not have is found; variables are let be."""
    target = {"expr": "sum by (currency) (rate(shop_paid_total[5m]))"}
    panels = [
        {"title": "right", "targets": [{**target, "legendFormat": "{{currency}} {{ __name__ }} $name"}]},
        {"title": "wrong", "targets": [{**target, "legendFormat": "{{currency}} of {{job}}"}]},
        {"title": "anything", "targets": [{"expr": "sum by ($by) (shop_paid_total)", "legendFormat": "{{colour}}"}]},
    ]
    alert = """groups:
      - name: a
        rules:
          - alert: A
            expr: sum by (job) (shop_open) > 1
            labels: {at: '{{ $labels.job }}'}
            annotations:
              summary: '{{ $labels.job }} {{ $value }}'
              more: '{{ $labels.jobb }} {{ index $labels "why" }}'"""
    paths = write(tmp_path, a__json={"panels": panels}, b__yml=alert)
    found = [(f.where, f.code, f.message.split(",")[0], f.remedy) for f in lint(paths, shop).findings]
    assert found == [
        (
            "panel 'wrong'",
            "unknown-label",
            "legendFormat names the label 'job'",
            "there are 'currency'; if scraping adds it, say --target-label job",
        ),
        ("alert 'A'", "unknown-label", "annotation 'more' names the label 'jobb'", "did you mean 'job'?"),
        (
            "alert 'A'",
            "unknown-label",
            "annotation 'more' names the label 'why'",
            "there are 'job'; if scraping adds it, say --target-label why",
        ),
    ]


def test_folders_are_searched(tmp_path):
    """Of a folder those files are read that can hold expressions, in any depth."""
    (tmp_path / "deep").mkdir()
    write(tmp_path, a__json="{}", b__txt="", c__yaml="")
    write(tmp_path / "deep", d__md="")
    assert [path.name for path in files_in([tmp_path])] == ["a.json", "c.yaml", "d.md"]


def test_the_same_text_twice_has_two_lines():
    """Two panels with one expression are found at their own lines, escapes included."""
    found = Found()
    text = '{"panels": [\n{"expr": "a{b=\\"c\\"}"},\n{"query": "x", "expr": "a{b=\\"c\\"}"}]}'
    queries_in("a.json", ".json", text, found)
    assert [(query.line, query.expression) for query in found.queries] == [(2, 'a{b="c"}'), (3, 'a{b="c"}')]
