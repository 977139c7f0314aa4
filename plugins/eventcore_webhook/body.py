"""The body of a webhook: ``{"type": …, "timestamp": …, "data": {…}}``, as Standard Webhooks recommends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json

from eventcore.vocabulary import AdHocEvent, AdHocOperation, LogRecord

if TYPE_CHECKING:
    from eventcore.envelope import Envelope

__all__ = ["encode"]


def encode(envelope: Envelope, service: str) -> bytes:
    """Return the body for an envelope, as UTF-8 JSON.

    ``data`` has the payload and beside it the facts ``service``, ``severity``, ``category``, ``message``, ``tags``,
    ``trace_id``, ``span_id``, ``correlation_id`` and, for operations, ``duration_s``, ``outcome``, ``error_type``,
    where they have a value. A payload field that bears the name of a fact takes its place, as everywhere in eventcore.
    NaN and infinities become null.
    """
    facts = {
        "service": service,
        "severity": envelope.severity.name.lower(),
        "category": envelope.category.value,
        "message": envelope.message,
        "tags": list(envelope.tags) or None,
        "trace_id": envelope.trace_id,
        "span_id": envelope.span_id,
        "correlation_id": envelope.correlation_id,
        "duration_s": envelope.duration_s,
        "outcome": envelope.outcome,
        "error_type": envelope.error_type,
    }
    data = {key: value for key, value in facts.items() if value is not None} | _payload(envelope)
    body = {
        "type": envelope.name,
        "timestamp": envelope.time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "data": data,
    }
    try:
        return _json(body)
    except PydanticSerializationError:  # half of a surrogate pair, which UTF-8 has no form for
        return _json(_encodable(body))


def _json(body: dict[str, Any]) -> bytes:
    return to_json(body, inf_nan_mode="null", bytes_mode="base64", fallback=_plain)


def _payload(envelope: Envelope) -> dict[str, Any]:
    """Return the payload; of events without a class of their own, what they carry."""
    payload = dict(envelope.payload)
    if isinstance(envelope.event, AdHocOperation):
        return dict(payload["attributes"])
    if isinstance(envelope.event, AdHocEvent | LogRecord):
        data: dict[str, Any] = payload.pop("data")
        del payload["text"]  # it is the message
        return {key: value for key, value in payload.items() if value is not None} | data
    return payload


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into something it does: arrays into lists, the rest into text."""
    return value.tolist() if hasattr(value, "tolist") else _encodable(str(value))


def _encodable(value: Any) -> Any:
    """Return ``value`` with ``?`` for what UTF-8 has no form for, nested too."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else value
