"""Redaction from end to end: what lines, spans and the last resort show of secrets and control characters."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
import pytest
from opentelemetry import trace

import eventcore as ec
from eventcore.envelope import Envelope
from tests.support.handlers import Collect

SECRET = "sk-abcdefghijklmnop1234"
HIDDEN = "[REDACTED_API_KEY]"
MARK = "[REDACTED]"


class Visit(ec.Event, name="secrets.visit", category="user", message="{page} for {correlation_id}"):
    page: str
    kind: Literal["in", "out"] = "in"
    card: Annotated[str | None, ec.Sensitive] = None
    notes: list[str] = []  # noqa: RUF012 - pydantic copies defaults


class Fetch(ec.Operation, name="secrets.fetch", category="integration", failure_message="fetching {url} failed"):
    url: str
    pin: Annotated[str | None, ec.Sensitive] = None


class Named(ec.Operation, name="secrets.named", category="data", each=("who",)):
    who: ec.Array[str] = ec.unset


def everything(emitter):
    """Put the secret into every place that text can come from."""
    with ec.bound(correlation_id=f"c {SECRET}", tenant=f"t {SECRET}", password="hunter2"):
        emitter.emit(Visit(page=f"p {SECRET}", card="hunter2", notes=[SECRET]), tags=[f"tag {SECRET}"])
        with contextlib.suppress(ValueError), emitter.operation(Fetch, url=f"u {SECRET}", pin="hunter2"):
            raise ValueError(f"refused {SECRET}") from KeyError(f"cause {SECRET}")
        with emitter.operation(Named) as op:
            op.set(who=np.array(["ada", f"eve {SECRET}"]))
    assert emitter.flush()


class Reader(Collect):
    """A handler of somebody else's: it takes the exception of a failed operation as it comes."""

    def __init__(self, **options):
        super().__init__(act=self._read, **options)
        self.read = []
        self.redacted = []

    def _read(self, envelope):
        error = envelope.span.error
        self.redacted.append(getattr(envelope, "redacted", ()))
        self.read.append("".join(error.format()) + str(error))
        waiting = [error]
        for found in waiting:  # the list grows as we go
            self.read.append(f"{found} {getattr(found, '__notes__', '')} {''.join(found.format_exception_only())}")
            waiting += [e for e in (found.__cause__, found.__context__, *(found.exceptions or ())) if e is not None]


def break_down():
    """Raise an exception that has the secret in its text, notes, cause and parts, and one in its source."""
    parts = [ValueError(f"one {SECRET}"), OSError("sk-zyxwvutsrqponm4321")]
    group = ExceptionGroup(f"group {SECRET}", parts)
    group.add_note(f"note {SECRET}")
    raise group from KeyError(f"cause {SECRET}")


@pytest.mark.parametrize("event_type", [Fetch, Named])
@pytest.mark.parametrize("delivery", ["inline", "queued", "durable"])
def test_no_handler_sees_a_secret_in_an_exception(delivery, event_type):
    """No sensitive value reaches a handler in an exception message: nor in causes, notes, groups and source lines."""
    handler = Reader(delivery=delivery, events=["secrets.*"])
    with ec.Emitter() as emitter:
        emitter.add_handler(handler)
        with (
            pytest.raises(ExceptionGroup) as caught,
            emitter.operation(event_type, **({"url": "u"} if event_type is Fetch else {})),
        ):
            break_down()
        assert emitter.flush()
    assert SECRET in str(caught.value), "what goes on to the caller is untouched"
    text = "\n".join(handler.read)
    assert "sk-" not in text
    for shown in ("cause", "group", "one", "note"):
        assert f"{shown} {HIDDEN}" in text
    is_light = delivery == "inline" and event_type is Named  # then nothing else is looked at
    assert handler.redacted == [() if is_light else ("exception",)]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
@pytest.mark.parametrize("shape", ["console", "json"])
def test_no_secret_reaches_a_log_line(shape, delivery):
    """Message, payload, bound fields, correlation id, tags and exception text are scrubbed, inline and queued."""
    log = {"format": shape, "output": "log", "delivery": delivery, "min_severity": "trace"}
    with ec.configure(service="s", handlers={"log": log}) as emitter:
        everything(emitter)
    text = Path("log").read_text()
    assert SECRET not in text
    assert "hunter2" not in text
    for shown in ("refused", "cause", "tag", "p", "u", "t", "c", "eve"):
        assert f"{shown} {HIDDEN}" in text


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_json_line_names_what_was_redacted(delivery):
    """What was redacted is noted: the line's ``redacted`` names the fields, whoever found the secret in them."""
    log = {"format": "json", "output": "log", "delivery": delivery, "min_severity": "trace", "exclude": "eventcore.*"}
    with ec.configure(service="s", handlers={"log": log}) as emitter:
        everything(emitter)
        emitter.emit(Visit(page="plain"))
    visit, fetch, _, eve, plain = [json.loads(line) for line in Path("log").read_text().splitlines()]
    around = {"tenant", "password", "correlation_id"}
    assert set(visit["redacted"]) == {"page", "card", "notes", "tags"} | around
    assert len(visit["redacted"]) == len(set(visit["redacted"]))
    assert {"url", "pin", "exception"} | around <= set(fetch["redacted"])
    assert "who" in eve["redacted"]
    assert "redacted" not in plain


def test_no_secret_reaches_a_span():
    """Attributes, bound fields, correlation id, tags, exception event and status are scrubbed (spans are queued)."""
    with ec.configure(service="s", handlers={"span": {"exporter": "memory"}}) as emitter:
        everything(emitter)
        fetch, _, eve = emitter.handler("span").exporter.spans
        text = repr(emitter.handler("span").exporter.spans)
    assert SECRET not in text
    assert "hunter2" not in text
    assert fetch.attributes["url"] == f"u {HIDDEN}"
    assert fetch.attributes["tenant"] == f"t {HIDDEN}"
    assert fetch.attributes["correlation_id"] == f"c {HIDDEN}"
    assert fetch.attributes["pin"] == fetch.attributes["password"] == MARK
    assert f"refused {HIDDEN}" in fetch.status_message
    assert f"cause {HIDDEN}" in fetch.events[0].attributes["exception.stacktrace"]
    assert eve.attributes["who"] == f"eve {HIDDEN}"


def test_the_envelope_names_what_was_redacted():
    """``envelope.redacted`` names the fields that were changed, and none where there was nothing to hide."""
    emitter = ec.Emitter()
    handler = emitter.add_handler(Collect())
    emitter.emit(Visit(page=f"p {SECRET}", card="4111"))
    emitter.emit(Visit(page="plain"))
    emitter.shutdown()
    assert all(isinstance(envelope, Envelope) and envelope.is_redacted for envelope in handler.got)
    assert [set(envelope.redacted) for envelope in handler.got] == [{"page", "card"}, set()]


def test_an_inline_handler_is_told_that_free_text_was_not_searched():
    """Inline sinks get sensitive fields hidden, and can see whether the pattern net was applied."""
    emitter = ec.Emitter()
    handler = emitter.add_handler(Collect(delivery="inline"))
    with emitter.operation(Named):
        pass
    emitter.emit(Visit(page="p", card="4111"))
    assert [envelope.is_redacted for envelope in handler.got] == [False, True]
    assert handler.got[1].event.card == MARK


@pytest.mark.parametrize(
    "attack", ["\x1b[2J\x1b]0;title\x07", "line\nERROR other: forged", "\r\x85\u2028", "\u202eevil", "\x9b31m"]
)
def test_the_last_resort_handler_neutralises_control_characters(capsys, attack):
    """An emitter that nobody configured writes one printable line, whatever is in message, name and data."""
    ec.emit_event(f"odd {attack}", severity="error", message=f"said {attack}")
    ec.emit_event("odd", severity="error", data={attack: attack})
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert "said" in lines[0]


def test_the_last_resort_handler_shows_no_secret(capsys):
    """Before ``configure()``, too: fields, messages and the facts that messages show are scrubbed."""
    with ec.bound(correlation_id=SECRET):
        ec.get_emitter().emit(Visit(page=SECRET, card="hunter2"), severity="error")
    ec.emit_event("odd", severity="error", data={"password": "hunter2", "note": SECRET})
    text = capsys.readouterr().err
    assert text.count(HIDDEN) == 3
    assert SECRET not in text
    assert "hunter2" not in text


def test_no_secret_around_an_event_reaches_a_queued_handler():
    """Tags, bound fields, baggage and the correlation id are scrubbed in the worker's first step, for all handlers."""
    emitter = ec.Emitter()
    handler = emitter.add_handler(Collect())
    with (
        ec.bound(correlation_id=f"c {SECRET}", tenant=f"t {SECRET}", password="hunter2", plain="p") as scope,
        ec.baggage(who=SECRET),
    ):
        emitter.emit(Visit(page="p"), tags=("ok", SECRET))
        with emitter.operation(Fetch, url="u") as op:
            pass
        assert emitter.flush()
        assert (scope.bound["password"], op.bound["password"]) == ("hunter2", "hunter2")
    visit, fetch = handler.got
    for envelope in (visit, fetch):
        assert envelope.scope.bound == {"tenant": f"t {HIDDEN}", "password": MARK, "plain": "p"}
        assert envelope.correlation_id == envelope.get("correlation_id") == f"c {HIDDEN}"
        assert envelope.scope.baggage == {"who": HIDDEN}
        assert {"tenant", "password", "correlation_id", "baggage"} <= set(envelope.redacted)
    assert list(visit.tags) == ["ok", HIDDEN]
    assert visit.message == f"p for c {HIDDEN}"
    assert fetch.trace_id == f"{op.trace_id:032x}" == f"{fetch.scope.trace_id:032x}"
    assert "tags" in visit.redacted
    assert "plain" not in visit.redacted
    emitter.shutdown()


class Profile(pydantic.BaseModel):
    mail: str
    api_key: str


class SignedUp(ec.Operation, name="secrets.signed_up", category="user"):
    profile: Profile
    card: Annotated[str | None, ec.Sensitive] = None
    age: int = 0


class Aged(ec.Operation, name="secrets.aged", category="user"):
    age: int = 0


@pytest.mark.parametrize("delivery", ["queued", "durable"])
def test_no_secret_in_a_nested_model_or_an_invalid_field_reaches_a_handler(delivery, tmp_path):
    """No sensitive value reaches a handler, a disk or a queue on disk: not in a model, nor left out as invalid."""
    seen, stored = [], []

    def look(envelope):
        seen.append(f"{envelope!r} {envelope.event!r} {getattr(envelope.span, 'fields', '')!r}")
        stored.extend(path.read_bytes() for path in tmp_path.glob("eventcore-journal.db*"))

    emitter = ec.Emitter()
    emitter.add_handler(Collect(delivery=delivery, act=look))
    profile = Profile(mail="ada@example.org", api_key="hunter2")
    with emitter.operation(SignedUp, profile=profile, card=["hunter2"], age=f"no number: {SECRET}"):
        pass
    with emitter.operation(Aged, age=f"no number: {SECRET}"):  # its type has no text at all
        pass
    assert emitter.shutdown().is_clean
    assert any("signed_up" in text for text in seen)
    assert any(b"signed_up" in content for content in stored) is (delivery == "durable")
    for secret in (SECRET, "hunter2", "ada@"):
        assert not any(secret in text for text in seen)
        assert not any(secret.encode() in content for content in stored)
    assert profile.api_key == "hunter2"


def test_no_secret_of_an_instrumented_library_reaches_another_handler():
    """No sensitive value reaches a handler: not in what others put on a span through OpenTelemetry's API either."""
    with ec.configure(handlers={"span": {"exporter": "memory", "interop": "on"}, "other": Collect()}) as emitter:
        with emitter.operation(Fetch, url="u"):
            span = trace.get_current_span()
            span.set_attribute("password", "hunter2")
            span.set_attribute("http.url", f"https://{SECRET}")
            span.set_attribute("n", 1)
            span.update_name(f"GET {SECRET}")
        assert emitter.flush()
        (envelope,) = [e for e in emitter.handler("other").got if e.name == "secrets.fetch"]
    assert envelope.span.span_name == f"GET {HIDDEN}"
    assert envelope.span.span_attributes == {"password": MARK, "http.url": f"https://{HIDDEN}", "n": 1}
    assert {"span_name", "span_attributes"} <= set(envelope.redacted)


class Counted(ec.Event, name="secrets.counted", category="data"):
    by: dict[str, int]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_secret_may_be_a_key(delivery):
    """No secret reaches a log line as a key either, of a mapping or of what is bound; the line is written."""
    Path("log.json").touch()
    handlers = {"log": {"format": "json", "output": "log.json", "delivery": delivery}}
    with ec.configure(handlers=handlers) as emitter, ec.bound(**{SECRET: 1}):
        emitter.emit(Counted(by={SECRET: 2}))
    text = Path("log.json").read_text()
    (line,) = [line for line in map(json.loads, text.splitlines()) if line["name"] == "secrets.counted"]
    assert (line[HIDDEN], line["by"]) == (1, {HIDDEN: 2})
    assert SECRET not in text
