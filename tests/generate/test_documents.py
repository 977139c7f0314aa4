"""Documents made from the catalog: JSON Schema, AsyncAPI, the reference."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import jsonschema
import pytest
import yaml
from pydantic import ConfigDict

import eventcore as ec
from eventcore.example import example_envelope
from eventcore.exposition import exposition_of
from eventcore.resource import Resource
from eventcore.vocabulary import LogRecord
from eventcore_generate.asyncapi import asyncapi
from eventcore_generate.reference import reference
from eventcore_generate.schema import bodies, json_schema
from eventcore_generate.source import Source
from eventcore_webhook.body import encode
from tests.support.handlers import Collect

ASYNCAPI = json.loads((Path(__file__).parent / "asyncapi-3.0.0.json").read_text())


class Packed(ec.Event, name="acme.packed", category="user", message="{parcels} packed"):
    parcels: Annotated[int, ec.Measure(unit="1")]
    weights: Annotated[ec.Array[float], ec.Measure(unit="kg")]
    card: Annotated[int, ec.Sensitive]
    note: str | None = None


@pytest.fixture
def source(settings):
    """Return the source that the commands work from."""
    return Source(settings)


@pytest.fixture
def schema(source):
    """Return a validator for the bodies of all events."""
    document = json.loads(json_schema(source)["events.schema.json"])
    validator = jsonschema.validators.validator_for(document)
    return validator(document, format_checker=validator.FORMAT_CHECKER)


def emitted(*events):
    """Emit events for real; return what a webhook would send of each."""
    handler = Collect()
    with ec.configure(handlers={"collect": handler}) as emitter:
        for event in events:
            emitter.emit(event)
    return [json.loads(encode(envelope, "acme")) for envelope in handler.got]


def example(event_type):
    """Return an example in its envelope."""
    return example_envelope(event_type, event_type.__event__.severity, Resource("acme"))[0]


# -- JSON Schema -------------------------------------------------------------------------------------------------------


def test_the_schema_is_one(source):
    """What ``json-schema`` makes is a JSON Schema by the metaschema it names, with every event type in it."""
    document = json.loads(json_schema(source)["events.schema.json"])
    jsonschema.validators.validator_for(document).check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(source.events) <= set(document["$defs"])


def test_real_bodies_fit_the_schema(schema):
    """Bodies of what the router and the bus really emit are valid, each against the schema of its own type alone."""
    from router import Candidate, Router, RouterConfig, RouterError, RoutingRequest

    handler = Collect()
    with ec.configure(handlers={"collect": handler}):
        router = Router(RouterConfig())
        candidates = [Candidate(id="a", embedding=[0.1, 0.2]), Candidate(id="b", embedding=[0.3, 0.1])]
        router.route(RoutingRequest(query_embedding=[0.1, 0.2], candidates=candidates))
        with pytest.raises(RouterError):
            router.route(RoutingRequest(query_embedding=[0.1], candidates=candidates))
        ec.get_logger("desk").info("said", parcels=3)
    bodies_sent = [json.loads(encode(envelope, "acme")) for envelope in handler.got]
    assert {"router.route", "router.decided", "log.record", "eventcore.started"} <= {b["type"] for b in bodies_sent}
    for body in bodies_sent:
        schema.validate(body)


def test_examples_of_every_type_fit_the_schema(source, schema):
    """Every event type has a schema that an event of it fits: none is missing, none forbids what is sent."""
    for event_type in source.events.values():
        envelope = example(event_type)
        schema.validate(json.loads(encode(envelope, "acme")))


@pytest.mark.parametrize(
    ("path", "value"),
    [(("type",), "router.rote"), (("data", "candidate_count"), "three"), (("data", "outcome"), "well"), (("data",), 1)],
)
def test_a_wrong_body_does_not_fit(schema, path, value):
    """A body with another type's name, a field of a wrong type or a value that is none is refused."""
    envelope = example(schema_type("router.route"))
    body = json.loads(encode(envelope, "acme"))
    schema.validate(body)
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(body)


def schema_type(name):
    """Return an event type of the router."""
    import router.events

    return next(event_type for event_type in router.events.EVENTS if event_type.__event__.name == name)


def test_the_schema_says_what_leaves_the_process():
    """Sensitive fields may be a mark, numbers null where they are not finite, roles and units are said."""
    found, _ = bodies({"acme.packed": Packed}, "#/$defs/{model}")
    fields = found["acme.packed"]["properties"]["data"]["properties"]
    assert fields["parcels"] == {"type": "integer", "x-role": "measure", "x-unit": "1"}
    assert fields["weights"]["items"] == {"type": ["number", "null"]}
    assert fields["card"]["x-role"] == "sensitive"
    [body] = [b for b in emitted(Packed(parcels=1, weights=[math.inf, 1.0], card=4)) if b["type"] == "acme.packed"]
    assert body["data"]["weights"] == [None, 1.0]
    jsonschema.validate(body, found["acme.packed"])


def test_newer_versions_may_send_more(schema):
    """A receiver that validates does not fail where a newer version sends an optional field more."""
    envelope = example(schema_type("circuit.opened"))
    body = json.loads(encode(envelope, "acme"))
    body["data"]["added_later"] = 1
    schema.validate(body)


def test_a_field_without_a_json_form_is_one_error():
    """An event type with such a field is named, not pydantic's model."""

    class Odd(ec.Event, name="acme.odd", category="user"):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        lock: Collect

    with pytest.raises(ec.ConfigurationError, match=r"event 'acme\.odd' has a field without a JSON form"):
        bodies({"acme.packed": Packed, "acme.odd": Odd}, "#/$defs/{model}")


def test_free_data_is_not_restricted():
    """A log record carries whatever its caller gave; the schema says no more of it than of every event."""
    found, _ = bodies({"log.record": LogRecord}, "#/$defs/{model}")
    assert "text" not in found["log.record"]["properties"]["data"]["properties"]


# -- AsyncAPI ----------------------------------------------------------------------------------------------------------


def test_the_document_is_asyncapi(source):
    """What ``asyncapi`` makes is valid by AsyncAPI's own schema of version 3.0.0, and its references lead somewhere."""
    document = yaml.safe_load(asyncapi(source)["asyncapi.yaml"])
    jsonschema.Draft7Validator(ASYNCAPI).validate(document)
    for reference_ in references(document):
        place = document
        for key in reference_.removeprefix("#/").split("/"):
            place = place[key]
    assert document["info"]["version"] == "1.2.3"
    assert set(document["components"]["messages"]) == set(source.events)


def test_asyncapis_schema_can_fail(source):
    """The schema it is held against refuses a document with an action that is none."""
    document = yaml.safe_load(asyncapi(source)["asyncapi.yaml"])
    document["operations"]["send.router.route"]["action"] = "sends"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(ASYNCAPI).validate(document)


def references(node):
    """Yield every ``$ref`` in a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


# -- the reference -----------------------------------------------------------------------------------------------------


def test_the_reference_names_everything(source):
    """Every event type with its fields, and every metric with its labels, is in the reference."""
    page = reference(source)["reference.md"]
    for name, event_type in source.events.items():
        assert f"#### `{name}`" in page
        for field in event_type.__event__.fields:
            assert f"| `{field}` |" in page
    for metric in exposition_of(source.catalog, source.plugins).metrics.values():
        assert f"#### `{metric.name}`" in page
        for label in metric.labels:
            assert f"| `{label}` |" in page


def test_the_reference_says_what_there_is_to_know(source):
    """Units, values in their order, buckets, codes of states, defaults and spans are said."""
    page = reference(source)["reference.md"]
    for words in (
        "Operation, span `routing_request`; severity info; logger `tiny_dancer_router`",
        "| `batch_size` | `1-10`, `11-50`, `51-100`, `100+` |",
        "Values: 0 `closed`, 1 `half_open`, 2 `open`.",
        "Buckets: 0.0001, 0.0005, 0.001,",
        "| `inference_time_us` | int | measure | us |  | a result |",
        "| `candidate_id` | array of str |  |  |  | required |",
    ):
        assert words.lower() in page.lower()
