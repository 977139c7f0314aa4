"""What operators are shown of an emitter: true, complete, without secrets, and without any effect."""

from __future__ import annotations

import datetime as dt
import enum
import json
import threading
import uuid
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr

import eventcore as ec
from eventcore.example import example_envelope, example_fields
from eventcore.explanation import explain
from eventcore.inspection import UnknownEvent, catalog_of, inspect, known_events
from eventcore.rehearsal import rehearse
from tests.support.handlers import Collect, Held


class Paid(ec.Event, name="inspected.paid", category="user", message="{amount} {currency} paid"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]
    card: Annotated[str, ec.Sensitive] = "4111 1111 1111 1111"


class Charge(ec.Operation, name="inspected.charge", category="integration"):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    attempts: Annotated[int, ec.Measure(unit="1")] = ec.unset


PAID = ec.Counter("inspected_paid_total", on=Paid, labels={"currency": "currency"}, help="Payments.")


def of(answer, name):
    """Return what an answer says of one handler."""
    (found,) = [handler for handler in answer["handlers"] if handler["name"] == name]
    return found


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_an_inspection_shows_each_handlers_account(emitter):
    """Every handler's ledger is in it, as the emitter's own ledger has it, and the whole is plain JSON."""

    def fails(envelope):
        raise OSError("refused")

    emitter.add_handler(Collect(), name="good")
    emitter.add_handler(Collect(act=fails), name="bad")
    emitter.add_handler(Collect(min_severity="error"), name="strict")
    for _ in range(3):
        emitter.emit(Paid(currency="eur", amount=1))
    assert emitter.flush()
    answer = json.loads(json.dumps(inspect(emitter)))
    ledger = emitter.ledger()
    for name in ("good", "bad", "strict"):
        row, shown = ledger.handler(name), of(answer, name)["ledger"]
        assert {key: getattr(row, key) for key in shown if key != "dropped"} | {"dropped": dict(row.dropped)} == shown
    rows = {(row["handler"], row["event"]): row for row in answer["ledger"]["rows"]}
    assert rows["good", "inspected.paid"]["delivered"] == 3
    assert rows["bad", "inspected.paid"]["failed"] == 3
    assert rows["strict", "inspected.paid"]["filtered"] == 3


def test_an_inspection_shows_what_waits(emitter):
    """Depth and capacity of a queue are those of the moment, and so is the breaker's state."""
    handler = emitter.add_handler(Held(queue_size=10, linger_s=0, batch_size=1, overflow="drop_oldest"), name="slow")
    for _ in range(4):
        emitter.emit(Paid(currency="eur", amount=1))
    assert handler.entered.wait(10)
    shown = of(inspect(emitter), "slow")
    assert shown["queue"] == {"depth": 4, "capacity": 10, "backlog": 0, "overflow": "drop_oldest"}
    assert (shown["breaker"], shown["delivery"], shown["ledger"]["pending"]) == ("closed", "queued", 4)
    handler.release.set()


def test_an_inspection_shows_open_operations(emitter):
    """Operations that have started and not ended are listed with their ids, and gone when they have ended."""
    with emitter.operation(Charge, provider="stripe") as operation:
        (shown,) = inspect(emitter)["open_operations"]
        assert (shown["event"], shown["span_id"]) == ("inspected.charge", f"{operation.span_id:016x}")
        assert shown["age_s"] >= 0
    assert inspect(emitter)["open_operations"] == []


def test_routes_say_who_takes_what(emitter):
    """For every known type it says which handlers take it, which is where an event then goes."""
    emitter.add_handler(Collect(events="inspected.*", linger_s=0), name="mine")
    emitter.add_handler(Collect(categories="user", linger_s=0), name="users")
    routes = inspect(emitter)["routes"]
    assert (routes["inspected.paid"], routes["inspected.charge"]) == (["mine", "users"], ["mine"])
    emitter.emit(Paid(currency="eur", amount=1))
    with emitter.operation(Charge, provider="stripe"):
        pass
    assert emitter.flush()
    assert emitter.handler("mine").names == ["inspected.paid", "inspected.charge"]
    assert emitter.handler("users").names == ["inspected.paid"]
    emitter.is_enabled = False
    assert set(map(tuple, inspect(emitter)["routes"].values())) == {()}


class Telling(Collect):
    """Has secrets in its options, and tells one in what it says of itself."""

    kind = "telling"

    class Config(ec.HandlerConfig):
        """Options that hold secrets."""

        token_of_mine: str = Field("", repr=False)
        key: SecretStr = SecretStr("")
        note: str = ""

    def describe(self):
        return {"url": "http://x/?api_key=hunter2hunter2", "password": "hunter2"}


def test_no_secret_is_shown(emitter):
    """Options with ``repr=False``, secrets by key or pattern, and what a handler tells of itself: none is shown."""
    options = {"token_of_mine": "hunter2", "key": "hunter2", "note": "Bearer hunter2hunter2"}
    emitter.add_handler(Telling(**options), name="telling")
    shown = of(inspect(emitter), "telling")
    assert "hunter2" not in json.dumps(shown)
    assert "token_of_mine" not in shown["options"]
    assert shown["options"]["note"] == "[REDACTED_TOKEN]"
    assert set(shown["facts"]) == {"url", "password"}


def test_a_handler_that_cannot_tell_is_a_finding(emitter):
    """A handler whose ``inspect`` raises is shown with the problem; the others are shown as ever."""

    class Mute(Collect):
        def inspect(self):
            raise RuntimeError("no idea")

    emitter.add_handler(Mute(), name="mute")
    emitter.add_handler(Collect(), name="good")
    answer = inspect(emitter)
    assert of(answer, "mute")["facts"] == {"problem": "RuntimeError: no idea"}
    assert of(answer, "good")["facts"] == {}


def test_the_origin_of_the_settings_is_shown(tmp_path, monkeypatch):
    """It names the file, the variables and the keys given in code, and of a bare emitter that there were none."""
    (tmp_path / "mine.toml").write_text("[handlers.buffer]\nmax_size = 7\n")
    monkeypatch.setenv("EVENTCORE_VERSION", "3")
    emitter = ec.configure(service="shop", config="mine.toml")
    answer = inspect(emitter)
    assert answer["settings"] == {
        "file": str(tmp_path / "mine.toml"),
        "variables": ["EVENTCORE_VERSION"],
        "code": ["service"],
    }
    assert answer["service"] == {"name": "shop", "version": "3", "environment": ""}
    assert of(answer, "buffer")["options"] == {"max_size": 7}
    assert inspect(ec.Emitter())["settings"] is None


def test_an_inspection_changes_nothing(emitter):
    """Inspecting, explaining and listing emit nothing, register nothing and start no thread."""
    emitter.add_handler(Collect(), name="mine")
    before = (emitter.ledger(), dict(emitter.catalog.events), threading.enumerate())
    inspect(emitter)
    explain(emitter, "inspected.paid")
    explain(emitter, "inspected.charge")
    catalog_of(emitter)
    assert (emitter.ledger(), dict(emitter.catalog.events), threading.enumerate()) == before
    assert emitter.handler("mine").got == []


# -- catalog -----------------------------------------------------------------------------------------------------------


def test_the_catalog_lists_types_packs_and_instruments():
    """Types of plugins and of the application, packs, and instruments given in code, with the values of labels."""
    emitter = ec.configure(service="shop", instruments=[PAID], handlers={"buffer": {}})
    answer = json.loads(json.dumps(catalog_of(emitter)))
    (paid,) = [event for event in answer["events"] if event["name"] == "inspected.paid"]
    assert paid["fields"]["currency"] == {"role": "label", "unit": None, "values": ["eur", "usd"]}
    assert "router.route" in [event["name"] for event in answer["events"]]
    assert len(answer["packs"]["tiny_dancer"]) == 10
    assert answer["instruments"] == [
        {
            "name": "inspected_paid_total",
            "kind": "counter",
            "labels": {"currency": ["eur", "usd"]},
            "combinations": 2,
            "events": ["inspected.paid"],
        }
    ]
    assert list(emitter.catalog.instruments) == ["inspected_paid_total"], "listing a pack must not enable it"


# -- explain -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "clauses"),
    [
        ({"events": "inspectd.*"}, {"events": "no pattern matches: 'inspectd.*'"}),
        ({"exclude": ["*.paid", "x"]}, {"exclude": "matches '*.paid'"}),
        ({"categories": ["data"]}, {"categories": "'user' is not among 'data'"}),
        ({"min_severity": "error"}, {"min_severity": "info is below error"}),
        (
            {"min_severity": "error", "events": "a"},
            {"min_severity": "info is below error", "events": "no pattern matches: 'a'"},
        ),
    ],
)
def test_explain_names_the_clause_that_stops(emitter, options, clauses):
    """It names every clause of the filter that stops an event, and the event is indeed stopped."""
    handler = emitter.add_handler(Collect(**options), name="mine")
    shown = of(explain(emitter, "inspected.paid"), "mine")
    assert shown["takes"] is False
    assert {stop["clause"]: stop["why"].partition("; did")[0] for stop in shown["stopped_by"]} == clauses
    emitter.emit(Paid(currency="eur", amount=1))
    assert emitter.flush()
    assert handler.got == []


def test_explain_names_what_lets_it_pass(emitter):
    """It names the patterns that match, sampling, delivery and queue of a handler that takes the event."""
    emitter.add_handler(
        Collect(events=["a.*", "inspected.*"], exclude="b", sampling=0.5, queue_size=5, min_severity="info"),
        name="mine",
    )
    shown = of(explain(emitter, "inspected.paid", "warning"), "mine")
    assert shown["takes"] is True
    assert shown["passed"] == {
        "events": "'inspected.*'",
        "exclude": "matches none of 'b'",
        "min_severity": "warning is not below info",
    }
    assert (shown["delivery"], shown["queue"]) == ("queued", {"depth": 0, "capacity": 5})
    assert shown["sampling"] == {"share": 0.5, "by": "random", "max_per_second": None, "keep_from": None}
    assert shown["output"] is None


def test_explain_at_another_severity(emitter):
    """Asked for a severity, it answers for that one; ValueError suggests one for a name that is none."""
    emitter.add_handler(Collect(min_severity="error"), name="mine")
    assert of(explain(emitter, "inspected.paid"), "mine")["takes"] is False
    assert of(explain(emitter, "inspected.paid", "critical"), "mine")["takes"] is True
    with pytest.raises(ValueError, match="did you mean 'critical'"):
        explain(emitter, "inspected.paid", "critcal")


def test_explain_suggests_a_known_name(emitter):
    """An unknown name is an error with the likeliest one."""
    with pytest.raises(UnknownEvent, match=r"did you mean 'inspected\.paid'"):
        explain(emitter, "inspected.payd")


def test_a_handler_without_use_for_a_type_says_so(emitter):
    """Where the filter passes but the handler itself does not want the type, that is the reason."""

    class Picky(Collect):
        def sink_for(self, event_type, severity):
            return None

    class Broken(Collect):
        def sink_for(self, event_type, severity):
            raise RuntimeError("no idea")

    emitter.add_handler(Picky(), name="picky")
    emitter.add_handler(Broken(), name="broken")
    answer = explain(emitter, "inspected.paid")
    assert of(answer, "picky")["stopped_by"] == [{"clause": "handler", "why": "it has no use for events of this type"}]
    assert "RuntimeError: no idea" in of(answer, "broken")["stopped_by"][0]["why"]


def test_what_would_be_put_out_is_what_is_put_out(tmp_path):
    """The previews of log, metric and span are what these handlers put out when the same event is emitted."""
    emitter = ec.configure(
        service="shop",
        instruments=[PAID],
        handlers={
            "log": {"format": "json", "output": "log.jsonl"},
            "metric": {},
            "span": {"exporter": "memory"},
            "oncall": {
                "use": "webhook",
                "url": "https://example.com/t0ken",
                "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "events": "inspected.*",
                "min_severity": "error",
            },
        },
    )
    answer = explain(emitter, "inspected.paid")
    said = json.loads(of(answer, "log")["output"])
    emitter.emit(Paid(**{**answer["example"], "card": "4111 1111 1111 1111"}))
    emitter.flush()
    written = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    for changing in ("timestamp", "id"):
        assert said.pop(changing) != written.pop(changing)
    assert said == written
    assert said["card"] == "[REDACTED]"
    assert of(answer, "metric")["output"] == 'inspected_paid_total{currency="eur"} 1.0'
    assert b'inspected_paid_total{currency="eur"} 1.0\n' in emitter.handler("metric").render()
    assert of(answer, "span")["takes"] is False

    span = of(explain(emitter, "inspected.charge"), "span")
    assert json.loads(span["output"])["attributes"] == {
        "event.name": "inspected.charge",
        "provider": "stripe",
        "attempts": 1,
    }
    assert emitter.handler("span").exporter.spans == ()
    webhook = of(explain(emitter, "inspected.paid", "error"), "oncall")
    assert json.loads(webhook["output"])["data"]["message"] == "0.5 eur paid"
    assert emitter.handler("oncall").describe()["delivered"] == 0


def test_a_preview_that_fails_is_shown(emitter):
    """A handler whose preview raises takes nobody else's answer away."""

    class Shy(Collect):
        def preview(self, envelope):
            raise RuntimeError("not now")

    emitter.add_handler(Shy(), name="shy")
    emitter.add_handler(Collect(), name="good")
    answer = explain(emitter, "inspected.paid")
    assert of(answer, "shy")["output"] == "(preview failed: RuntimeError: not now)"
    assert of(answer, "good")["takes"] is True


# -- examples ----------------------------------------------------------------------------------------------------------


class Part(BaseModel):
    size: int
    label: str


class Many(ec.Event, name="inspected.many", category="data"):
    text: Annotated[str, Field(min_length=20)]
    code: Annotated[str, Field(max_length=3)]
    small: Annotated[int, Field(le=-1)]
    large: Annotated[float, Field(gt=50)]
    when: dt.datetime
    number: uuid.UUID
    maybe: int | None
    parts: list[Part]
    pairs: dict[str, float]
    fixed: tuple[int, str]
    day: enum.Enum("Day", {"MONDAY": "mon"})
    scores: ec.Array[float]
    kept: str = "as it is"


def test_an_example_satisfies_constraints():
    """The example of a type with constraints, containers, models and arrays is a valid event; defaults are kept."""
    values, problem = example_fields(Many)
    assert problem == ""
    event = Many(**values)
    assert (event.kept, event.small, len(event.parts), len(event.scores)) == ("as it is", -1, 2, 2)


def test_every_known_type_has_an_example(emitter):
    """An example can be made of every type that the installed plugins and this process know."""
    emitter.plugins = ec.configure(handlers={"buffer": {}}).plugins
    known = known_events(emitter, load=True)
    assert {"router.route", "circuit.opened", "eventcore.started", "inspected.many"} <= set(known)
    for name, event_type in known.items():
        if event_type.__module__.startswith(("router", "eventcore")):
            assert example_fields(event_type)[1] == "", name


def test_an_example_that_cannot_be_made_says_why(emitter):
    """Where no guess validates, the example is shown with what is wrong with it."""

    class Odd(ec.Event, name="inspected.odd", category="data"):
        code: Annotated[str, Field(pattern="^[0-9]{17}$")]

    envelope, problem = example_envelope(Odd, ec.Severity.INFO, emitter.resource)
    assert "pattern" in problem
    assert envelope.payload == {"code": "http://example.com"}
    assert explain(emitter, "inspected.odd")["example_problem"] == problem


# -- a fresh emitter ---------------------------------------------------------------------------------------------------


def test_a_rehearsal_opens_nothing(tmp_path):
    """A fresh emitter as the settings describe it: no file, no folder, no thread, no server, and it is not in use."""
    (tmp_path / "eventcore.toml").write_text(
        '[handlers.log]\noutput = "logs/a.log"\n[handlers.span]\nexporter = "file"\npath = "spans/s.jsonl"\n'
        "[handlers.metric]\npacks = ['tiny_dancer']\n[http]\nport = 9090\n"
    )
    threads, in_use = threading.enumerate(), ec.get_emitter()
    emitter = rehearse()
    assert [handler["name"] for handler in inspect(emitter)["handlers"]] == ["log", "span", "metric"]
    assert of(explain(emitter, "router.route"), "log")["output"]
    assert [path.name for path in tmp_path.iterdir()] == ["eventcore.toml"]
    assert (threading.enumerate(), ec.get_emitter()) == (threads, in_use)


def test_a_rehearsal_finds_mistakes(tmp_path):
    """A mistake in the settings is the error that ``configure`` would raise."""
    (tmp_path / "eventcore.toml").write_text('[handlers.log]\nformat = "jsn"\n')
    with pytest.raises(ec.ConfigurationError, match="format"):
        rehearse()


AUDIT = """
[handlers.audit]
use = "log"
format = "json"
output = "audit.jsonl"
delivery = "durable"
events = ["audited.*"]
[journal]
path = "real.db"
"""


class Audited(ec.Event, name="audited.deed", category="security", durable=True):
    pass


def test_a_durable_handler_is_rehearsed_without_a_journal(tmp_path):
    """A durable handler is shown as such, and an audit-class event taken by it; the journal is not opened."""
    (tmp_path / "eventcore.toml").write_text(AUDIT)
    emitter = rehearse()
    answer = explain(emitter, "audited.deed")
    assert (answer["event"]["durable"], answer["problem"]) == (True, None)
    assert (of(answer, "audit")["delivery"], of(answer, "audit")["takes"]) == ("durable", True)
    assert inspect(emitter)["journal"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["eventcore.toml"]


def test_an_audit_class_event_that_cannot_be_emitted_is_told(emitter):
    """Where no durable handler takes an audit-class event, explain says that an emit raises, as it then does."""
    emitter.add_handler(Collect(), name="mine")
    assert "no durable handler takes it" in explain(emitter, "audited.deed")["problem"]
    assert explain(emitter, "inspected.paid")["problem"] is None
    with pytest.raises(ec.ConfigurationError, match="no durable handler"):
        emitter.emit(Audited())


def test_the_journal_is_inspected(tmp_path):
    """A running emitter with a durable handler shows its journal: where it is, and how much it holds."""
    audit = Collect(delivery="durable", events="audited.*")
    emitter = ec.configure(handlers={"audit": audit}, journal={"path": "real.db"})
    emitter.emit(Audited())
    assert emitter.flush()
    assert audit.names == ["audited.deed"]
    answer = inspect(emitter)
    assert answer["journal"]["path"] == str(tmp_path / "real.db")
    assert answer["journal"]["problem"] is None
    assert of(answer, "audit")["queue"]["backlog"] == 0
    assert of(answer, "audit")["ledger"]["delivered"] == 1
