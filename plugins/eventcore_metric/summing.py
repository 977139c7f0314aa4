"""The summary in code: requests, shed requests and errors, whatever the pack calls them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventcore_metric.readings import Reading

__all__ = ["Summary", "summary_of"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals by label values: of the orchestrator's metrics by stage, of Tiny Dancer's by status and type of error."""

    requests_total: Mapping[str, float]
    requests_shed: Mapping[str, float]
    errors_total: Mapping[str, float]


def summary_of(readings: Iterable[Reading]) -> Summary:
    """Sum the counters whose names end with ``requests_total``, ``shed_total`` and ``errors_total``."""
    endings = ("requests_total", "shed_total", "errors_total")
    totals: dict[str, Counter[str]] = {ending: Counter() for ending in endings}
    for reading in readings:
        ending = next(
            (e for e in endings if reading.metric.kind == "counter" and reading.metric.name.endswith(e)), None
        )
        if ending is not None:
            for point in reading.points:
                totals[ending][",".join(point.labels)] += point.value  # type: ignore[assignment]  # numbers of any kind
    return Summary(*(dict(totals[ending]) for ending in endings))
