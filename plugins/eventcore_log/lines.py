"""From an envelope to lines: dictionaries of plain values in the order in which they are shown.

What is the same for all events of a type (its logger, which of its fields collide with a name of ours, which hold
secrets) is decided once, in a ``Shape``, so that most fields of most lines cost one look-up and one assignment.

The names are those of the TinyLLM guide: ``event`` (the message, else the event's name), ``level``, ``timestamp``,
``logger``, ``trace_id``, ``span_id``, ``app``, ``version``; beside them ``name``, ``category``, ``tags``, ``id``,
``correlation_id`` and ``environment``, and for operations ``duration_ms``, ``outcome``, ``error_type`` and
``exception``. Payload fields stand flat beside them; one whose name is taken stands in the object ``fields``. Fields
without a value (``ec.unset`` or None) are left out. Where a payload field and a bound field have one name, the
payload's is shown. ``redacted`` names the fields in which a secret was found and replaced.

What queued handlers get was searched for secrets by the bus; it is not searched again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from eventcore.extras import NO_EXTRAS
from eventcore.fields import unset
from eventcore.redaction import scrub_text
from eventcore_log.line import RESERVED, RESERVED_BY_OPERATIONS, Line, put, put_error, scrub
from eventcore_log.shapes import START, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.envelope import Envelope
    from eventcore.events import Event
    from eventcore.resource import Resource
    from eventcore_log.line import Texts

__all__ = ["RESERVED", "RESERVED_BY_OPERATIONS", "Line", "Lines"]

_NO_TYPES: frozenset[type] = frozenset()


class Lines:
    """Turns envelopes into lines, for one emitter's resource."""

    def __init__(self, resource: Resource) -> None:
        self._shapes: dict[type[Event], Shape] = {}
        self._who = {"app": resource.service, "version": resource.version}
        if resource.environment:
            self._who["environment"] = resource.environment
        self._second = (-1, "")

    def of(self, envelope: Envelope) -> list[Line]:
        """Return the lines of one envelope: one, or one per element of its type's ``each`` arrays.

        The start of a batch and a batch that did not succeed are one line, with the arrays as they are. An operation
        whose type has a message for its start only has no line for a successful end.
        """
        is_searched = envelope.is_redacted  # first: a worker of another handler may be at it, and sets this last
        payload, event_type = envelope.fields, envelope.event_type
        shape = self._shapes.get(event_type)
        if shape is None:
            shape = self._shapes[event_type] = Shape(event_type)
        span = envelope.span
        outcome = None if span is None else START if envelope.phase == START else span.outcome
        if shape.is_start_only and outcome == "success":
            return []
        if not shape.each or outcome not in (None, "success"):
            return [self._line(shape, envelope, outcome, payload, is_searched)]
        try:
            rows = list(envelope.items())
        except (TypeError, ValueError):  # the arrays are not aligned: better one odd line than none
            rows = [envelope.payload]
        return [self._line(shape, envelope, outcome, row, is_searched) for row in rows]

    def _line(  # noqa: C901, PLR0912 - the one loop that every line passes
        self,
        shape: Shape,
        envelope: Envelope,
        outcome: str | None,
        payload: Mapping[str, Any],
        is_searched: bool,  # noqa: FBT001 - called for every line
    ) -> Line:
        """Return one line; written for speed, as each operation has one: what is known of a type is in its shape."""
        scope, span = envelope.scope, envelope.span
        head = shape.heads.get((envelope.severity, outcome)) or shape.head(envelope.severity, outcome)
        line = shape.line_type(head.fields)
        texts: Texts = []
        if head.template is not None:
            shape.put_message(line, texts, head.template, envelope, payload, is_searched=is_searched)
        second, rest = divmod(envelope.time_ns, 1_000_000_000)
        known, text = self._second
        line["timestamp"] = f"{text if second == known else self._new(second)}.{rest // 1000:06d}Z"
        if shape.logger is None:
            line["logger"] = payload["logger_name"]
        quick = shape.quick_searched if is_searched else shape.quick
        for key, value in payload.items():
            if value.__class__ in quick.get(key, _NO_TYPES):
                line[key] = value
            elif value is not unset:
                shape.put_field(line, texts, key, value, is_searched=is_searched)
        carried = scope.carried
        if carried.bound:
            for key, value in carried.bound.items():
                shape.put(line, texts, key if is_searched else scrub_text(key), value, is_searched=is_searched)
        if envelope.tags:
            put(line, texts, list(envelope.tags), "tags")
        if carried.correlation_id:
            put(line, texts, carried.correlation_id, "correlation_id", is_free=not is_searched)
        where = scope
        if span is not None:
            where = span
            if outcome is not START:  # when a start is written, the end may be known already
                line["duration_ms"] = span.duration_ns / 1e6
                line["outcome"] = outcome
                if span.extras is not NO_EXTRAS and span.error_type:
                    put_error(line, texts, span)
        if where.trace_id:
            line["trace_id"] = where.trace_id.to_bytes(16, "big").hex()
        if where.span_id:
            line["span_id"] = where.span_id.to_bytes(8, "big").hex()
        line.update(self._who)
        line["id"] = envelope.id
        if texts:
            scrub(line, texts)
        if is_searched and envelope.redacted:
            line.redacted = (*shape.redacted(envelope.redacted, payload), *line.redacted)
        if line.redacted:
            line["redacted"] = list(dict.fromkeys(line.redacted))
        return line

    def _new(self, second: int) -> str:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        self._second = (second, text)
        return text
