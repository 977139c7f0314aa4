"""Numbered events, and what tests of the core ask about them again and again."""

from __future__ import annotations

import eventcore as ec
from tests.support.handlers import Held


class Numbered(ec.Event, name="numbered", category="data"):
    """One event of a test."""

    n: int = 0
    thread: int = 0


class Work(ec.Operation, name="work", category="execution"):
    """One operation of a test."""

    n: int = 0


def hold(emitter):
    """Attach a handler that holds its first event, number 0, until the test releases it."""
    handler = emitter.add_handler(Held(linger_s=0, batch_size=1))
    emitter.emit(Numbered(n=0))
    assert handler.entered.wait(10)
    return handler


def numbers(handler):
    """Return the numbers of the numbered events that a handler got, in order."""
    return [envelope.event.n for envelope in handler.got if envelope.name == "numbered"]


def row_of(emitter, handler, event="numbered"):
    """Return the ledger's row of one handler and event."""
    return next(row for row in emitter.ledger().rows if (row.handler, row.event) == (handler.name, event))
