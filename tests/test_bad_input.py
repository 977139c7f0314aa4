"""Bad input: each mistake gives one clear error that names what is wrong, where, and the remedy."""

from __future__ import annotations

import socket
import traceback
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import ValidationError

import eventcore as ec
from router import Candidate, Router, RouterConfig, RoutingRequest
from router.errors import DimensionMismatch, ModelFormatError, ModelNotFound, NonFiniteInput
from router.model_file import BUNDLED_MODEL


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER):
    amount: Annotated[float, ec.Measure(unit="1")]
    customer: str


def request(*embeddings, query=(1.0, 0.0)):
    """Return a routing request over candidates with these embeddings."""
    candidates = [Candidate(f"c{number}", np.array(vector, np.float32)) for number, vector in enumerate(embeddings)]
    return RoutingRequest(np.array(query, np.float32), candidates)


def configuration_error(toml):
    """Return the message that configure() gives for this eventcore.toml."""
    Path("eventcore.toml").write_text(toml)
    with pytest.raises(ec.ConfigurationError) as caught:
        ec.configure()
    assert ec.get_emitter().handlers[0].kind == "last_resort", "nothing is left running"
    return str(caught.value)


def test_misspelt_key_of_the_frame():
    """A misspelt top-level key names the file, the key, and the key that was meant."""
    assert configuration_error('servce = "shop"') == "eventcore.toml: unknown key 'servce'; did you mean 'service'?"


def test_misspelt_option_of_a_handler():
    """A misspelt option names the file, its table, the option, and the option that was meant."""
    message = configuration_error('[handlers.log]\nformt = "json"')
    assert message == "eventcore.toml: [handlers.log]: unknown option 'formt'; did you mean 'format'?"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[handlers.log]\nschema = "x"', "option 'schema' is 'x': Input should be 'tinyllm'"),
        ('service = ""', "option 'service' is '': String should have at least 1 character"),
        ('[handlers.log]\nschem = "x"', "unknown option 'schem'; did you mean 'schema'?"),
        ('[handlers.metric]\nexporter = "prom"', "option 'exporter' is 'prom': expected 'prometheus', 'otlp'"),
        ('[handlers.span]\nexporter = "jaeger"\nendpoint = "localhost:6831"', "port 6831 is Jaeger's retired agent"),
    ],
)
def test_wrong_value_of_an_option(toml, message):
    """A wrong value is shown under the option's own name, with what was expected, in no library's words."""
    told = configuration_error(toml)
    assert message in told
    assert "Value error" not in told


def test_one_metric_with_two_sets_of_buckets():
    """Two handlers that give one metric of a pack other buckets: the error names file, table, metric and reason."""
    toml = """
[handlers.metric]
packs = ["tiny_dancer"]
[handlers.second]
use = "metric"
packs = ["tiny_dancer"]
buckets = { tiny_dancer_routing_latency_seconds = [0.001, 0.01] }
"""
    Path("eventcore.toml").write_text(toml)
    with pytest.raises(
        ec.InstrumentError, match=r"eventcore.toml: \[handlers.second\]: .*has the same in all handlers"
    ):
        ec.configure()


def test_unknown_handler():
    """A handler that no plugin offers names file and table, and the handler that was meant."""
    message = configuration_error("[handlers.metrics]")
    assert message.startswith("eventcore.toml: [handlers.metrics]: no installed plugin offers a handler 'metrics'")
    assert message.endswith("did you mean 'metric'?")


def test_event_with_a_wrong_field():
    """A wrong event raises where it is built: pydantic's error names type and field."""
    with pytest.raises(ValidationError, match=r"Paid\namonut"):
        Paid(amonut=1.0, amount=1.0, customer="c")
    with pytest.raises(ValidationError, match=r"Paid\namount"):
        Paid(amount="much", customer="c")


def test_metric_over_an_unknown_field():
    """An instrument over an unknown field names instrument, field, event, and the field that was meant."""
    with pytest.raises(ec.InstrumentError) as caught:
        ec.Counter("paid_total", on=Paid, value="amonut", help="Paid.")
    assert str(caught.value) == (
        "instrument 'paid_total': value reads 'amonut', which 'shop.paid' does not have; did you mean 'amount'?"
    )


def test_label_over_an_unbounded_field():
    """A label over free text names instrument, label, field, event, and what to do."""
    with pytest.raises(ec.InstrumentError) as caught:
        ec.Counter("paid_total", on=Paid, labels={"who": "customer"}, help="Paid.")
    for part in ("'paid_total'", "'who'", "'customer'", "'shop.paid'", "ec.Label", "ec.rename"):
        assert part in str(caught.value)


def test_embeddings_of_different_lengths():
    """Embeddings that do not fit name both candidates with their places and lengths, and the remedy."""
    with pytest.raises(DimensionMismatch) as caught:
        Router().route(request([1.0, 0.0], [1.0, 0.0, 0.0]))
    for part in ("'c1' at index 1", "length 3", "'c0' at index 0", "has 2", "same embedder"):
        assert part in str(caught.value)


def test_nan_in_an_embedding():
    """NaN names the candidate or the query, the place inside it, and the remedy."""
    with pytest.raises(NonFiniteInput, match=r"candidate 'c0' at index 0: embedding\[1\] is nan: replace"):
        Router().route(request([1.0, float("nan")]))
    with pytest.raises(NonFiniteInput, match=r"query_embedding\[0\] is nan: embed the query again"):
        Router().route(request([1.0, 0.0], query=(float("nan"), 0.0)))


def test_a_bad_request_is_counted_and_does_not_open_the_breaker(events):
    """A request at fault is a failed request of type invalid_input; the model is not blamed for it."""
    router = Router(RouterConfig(circuit_breaker_threshold=1))
    for _ in range(3):
        with pytest.raises(NonFiniteInput):
            router.route(request([1.0, float("nan")]))
    failed = events.get_events(type="router.route")
    assert [(envelope.outcome, envelope.error_type) for envelope in failed] == [("failure", "invalid_input")] * 3
    assert router.breaker.state is ec.BreakerState.CLOSED


def test_port_in_use():
    """A port in use names port and host and the remedy, and nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = configuration_error(f"[handlers.metric]\n[http]\nport = {port}")
    assert message.startswith("eventcore.toml: [http]: port")
    for part in (str(port), "127.0.0.1", "in use", "[http] port = "):
        assert part in message


@pytest.mark.parametrize(
    "settings", [{"http": {"port": 1, "host": "192.0.2.1"}}, {"handlers": {"log": {"output": "/proc/no/such"}}}]
)
def test_a_mistake_that_only_shows_when_started_is_one_error(settings):
    """What a handler or service refuses when it starts is one traceback in the code that calls ``configure()``."""
    with pytest.raises(ec.ConfigurationError) as caught:
        ec.configure(**settings)
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1


def test_truncated_model_file(tmp_path):
    """A truncated model file is refused with its path, the reason and the remedy; there is no silent random model."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes(BUNDLED_MODEL.read_bytes()[:1000])
    with pytest.raises(ModelFormatError) as caught:
        Router(RouterConfig(model_path=path))
    for part in (str(path), "truncated", "train one"):
        assert part in str(caught.value)


def test_missing_model_file(tmp_path):
    """A missing model file is an error with its path and the remedy."""
    with pytest.raises(ModelNotFound, match=r"there is no model file at .*absent.safetensors: check the path"):
        Router(RouterConfig(model_path=tmp_path / "absent.safetensors"))
