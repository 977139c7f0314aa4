"""Signatures of Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), version ``v1``: HMAC-SHA256.

Signed is ``<id>.<timestamp>.<body>``, the body byte for byte as it is sent. A header carries several signatures while
secrets are being changed. Usable on both ends: ``sign`` to send, ``verify`` to receive.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING

from eventcore.errors import EventCoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["TOLERANCE_S", "WebhookVerificationError", "decode_secret", "sign", "verify"]

PREFIX = "whsec_"
TOLERANCE_S = 300
"""How old, or how far ahead, a timestamp may be, in seconds."""

_TIMESTAMP = re.compile(r"[0-9]{1,12}")


class WebhookVerificationError(EventCoreError):
    """A request is not what its headers claim, or they are missing or malformed: answer it with 401."""


def decode_secret(secret: str) -> bytes:
    """Return the key in ``whsec_<base64 of 24 to 64 bytes>``; ValueError says what is wrong, without the secret."""
    if not secret.startswith(PREFIX):
        raise ValueError(f"a webhook secret begins with {PREFIX!r}, followed by 24 to 64 bytes in base64")
    encoded = secret.removeprefix(PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise ValueError(f"what follows {PREFIX!r} in a webhook secret must be base64") from None
    if not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook secret has 24 to 64 bytes, this one {len(key)}")
    return key


def sign(secrets: str | Sequence[str], message_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the header ``webhook-signature``: a signature per secret, separated by spaces.

    ``timestamp_s`` is the time of the attempt in seconds since the epoch, as in the header ``webhook-timestamp``.
    Raises ValueError for a malformed secret.
    """
    return " ".join(f"v1,{base64.b64encode(s).decode()}" for s in _signatures(secrets, message_id, timestamp_s, body))


def verify(
    secrets: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    now_s: float | None = None,
) -> str:
    """Check a request against any of the secrets; return the message's id, by which repeated deliveries are known.

    ``headers`` may be in any case; ``body`` is the request's, byte for byte. Signatures of other versions are passed
    over. Raises WebhookVerificationError whatever the headers contain, ValueError only for a malformed secret.
    """
    given = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp, signatures = (given.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature"))
    if not (message_id and timestamp and signatures):
        raise WebhookVerificationError("webhook-id, webhook-timestamp and webhook-signature must all be there")
    if not message_id.isascii() or not _TIMESTAMP.fullmatch(timestamp):
        raise WebhookVerificationError("webhook-id must be ASCII, webhook-timestamp whole seconds since the epoch")
    age_s = (time.time() if now_s is None else now_s) - int(timestamp)
    if abs(age_s) > tolerance_s:
        raise WebhookVerificationError(f"webhook-timestamp is {'too old' if age_s > 0 else 'in the future'}")
    claimed = [decoded for entry in signatures.split(" ") if (decoded := _decode(entry)) is not None]
    expected = _signatures(secrets, message_id, int(timestamp), body)
    if not any(hmac.compare_digest(one, other) for one in expected for other in claimed):
        raise WebhookVerificationError("no v1 signature of webhook-signature matches")
    return message_id


def _signatures(secrets: str | Sequence[str], message_id: str, timestamp_s: int, body: bytes) -> list[bytes]:
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    keys = [decode_secret(secret) for secret in ((secrets,) if isinstance(secrets, str) else secrets)]
    return [hmac.new(key, signed, hashlib.sha256).digest() for key in keys]


def _decode(entry: str) -> bytes | None:
    """Return the signature in ``v1,<base64>``; None for another version, or what is no signature at all."""
    version, _, encoded = entry.partition(",")
    if version != "v1":
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
