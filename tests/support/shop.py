"""A small vocabulary with one type of each kind, for tests of what reaches a handler."""

from __future__ import annotations

from typing import Annotated

import eventcore as ec
from tests.support.handlers import Collect


class Paid(ec.Event, name="shop.paid", category="user", message="paid {amount}"):
    """An event at INFO."""

    amount: float = 1.0


class Refused(ec.Event, name="shop.refused", category="security", severity="error"):
    """An event at ERROR, with a sensitive field."""

    card: Annotated[str, ec.Sensitive] = ec.unset
    reason: str = "expired"


class Traced(ec.Event, name="deep.inside", category="system", severity="trace"):
    """An event at TRACE, of another domain."""


class Charge(ec.Operation, name="shop.charge", category="integration", severity="debug"):
    """An operation."""

    provider: str = "stripe"


def inline(emitter, act=None, *, name=None, **options):
    """Attach an inline handler that keeps everything."""
    return emitter.add_handler(Collect(act=act, delivery="inline", **options), name=name)


def emit_all(emitter):
    """Emit one of each."""
    for event in (Paid(), Refused(), Traced()):
        emitter.emit(event)
    with emitter.operation(Charge):
        pass
