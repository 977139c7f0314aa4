"""Rules, their unit tests, and configurations, held against promtool and amtool."""

from __future__ import annotations

import re
import subprocess
import types

import pytest
import yaml

from eventcore.errors import DefinitionError
from eventcore.monitoring import Alert, BadCase, Correction, LogAlert, Monitoring, Panel, RuleGroup
from eventcore_generate.cli import MAKERS
from eventcore_generate.renaming import renamed
from eventcore_generate.rules import prometheus_rules
from eventcore_generate.source import Part, Source

pytestmark = pytest.mark.server


def tool(*command, folder):
    """Run promtool or amtool; return what it says, and whether it accepts."""
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def alert(**changes):
    """Return an alert with a bad and a good case."""
    given = {
        "name": "Full",
        "expr": "desk_full > 1",
        "for_": "1m",
        "summary": "{{ $labels.desk }} is full: {{ $value }}",
        "bad": BadCase(series={'desk_full{desk="a"}': "2x10"}, after="5m", labels={"desk": "a"}, value="2"),
        "good": {'desk_full{desk="a"}': "1x10"},
    }
    return Alert(**{**given, **changes})


def source_with(*alerts):
    """Return a source with one pack that has these alerts."""
    part = Part("desk", (), {}, Monitoring(title="Desk", groups=(RuleGroup("desk", alerts),)))
    return types.SimpleNamespace(parts=(part,), service="desk", slug="desk")


# -- rules -------------------------------------------------------------------------------------------------------------


def test_rules_are_valid_and_their_tests_pass(generate, tmp_path, promtool):
    """``promtool check rules`` accepts the rules; in their unit tests each alert fires when it must, and only then."""
    generate("prometheus-rules", "--tests", "-o", tmp_path)
    accepted, said = tool(promtool, "check", "rules", "rules.yml", folder=tmp_path)
    assert accepted, said
    accepted, said = tool(promtool, "test", "rules", "rules_test.yml", folder=tmp_path)
    assert accepted, said


def test_every_alert_has_its_two_cases(generate, tmp_path):
    """Each alert of the rules has a unit test in which it fires and one in which it is silent."""
    generate("prometheus-rules", "--tests", "-o", tmp_path)
    rules = yaml.safe_load((tmp_path / "rules.yml").read_text())
    tests = yaml.safe_load((tmp_path / "rules_test.yml").read_text())["tests"]
    alerts = [
        f"{rule['labels']['pack']}: {rule['alert']}"
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(alerts) == len(set(alerts)) >= 9
    names = [test["name"] for test in tests]
    assert sorted(names) == sorted(f"{name} {what}" for name in alerts for what in ("fires", "is silent"))


@pytest.mark.parametrize(
    "changes",
    [
        {"expr": "desk_full > 2"},
        {"good": {'desk_full{desk="a"}': "2x10"}},
    ],
)
def test_an_alert_that_is_wrong_fails_its_test(tmp_path, promtool, changes):
    """An alert that cannot fire, or that fires in the good case, fails ``promtool test``."""
    for text, expected in ((alert(), True), (alert(**changes), False)):
        for name, content in prometheus_rules(source_with(text), tests=True).items():
            (tmp_path / name).write_text(content)
        accepted, said = tool(promtool, "test", "rules", "rules_test.yml", folder=tmp_path)
        assert accepted is expected, said


def test_a_corrected_alert_shows_the_original_and_why():
    """Where an expression is not the guide's, its own stands beside it with the reason."""
    corrected = alert(correction=Correction("desk_full{shelf='a'} > 1", "desk_full has no label shelf."))
    text = prometheus_rules(source_with(corrected))["rules.yml"]
    original = text.index("# The guide has: desk_full{shelf='a'} > 1\n")
    assert original < text.index("# desk_full has no label shelf.\n") < text.index("- alert: Full")


def test_alerts_of_one_name_are_groups_of_their_own(tmp_path, promtool):
    """Packs whose alerts bear one name do not clash: each has its group and its label ``pack``."""
    two = source_with(alert())
    monitoring = Monitoring(title="Shop", groups=(RuleGroup("shop", (alert(expr="shop_full > 1"),)),))
    two.parts = (*two.parts, Part("shop", (), {}, monitoring))
    text = prometheus_rules(two)["rules.yml"]
    (tmp_path / "rules.yml").write_text(text)
    accepted, said = tool(promtool, "check", "rules", "rules.yml", folder=tmp_path)
    assert accepted, said
    groups = yaml.safe_load(text)["groups"]
    assert [(g["name"], g["rules"][0]["labels"]["pack"]) for g in groups[:2]] == [("desk", "desk"), ("shop", "shop")]


def test_cases_name_what_exists(settings):
    """The samples of bad and good cases are of series, labels and label values that the catalog knows."""
    series = {one.name: one for part in Source(settings).parts for metric in part.metrics for one in metric.series}
    cases = [
        sample
        for part in Source(settings).parts
        if part.monitoring
        for rule in part.monitoring.alerts
        for sample in (*rule.bad.series, *rule.good)
    ]
    assert len(cases) > 15
    for sample in cases:
        name, _, labels = sample.partition("{")
        assert name in series, sample
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            values = {**series[name].labels, "job": None}[label]
            assert values is None or value in values, sample


def test_the_tiny_dancer_guides_alerts_are_there(generate):
    """The guide's three alerts are in the rules, with its expressions, durations and summaries."""
    groups = {group["name"]: group for group in yaml.safe_load(generate("prometheus-rules"))["groups"]}
    found = {rule["alert"]: rule for rule in groups["tiny_dancer"]["rules"]}
    guide = {
        "HighErrorRate": ("rate(tiny_dancer_errors_total[5m]) > 0.05", "5m", "High error rate detected"),
        "CircuitBreakerOpen": ("tiny_dancer_circuit_breaker_state == 2", "1m", "Circuit breaker is open"),
        "HighLatency": (
            "histogram_quantile(0.95, rate(tiny_dancer_routing_latency_seconds_bucket[5m])) > 0.01",
            "5m",
            "P95 latency above 10ms",
        ),
    }
    for name, (expr, for_, summary) in guide.items():
        assert (found[name]["expr"], found[name]["for"]) == (expr, for_)
        assert found[name]["annotations"]["summary"] == summary


RENAMED = """
[handlers.metric.rename]
tiny_dancer_errors_total = "shop_errors_total"
tiny_dancer_routing_latency_seconds = "shop_latency_seconds"

[handlers.metric.buckets]
tiny_dancer_routing_latency_seconds = [0.001, 0.125]
"""


def test_what_the_settings_rename_is_renamed_everywhere(generate, settings, tmp_path, promtool):
    """Series that the settings rename are asked for under their new names, in rules, cases and dashboards alike."""
    settings.write_text(settings.read_text().replace("[http]", RENAMED + "[http]"))
    generate("prometheus-rules", "--tests", "-o", tmp_path)
    accepted, said = tool(promtool, "test", "rules", "rules_test.yml", folder=tmp_path)
    assert accepted, said
    made = (tmp_path / "rules.yml").read_text() + generate("grafana") + generate("docs")
    for old, new in (("tiny_dancer_errors_total", "shop_errors_total"), ("routing_latency_s", "shop_latency_seconds")):
        assert new in made
        assert old not in made.replace("job:tiny_dancer_routing_latency_seconds:p95_5m", "")
    assert "Buckets: 0.001, 0.125." in generate("docs")


def test_texts_are_not_renamed():
    """A label's value that looks like a series' name stays as it is."""
    names = {"desk_full": "shop_full"}
    bad = BadCase(series={'desk_full{desk="desk_full"}': "2x10"}, after="5m", labels={"desk": "desk_full"})
    given = alert(expr='desk_full{desk="desk_full"} > 1', bad=bad)
    made = renamed(Monitoring(title="Desk", groups=(RuleGroup("desk", (given,)),)), names).alerts[0]
    assert made.expr == 'shop_full{desk="desk_full"} > 1'
    assert list(made.bad.series) == ['shop_full{desk="desk_full"}']


def test_a_pack_that_is_not_enabled_has_no_rules(generate, settings):
    """Without the pack in the settings there are no alerts of it, as there are no series."""
    settings.write_text(settings.read_text().replace('packs = ["tiny_dancer", "router"]', ""))
    groups = [group["name"] for group in yaml.safe_load(generate("prometheus-rules"))["groups"]]
    assert groups == ["eventcore", "eventcore_recording", "tiny-dancer_availability"]


# -- what is watched, as data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: alert(for_="five minutes"), "'five minutes' is no duration"),
        (lambda: alert(for_="10m"), "ends after 5m, before for_ 10m is over"),
        (lambda: alert(summary="{{ $labels.dsk }}"), "names label 'dsk', which its bad case does not have"),
        (lambda: LogAlert(name="Odd", where={}, window="5m", above=1, summary="s"), "selects every line"),
        (lambda: LogAlert(name="Odd", where={"a": "b"}, window="5", above=1, summary="s"), "'5' is no duration"),
        (lambda: Panel(title="Empty", queries=()), "panel 'Empty' has no query"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(make, words):
    """An alert that could never fire in its bad case, a duration or a panel that is none: an error that names it."""
    with pytest.raises(DefinitionError, match=words):
        make()


# -- configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--target", "a:9090", "--target", "b:9091", "--scrape-interval", "5s"]])
def test_prometheus_accepts_its_configuration(generate, tmp_path, promtool, options):
    """``promtool check config`` accepts it, with the rules that it names."""
    generate("prometheus-config", "-o", tmp_path, *options)
    generate("prometheus-rules", "-o", tmp_path)
    accepted, said = tool(promtool, "check", "config", "prometheus.yml", folder=tmp_path)
    assert accepted, said
    content = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    [job] = content["scrape_configs"]
    assert job["job_name"] == "tiny-dancer"
    assert job["static_configs"][0]["targets"] == (["a:9090", "b:9091"] if options else ["localhost:9090"])
    assert content["global"]["scrape_interval"] == ("5s" if options else "15s")


def test_the_port_is_that_of_the_settings(generate, settings):
    """What is scraped is where the settings have the application serve."""
    settings.write_text(settings.read_text().replace("9090", "9321"))
    content = yaml.safe_load(generate("prometheus-config"))
    assert content["scrape_configs"][0]["static_configs"][0]["targets"] == ["localhost:9321"]


@pytest.mark.parametrize("target", ["http://a:9090", "a:9090/metrics", "a"])
def test_a_target_that_is_no_address_is_one_error(generate, target):
    """A target with a scheme, a path or no port is refused, with what to write."""
    assert "is no HOST:PORT" in generate("prometheus-config", "--target", target, code=2)


def test_alertmanager_accepts_its_configuration(generate, tmp_path, amtool):
    """``amtool check-config`` accepts it, and alerts go where ``--webhook`` says."""
    generate("alertmanager", "--webhook", "http://127.0.0.1:5055/hook", "-o", tmp_path)
    accepted, said = tool(amtool, "check-config", "alertmanager.yml", folder=tmp_path)
    assert accepted, said
    content = yaml.safe_load((tmp_path / "alertmanager.yml").read_text())
    assert content["receivers"][0]["webhook_configs"][0]["url"] == "http://127.0.0.1:5055/hook"


def test_the_documentations_example_works(checkout, tmp_path, promtool):
    """The panels and alerts that docs/generate.md shows can be made, and their alert passes its own two cases."""
    page = (checkout / "docs" / "generate.md").read_text()
    names = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    [(pack, monitoring)] = names["eventcore_monitoring"]().items()
    source = types.SimpleNamespace(parts=(Part(pack, (), {}, monitoring),), service="shop", slug="shop")
    for name, content in prometheus_rules(source, tests=True).items():
        (tmp_path / name).write_text(content)
    accepted, said = tool(promtool, "test", "rules", "rules_test.yml", folder=tmp_path)
    assert accepted, said


def test_the_documentation_lists_every_command(checkout):
    """docs/generate.md has a row for each thing that can be made, with its options."""
    page = (checkout / "docs" / "generate.md").read_text()
    assert all(f"| `{name}` |" in page for name in MAKERS if name != "all")
