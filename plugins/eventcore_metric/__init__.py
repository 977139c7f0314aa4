"""The ``metric`` plugin: instruments over events become series, for Prometheus and for OpenTelemetry.

``[handlers.metric]`` switches it on; ``/metrics`` appears wherever the ``http`` plugin serves or is mounted.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from eventcore import by_hand
from eventcore.plugins import hookimpl

if TYPE_CHECKING:
    from eventcore.emitter import Emitter
    from eventcore.exposition import Metric
    from eventcore.http import HttpRoute

__all__ = ["eventcore_events", "eventcore_handlers", "eventcore_routes", "eventcore_series"]


@hookimpl
def eventcore_handlers() -> dict[str, str]:
    """Return the handler kind ``metric``."""
    return {"metric": "eventcore_metric.handler:MetricHandler"}


@hookimpl
def eventcore_events() -> list[str]:
    """Return the events that warn of a metric at its limit, and of an export that fails."""
    return ["eventcore_metric.events:SeriesOverflow", "eventcore_metric.events:ExportChanged"]


@hookimpl
def eventcore_series() -> list[str | Metric]:
    """Return the metrics that are no instruments: the bus's account, limits, process and host, and those by hand."""
    return ["eventcore_metric.declared:OWN", *(hand.metric for hand in by_hand.declared())]


@hookimpl
def eventcore_routes(emitter: Emitter) -> list[HttpRoute]:
    """Return ``/metrics`` for the first metric handler attached, ``/metrics/<name>`` for each further one."""
    handler = sys.modules.get("eventcore_metric.handler")  # not imported: no such handler, and perhaps no library
    return [] if handler is None else cast("list[HttpRoute]", handler.routes(emitter))
