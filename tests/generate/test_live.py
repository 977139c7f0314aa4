"""What is generated, against the live application and a real Prometheus."""

from __future__ import annotations

import json
import math
from urllib.parse import urlsplit

import pytest
import yaml

from eventcore_generate.grafana import grafana
from eventcore_generate.rules import prometheus_rules
from eventcore_generate.source import Source
from tests.support.live import JOB, eventually, prometheus

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(180)]


@pytest.fixture
def source(live):
    """Return the source that the live application's own settings make."""
    return Source(live.application.folder / "eventcore.toml")


def test_every_query_of_every_dashboard_returns_data(live, source):
    """Each query of each panel, put to a Prometheus that scrapes the live application, returns a number."""
    live.application.finish_round()
    queries = {
        (name, panel["title"], target["expr"])
        for name, text in grafana(source).items()
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets", ())
    }
    assert len(queries) > 50

    def has_data(expression):
        # NaN is a quantile of nothing: only one emit of 1,024 is timed, so the first may take a while.
        return any(not math.isnan(value) for _, value in live.prometheus.query(expression))

    empty = [query for query in sorted(queries) if not eventually(lambda of=query[2]: has_data(of), 40.0)]
    assert not empty


def test_every_rule_can_be_evaluated_and_recordings_have_data(live, source, tmp_path):
    """A Prometheus with the generated rules evaluates each without an error, and every recorded series has data."""
    text = prometheus_rules(source)["rules.yml"]
    recorded = [
        rule["record"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"] if "record" in rule
    ]
    with prometheus(tmp_path, {JOB: urlsplit(live.application.url).netloc}, rules=text) as server:
        for name in recorded:
            assert server.eventually(name, 40.0), name
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == text.count("expr:")
        assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules} == {
            (rule["name"], "ok", "") for rule in rules
        }
