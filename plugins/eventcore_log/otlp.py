"""Lines as OTLP log records, which carry the event's name (``event_name``) beside severity, body and trace.

Written as bytes, as spans are; field numbers are those of opentelemetry/proto/logs/v1/logs.proto. The payload becomes
attributes of the same names; what the bus knows has OpenTelemetry's names where there are any
(https://opentelemetry.io/docs/specs/semconv/general/logs/).
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Any

from eventcore_log.outputs import Shortfall
from eventcore_otlp import Frame, TransportError, resource_attributes
from eventcore_otlp.wire import any_value, attributes, delimited, fixed64, varint

if TYPE_CHECKING:
    from collections.abc import Sequence

    import eventcore as ec
    from eventcore.envelope import Envelope
    from eventcore_log.line import Line
    from eventcore_otlp import OtlpOptions

__all__ = ["OtlpOutput", "log_record"]

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


def log_record(envelope: Envelope, line: Line) -> bytes:
    """Return one line of an envelope as a serialised ``LogRecord``."""
    severity = envelope.severity
    names = _NAMES | {"error_type": "exception.type" if "exception" in line else "error.type"}
    shown = {names.get(key, key): value for key, value in line.items() if key not in _ELSEWHERE}
    for key, value in line.get("fields", {}).items():  # the payload's own, whose names are taken in a line only
        shown.setdefault(key, value)
    parts = [
        b"\x09" + fixed64(envelope.time_ns),
        b"\x59" + fixed64(time.time_ns()),
        b"\x10" + varint(severity),
        delimited(b"\x1a", severity.name.encode()),
        delimited(b"\x2a", any_value(line["event"])),
        attributes(shown, b"\x32"),
        delimited(b"\x62", line["name"].encode()),
    ]
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
