"""Sending one request until it is accepted, refused, or out of time; how it travels is a subclass's affair.

A failed attempt is retried with exponential backoff where OTLP allows it, heeding what the receiver asks for, until
``timeout_s`` is used up. https://opentelemetry.io/docs/specs/otlp/#failures
"""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import eventcore as ec
from eventcore.redaction import scrub_text
from eventcore_otlp.wire import fields

if TYPE_CHECKING:
    from eventcore_otlp.endpoint import Endpoint

__all__ = ["RefusedError", "Sent", "Transport", "TransportError", "WorthARetryError", "excerpt"]

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SHORTEST_ATTEMPT_S = 0.1  # so that the last batches of a shutdown get at least one try


class TransportError(ec.EventCoreError):
    """A request was not accepted; the message says where to, why, and after how many attempts."""


class RefusedError(Exception):
    """An attempt failed for good."""


class WorthARetryError(Exception):
    """An attempt failed, and another one may succeed, ``after_s`` from now at the earliest."""

    def __init__(self, problem: str, after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Sent:
    """A request was accepted: all but ``rejected`` of its items; ``message`` is what the receiver has to say."""

    rejected: int = 0
    message: str = ""

    @classmethod
    def from_answer(cls, answer: bytes) -> Sent:
        """Read a response; what is not OTLP is no objection, since the request was accepted."""
        rejected, message = 0, ""
        try:
            # The responses of all three signals are alike: partial_success = 1 {rejected = 1, error_message = 2}.
            for number, partial in fields(answer):
                for part, content in fields(partial) if number == 1 and isinstance(partial, bytes) else ():
                    if part == 1 and isinstance(content, int):
                        rejected = content if content < 1 << 63 else 0
                    elif part == 2 and isinstance(content, bytes):
                        message = excerpt(content)
        except ValueError:
            return cls()
        return cls(rejected, message)


class Transport:
    """Sends serialised requests of one signal to one receiver; for one thread, except ``hurry`` and ``close``."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.warning = ""
        """What the receiver last had to say about a request that it took whole."""
        self._stop_by = float("inf")
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._pid = os.getpid()
        self._connect()

    def send(self, body: bytes) -> Sent:
        """Send a serialised ``Export…ServiceRequest``; TransportError where it was not accepted in time."""
        if os.getpid() != self._pid:  # a forked child: the connection is the parent's
            self._pid = os.getpid()
            self._connect()
        sent = Sent.from_answer(self._persist(self._packed(body)))
        if sent.message and not sent.rejected:
            self.warning = sent.message
        return sent

    def hurry(self, grace_s: float) -> None:
        """Try at once what waits for a retry, and give up on anything ``grace_s`` from now."""
        self._stop_by = time.monotonic() + grace_s
        self._stopping.set()

    def close(self) -> None:
        """Close the connection; a retry that waits gives up. May be called from another thread, and twice."""
        self._stop_by = 0.0
        self._stopping.set()
        self._closed.set()
        self._disconnect()

    def describe(self) -> dict[str, Any]:
        """Return where requests go, without headers."""
        endpoint = self.endpoint
        protocol = "OTLP/gRPC" if endpoint.protocol == "grpc" else "OTLP/HTTP protobuf"
        warned = {"warning": self.warning} if self.warning else {}
        return {
            "url": endpoint.url,
            "format": protocol + (", gzip" if endpoint.compression == "gzip" else ""),
            **warned,
        }

    def _persist(self, body: bytes) -> bytes:
        url, timeout_s = self.endpoint.url, self.endpoint.timeout_s
        started = time.monotonic()
        attempt = 0
        while True:
            deadline = min(started + timeout_s, self._stop_by)
            try:
                return self._attempt(body, max(deadline - time.monotonic(), SHORTEST_ATTEMPT_S))
            except RefusedError as error:
                raise TransportError(f"{self.verb} {url}: {error}") from None
            except WorthARetryError as error:
                problem, after_s = str(error), error.after_s
            attempt += 1
            backoff_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
            pause_s = max(after_s, backoff_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
            if time.monotonic() + pause_s >= min(started + timeout_s, self._stop_by):
                took = f"attempt {attempt}, gave up after {time.monotonic() - started:.1f} s"
                raise TransportError(f"{self.verb} {url}: {problem} ({took})")
            # While stopping, only close() cuts a pause short: one early retry is enough.
            (self._closed if self._stopping.is_set() else self._stopping).wait(pause_s)
            if self._closed.is_set():
                raise TransportError(f"{self.verb} {url}: {problem} (attempt {attempt}, closed before the next)")

    # -- what a protocol defines -------------------------------------------------------------------------------------

    verb = ""

    def _connect(self) -> None:
        """Prepare to connect, anew in a forked child."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        raise NotImplementedError

    def _packed(self, body: bytes) -> bytes:
        """Return the body as it travels in every attempt."""
        return body

    def _attempt(self, body: bytes, timeout_s: float) -> bytes:
        """Return the receiver's answer; raise WorthARetryError or RefusedError."""
        raise NotImplementedError


def excerpt(answer: bytes | str) -> str:
    """Return the readable part of what a receiver says: text, JSON, or the text inside a protobuf message."""
    text = answer[:1000].decode("utf-8", "replace") if isinstance(answer, bytes) else answer[:1000]
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(scrub_text(text).split())[:200]
