"""OTLP: what the log, metric and span plugins share to send OpenTelemetry's protobuf messages over HTTP or gRPC.

A library, not a plugin: it contributes nothing of its own. A handler's configuration inherits ``OtlpOptions``;
``options.open("logs")`` (or ``open_transport("logs", endpoint=…)``) gives a ``Transport``, whose ``send`` takes a
serialised request. ``wire`` writes what all three signals have in common. No network library is imported before a
transport is opened.
"""

from __future__ import annotations

from eventcore_otlp.endpoint import Endpoint, Signal
from eventcore_otlp.options import OtlpOptions, open_transport
from eventcore_otlp.resource import SCOPE_NAME, resource_attributes
from eventcore_otlp.transport import Sent, Transport, TransportError
from eventcore_otlp.wire import Frame

__all__ = [
    "SCOPE_NAME",
    "Endpoint",
    "Frame",
    "OtlpOptions",
    "Sent",
    "Signal",
    "Transport",
    "TransportError",
    "open_transport",
    "resource_attributes",
]
