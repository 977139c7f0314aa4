"""Where there is nobody else to tell, warnings and worse go to stderr, in plain lines.

That is the handler of an emitter that nobody configured, and what the bus says of its own troubles when no handler
takes it: a failure at shutdown, say, when the log is closed already (decision 040).
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from eventcore.handler import Handler
from eventcore.redaction import scrub_text

if TYPE_CHECKING:
    from eventcore.envelope import Envelope

__all__ = ["LastResort", "say_plainly"]


class LastResort(Handler):
    """Writes warnings and worse to stderr while nothing is configured."""

    kind = "last_resort"
    delivery = "inline"

    def handle(self, envelope: Envelope) -> None:
        """Write one plain line."""
        message = envelope.redact().message
        text = scrub_text(message) if message else repr(dict(envelope.payload))
        sys.stderr.write(_line(envelope.severity.name, envelope.name, text))


def say_plainly(severity: str, name: str, text: str) -> None:
    """Write a line about the bus itself; a standard error that cannot be written is no reason for a further one."""
    with contextlib.suppress(Exception):
        sys.stderr.write(_line(severity, name, scrub_text(text)))


def _line(severity: str, name: str, text: str) -> str:
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"{severity} {name}: {printable}\n"
