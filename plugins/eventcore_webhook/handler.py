"""The ``webhook`` handler: each matching event is posted, signed, and posted again while that makes sense."""

from __future__ import annotations

import heapq
import os
import random
import re
import socket
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from eventcore import __version__
from eventcore.errors import ConfigurationError, PartialFailure
from eventcore.handler import Handler, HandlerConfig
from eventcore_webhook.body import encode
from eventcore_webhook.client import Answer, Client
from eventcore_webhook.endpoint import Endpoint
from eventcore_webhook.errors import EndpointGone, NoAnswer, WebhookError
from eventcore_webhook.signing import decode_secret, sign

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore_webhook.addresses import Resolver

__all__ = ["WebhookConfig", "WebhookHandler"]

RETRIED = frozenset({408, 425, 429})
"""Statuses below 500 that mean "not now"."""

UNORDERED_BATCH = 32
"""Events in hand at once where one that has to be tried again lets the others go first."""


class WebhookConfig(HandlerConfig):
    """Options of the ``webhook`` handler."""

    url: str = Field(repr=False, description="Where to post, https:// or http://.")
    secret: tuple[SecretStr, ...] = Field(
        repr=False,
        min_length=1,
        description="'whsec_' and 24 to 64 bytes in base64, or 'env:NAME' for a variable that holds it; several while "
        "they are being changed: each signs.",
    )
    timeout_s: float = Field(15.0, gt=0, le=120, description="How long one attempt may take.")
    max_attempts: int = Field(5, ge=1, le=100, description="Attempts per event, the first included.")
    backoff_s: float = Field(1.0, gt=0, description="Pause after the first attempt; doubled after each further one.")
    backoff_cap_s: float = Field(
        60.0, gt=0, description="Longest pause, also where the endpoint asks for a longer one."
    )
    allow_private: bool = Field(
        default=False, description="Allow endpoints at loopback, private and other addresses that are not public."
    )
    ca_file: Path | None = Field(
        None, description="Certificate authorities (PEM) to trust for https instead of the system's."
    )
    delivery: Literal["queued", "durable"] | None = Field(
        None, description="Posted by a worker of its own; 'durable' keeps what waits on disk, across restarts."
    )
    ordered: bool = Field(
        default=True,
        description="Post in order, so that an event that has to be tried again holds up those behind it; false: those "
        "that wait with it go first.",
    )
    # In order, larger ones would bring nothing, and what a timeout of shutdown leaves undone could not be told apart.
    batch_size: int = Field(1, ge=1, description="Most envelopes handed over at once; 32 when 'ordered' is false.")

    def model_post_init(self, _context: Any) -> None:
        """Take more at once where the order is free: only what is in hand can go first."""
        if not self.ordered and "batch_size" not in self.model_fields_set:
            self.__dict__["batch_size"] = UNORDERED_BATCH

    @field_validator("secret", mode="before")
    @classmethod
    def _several(cls, value: Any) -> tuple[str, ...]:
        """Take one secret or a list; anything becomes text here, so that no error of pydantic's can quote it."""
        many = value if isinstance(value, list | tuple) else (value,)
        return tuple(one.get_secret_value() if isinstance(one, SecretStr) else str(one) for one in many)


class WebhookHandler(Handler):
    """Posts events as Standard Webhooks; one at a time, with retries that hold their place unless ``ordered = false``.

    What was not delivered raises in the worker, so the bus counts it, reports it, and puts an endpoint that keeps
    failing into quarantine. What waits is held in memory, and lost
    with the process, unless ``delivery = "durable"`` makes the journal its outbox. ``delivered``, ``failed`` and
    ``retried`` count events, events, and repeated attempts.
    """

    Config: ClassVar[type[HandlerConfig]] = WebhookConfig
    config: WebhookConfig
    delivery: ClassVar[Literal["inline", "queued"]] = "queued"
    kind: ClassVar[str] = "webhook"
    getaddrinfo: ClassVar[Resolver] = staticmethod(socket.getaddrinfo)

    def __init__(self, config: HandlerConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._endpoint = Endpoint.parse(self.config.url)
        for secret in self.config.secret:
            _check_secret(secret.get_secret_value())
        self._client = Client(
            self._endpoint,
            allow_private=self.config.allow_private,
            tls=_tls(self.config.ca_file) if self._endpoint.scheme == "https" else None,
            getaddrinfo=type(self).getaddrinfo,
        )
        self._closing = threading.Event()
        self._is_gone = False
        self.delivered = 0
        self.failed = 0
        self.retried = 0

    def attached(self, emitter: Emitter) -> None:
        """Look for the secrets that variables hold; ConfigurationError where one is not there, or is none."""
        super().attached(emitter)
        self._secrets = tuple(_resolve_secret(secret.get_secret_value()) for secret in self.config.secret)

    def handle(self, envelope: Envelope) -> None:
        """Post one event; raises WebhookError when it was not delivered."""
        try:
            self._deliver(envelope)
        except BaseException:
            self.failed += 1
            raise
        self.delivered += 1

    def handle_batch(self, envelopes: Sequence[Envelope]) -> None:
        """Post a batch; raises PartialFailure when some were not delivered."""
        failed = dict(self._in_order(envelopes) if self.config.ordered else self._when_ready(envelopes))
        if failed:
            raise PartialFailure(failed, next(iter(failed.values())))

    def _in_order(self, envelopes: Sequence[Envelope]) -> Iterator[tuple[int, BaseException]]:
        is_durable = (self.config.delivery or self.delivery) == "durable"
        for index, envelope in enumerate(envelopes):
            try:
                self.handle(envelope)
            except Exception as error:  # noqa: BLE001 - told by index
                yield index, error
                if is_durable:  # it is tried again later, and what follows must not overtake it
                    yield from ((rest, error) for rest in range(index + 1, len(envelopes)))
                    return

    def _when_ready(self, envelopes: Sequence[Envelope]) -> Iterator[tuple[int, BaseException]]:
        """Post whatever is due first: new ones, then those whose pause is over; yield those that were given up."""
        due = [(0.0, index, 1) for index in range(len(envelopes))]
        while due:
            at_s, index, attempt = heapq.heappop(due)
            self._closing.wait(max(0.0, at_s - time.monotonic()))
            try:
                pause_s = self._attempt(envelopes[index], attempt)
            except Exception as error:  # noqa: BLE001 - told by index
                self.failed += 1
                yield index, error
                continue
            if pause_s is None:
                self.delivered += 1
            else:
                heapq.heappush(due, (time.monotonic() + pause_s, index, attempt + 1))

    def closing(self) -> None:
        """End pauses between attempts."""
        self._closing.set()

    def close(self) -> None:
        """End pauses and any request under way."""
        self._closing.set()
        self._client.close()

    def describe(self) -> dict[str, Any]:
        """Return where events go (without path and query, which often hold a token) and what became of them."""
        return {
            "url": f"{self._endpoint.origin}/…",
            "delivered": self.delivered,
            "failed": self.failed,
            "retried": self.retried,
            "disabled": self._is_gone,
        }

    def preview(self, envelope: Envelope) -> str:
        """Return the body that would be posted."""
        return encode(envelope, self.emitter.resource.service).decode()

    def _deliver(self, envelope: Envelope) -> None:
        attempt = 1
        while (pause_s := self._attempt(envelope, attempt)) is not None:
            self._closing.wait(pause_s)
            attempt += 1

    def _attempt(self, envelope: Envelope, attempt: int) -> float | None:
        """Post once; return None when it was delivered, else the seconds until the next attempt.

        Raises WebhookError when another attempt would not help, or there are to be no more.
        """
        if self._is_gone:
            raise EndpointGone(f"{self._endpoint.origin} has answered 410 Gone; {envelope.name} was not sent")
        retry_after = None
        try:
            answer = self._post(f"msg_{envelope.id}", encode(envelope, self.emitter.resource.service))
        except NoAnswer as error:
            problem = str(error)
        else:
            if 200 <= answer.status < 300:
                return None
            problem = self._judge(answer, envelope)
            retry_after = answer.retry_after
        if attempt == self.config.max_attempts or self._closing.is_set():
            raise WebhookError(f"{problem}; {envelope.name} was given up after {attempt} attempts")
        self.retried += 1
        return self._pause_s(attempt, retry_after)

    def _post(self, message_id: str, body: bytes) -> Answer:
        now_s = self.emitter.clock.time_ns() // 1_000_000_000
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"eventcore/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": sign(self._secrets, message_id, now_s, body),
        }
        return self._client.post(body, headers, timeout_s=self.config.timeout_s)

    def _judge(self, answer: Answer, envelope: Envelope) -> str:
        """Return what is wrong if another attempt may help; raise if not."""
        status = answer.status
        problem = f"{self._endpoint.origin} answered {status} {_phrase(status)}"
        if status == HTTPStatus.GONE:
            self._is_gone = True
            raise EndpointGone(f"{problem} to {envelope.name}; no more events are sent there")
        if status in RETRIED or status >= 500:
            return problem
        raise WebhookError(f"{problem} to {envelope.name}; it was not retried")

    def _pause_s(self, attempt: int, retry_after: str | None) -> float:
        """Return the pause after an attempt, in seconds: what the endpoint asks for, else doubling with jitter."""
        cap_s = self.config.backoff_cap_s
        asked_s = self._parse_retry_after(retry_after)
        if asked_s is not None:
            return min(asked_s, cap_s)
        pause_s = min(self.config.backoff_s * 2.0 ** (attempt - 1), cap_s)
        return random.uniform(pause_s / 2, pause_s)  # noqa: S311 - spreads load, no secret

    def _parse_retry_after(self, value: str | None) -> float | None:
        """Return RFC 9110's Retry-After (seconds or a date) in seconds from now; None where it makes no sense."""
        text = (value or "").strip()
        if re.fullmatch(r"[0-9]{1,9}", text):
            return float(text)
        try:
            at_s = parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError):
            return None
        return max(0.0, at_s - self.emitter.clock.time_ns() / 1e9)


def _check_secret(text: str) -> None:
    """Check a secret that is not in a variable: that is looked for where the handler is attached."""
    if not text.startswith("env:"):
        _resolve_secret(text)


def _resolve_secret(text: str) -> str:
    """Return the secret itself, from the environment if it says so; ConfigurationError never quotes it."""
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        text = os.environ.get(name, "")
        if not text:
            raise ConfigurationError(f"option 'secret' names the environment variable {name!r}, which is not set")
    try:
        decode_secret(text)
    except ValueError as error:
        raise ConfigurationError(f"option 'secret': {error}; or write 'env:NAME'") from None
    return text


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(f"option 'ca_file': {ca_file}: {error.strerror or error}") from None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(unknown status)"
