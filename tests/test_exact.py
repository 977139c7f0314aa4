"""Values of operations that are read without validation are those that validation would give."""

import gc
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    computed_field,
    field_validator,
    model_validator,
)

import eventcore as ec
from eventcore.envelope import Envelope
from eventcore.events import Operation
from tests.support.handlers import Collect


class Work(ec.Operation, name="exact.work", category="execution"):
    """Every kind of field that is read without validation."""

    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    tries: Literal[1, 2, 3] = 1
    amount: Annotated[float, ec.Measure(unit="1")]
    text: str
    count: int | None = None
    kind: Literal["a", "b"] | None = "a"
    fine: bool = True
    raw: bytes = b""
    nothing: None = None
    score: Annotated[float, ec.Measure(unit="1")] = ec.unset
    card: Annotated[str, ec.Sensitive] = ec.unset


class Text(str):
    """A text of a class of its own."""

    __slots__ = ()


FITTING = {
    "provider": st.sampled_from(["stripe", "adyen"]),
    "tries": st.sampled_from([1, 2, 3]),
    "amount": st.floats(),
    "text": st.text(st.characters(exclude_categories=())),
    "count": st.none() | st.integers(),
    "kind": st.none() | st.sampled_from(["a", "b"]),
    "fine": st.booleans(),
    "raw": st.binary(),
    "nothing": st.none(),
    "score": st.floats(),
    "card": st.text(),
}
LEAST = {"provider": "stripe", "amount": 1.0, "text": ""}
ANYTHING = st.one_of(
    *FITTING.values(),
    st.sampled_from([ec.unset, True, 1.0, "1", "c", Text("stripe"), Text("a"), 4, [], {}, object()]),
)
NEEDED = {key: FITTING[key] for key in ("provider", "amount", "text")}
OPTIONAL = {key: values for key, values in FITTING.items() if key not in NEEDED}


def validated(event_type, given):
    """Return the fields as pydantic leaves them, or None where it refuses them."""
    try:
        return event_type(**given).__dict__
    except ValidationError:
        return None


def same(read, expected):
    """Whether two mappings have the same items: in order, of the same classes and, NaN included, the same values."""
    return repr(read) == repr(expected) and list(map(type, read.values())) == list(map(type, expected.values()))


@given(
    st.fixed_dictionaries(NEEDED, optional=OPTIONAL),
    st.dictionaries(st.sampled_from(sorted(FITTING)), ANYTHING, max_size=2),
)
@example(LEAST, {"provider": "c"})
@example(LEAST, {"tries": True})
@example(LEAST, {"amount": 1})
@example(LEAST, {"score": ec.unset})
def test_what_is_read_is_what_validation_gives(fitting, others):
    """Whatever an operation was given, what is read without validation is what validation gives, or left to it."""
    given = fitting | others
    read = Work.__event__.exact.read(given)
    if read is not None:
        expected = validated(Work, given)
        assert expected is not None
        assert same(read, expected)


@given(st.fixed_dictionaries(NEEDED, optional=OPTIONAL))
def test_values_of_the_declared_classes_are_read(given):
    """Values that are what their types say are read without validation, and missing ones are their defaults."""
    read = Work.__event__.exact.read(given)
    assert read is not None
    assert same(read, validated(Work, given))


def made(annotation=str, default=..., *, config=None, **members):
    """Return an operation type with one field ``it``."""
    namespace = {
        "__annotations__": {"it": annotation},
        **({} if config is None else {"model_config": config}),
        **members,
    }
    if default is not ...:
        namespace["it"] = default
    return type(Operation)(
        "Made", (Operation,), {"__module__": __name__, **namespace}, name="exact.made", category="execution"
    )


def init(self, **given):
    """Stand for an initialiser of a type's own."""
    Operation.__init__(self, **given)


class Part(BaseModel):
    """A model in a field."""


@pytest.mark.parametrize(
    "event_type",
    [
        made(Annotated[int, Field(ge=1)]),
        made(Annotated[str, Field(max_length=3)]),
        made(Annotated[str, BeforeValidator(str.strip)]),
        made(Annotated[float, Field(allow_inf_nan=False)]),
        made(Annotated[str, Field(strict=True)]),
        made(int | str),
        made(Literal[1, True]),
        made(Literal["a", 1]),
        made(list[int]),
        made(str, []),
        made(Part),
        made(str, Field("", alias="that")),
        made(str, Field(default_factory=str)),
        made(str, Field("", validate_default=True)),
        made(str, config=ConfigDict(str_strip_whitespace=True)),
        made(str, config=ConfigDict(str_max_length=3)),
        made(float, config=ConfigDict(allow_inf_nan=False)),
        made(str, config=ConfigDict(defer_build=True)),
        made(str, look=field_validator("it")(lambda value: value)),
        made(str, look=model_validator(mode="before")(classmethod(lambda cls, data: data))),
        made(str, look=model_validator(mode="after")(lambda self: self)),
        made(str, twice=computed_field(property(lambda self: self.it * 2), return_type=str)),
        made(str, _kept=PrivateAttr(0)),
        made(str, __init__=init),
    ],
    ids=lambda event_type: str(event_type.model_fields["it"]),
)
def test_what_asks_for_more_than_a_class_is_left_to_validation(event_type):
    """A type with a constraint, a validator, an alias or a setting of its own is validated by pydantic, always."""
    assert event_type.__event__.exact is None


def test_handlers_that_read_make_no_event(tmp_path):
    """Log, metric and span read a queued operation's values, and leave neither an event nor its parts in memory."""
    count = ec.Counter("exact_total", on=Work, labels={"provider": "provider"}, help="Work.")
    handlers = {
        "log": {"format": "json", "output": str(tmp_path / "log"), "events": "exact.*"},
        "metric": {},
        "span": {"exporter": "file", "path": str(tmp_path / "spans")},
    }
    kept = Collect(delivery="queued")
    with ec.configure(service="shop", instruments=[count], handlers=handlers, replace=True) as emitter:
        emitter.add_handler(kept)
        with emitter.operation(Work, provider="stripe", amount=1.5, text="x") as operation:
            operation.set(score=0.5, card="4111 1111 1111 1111 of a card")
        with emitter.operation(Work, provider="adyen", amount=2.5, text="y"):
            pass
        assert emitter.flush()
        assert emitter.handler("metric").value("exact_total", {"provider": "adyen"}) == 1
        redacted, plain = kept.got
        assert sum(type(o) is Work for o in gc.get_objects()) == 1  # the one that holds a secret
        assert plain.fields == {**plain.event.__dict__}
        assert redacted.fields["card"] == redacted.event.card == "[REDACTED]"
        assert redacted.fields is redacted.event.__dict__
    assert (tmp_path / "log").read_text().count('"amount":') == 2


class Pay(ec.Operation, name="exact.pay", category="user"):
    """Reads a card; while it does, ``others`` get their turn: workers that have the same envelope."""

    card: Annotated[str, ec.Sensitive]

    others: ClassVar[list] = []

    @field_validator("card")
    @classmethod
    def _let_others_go_first(cls, value):
        while cls.others:
            cls.others.pop().redact()
        return value


class Fields(dict):
    """Fields of an operation that let the others go first where they are read without validation."""

    def get(self, key, default=None):
        while Pay.others:
            Pay.others.pop().redact()
        return super().get(key, default)


@pytest.mark.parametrize(
    ("event_type", "read"),
    [(Pay, lambda envelope: envelope.event.card), (Work, lambda envelope: envelope.fields["card"])],
    ids=["event", "fields"],
)
def test_a_worker_that_comes_late_does_not_bring_a_secret_back(event_type, read):
    """Where two workers read an operation at once, and one has redacted it, it stays redacted for both."""
    with ec.Emitter() as emitter:
        given = {"card": "4111 1111 1111 1111", "provider": "stripe", "amount": 1.0, "text": "x"}
        with emitter.operation(
            event_type, **{k: v for k, v in given.items() if k in event_type.model_fields}
        ) as operation:
            operation.fields = Fields(operation.fields)
        envelope = Envelope(None, ec.Severity.INFO, (), 0, 1, ec.Ids(), operation, operation)
        Pay.others.append(envelope)
        assert read(envelope) == "[REDACTED]"
        assert not Pay.others
