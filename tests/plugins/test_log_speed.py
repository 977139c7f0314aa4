"""The log plugin: what makes lines cheap does not change what they say."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

import eventcore as ec
from eventcore_log.lines import Lines
from eventcore_log.shapes import Shape
from tests.support.log_lines import Keep


class Mood(enum.Enum):
    GOOD = "good"


class Mixed(
    ec.Operation,
    name="speed.mixed",
    category="data",
    message="{text} {number:g} {kind} {outcome}",
    failure_message="{text}",
):
    text: str
    number: Annotated[float, ec.Measure(unit="1")] = ec.unset
    kind: Annotated[Literal["a", "sk-abcdefghijklmnopqrst"], ec.Label] = "a"
    name: str | None = None
    password: str = ""
    mood: Mood | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    card: Annotated[str, ec.Sensitive] = ""


class Said(ec.Event, name="speed.said", category="data", message="{text}"):
    text: str
    count: int | None = None


class Spoken(ec.Event, name="speed.spoken", category="data", message="{text}={count}"):
    text: str
    count: int | str


TEXTS = (
    st.sampled_from(["", "hello", "password", "Bearer abcdef1234567890", "a@b.co", "4111 1111 1111 1111"]) | st.text()
)
EVENTS = st.one_of(
    st.builds(Said, text=TEXTS, count=st.none() | st.integers()),
    st.builds(Spoken, text=TEXTS, count=st.integers() | TEXTS),
    st.fixed_dictionaries(
        {"text": TEXTS},
        optional={
            "number": st.floats() | st.just("no number"),
            "kind": st.sampled_from(["a", "sk-abcdefghijklmnopqrst"]),
            "name": st.none() | TEXTS,
            "password": TEXTS,
            "mood": st.sampled_from(Mood),
            "data": st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=2),
            "card": TEXTS,
        },
    ),
)


class PlainShape(Shape):
    """A shape that knows no short way."""

    def __init__(self, event_type):
        super().__init__(event_type)
        self.quick = self.quick_searched = {}

    def _template(self, text):
        return super()._template(text)._replace(may_be_plain=False, field=None)


@given(EVENTS, st.booleans(), st.booleans(), st.dictionaries(st.sampled_from(["user", "text", "id"]), TEXTS), TEXTS)
@settings(max_examples=250, deadline=None)
def test_the_short_way_shows_what_the_long_way_shows(event, fails, is_queued, bound, tag):
    """Values that go into a line as they are, and messages filled in directly, are those of the way through all checks.

    Whatever the types and values, before the bus has searched them for secrets (inline) and after (queued).
    """
    emitter = ec.Emitter()
    keep = emitter.add_handler(Keep())
    with ec.bound(**bound):
        if isinstance(event, dict):
            operation = emitter.operation(Mixed, **event)
            operation.__enter__()
            operation.end("failure" if fails else None)
        else:
            emitter.emit(event, tags=[tag])
    envelope = next(envelope for envelope in keep.kept if envelope.name.startswith("speed."))
    if is_queued:
        envelope.redact()
    short, long = Lines(ec.Resource()), Lines(ec.Resource())
    long._shapes[envelope.event_type] = PlainShape(envelope.event_type)
    (line,), (wanted,) = short.of(envelope), long.of(envelope)
    assert repr(dict(line)) == repr(dict(wanted))  # repr: NaN is not equal to itself
    assert list(line) == list(wanted)
    assert line.said == wanted.said
