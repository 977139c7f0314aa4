import datetime as dt
from typing import Annotated, Literal

import numpy as np
import pytest

import eventcore as ec
from tests.support.handlers import Clock, Collect


class Paid(
    ec.Event, name="shop.paid", category="user", message="{amount:.2f} {currency} by {name}, {event} {severity}"
):
    currency: Literal["eur", "usd"] = "eur"
    amount: float = 1.0
    name: str = "Ada"
    card: Annotated[str, ec.Sensitive] = ec.unset


class Scored(ec.Event, name="shop.scored", category="model", each=("names", "scores")):
    names: ec.Array[str]
    scores: ec.Array[float]
    batch: int = 7


class Charge(
    ec.Operation,
    name="shop.charge",
    category="integration",
    message="charged {amount:.2f} by {provider:>8} in {duration_s:.1f} s: {outcome}",
    failure_message="{error_type} after {attempts:d} attempts of {provider.upper}",
    start_message="charging {amount:.1f}",
):
    provider: str = "stripe"
    amount: float = ec.unset
    attempts: int = ec.unset


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def emitter(clock):
    """Return an emitter with that clock."""
    with ec.Emitter(clock=clock, ids=ec.Ids(seed=3)) as emitter:
        yield emitter


@pytest.fixture
def handler(emitter):
    """Return an inline handler that keeps everything."""
    return emitter.add_handler(Collect(delivery="inline"))


def test_facts_are_stamped_by_the_bus(emitter, handler, clock):
    """The bus stamps time, severity, tags and id; they are no payload."""
    emitter.emit(Paid(), severity="warning", tags=("a", "b"))
    envelope = handler.got[0]
    assert (envelope.name, envelope.category, envelope.severity) == ("shop.paid", "user", ec.Severity.WARNING)
    assert envelope.tags == ("a", "b")
    assert envelope.time_ns == clock.wall
    assert envelope.time == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)
    assert envelope.phase == "end"
    assert not envelope.is_start
    assert envelope.sequence == 1


def test_plain_events_have_no_operation_facts(emitter, handler):
    """A plain event has no duration, outcome or error, and outside a trace no trace ids."""
    emitter.emit(Paid())
    envelope = handler.got[0]
    assert (envelope.duration_s, envelope.outcome, envelope.error_type, envelope.span) == (None, None, None, None)
    assert (envelope.trace_id, envelope.span_id, envelope.correlation_id) == (None, None, None)


def test_time_keeps_its_microseconds(emitter, handler, clock):
    """The time as a datetime is exact to the microsecond."""
    clock.wall = 1_700_000_000_123_456_789
    emitter.emit(Paid())
    assert handler.got[0].time.isoformat() == "2023-11-14T22:13:20.123456+00:00"


def test_payload_holds_the_fields_that_are_set(emitter, handler):
    """An unset field is no attribute: the payload leaves it out."""
    emitter.emit(Paid(amount=2.5))
    assert handler.got[0].payload == {"currency": "eur", "amount": 2.5, "name": "Ada"}


def test_fields_and_facts_are_read_by_name(emitter, handler):
    """``get`` reads fields and envelope facts alike; what has no value is ``ec.unset``."""
    emitter.emit(Paid())
    get = handler.got[0].get
    assert (get("name"), get("event"), get("category"), get("severity")) == ("Ada", "shop.paid", "user", "info")
    assert get("card") is ec.unset
    assert get("outcome") is ec.unset
    assert get("trace_id") is ec.unset
    assert get("id") == handler.got[0].id
    assert get("time") == 1_700_000_000.0


def test_a_message_is_filled_in(emitter, handler):
    """The message template is filled with fields and facts."""
    emitter.emit(Paid(amount=12.5))
    assert handler.got[0].message == "12.50 eur by Ada, shop.paid info"


def test_an_event_without_a_message_has_none(emitter, handler):
    """A type without a template has no message."""
    emitter.emit(Scored(names=[], scores=[]))
    assert handler.got[0].message is None


def test_a_message_shows_how_an_operation_ended(emitter, handler, clock):
    """An operation's message may show its results, duration and outcome."""
    with emitter.operation(Charge) as op:
        op.set(amount=3.0)
        clock.advance(1.5)
    assert handler.got[0].message == "charged 3.00 by   stripe in 1.5 s: success"
    assert handler.got[0].duration_s == 1.5


def test_what_has_no_value_shows_as_a_dash(emitter, handler):
    """A format specification does not trip over a result that was never set: it shows as ``-``."""
    with emitter.operation(Charge):
        pass
    assert handler.got[0].message == "charged - by   stripe in 0.0 s: success"


def test_a_failure_has_a_message_of_its_own(emitter, handler):
    """A failed operation shows its failure message, whatever was set before it failed."""
    with pytest.raises(KeyError), emitter.operation(Charge):
        raise KeyError
    assert handler.got[0].message.startswith("KeyError after - attempts")
    assert handler.got[0].severity is ec.Severity.ERROR


def test_envelopes_expand_their_arrays(emitter, handler):
    """``items`` yields the payload once per element of the class's ``each`` arrays, as plain values."""
    emitter.emit(Scored(names=["a", "b"], scores=np.array([0.25, 0.5])))
    items = list(handler.got[0].items())
    assert items == [{"names": "a", "scores": 0.25, "batch": 7}, {"names": "b", "scores": 0.5, "batch": 7}]
    assert type(items[0]["scores"]) is float


def test_envelopes_without_arrays_are_one_item(emitter, handler):
    """A type without ``each`` is one item: its payload; empty arrays are none."""
    emitter.emit(Paid())
    emitter.emit(Scored(names=[], scores=[]))
    assert list(handler.got[0].items()) == [handler.got[0].payload]
    assert list(handler.got[1].items()) == []


def test_arrays_of_different_lengths_are_an_error(emitter, handler):
    """Arrays that are expanded together must have equal lengths; the error names event, fields and lengths."""
    emitter.emit(Scored.model_construct(names=["a"], scores=[0.1, 0.2]))  # not validated, so nobody else has found it
    with pytest.raises(ValueError, match=r"shop\.scored: .*'names': 1.*'scores': 2"):
        list(handler.got[0].items())


def test_lazy_values_are_idempotent(emitter, handler):
    """Lazy values are computed once and shared: reading twice gives equal values, the same object."""
    emitter.emit(Paid())
    envelope = handler.got[0]
    assert envelope.payload is envelope.payload
    assert envelope.message is envelope.message
    assert envelope.id is envelope.id


def test_redacting_hides_sensitive_values_everywhere(emitter, handler):
    """After redaction neither event, payload, items, ``get`` nor the printed envelope shows a sensitive value."""
    emitter.emit(Paid(card="4111 1111 1111 1111"))
    envelope = handler.got[0]
    seen = (envelope.event, envelope.payload, list(envelope.items()), envelope.get("card"), envelope)
    assert "4111" not in repr(seen)
    assert envelope.get("card") == "[REDACTED]"
    assert envelope.payload["amount"] == 1.0


def test_redacting_an_operation_hides_its_fields(emitter, handler):
    """The span that an envelope carries shows no sensitive value either."""

    class Login(ec.Operation, name="shop.login", category="security"):
        user: str
        password: Annotated[str, ec.Sensitive]

    with emitter.operation(Login, user="ada", password="hunter2") as op:
        assert "hunter2" not in repr(op)
    envelope = handler.got[0]
    assert "hunter2" not in repr((envelope, envelope.span, envelope.scope, envelope.event))
    assert "hunter2" not in repr(envelope.span.fields)


class Noted(ec.Event, name="noted", category="data"):
    text: str = ""
    data: dict = {}  # noqa: RUF012 - pydantic copies it
    kind: Literal["a", "b"] = "a"


def test_the_pattern_net_is_the_workers_first_step(emitter):
    """The pattern net is applied as the worker's first step: secrets in free text, lists and mappings do not pass."""
    handler = emitter.add_handler(Collect(linger_s=0))
    emitter.emit(Noted(text="Bearer abcdef123456", data={"password": "hunter2", "n": [1, "api_key=hunter2"]}))
    emitter.emit(Noted(text="nothing", data={"author": "Ada"}))
    assert emitter.flush()
    first, second = handler.got
    assert "abcdef123456" not in repr(first)
    assert "hunter2" not in repr(first)
    assert sorted(first.redacted) == ["data", "text"]
    assert first.payload["kind"] == "a"
    assert second.payload == {"text": "nothing", "data": {"author": "Ada"}, "kind": "a"}


def test_redacting_forgets_what_was_computed_before(emitter, handler):
    """Values computed before an envelope is redacted are computed anew."""
    emitter.emit(Noted(text="password=hunter2"))
    envelope = handler.got[0]
    assert "hunter2" in envelope.payload["text"], "inline handlers see free text: they run in the caller"
    envelope.redact()
    assert "hunter2" not in repr((envelope.payload, envelope.event, envelope.message))
    assert envelope.redact() is envelope


def test_an_event_of_the_caller_is_not_redacted(emitter, handler):
    """Redaction changes what handlers see, not the caller's own event."""
    event = Paid(card="4111 1111 1111 1111")
    emitter.emit(event)
    assert event.card == "4111 1111 1111 1111"


def test_an_envelope_prints_itself(emitter, handler):
    """An envelope prints its name, severity, outcome and payload."""
    emitter.emit(Paid())
    with emitter.operation(Charge):
        pass
    assert repr(handler.got[0]).startswith("<Envelope shop.paid INFO {'currency': 'eur'")
    assert repr(handler.got[1]) == "<Envelope shop.charge INFO success {'provider': 'stripe'}>"
