"""Who emits, as OpenTelemetry names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import eventcore as ec

if TYPE_CHECKING:
    from eventcore_otlp.wire import AttributeValue

__all__ = ["SCOPE_NAME", "resource_attributes"]

SCOPE_NAME = "eventcore"
"""The instrumentation scope of everything that eventcore exports; its version is eventcore's."""


def resource_attributes(resource: ec.Resource, pid: int) -> dict[str, AttributeValue]:
    """Return who emits, as attributes under OpenTelemetry's names."""
    attributes: dict[str, AttributeValue] = {"service.name": resource.service, "service.version": resource.version}
    if resource.environment:
        attributes["deployment.environment.name"] = resource.environment
    attributes["telemetry.sdk.name"] = "eventcore"
    attributes["telemetry.sdk.language"] = "python"
    attributes["telemetry.sdk.version"] = ec.__version__
    attributes["process.pid"] = pid
    return {**attributes, **resource.attributes}
