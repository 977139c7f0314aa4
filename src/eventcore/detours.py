"""The ways of an envelope that are not straight: what handlers emit, audit-class events, failures and interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.operation import LiveOperation

if TYPE_CHECKING:
    from eventcore.dispatch import Attachment, Route
    from eventcore.durable_emit import Durability
    from eventcore.envelope import Envelope
    from eventcore.ledger import Cells, Ledger

__all__ = ["MAX_DEPTH", "Detours"]

MAX_DEPTH = 3
"""How deep inline handlers may emit while handling; deeper envelopes are dropped with reason ``recursion``."""


class Detours:
    """Delivers what the emit path of one emitter does not, and counts what went wrong on it."""

    def __init__(self, ledger: Ledger, durability: Durability) -> None:
        self._ledger = ledger
        self._durability = durability

    def deliver(self, route: Route, envelope: Envelope, cells: Cells) -> None:
        """Deliver an envelope of an audit-class event, or one that a handler has emitted."""
        if route.durable:
            self._durability.deliver(self._nested, route, envelope, cells)
        else:
            self._nested(route, envelope, cells)

    def _nested(self, route: Route, envelope: Envelope, cells: Cells) -> None:
        """Deliver with care: what a handler emits while it handles goes not to itself, and inline only so deep."""
        if route.redact:
            envelope.hide_sensitive()
        skipped: set[str] = set()
        cells.depth += 1
        try:
            for sink, attachment in route.sinks:
                if attachment is cells.handling or (attachment.queue is None and cells.depth > MAX_DEPTH):
                    skipped.add(attachment.name)
                    self._ledger.count(attachment.name, route.key.event, route.key.phase, "recursion")
                    if attachment.name in route.key.sampling:
                        self._ledger.count(attachment.name, route.key.event, route.key.phase, "accepted")
                    continue
                try:
                    sink(envelope)
                except Exception as error:  # noqa: BLE001 - the caller is never harmed
                    skipped.add(attachment.name)
                    self.failed(attachment, route, error)
        finally:
            cells.depth -= 1
        self.done_except(route, skipped)

    def done_except(self, route: Route, names: set[str]) -> None:
        """Count the inline handlers of a route that did succeed: all but ``names``."""
        for name in route.done.handlers:
            if name not in names:
                self._ledger.count(name, route.key.event, route.key.phase, "delivered")

    def interrupted(self, route: Route, passed: int, failed: set[str], item: Envelope | LiveOperation[Any]) -> None:
        """Count what a KeyboardInterrupt, or what a signal handler raised, cut off; a queue may hold it already."""
        rest = [attachment for _, attachment in route.sinks[passed:]]
        missed = {a.name for a in rest} - failed
        queue = rest[0].queue if rest else None  # of the one that was being called; the others were not
        if queue is not None:
            # What a worker has looked at already got there, unless it was cut off while it was being drawn.
            if isinstance(item, LiveOperation):
                was_taken = item.is_taken
            else:
                was_taken = item.is_redacted and not route.redact and rest[0].name not in route.key.sampling
            if was_taken or queue.holds(item):
                missed.discard(rest[0].name)
        for name in missed:
            self._ledger.count(name, route.key.event, route.key.phase, "failed")
        for attachment in rest[1:]:  # the first was being called, and has counted itself
            if attachment.name in route.key.sampling:
                self._ledger.count(attachment.name, route.key.event, route.key.phase, "accepted")
        self.done_except(route, missed | failed)

    def failed(self, attachment: Attachment, route: Route, error: Exception) -> None:
        """Count a handler's failure, and tell its quarantine."""
        self._ledger.count(attachment.name, route.key.event, route.key.phase, "failed")
        attachment.quarantine.failed(error)
