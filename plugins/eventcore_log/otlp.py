"""Lines as OTLP log records, which carry the event's name (``event_name``) beside severity, body and trace.

Written as bytes, as spans are; field numbers are those of opentelemetry/proto/logs/v1/logs.proto. The payload becomes
attributes of the same names; what the bus knows has OpenTelemetry's names where there are any
(https://opentelemetry.io/docs/specs/semconv/general/logs/).
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from eventcore_log.outputs import Shortfall
from eventcore_otlp import Frame, TransportError, resource_attributes
from eventcore_otlp.environment import number
from eventcore_otlp.wire import any_value, attributes, delimited, fixed64, varint

if TYPE_CHECKING:
    from collections.abc import Sequence

    import eventcore as ec
    from eventcore.envelope import Envelope
    from eventcore_log.line import Line
    from eventcore_otlp import OtlpOptions

__all__ = ["Limits", "OtlpOutput", "log_record"]

MAX_PER_REQUEST = 512
"""Records in one request; expanded batches would else make requests larger than receivers take."""

_NAMES = {
    "id": "log.record.uid",
    "error_message": "exception.message",
    "exception": "exception.stacktrace",
}
_ELSEWHERE = frozenset(
    {"event", "level", "timestamp", "name", "app", "version", "environment", "trace_id", "span_id", "fields"}
)
_SAMPLED = struct.pack("<I", 1)
_NOT_SAMPLED = struct.pack("<I", 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a record may become; attributes beyond are counted on it, cut text ends in an ellipsis."""

    attributes: int = 128
    text: int = 8_000
    """Characters of a text; OpenTelemetry's default is no limit, which promise 8 (bounded) does not allow."""

    @classmethod
    def from_environment(cls) -> Limits:
        """Return the bounds that ``OTEL_LOGRECORD_*_LIMIT`` and ``OTEL_ATTRIBUTE_*_LIMIT`` ask for."""
        count = number("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT")
        text = number("OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")
        asked = {"attributes": count, "text": text}
        return cls(**{name: value for name, value in asked.items() if value is not None})

    def cut(self, value: Any) -> Any:
        """Return a value with its texts cut, nested ones too."""
        if isinstance(value, str):
            return value if len(value) <= self.text else f"{value[: max(0, self.text - 1)]}…"[: self.text]
        if isinstance(value, list):
            return [self.cut(item) for item in value]
        return {key: self.cut(item) for key, item in value.items()} if isinstance(value, dict) else value


def log_record(envelope: Envelope, line: Line, limits: Limits) -> bytes:
    """Return one line of an envelope as a serialised ``LogRecord``."""
    severity = envelope.severity
    names = _NAMES | {"error_type": "exception.type" if "exception" in line else "error.type"}
    shown = {names.get(key, key): value for key, value in line.items() if key not in _ELSEWHERE}
    for key, value in line.get("fields", {}).items():  # the payload's own, whose names are taken in a line only
        shown.setdefault(key, value)
    if "exception" in line and isinstance(line["exception"], str):  # its end says most
        shown["exception.stacktrace"] = line["exception"][-limits.text :] if limits.text else ""
    dropped = max(0, len(shown) - limits.attributes)
    shown = {key: limits.cut(value) for key, value in islice(shown.items(), limits.attributes)}
    parts = [
        b"\x09" + fixed64(envelope.time_ns),
        b"\x59" + fixed64(time.time_ns()),
        b"\x10" + varint(severity),
        delimited(b"\x1a", severity.name.encode()),
        delimited(b"\x2a", any_value(limits.cut(line["event"]))),
        attributes(shown, b"\x32"),
        delimited(b"\x62", line["name"].encode()),
    ]
    if dropped:
        parts.append(b"\x38" + varint(dropped))
    where = envelope.span or envelope.scope
    if where.trace_id:
        parts.append(b"\x45" + (_SAMPLED if where.sampled else _NOT_SAMPLED))
        parts.append(delimited(b"\x4a", where.trace_id.to_bytes(16, "big")))
        if where.span_id:
            parts.append(delimited(b"\x52", where.span_id.to_bytes(8, "big")))
    return b"".join(parts)


class OtlpOutput:
    """Sends records to an OTLP receiver, in the worker that writes them."""

    is_tty = False

    def __init__(self, options: OtlpOptions, resource: ec.Resource) -> None:
        self._resource = resource
        self._transport = options.open("logs")
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._frame = Frame(resource_attributes(self._resource, self._pid))

    def write(self, items: Sequence[bytes]) -> None:
        """Send; Shortfall where the receiver refuses some, or cannot be reached in time."""
        if os.getpid() != self._pid:  # a forked child is another resource
            self._renew()
        refused, said = 0, ""
        for start in range(0, len(items), MAX_PER_REQUEST):
            chunk = items[start : start + MAX_PER_REQUEST]
            try:
                sent = self._transport.send(self._frame.request(chunk))
            except TransportError as error:
                raise Shortfall(start - refused, error) from error  # the next ones would wait as long as this one did
            refused += min(sent.rejected, len(chunk))
            said = sent.message or said
        if refused:  # OTLP says how many, not which: the last ones stand for them
            problem = f"the receiver rejected {refused} of {len(items)} log records: {said or 'no reason given'}"
            raise Shortfall(len(items) - refused, TransportError(problem))

    def hurry(self, grace_s: float) -> None:
        """Try at once what waits for a retry, and give up on anything ``grace_s`` from now."""
        self._transport.hurry(grace_s)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Close the connection; a retry that waits gives up."""
        self._transport.close()

    def describe(self) -> dict[str, Any]:
        """Return where requests go."""
        return self._transport.describe()

    def __repr__(self) -> str:
        return f"<otlp {self._transport.endpoint.url}>"
