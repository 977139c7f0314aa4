"""Where a command asks: a URL, and with what it authenticates there.

User and password may stand in the URL, as curl takes them; a bearer token comes from the variable ``EVENTCORE_TOKEN``,
so that it is in no list of processes. Neither is shown again. No proxy is used: a process is asked directly, on this
machine as a rule.
"""

from __future__ import annotations

import base64
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from eventcore.errors import EventCoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Address", "Answer"]

TIMEOUT_S = 10.0
MAX_BODY = 64_000_000

_OF_ANOTHER = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, whatever its status."""

    status: int
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where to ask; ``url`` is fit to be shown."""

    url: str
    _headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str, *, option: str = "--url", example: str = "http://127.0.0.1:9090") -> Address:
        """Take a URL apart; EventCoreError where it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EventCoreError(f"{option} {url!r} is no address; write it like {example}")
        headers = {}
        token = os.environ.get("EVENTCORE_TOKEN")
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        elif token:
            headers["Authorization"] = f"Bearer {token}"
        return cls(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/"), headers)

    def get(self, path: str, *, accept: str = "*/*", timeout_s: float = TIMEOUT_S) -> Answer:
        """Ask for a path; EventCoreError where nothing answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.url + path, headers={**self._headers, "Accept": accept})  # noqa: S310 - parse() has checked the scheme
        try:
            try:
                response = opener.open(request, timeout=timeout_s)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                body = response.read(MAX_BODY)
                return Answer(response.status or 0, body, response.headers.get("Content-Type", ""))
        except Exception as error:  # noqa: BLE001 - whatever a server or the network does, it did not answer
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                remedy = (
                    "ask by a name that it has"
                    if reason.verify_code in _OF_ANOTHER
                    else "name the file (PEM) of its authority, or of the certificate if it has signed itself, in the "
                    "variable SSL_CERT_FILE"
                )
                raise EventCoreError(
                    f"the certificate of {self.url} is not trusted ({reason.verify_message}): {remedy}"
                ) from None
            raise EventCoreError(f"nothing answers at {self.url} ({reason})") from None
