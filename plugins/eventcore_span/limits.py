"""How large a span may become: bounds of OpenTelemetry, read from its variables.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#attribute-limits
"""

from __future__ import annotations

from dataclasses import dataclass

from eventcore_otlp.environment import number

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one span; what meets them is counted on the span, or shows that it was cut."""

    attributes: int = 128
    text: int = 1_000
    """Characters of a value; OpenTelemetry's default is no limit, which promise 8 (bounded) does not allow."""
    elements: int = 1_000
    """Elements of an array."""
    stack: int = 8_000
    """Characters of a stack trace: the last ones, where the error is."""
    events: int = 128
    event_attributes: int = 128
    links: int = 128

    @classmethod
    def from_environment(cls) -> Limits:
        """Return the bounds that ``OTEL_SPAN_*_LIMIT``, ``OTEL_EVENT_*`` and ``OTEL_ATTRIBUTE_*_LIMIT`` ask for."""
        count, length = "OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"
        text = number("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", length)
        asked = {
            "attributes": number("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", count),
            "text": text,
            "stack": text,
            "events": number("OTEL_SPAN_EVENT_COUNT_LIMIT"),
            "event_attributes": number("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", count),
            "links": number("OTEL_SPAN_LINK_COUNT_LIMIT"),
        }
        return cls(**{name: value for name, value in asked.items() if value is not None})
