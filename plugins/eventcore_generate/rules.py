"""Rules for Prometheus, and unit tests that hold each alert against a bad and a good case."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.monitoring import Alert, BadCase, RuleGroup
from eventcore_generate.output import Files, header, yaml_text
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventcore.monitoring import Recording

__all__ = ["RULES", "groups", "prometheus_rules"]

RULES = "rules.yml"
"""The file's name, as the other files refer to it."""

TESTS = "rules_test.yml"
_LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
_VALUE = re.compile(r"\{\{ \$value[^}]*\}\}")


def prometheus_rules(
    source: Source,
    *,
    tests: Annotated[bool, typer.Option("--tests", help="Make unit tests for promtool beside them.")] = False,
) -> Files:
    """Make alerting and recording rules for Prometheus, in groups per pack."""
    found = list(groups(source))
    files = {RULES: header("prometheus-rules") + _rules_text(found)}
    if tests:
        cases = [case for pack, group in found for rule in group.rules for case in _cases(pack, rule)]
        content = {"rule_files": [RULES], "evaluation_interval": "1m", "tests": cases}
        files[TESTS] = header("prometheus-rules --tests", f"promtool test rules {TESTS}") + yaml_text(content)
    return files


def groups(source: Source) -> Iterator[tuple[str, RuleGroup]]:
    """Yield the groups, each with the name of its pack."""
    for part in source.parts:
        for group in part.monitoring.groups if part.monitoring else ():
            yield part.name, group
    yield source.service, RuleGroup(f"{source.slug}_availability", (_down(source.service),))


def _down(job: str) -> Alert:
    return Alert(
        name="ServiceDown",
        expr=f'up{{job="{job}"}} == 0',
        for_="1m",
        severity="critical",
        summary="{{ $labels.instance }} of {{ $labels.job }} does not answer",
        bad=BadCase(
            series={f'up{{job="{job}",instance="app:9090"}}': "1 1 0x20"},
            after="5m",
            labels={"job": job, "instance": "app:9090"},
        ),
        good={f'up{{job="{job}",instance="app:9090"}}': "1x20"},
    )


def _rules_text(found: list[tuple[str, RuleGroup]]) -> str:
    """Return the file's text: YAML with a comment where an expression is not the guide's own."""
    lines = ["groups:"]
    for pack, group in found:
        lines += [f"  - name: {group.name}", "    rules:"]
        for rule in group.rules:
            correction = rule.correction if isinstance(rule, Alert) else None
            if correction is not None:
                lines += [f"      # The guide has: {correction.original}", f"      # {correction.reason}"]
            lines += [f"      {line}".rstrip() for line in yaml_text([_rule(pack, rule)]).splitlines()]
    return "\n".join(lines) + "\n"


def _rule(pack: str, rule: Alert | Recording) -> dict[str, Any]:
    if not isinstance(rule, Alert):
        return {"record": rule.name, "expr": rule.expr}
    annotations = {"summary": rule.summary, "description": rule.description}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.for_,
        "labels": _labels(pack, rule),
        "annotations": {key: text for key, text in annotations.items() if text},
    }


def _labels(pack: str, alert: Alert) -> dict[str, str]:
    return {"severity": alert.severity, "pack": pack}


def _cases(pack: str, rule: Alert | Recording) -> Iterator[dict[str, Any]]:
    if not isinstance(rule, Alert):
        return
    texts = {"summary": rule.summary, "description": rule.description}
    fires = {
        "exp_labels": {**rule.bad.labels, **_labels(pack, rule)},
        "exp_annotations": {key: _filled(text, rule.bad) for key, text in texts.items() if text},
    }
    for what, series, alerts in (("fires", rule.bad.series, [fires]), ("is silent", rule.good, [])):
        yield {
            "name": f"{pack}: {rule.name} {what}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": rule.bad.after, "alertname": rule.name, "exp_alerts": alerts}],
        }


def _filled(template: str, case: BadCase) -> str:
    """Return an annotation as Prometheus fills it in for a case."""
    return _VALUE.sub(case.value, _LABEL.sub(lambda match: case.labels[match[1]], template))
