"""The handler of an emitter that nobody configured: warnings and worse go to stderr, in plain lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from eventcore.handler import Handler
from eventcore.redaction import scrub_text

if TYPE_CHECKING:
    from eventcore.envelope import Envelope

__all__ = ["LastResort"]


class LastResort(Handler):
    """Writes warnings and worse to stderr while nothing is configured."""

    kind = "last_resort"
    delivery = "inline"

    def handle(self, envelope: Envelope) -> None:
        """Write one plain line."""
        message = envelope.redact().message
        text = scrub_text(message) if message else repr(dict(envelope.payload))
        printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        sys.stderr.write(f"{envelope.severity.name} {envelope.name}: {printable}\n")
