"""The resource: who emits; and what OpenTelemetry's variables say about it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NAMED", "Resource", "otel_resource"]

NAMED: Mapping[str, str] = {
    "service.name": "service",
    "service.version": "version",
    "deployment.environment.name": "environment",
}
"""Resource attributes that are settings here."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Who emits: what exporters put beside every signal."""

    service: str = "unknown_service"
    version: str = "0"
    environment: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


def otel_resource(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes that ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME``, which wins, say.

    Values are percent-encoded. A malformed list is warned of and ignored whole, as OpenTelemetry asks.
    """
    found: dict[str, str] = {}
    for member in filter(None, (part.strip() for part in variables.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))):
        key, separator, value = member.partition("=")
        if not separator or not key.strip():
            what = f"variable OTEL_RESOURCE_ATTRIBUTES is ignored: {member!r} is no key=value"
            warnings.warn(what, stacklevel=2)
            found.clear()
            break
        found[unquote(key.strip())] = unquote(value.strip())
    service = variables.get("OTEL_SERVICE_NAME", "").strip()
    return {**found, "service.name": service} if service else found
