"""What of an envelope is searched for secrets: its payload, what is bound around it, and the span of its operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.context import NOTHING_CARRIED, Carried
from eventcore.extras import NO_EXTRAS
from eventcore.fields import unset
from eventcore.redaction import REDACTED, scrub, scrub_error

if TYPE_CHECKING:
    from eventcore.envelope import Envelope
    from eventcore.operation import LiveOperation

__all__ = ["redact"]


def redact(envelope: Envelope) -> None:
    """Replace the secrets of an envelope in place; the event and the scope, which others have too, by copies."""
    spec, fields = envelope.spec, envelope.fields
    is_surrounded = _is_surrounded(envelope)
    if not (spec.sensitive or spec.texts or is_surrounded):
        envelope.redacted = ()
        envelope.is_redacted = True
        return
    changes: dict[str, Any] = {}
    for key in spec.sensitive:
        value = fields.get(key)
        if value is not None and value is not unset:
            changes[key] = REDACTED
    for key in spec.texts:
        value = fields.get(key)
        scrubbed = scrub(value)
        if scrubbed is not value:
            changes[key] = scrubbed
    around = _redact_around(envelope) if is_surrounded else []
    if changes:
        envelope.changed((*changes, *around), envelope.event.model_copy(update=changes))
        _forget_fields(envelope)
    elif around:
        envelope.changed(around)
    elif not hasattr(envelope, "redacted"):
        envelope.redacted = ()
    envelope.is_redacted = True


def _is_surrounded(envelope: Envelope) -> bool:
    """Whether there is more than the payload that secrets may be in."""
    scope, span = envelope.scope, envelope.span
    carried = scope.carried
    is_bound = carried is not NOTHING_CARRIED and (carried.bound or carried.correlation_id or carried.baggage)
    return bool(envelope.tags or is_bound) or (span is not None and span.extras is not NO_EXTRAS)


def _redact_around(envelope: Envelope) -> list[str]:
    tags, scope, span = scrub(envelope.tags), envelope.scope, envelope.span
    bound, correlation_id, baggage = scrub(scope.bound), scrub(scope.correlation_id), scrub(scope.baggage)
    changed = [scrub(key) for key, value in scope.bound.items() if key not in bound or bound[key] is not value]
    if correlation_id is not scope.correlation_id:
        changed.append("correlation_id")
    if baggage is not scope.baggage:
        changed.append("baggage")
    if changed:  # a copy: the scope itself is in force somewhere
        envelope.scope = scope.carrying(Carried(bound, correlation_id, baggage, scope.tracestate))
    if tags is not envelope.tags:
        envelope.tags = tags
        changed.append("tags")
    if span is not None and span.error is not None and scrub_error(span.error):
        changed.append("exception")
    if span is not None and not envelope.is_start:
        changed += _redact_span(span)
        if span.invalid:
            _forget_fields(envelope)
    return changed


def _redact_span(span: LiveOperation[Any]) -> list[str]:
    """Scrub what instrumented libraries have put on an ended operation's span."""
    name, attributes = scrub(span.span_name), scrub(span.span_attributes)
    changed = []
    if name is not span.span_name:
        span.own_extras().span_name = name
        changed.append("span_name")
    if attributes is not span.span_attributes:
        span.own_extras().span_attributes = attributes
        changed.append("span_attributes")
    return changed


def _forget_fields(envelope: Envelope) -> None:
    """Leave of an ended operation's fields what its event has: one that was not valid may have been secret."""
    if envelope.span is not None and not envelope.is_start:
        held = envelope.fields
        envelope.span.fields = {key: held.get(key, unset) for key in envelope.span.fields}
