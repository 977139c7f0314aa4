"""Who emits: what OpenTelemetry's variables say about it, on every signal."""

from __future__ import annotations

import json

import pytest

import eventcore as ec
from eventcore.resource import otel_resource


class Work(ec.Operation, name="test.work", category=ec.Category.EXECUTION):
    pass


def resource_of(tmp_path, **settings):
    """Run one operation and return the resource's attributes as the span file has them."""
    path = tmp_path / "spans.jsonl"
    with ec.configure(handlers={"span": {"exporter": "file", "path": path}}, **settings) as emitter:
        with emitter.operation(Work):
            pass
        assert emitter.flush()
    attributes = json.loads(path.read_text().splitlines()[-1])["resourceSpans"][0]["resource"]["attributes"]
    return {item["key"]: next(iter(item["value"].values())) for item in attributes}


def test_otel_variables_say_who_emits(monkeypatch, tmp_path):
    """Name, version, environment and further attributes come from OTEL_*; OTEL_SERVICE_NAME wins over the list."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout")
    listed = "service.name=other,service.version=1.2,deployment.environment.name=prod,k8s.pod.name=a%2Cb, team = x%20y"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", listed)
    found = resource_of(tmp_path)
    assert (
        found.items()
        >= {
            "service.name": "checkout",
            "service.version": "1.2",
            "deployment.environment.name": "prod",
            "k8s.pod.name": "a,b",
            "team": "x y",
        }.items()
    )
    assert found["telemetry.sdk.name"] == "eventcore"


def test_the_order_of_precedence_holds(monkeypatch, tmp_path):
    """OTEL_* are environment: they win over eventcore.toml, and lose to EVENTCORE_* and to code."""
    (tmp_path / "eventcore.toml").write_text('service = "file"\nversion = "9"\n')
    assert resource_of(tmp_path)["service.name"] == "file"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "otel")
    found = resource_of(tmp_path)
    assert (found["service.name"], found["service.version"]) == ("otel", "9")
    monkeypatch.setenv("EVENTCORE_SERVICE", "ours")
    assert resource_of(tmp_path)["service.name"] == "ours"
    assert resource_of(tmp_path, service="code")["service.name"] == "code"


def test_empty_variables_are_unset(monkeypatch, tmp_path):
    """An empty OTEL_SERVICE_NAME names nobody."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", " ")
    assert resource_of(tmp_path, service="shop")["service.name"] == "shop"


def test_a_malformed_list_is_warned_of_and_ignored_whole():
    """OTEL_RESOURCE_ATTRIBUTES that cannot be read counts for nothing, with one warning that shows where."""
    with pytest.warns(UserWarning, match="OTEL_RESOURCE_ATTRIBUTES is ignored: 'nonsense' is no key=value"):
        assert otel_resource({"OTEL_RESOURCE_ATTRIBUTES": "a=1,nonsense"}) == {}
