"""A finished span in plain Python values, between the envelope that it came from and the format that it leaves in.

Every exporter takes ``FinishedSpan``: ids are integers, attribute values are ``str``, ``bool``, ``int`` (64 bits),
``float`` or tuples of these, secrets are gone and limits hold. So a format is a few lines, and console, file and memory
need no library. Making one costs less than a third of what the OpenTelemetry SDK's encoder costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventcore_otlp.wire import AttributeValue

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CLIENT",
    "FLAGS",
    "FLAGS_OF_REMOTE",
    "INTERNAL",
    "SERVER",
    "STATUS_ERROR",
    "STATUS_UNSET",
    "AttributeValue",
    "FinishedSpan",
    "SpanEvent",
]

INTERNAL, SERVER, CLIENT = 1, 2, 3
"""Values of OTLP's ``Span.SpanKind``."""

STATUS_UNSET, STATUS_ERROR = 0, 2
"""Values of OTLP's ``Status.StatusCode``; OpenTelemetry leaves OK (1) to people, so success stays UNSET."""

FLAGS, FLAGS_OF_REMOTE = 0x101, 0x301
"""OTLP's ``Span.flags``: sampled (only those are made), and it is known whether the parent is remote, and if it is."""


@dataclass(slots=True)
class SpanEvent:
    """Something that happened at one moment of a span."""

    name: str
    time_ns: int
    attributes: Mapping[str, AttributeValue]
    dropped_attributes: int = 0


@dataclass(slots=True)
class FinishedSpan:
    """One span, ready to be exported; ``links`` are ``(trace_id, span_id)``, a ``parent_span_id`` of 0 is a root."""

    name: str
    trace_id: int
    span_id: int
    parent_span_id: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    kind: int = INTERNAL
    is_parent_remote: bool = False
    status: int = STATUS_UNSET
    status_message: str = ""
    trace_state: str = ""
    dropped_attributes: int = 0
    events: tuple[SpanEvent, ...] = ()
    links: tuple[tuple[int, int], ...] = ()
    dropped_links: int = 0
    dropped_events: int = 0

    @property
    def flags(self) -> int:
        """OTLP's ``flags``."""
        return FLAGS_OF_REMOTE if self.is_parent_remote else FLAGS
