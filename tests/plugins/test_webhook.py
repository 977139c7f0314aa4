"""The webhook plugin: what is posted, what is tried again, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import pytest
from standardwebhooks.webhooks import Webhook

import eventcore as ec
from eventcore_webhook.handler import WebhookHandler
from tests.support.webhook_receiver import (
    DRIP,
    ENDLESS,
    ENDLESS_AND_CLOSE,
    HANG,
    RESET,
    unused_port,
    webhook_receiver,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER, message="{amount} paid"):
    amount: float
    card: Annotated[str, ec.Sensitive] = ""


class Alarm(ec.Event, name="shop.alarm", category=ec.Category.SYSTEM, severity=ec.Severity.ERROR):
    severity: str
    scores: ec.Array[float] = ()
    ratio: float = 0.0


class Charge(ec.Operation, name="shop.charge", category=ec.Category.INTEGRATION, message="charged"):
    provider: str
    attempts: Annotated[int, ec.Measure(unit="1")] = ec.unset


class LateClock:
    """The system's clock, five seconds later at each reading."""

    def __init__(self):
        self.readings = 0

    def time_ns(self):
        """Return the wall time."""
        self.readings += 1
        return time.time_ns() + self.readings * 5_000_000_000

    monotonic_ns = staticmethod(time.perf_counter_ns)


@pytest.fixture
def receiver():
    """Run a receiver of webhooks."""
    with webhook_receiver(SECRET) as running:
        yield running


@pytest.fixture
def start(receiver):
    """Return a function that configures an emitter with a webhook named ``hook`` to the receiver."""

    def configure(*, clock=None, handlers=None, **options):
        hook = {
            "use": "webhook",
            "url": receiver.url,
            "secret": SECRET,
            "events": ["shop.*", "test.*"],
            "allow_private": True,
            "backoff_s": 0.001,
            **options,
        }
        return ec.configure(service="shop", handlers={"hook": hook, **(handlers or {})}, clock=clock)

    return configure


def wait_until(condition):
    """Wait until ``condition()`` holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def bodies(receiver):
    """Return the parsed bodies of all requests."""
    return [json.loads(request.body) for request in receiver.requests]


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["queued", "durable"])
@pytest.mark.parametrize("ordered", [True, False])
def test_an_endpoint_may_opt_out_of_order(start, receiver, ordered, delivery):
    """Webhook endpoints may opt out of order: then one that is tried again lets those that wait with it go first."""
    receiver.answers.extend([503, 503])
    emitter = start(ordered=ordered, delivery=delivery, backoff_s=0.2, linger_s=0.2)
    for n in range(5):
        emitter.emit(Paid(amount=n))
    assert emitter.flush(20)
    amounts = [body["data"]["amount"] for body in bodies(receiver)]
    assert amounts[:5] == ([0, 0, 0, 1, 2] if ordered else [0, 1, 2, 3, 4])
    assert sorted(amounts[5:]) == ([3, 4] if ordered else [0, 1]), "pauses are random"
    row = emitter.ledger().handler("hook")
    assert (row.delivered, row.failed, row.pending) == (5, 0, 0)
    assert emitter.handler("hook").describe()["delivered"] == 5


@pytest.mark.parametrize(("delivery", "sent"), [("queued", [0, 1, 2]), ("durable", [0, 0, 1, 2])])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_batch_in_order_fails_one_by_one(start, receiver, delivery, sent, batch_size):
    """What is given up is that event alone; where it is kept and tried again, those behind it wait."""
    receiver.answers.append(503)
    emitter = start(delivery=delivery, max_attempts=1, batch_size=batch_size, linger_s=0.2)
    for n in range(3):
        emitter.emit(Paid(amount=n))
    assert emitter.flush(20)
    assert [body["data"]["amount"] for body in bodies(receiver)] == sent
    row = emitter.ledger().handler("hook")
    assert (row.delivered, row.failed) == ((2, 1) if delivery == "queued" else (3, 0))


def test_without_order_one_that_is_given_up_fails_alone(start, receiver):
    """Without order, too, each event has its attempts, and the account says which were given up."""
    receiver.answers.extend([503, 400, 204, 503, 204])
    emitter = start(ordered=False, max_attempts=2, linger_s=0.2)
    for n in range(4):
        emitter.emit(Paid(amount=n))
    assert emitter.flush(20)
    amounts = [body["data"]["amount"] for body in bodies(receiver)]
    assert (amounts[:4], sorted(amounts[4:])) == ([0, 1, 2, 3], [0, 3])
    row = emitter.ledger().handler("hook")
    assert (row.delivered, row.failed) == (3, 1)
    facts = emitter.handler("hook").describe()
    assert (facts["delivered"], facts["failed"], facts["retried"]) == (3, 1, 2)


# -- what is posted ----------------------------------------------------------------------------------------------------


def test_posts_a_signed_event(start, receiver):
    """A matching event arrives as JSON, verified by the reference implementation; others are not sent."""
    emitter = start(categories="user")
    with emitter.operation(Charge, provider="stripe"):
        emitter.emit(Paid(amount=12.5, card="4111 1111 1111 1111"), tags=("eu",))
        trace_id = ec.current_trace().trace_id
    assert emitter.flush()
    (request,) = receiver.requests
    assert request.verified
    assert request.path == "/hooks?token=path-secret"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == receiver.url.split("/")[2]
    body = json.loads(request.body)
    assert body["type"] == "shop.paid"
    assert datetime.fromisoformat(body["timestamp"]).tzinfo == UTC
    span_id = body["data"].pop("span_id")
    assert len(span_id) == 16
    assert body["data"] == {
        "service": "shop",
        "severity": "info",
        "category": "user",
        "message": "12.5 paid",
        "tags": ["eu"],
        "trace_id": trace_id,
        "amount": 12.5,
        "card": "[REDACTED]",
    }
    assert emitter.ledger().handler("hook").delivered == 1


def test_posts_operations_with_their_facts(start, receiver):
    """An operation is posted once, at its end, with outcome, duration and error type; unset results are left out."""
    emitter = start()
    with pytest.raises(KeyError), emitter.operation(Charge, provider="stripe"):
        raise KeyError("no such card")
    emitter.flush()
    (body,) = bodies(receiver)
    assert body["data"]["outcome"] == "failure"
    assert body["data"]["error_type"] == "KeyError"
    assert body["data"]["duration_s"] >= 0
    assert body["data"]["provider"] == "stripe"
    assert "attempts" not in body["data"]


def test_posts_events_without_a_class(start, receiver):
    """What ``emit_event``, ``span`` and a logger carry stands in ``data`` directly."""
    emitter = start(events="*", exclude="eventcore.*")
    ec.emit_event("test.event", message="hello", data={"answer": 42})
    ec.emit_error_event("boom", error=ValueError("bad"), category="system")
    with ec.span("test.load", path="x.bin"):
        pass
    ec.get_logger("shop").warning("task_late", task_id="abc")
    emitter.flush()
    event, error, span, line = (body["data"] for body in bodies(receiver))
    assert (event["message"], event["answer"]) == ("hello", 42)
    assert not {"text", "data", "error_type"} & event.keys()
    assert (error["message"], error["error_type"], error["error_message"]) == ("boom", "ValueError", "bad")
    assert span["path"] == "x.bin"
    assert (line["message"], line["task_id"], line["logger_name"]) == ("task_late", "abc", "shop")


def test_every_payload_becomes_json(start, receiver):
    """Arrays become lists, NaN becomes null, and a field named like a fact of the envelope takes its place."""
    emitter = start()
    emitter.emit(Alarm(severity="house on fire", scores=np.array([0.5, 1.0], dtype=np.float32), ratio=float("nan")))
    emitter.flush()
    (body,) = bodies(receiver)
    assert body["data"]["severity"] == "house on fire"
    assert body["data"]["scores"] == [0.5, 1.0]
    assert body["data"]["ratio"] is None


def test_keeps_its_connection(start, receiver):
    """Events share one connection as long as the endpoint keeps it."""
    emitter = start()
    for amount in range(5):
        emitter.emit(Paid(amount=amount))
    emitter.flush()
    receiver.default = (200, {"Connection": "close"})
    for amount in range(2):
        emitter.emit(Paid(amount=amount))
    emitter.flush()
    connections = [request.connection for request in receiver.requests]
    assert len(set(connections[:6])) == 1
    assert connections[6] != connections[5]


# -- what is tried again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [408, 425, 429, 500, 502, 503, 504, 599, RESET])
def test_tries_again_what_may_pass(start, receiver, answer):
    """Lost connections and statuses that mean "not now" are retried, and the event is delivered once."""
    emitter = start()
    receiver.answers.extend([answer, answer])
    emitter.emit(Paid(amount=1))
    assert emitter.flush()
    hook = emitter.handler("hook")
    assert (hook.delivered, hook.failed, hook.retried) == (1, 0, 2)
    assert all(request.verified for request in receiver.requests)
    assert emitter.ledger().handler("hook").delivered == 1


@pytest.mark.parametrize("answer", [301, 302, 307, 400, 401, 404, 422])
def test_does_not_insist_on_what_will_not_pass(start, receiver, answer):
    """Other statuses fail at once, redirects too, which are not followed."""
    emitter = start()
    receiver.answers.append((answer, {"Location": receiver.url}))
    emitter.emit(Paid(amount=1))
    emitter.flush()
    hook = emitter.handler("hook")
    assert (hook.delivered, hook.failed, hook.retried, len(receiver.requests)) == (0, 1, 0, 1)
    assert emitter.ledger().handler("hook").failed == 1


def test_attempts_share_an_id_and_have_their_own_time(start, receiver):
    """The id is the same at each attempt and the timestamp is the attempt's, signed anew; events have ids apart."""
    emitter = start(clock=LateClock())
    receiver.answers.extend([503, 503])
    emitter.emit(Paid(amount=1))
    emitter.emit(Paid(amount=2))
    emitter.flush()
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    times = [int(request.headers["webhook-timestamp"]) for request in receiver.requests]
    assert len(set(ids[:3])) == 1
    assert ids[3] != ids[0]
    assert all(one.startswith("msg_") for one in ids)
    assert sorted(set(times)) == times
    assert len({request.body for request in receiver.requests[:3]}) == 1


def test_retries_hold_their_place(start, receiver):
    """Events arrive in the order of emit, although one of them needed three attempts."""
    emitter = start()
    receiver.answers.extend([204, 500, RESET])
    for amount in (1, 2, 3):
        emitter.emit(Paid(amount=amount))
    emitter.flush()
    assert [body["data"]["amount"] for body in bodies(receiver)] == [1, 2, 2, 2, 3]


def test_gives_up_and_says_so(start, receiver):
    """After ``max_attempts`` the event counts as failed, the other handlers hear of it, and the next one goes on."""
    emitter = start(max_attempts=3, handlers={"memory": {"use": "buffer"}})
    receiver.answers.extend([500, 503, 500])
    emitter.emit(Paid(amount=1))
    emitter.emit(Paid(amount=2))
    emitter.flush()
    hook = emitter.handler("hook")
    assert (hook.delivered, hook.failed, hook.retried) == (1, 1, 2)
    (changed,) = emitter.handler("memory").get_events(type="eventcore.handler")
    assert "answered 500 Internal Server Error; shop.paid was given up after 3 attempts" in changed.event.reason
    assert "path-secret" not in changed.event.reason


def test_no_answer_is_a_failure_that_names_the_endpoint(start, receiver):
    """Where nobody listens, the failure names host and port and the reason."""
    emitter = start(url=f"http://127.0.0.1:{unused_port()}/x", max_attempts=2, handlers={"memory": {"use": "buffer"}})
    emitter.emit(Paid(amount=1))
    emitter.flush()
    (changed,) = emitter.handler("memory").get_events(type="eventcore.handler")
    assert "Connection refused" in changed.event.reason
    assert "after 2 attempts" in changed.event.reason


@pytest.mark.parametrize("answer", [HANG, DRIP])
def test_an_attempt_ends_in_time(start, receiver, answer):
    """An endpoint that is silent, or sends a byte now and then for ever, is given up in time and tried again."""
    emitter = start(timeout_s=0.2)
    receiver.answers.append(answer)
    emitter.emit(Paid(amount=1))
    assert emitter.flush()
    hook = emitter.handler("hook")
    assert (hook.delivered, hook.retried, len(receiver.requests)) == (1, 1, 2)


@pytest.mark.parametrize("answer", [ENDLESS, ENDLESS_AND_CLOSE])
def test_the_body_of_an_answer_does_not_matter(start, receiver, answer):
    """A success whose body never ends is a success, in bounded time."""
    emitter = start(timeout_s=0.2)
    receiver.answers.append(answer)
    emitter.emit(Paid(amount=1))
    emitter.emit(Paid(amount=2))
    assert emitter.flush()
    hook = emitter.handler("hook")
    assert (hook.delivered, hook.retried, len(receiver.requests)) == (2, 0, 2)


def test_gone_disables_the_endpoint(start, receiver):
    """After 410 nothing more is sent; later events fail at once and are counted."""
    emitter = start()
    receiver.answers.append(410)
    for amount in range(4):
        emitter.emit(Paid(amount=amount))
    emitter.flush()
    hook = emitter.handler("hook")
    assert (len(receiver.requests), hook.failed, hook.retried) == (1, 4, 0)
    assert hook.describe()["disabled"]
    assert emitter.ledger().handler("hook").failed == 4


def test_pauses_grow_and_are_bounded():
    """Pauses double up to the cap, with jitter below; what the endpoint asks for counts, up to the cap."""
    hook = WebhookHandler(url="https://example.com", secret=SECRET, backoff_s=2, backoff_cap_s=60)
    hook.attached(ec.Emitter())
    for attempt, longest in ((1, 2), (2, 4), (5, 32), (6, 60), (99, 60)):
        pauses = [hook._pause_s(attempt, None) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 1
    assert hook._pause_s(1, "7") == 7
    assert hook._pause_s(1, "86400") == 60
    assert hook._pause_s(1, "Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert hook._pause_s(1, "Fri, 31 Dec 9999 23:59:59 GMT") == 60
    for nonsense in ("soon", "-1", "1e9", "", "٣"):
        assert 1 <= hook._pause_s(1, nonsense) <= 2


def test_repeated_failure_is_quarantined(start, receiver):
    """An endpoint that keeps failing is left in peace for a while; what was meant for it is counted as quarantined."""
    emitter = start()
    receiver.default = 400
    for amount in range(8):
        emitter.emit(Paid(amount=amount))
    emitter.flush()
    row = emitter.ledger().handler("hook")
    assert (row.failed, row.dropped["quarantined"], len(receiver.requests)) == (5, 3, 5)


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_shutdown_ends_a_pause(start, receiver):
    """A pause between attempts ends when shutdown begins: one more attempt, and nothing is left behind uncounted."""
    emitter = start(backoff_s=3600, backoff_cap_s=3600)
    receiver.default = 503
    emitter.emit(Paid(amount=1))
    hook = emitter.handler("hook")
    wait_until(lambda: hook.retried == 1)
    receiver.default = 204
    report = ec.shutdown()
    assert report.is_clean
    assert (hook.delivered, hook.retried, len(receiver.requests)) == (1, 1, 2)


def test_shutdown_gives_each_waiting_event_one_attempt(start, receiver):
    """While shutting down, events that fail are not retried; each is counted."""
    emitter = start(backoff_s=3600, backoff_cap_s=3600)
    receiver.default = 503
    for amount in range(3):
        emitter.emit(Paid(amount=amount))
    wait_until(lambda: emitter.handler("hook").retried == 1)
    report = ec.shutdown()
    assert report.is_clean
    assert [body["data"]["amount"] for body in bodies(receiver)] == [0, 0, 1, 2]
    assert emitter.ledger().handler("hook").failed == 3


def test_shutdown_does_not_wait_for_a_hanging_endpoint(start, receiver):
    """A request under way is cut off when the time is up; what was not delivered is reported, and the worker ends."""
    emitter = start(timeout_s=60)
    receiver.default = HANG
    emitter.emit(Paid(amount=1))
    emitter.emit(Paid(amount=2))
    receiver.wait_for(1)
    (worker,) = [thread for thread in threading.enumerate() if thread.name == "eventcore-hook"]
    report = ec.shutdown(timeout_s=0.2)
    assert report.abandoned_envelopes["hook"] == 2
    worker.join(timeout=20)
    assert not worker.is_alive()
    assert emitter.ledger().handler("hook").dropped["shutdown"] == 2


def test_a_forked_child_uses_a_connection_of_its_own(start, receiver):
    """Parent and child never write to one socket."""
    emitter = start()
    emitter.emit(Paid(amount=1))
    emitter.flush()
    child = os.fork()
    if child == 0:
        emitter.emit(Paid(amount=2))
        os._exit(0 if emitter.flush(20) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    emitter.emit(Paid(amount=3))
    emitter.flush()
    first, second, third = (request.connection for request in receiver.requests)
    assert first == third != second


# -- configuration -----------------------------------------------------------------------------------------------------


def test_several_secrets_sign_side_by_side(start, receiver):
    """While secrets are changed, receivers that know either of them can verify."""
    newer = "whsec_" + "bmV3ZXIg" * 4
    emitter = start(secret=[newer, SECRET])
    emitter.emit(Paid(amount=1))
    emitter.flush()
    (request,) = receiver.requests
    assert request.verified
    Webhook(newer).verify(request.body, request.headers)
    assert request.headers["webhook-signature"].count("v1,") == 2


def test_the_secret_may_come_from_the_environment(start, receiver, monkeypatch):
    """``env:NAME`` is read at the start."""
    monkeypatch.setenv("ONCALL_SECRET", SECRET)
    emitter = start(secret="env:ONCALL_SECRET")
    monkeypatch.delenv("ONCALL_SECRET")
    emitter.emit(Paid(amount=1))
    emitter.flush()
    assert receiver.requests[0].verified


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secret": "env:NO_SUCH_VARIABLE"}, "'secret' names the environment variable 'NO_SUCH_VARIABLE'.*not set"),
        ({"secret": "hunter2hunter2"}, "'secret': a webhook secret begins with 'whsec_'"),
        ({"secret": "whsec_hunter2!"}, "'secret': what follows 'whsec_'.* must be base64"),
        ({"secret": "whsec_aHVudGVyMg=="}, "'secret': a webhook secret has 24 to 64 bytes, this one 7"),
        ({"secret": [SECRET, "whsec_aHVudGVyMg=="]}, "'secret': a webhook secret has 24 to 64 bytes, this one 7"),
        ({"secret": []}, "'secret'.* at least 1 item"),
        ({"url": "ftp://example.com/hunter2"}, "'url' must begin with https:// or http://, not 'ftp'"),
        ({"url": "example.com/hunter2"}, "'url' must begin with"),
        ({"url": "http:///hunter2"}, "'url' (has no host|is no URL)"),
        ({"url": "https://me:hunter2@example.com"}, "'url' must not contain user and password"),
        ({"url": "https://example.com:http/hunter2"}, "'url' is no URL"),
        ({"ca_file": "missing.pem", "url": "https://example.com"}, r"'ca_file': missing\.pem: No such file"),
        ({"delivery": "inline"}, "'delivery' is 'inline'"),
        ({"max_attempts": 0}, "'max_attempts' is 0"),
        ({"secrets": SECRET}, "unknown option 'secrets'; did you mean 'secret'?"),
    ],
)
def test_a_wrong_option_is_one_clear_error(start, options, message):
    """A mistake names the handler, the option and what was expected, and never shows a secret."""
    with pytest.raises(ec.ConfigurationError, match=message) as caught:
        start(**options)
    assert str(caught.value).startswith("configure(): handlers.hook")
    assert "hunter2" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_missing_url_says_what_belongs_there():
    """Without ``url`` and ``secret`` the error explains both."""
    with pytest.raises(ec.ConfigurationError, match=r"'url' is missing \(Where to post.*'secret' is missing"):
        ec.configure(handlers={"hook": {"use": "webhook"}})


def test_secrets_are_not_shown(start, receiver):
    """Neither secret nor path and query of the URL appear in what the handler and its configuration print."""
    hook = start().handler("hook")
    shown = f"{hook!r} {hook!s} {hook.config!r} {hook.config!s} {hook.describe()}"
    assert SECRET.removeprefix("whsec_") not in shown
    assert "path-secret" not in shown
    assert "127.0.0.1" in shown


def test_loading_the_plugin_does_not_import_urllib3():
    """The plugin names its handler by path; urllib3 and ssl are imported when it is configured."""
    code = (
        "import sys, eventcore_webhook; sys.exit(bool({'urllib3', 'eventcore_webhook.handler'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
