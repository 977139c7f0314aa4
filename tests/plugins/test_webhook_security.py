"""The webhook plugin: signatures, addresses, certificates."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError as RefusedByReference

import eventcore as ec
from eventcore_webhook.addresses import is_public
from eventcore_webhook.handler import WebhookHandler
from eventcore_webhook.signing import WebhookVerificationError, sign, verify
from tests.support.webhook_receiver import webhook_receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CERTIFICATE = Path(__file__).parents[1] / "support" / "localhost.pem"


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER):
    amount: float = 1.0


def signed(body=b'{"test": 2432232314}', *, message_id="msg_1", at_s=None, secret=SECRET):
    """Return the headers of a signed request."""
    now = int(time.time()) if at_s is None else at_s
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": sign(secret, message_id, now, body),
    }


# -- signatures --------------------------------------------------------------------------------------------------------


def test_signs_the_specification_s_example():
    """The vector of the reference implementation's own tests comes out the same."""
    header = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert header == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(
    key=st.binary(min_size=24, max_size=64),
    body=st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    message_id=st.from_regex(r"msg_[0-9a-zA-Z-]{1,40}", fullmatch=True),
)
def test_agrees_with_the_reference_both_ways(key, body, message_id):
    """What we sign the reference verifies, and what the reference signs we verify."""
    secret = "whsec_" + base64.b64encode(key).decode()
    reference = Webhook(secret)
    reference.verify(body, signed(body.encode(), message_id=message_id, secret=secret), json_parse=False)
    now = datetime.now(UTC).replace(microsecond=0)
    headers = {
        "Webhook-Id": message_id,
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": reference.sign(message_id, now, body),
    }
    assert verify(secret, headers, body.encode()) == message_id
    with pytest.raises(WebhookVerificationError):
        verify(secret, headers, body.encode() + b" ")
    with pytest.raises(RefusedByReference):
        reference.verify(body + " ", headers, json_parse=False)


def test_a_body_may_be_any_bytes():
    """A body that is no UTF-8 is verified like any other."""
    body = b"\xff\xfe\x00"
    assert verify(SECRET, signed(body), body) == "msg_1"


def test_any_of_several_secrets_and_signatures_will_do():
    """While secrets change, either side may know both; signatures of other versions are passed over."""
    newer = "whsec_" + "bmV3ZXIg" * 4
    headers = signed(b"{}", secret=[newer, SECRET])
    headers["webhook-signature"] = f"v1a,AAAA v2,not-base64 {headers['webhook-signature']}"
    assert verify(SECRET, headers, b"{}") == "msg_1"
    assert verify([SECRET, newer], signed(b"{}", secret=newer), b"{}") == "msg_1"


def test_a_signature_with_foreign_characters_is_none():
    """A right signature with something inserted is not the right signature, however lenient base64 decoders are."""
    headers = signed(b"{}")
    headers["webhook-signature"] = headers["webhook-signature"].replace("v1,", "v1,!")
    with pytest.raises(WebhookVerificationError):
        verify(SECRET, headers, b"{}")


GENUINE = base64.b64encode(b"x" * 32).decode()


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": "msg_2"},
        {"webhook-id": ""},
        {"webhook-id": "msg_\udce9"},
        {"webhook-id": "msg_é"},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": "1e9"},
        {"webhook-timestamp": "-5"},
        {"webhook-timestamp": "٣٣"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,a,b"},
        {"webhook-signature": "v1,***"},
        {"webhook-signature": "v1,é"},
        {"webhook-signature": "no comma at all"},
        {"webhook-signature": f"v1,{GENUINE}"},
        {"webhook-signature": f"v1a,{GENUINE}"},
        {"webhook-signature": " "},
    ],
)
def test_wrong_headers_are_a_clean_refusal(changed):
    """Whatever an attacker writes into the headers gives WebhookVerificationError and nothing else."""
    with pytest.raises(WebhookVerificationError):
        verify(SECRET, signed(b"{}") | changed, b"{}")


@given(headers=st.dictionaries(st.sampled_from([f"webhook-{p}" for p in ("id", "timestamp", "signature")]), st.text()))
def test_no_header_breaks_the_verifier(headers):
    """Headers of any text are refused cleanly."""
    with pytest.raises(WebhookVerificationError):
        verify(SECRET, headers, b"{}")


@pytest.mark.parametrize(("age_s", "message"), [(301, "too old"), (-301, "in the future")])
def test_refuses_what_is_not_of_now(age_s, message):
    """A request older than five minutes, or from the future, is refused although its signature is right."""
    headers = signed(b"{}", at_s=1_700_000_000)
    assert verify(SECRET, headers, b"{}", now_s=1_700_000_000 + 299) == "msg_1"
    with pytest.raises(WebhookVerificationError, match=message):
        verify(SECRET, headers, b"{}", now_s=1_700_000_000 + age_s)


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fe80::1%lo",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_addresses_that_are_not_public(address):
    """Loopback, private, shared, reserved, documentation and multicast addresses are no endpoints, however wrapped."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_addresses_that_are_public(address):
    """Public addresses are endpoints, also as IPv6 addresses that carry an IPv4 one."""
    assert is_public(address)


@pytest.fixture
def receiver():
    """Run a receiver of webhooks."""
    with webhook_receiver(SECRET) as running:
        yield running


def post_to(url, handler_class=WebhookHandler, **options):
    """Emit one event to a webhook; return the handler and the reason that the other handlers were told, if any."""
    hook = handler_class(url=url, secret=SECRET, events=["shop.*"], max_attempts=1, **options)
    with ec.configure(handlers={"hook": hook, "memory": {"use": "buffer"}}) as emitter:
        emitter.emit(Paid())
        emitter.flush()
        told = emitter.handler("memory").get_events(type="eventcore.handler")
        return hook, told[0].event.reason if told else None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1"])
def test_refuses_this_machine_however_it_is_written(receiver, host):
    """Without ``allow_private`` nothing is sent to a loopback address, whatever way the URL spells it."""
    port = receiver.url.split(":")[2].split("/")[0]
    hook, reason = post_to(f"http://{host}:{port}/x")
    assert (hook.failed, receiver.requests) == (1, [])
    assert "which is no public address; set allow_private = true" in reason


def test_one_private_address_among_public_ones_is_refused(receiver):
    """A name is refused if any of its addresses is not public, before a connection is made."""

    class Mixed(WebhookHandler):
        @staticmethod
        def getaddrinfo(_host, port, **_):
            return [(2, 1, 6, "", ("93.184.216.34", port)), (2, 1, 6, "", ("127.0.0.1", port))]

    hook, reason = post_to("http://hooks.example/x", Mixed)
    assert hook.failed == 1
    assert "hooks.example leads to 127.0.0.1" in reason


def test_connects_to_the_address_that_was_judged(receiver):
    """A name is resolved once; the connection goes to that address, and the Host header keeps the name."""
    asked = []

    class Rebinding(WebhookHandler):
        @staticmethod
        def getaddrinfo(host, port, **_):
            asked.append(host)
            return [(2, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "203.0.113.1", port))]

    port = receiver.url.split(":")[2].split("/")[0]
    hook, reason = post_to(f"http://hooks.example:{port}/x", Rebinding, allow_private=True)
    assert (hook.delivered, reason, asked) == (1, None, ["hooks.example"])
    assert receiver.requests[0].headers["host"] == f"hooks.example:{port}"


def test_tries_the_next_address_of_a_name(receiver):
    """If the first address does not answer, the next one is tried within the same attempt."""

    class Two(WebhookHandler):
        @staticmethod
        def getaddrinfo(_host, port, **_):
            return [(2, 1, 6, "", ("127.0.0.2", port)), (2, 1, 6, "", ("127.0.0.1", port))]

    port = receiver.url.split(":")[2].split("/")[0]
    hook, _ = post_to(f"http://hooks.example:{port}/x", Two, allow_private=True)
    assert (hook.delivered, hook.retried, len(receiver.requests)) == (1, 0, 1)


def test_a_name_that_does_not_exist_may_come_back(receiver):
    """A name that cannot be resolved counts as no answer: worth a retry."""
    hook, reason = post_to("http://no-such-host.invalid/x")
    assert hook.failed == 1
    assert "http://no-such-host.invalid" in reason
    assert "given up after 1 attempts" in reason


# -- certificates ------------------------------------------------------------------------------------------------------


def test_https_checks_the_certificate_against_the_name():
    """Over https the certificate must be trusted and bear the URL's name, which the connection no longer knows."""
    with webhook_receiver(SECRET, certificate=CERTIFICATE) as receiver:
        named = receiver.url.replace("127.0.0.1", "localhost")
        hook, reason = post_to(named, allow_private=True, ca_file=CERTIFICATE)
        assert (hook.delivered, reason) == (1, None)
        assert receiver.requests[0].headers["host"].startswith("localhost:")
        hook, reason = post_to(receiver.url, allow_private=True, ca_file=CERTIFICATE)
        assert hook.failed == 1
        assert "CERTIFICATE_VERIFY_FAILED" in reason
        hook, reason = post_to(named, allow_private=True)
        assert hook.failed == 1
        assert "CERTIFICATE_VERIFY_FAILED" in reason
        assert len(receiver.requests) == 1
