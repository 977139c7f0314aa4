"""The log plugin: any value has a form, no text forges a line, no secret is told."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import json
import pathlib
import re
import uuid
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, SecretStr

import eventcore as ec
from eventcore.redaction import scrub_text
from eventcore_log.formats import console_format, json_format
from eventcore_log.lines import Lines
from tests.support.log_lines import FILE, Bare, Keep, Note, Work, emitting, logged, shown

# -- values ------------------------------------------------------------------------------------------------------------


class Anything(ec.Event, name="anything", category=ec.Category.DATA):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    value: Any


class Color(enum.Enum):
    RED = "red"


class Model(BaseModel):
    a: int = 1
    when: dt.date = dt.date(2025, 1, 2)
    password: SecretStr = SecretStr("hunter2")


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str]


class Unfriendly:
    """Nothing about it works."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def tolist(self):
        raise RuntimeError("no list")


def _circular():
    value: list[Any] = [1]
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([None], [None]),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(["a", "b"]), ["a", "b"]),
        ((1, "a"), [1, "a"]),
        ({3, 1, 2}, [1, 2, 3]),
        (Color.RED, "red"),
        (ec.Severity.INFO, 9),
        ({Color.RED: 1, 2: {"x": Color.RED}}, {"red": 1, "2": {"x": "red"}}),
        (dt.datetime(2025, 1, 2, 3, 4, 5, 6, dt.UTC), "2025-01-02T03:04:05.000006Z"),
        (dt.timedelta(seconds=1.5), 1.5),
        (b"bytes \xff", "bytes \\xff"),
        (decimal.Decimal("1.10"), "1.10"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (uuid.UUID("0192c3f4-7e5b-7abc-8def-0a1b2c3d4e5f"), "0192c3f4-7e5b-7abc-8def-0a1b2c3d4e5f"),
        (Point(1, {"t"}), {"x": 1, "tags": ["t"]}),
        (10**30, str(10**30)),
        ([10**30], [str(10**30)]),
        ("half \ud800", "half \\ud800"),
        (range(3), "range(0, 3)"),
        (len, "<built-in function len>"),
        (Unfriendly(), "<Unfriendly without repr>"),
        ([float("nan"), float("inf"), 1.0], [None, None, 1.0]),
        (float("nan"), None),
        (np.array([np.nan, 1.0]), [None, 1.0]),
        (_circular(), [1, "<circular list>"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_has_a_json_form(value, wanted):
    """Values of any kind are shown in valid JSON; what has no form of its own is shown by its repr."""
    (line,) = logged(emitting(Anything(value=value)))
    assert line["value"] == wanted


def test_models_are_shown_as_objects_without_their_secrets():
    """A pydantic model becomes an object; what it or its keys call secret is hidden."""
    (line,) = logged(emitting(Anything(value=Model())))
    assert line["value"] == {"a": 1, "when": "2025-01-02", "password": "[REDACTED]"}


def test_containers_deeper_than_the_limit_are_cut_off():
    """A value nested without end costs neither the line nor the stack."""
    value: list[Any] = []
    for _ in range(900):
        value = [value]
    (line,) = logged(emitting(Anything(value=value)))
    assert "[[[[" in json.dumps(line["value"]).replace(" ", "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


def envelope_of(code):
    """Return the first envelope that code emits."""
    emitter = ec.Emitter()
    keep = emitter.add_handler(Keep())
    code(emitter)
    return keep.kept[0]


@given(st.dictionaries(st.text(min_size=1), VALUES, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_data_makes_one_valid_line_in_both_formats(data):
    """Whatever is given, JSON parses and both formats keep to one printable line."""
    envelope = envelope_of(emitting(Anything(value=data)))
    (line,) = Lines(ec.Resource()).of(envelope)
    text = json_format()(line).decode()
    assert len(text.splitlines()) == 1
    assert json.loads(text)["event"] == "anything"
    text.encode()
    with_bound = ec.bound(**{key: value for key, value in data.items() if key != "correlation_id"})
    with with_bound:
        envelope = envelope_of(emitting(Note(text="x")))
    (line,) = Lines(ec.Resource()).of(envelope)
    line.pop("exception", None)  # has a block of its own; see the tests of forged lines
    text = console_format(colors=False)(line).decode().removesuffix("\n")
    assert len(text.splitlines()) == 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
    text.encode()


# -- lines cannot be forged --------------------------------------------------------------------------------------------

FORGED = "2025-01-01T00:00:00.000Z     INFO shop: card accepted"
ATTACKS = [
    f"x\n{FORGED}",
    f"x\r\n{FORGED}",
    f"x\r{FORGED}",
    f"x\u2028{FORGED}",
    f"x\u2029{FORGED}",
    f"x\x85{FORGED}",
    f"x\x0b{FORGED}",
    f"x\x0c{FORGED}",
    f"x\x1b[2K\x1b[1G{FORGED}",
    f"x\x9b2K{FORGED}",
    f"x\x00\x07\x08\x7f{FORGED}",
    f"x\u202e{FORGED}",
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ascii)
@pytest.mark.parametrize("where", ["message", "field", "key", "logger", "bound", "tag", "nested", "correlation"])
def test_text_cannot_forge_or_split_a_console_line(attack, where):
    """Control characters, escapes and separators are shown as such, wherever they come in."""

    def code(emitter):
        if where == "message":
            emitter.emit(Note(text=attack))
        elif where == "field":
            emitter.emit(Anything(value=attack))
        elif where == "key":
            ec.emit_event("x", data={attack: 1})
        elif where == "logger":
            ec.get_logger(attack).info("hello")
        elif where == "tag":
            emitter.emit(Bare(), tags=[attack])
        elif where == "nested":
            emitter.emit(Anything(value={attack: [attack]}))
        else:
            bound = {"correlation_id": attack} if where == "correlation" else {"user": attack}
            with ec.bound(**bound):
                emitter.emit(Bare())

    text = shown(code)
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)
    assert "card accepted" in text


@pytest.mark.parametrize("attack", ATTACKS, ids=ascii)
def test_the_text_of_an_exception_cannot_forge_a_line(attack):
    """Stacks stand indented below their line, so nothing in them passes for one."""

    def code(emitter):
        with contextlib.suppress(ValueError), emitter.operation(Work):
            raise ValueError(attack)

    first, *block = shown(code).splitlines()
    assert 'outcome="failure" error_type="ValueError"' in first
    assert all(line.startswith("    ") and line.isprintable() for line in block)
    assert "card accepted" in block[-1]


@pytest.mark.parametrize("attack", ATTACKS, ids=ascii)
def test_text_cannot_split_a_json_line(attack):
    """A JSON line is one line even for readers that split at Unicode separators, and keeps the text as it was."""
    (line,) = logged(emitting(Note(text=attack)))
    assert line["event"] == line["text"] == attack
    assert len(FILE.read_bytes().decode().splitlines()) == 1


# -- secrets stay in ---------------------------------------------------------------------------------------------------

SECRET = "Bearer abcdef1234567890"


@pytest.mark.parametrize("shape", ["console", "json"])
def test_secrets_in_text_are_scrubbed_wherever_it_stands(shape):
    """Messages, fields, nested data, tags, bound fields, stacks and correlation ids show no secret."""

    def code(emitter):
        with ec.bound(user=SECRET, correlation_id=SECRET):
            emitter.emit(Note(text=SECRET), tags=[SECRET])
            emitter.emit(Anything(value={"a": [SECRET], "m": Point(1, {SECRET})}))
            ec.emit_event("x", message=SECRET, data={"name": SECRET, "y": SECRET})
            with contextlib.suppress(ValueError), emitter.operation(Work):
                raise ValueError(SECRET)

    text = shown(code) if shape == "console" else json.dumps(logged(code))
    assert text.count("[REDACTED_TOKEN]") >= 12
    assert "abcdef1234567890" not in text


def test_values_of_secret_keys_are_hidden_in_declared_fields_and_messages():
    """A field whose name says that it holds a secret is hidden without a role, and in the message too."""

    class Login(ec.Event, name="login", category="security", message="login with {password} and {headers}"):
        password: str
        headers: dict[str, str]

    (line,) = logged(emitting(Login(password="hunter2", headers={"Cookie": "abc", "Accept": "*"})))
    assert line["password"] == "[REDACTED]"
    assert line["headers"] == {"Cookie": "[REDACTED]", "Accept": "*"}
    assert "hunter2" not in line["event"]
    assert "abc" not in line["event"]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_sensitive_fields_never_reach_a_line(delivery):
    """A field with the role Sensitive is redacted however lines are delivered."""

    class Paid(ec.Event, name="paid", category="user"):
        card: Annotated[str, ec.Sensitive]
        currency: Literal["eur"]

    (line,) = logged(emitting(Paid(card="my card", currency="eur")), delivery=delivery)
    assert (line["card"], line["currency"]) == ("[REDACTED]", "eur")


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_line_names_the_fields_that_were_redacted(delivery):
    """``redacted`` names fields of the line, also where the bus has found the secret inside the data of a logger."""

    def code(emitter):
        ec.get_logger("app").info("x", password="hunter2", table="orders", note={"deep": [SECRET]}, data="fine")

    (line,) = logged(code, delivery=delivery)
    assert line["redacted"] == ["password", "note"]
    assert (line["table"], line["data"]) == ("orders", "fine")


SECRETS = ["sk-abcdefghijklmnopqrst", "a@b.co", "4111 1111 1111 1111", "Bearer abcdefgh12", "password=hunter2"]
PARTS = ["password:", "=", "hunter2", "4111 1111", "1111 1111", "-----BEGIN PRIVATE KEY-----", "Bearer", "abcdefgh12"]
PIECES = st.sampled_from(["", "hello", "\n", "-----END PRIVATE KEY-----", *SECRETS, *PARTS])


@given(st.lists(st.lists(PIECES, max_size=3).map(" ".join), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_searching_all_texts_at_once_finds_what_searching_each_finds(texts):
    """The search over joined texts is only a shortcut: the result is that of scrubbing each text by itself."""
    fields = {f"f{number}": text for number, text in enumerate(texts)}

    def code(emitter):
        with ec.bound(**fields, name=texts[0]):
            emitter.emit(Bare())

    (line,) = Lines(ec.Resource()).of(envelope_of(code))
    assert {key: line[key] for key in fields} == {key: scrub_text(text) for key, text in fields.items()}
    assert line["fields"] == {"name": scrub_text(texts[0])}
