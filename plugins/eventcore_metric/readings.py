"""Readings: what a metric shows at one moment, in no exporter's terms.

Whatever has numbers (the folded series, the bus's account, the process) gives readings; each exporter translates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventcore.exposition import Metric

__all__ = ["OTHER", "Across", "Exemplar", "Limit", "Point", "Reading"]

OTHER = "other"
"""Every label value of the overflow series."""

L = TypeVar("L", bound=tuple[str, ...])

Across = Literal["sum", "max", "min", "latest"]
"""How the gauges of several processes become one: see ``multiprocess``. Counters and histograms are always summed."""


class Exemplar(NamedTuple):
    """One observation with the trace it was made in."""

    trace_id: int
    span_id: int
    value: float
    time_ns: int


class Point(NamedTuple):
    """One series: label values in the order of the metric's labels, and its value.

    Of a histogram ``value`` is the sum, and ``counts`` has the observations per bucket (not cumulative; the last one is
    +Inf). ``exemplars`` are one per bucket, of a counter one, or none at all. ``time_s`` says when a gauge was set, 0
    where that is not known.
    """

    labels: tuple[str, ...]
    value: float
    counts: Sequence[float] = ()
    exemplars: Sequence[Exemplar | None] = ()
    time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric and its series at one moment."""

    metric: Metric
    points: Sequence[Point]
    across: Across = "sum"


class Limit:
    """Keeps a metric that is read from elsewhere, not folded here, within a number of series.

    The first ``limit`` label combinations keep their series; the sum of all others is the overflow series. Where only
    the first ``leading`` labels are open, their combinations count, each with as many series as the others can make.
    """

    def __init__(self, name: str, limit: int, *, leading: int | None = None) -> None:
        self.name = name
        self.limit = limit
        self._leading = leading
        self.overflowed = 0
        self._known: set[tuple[str, ...]] = set()

    def __len__(self) -> int:
        return len(self._known) + bool(self.overflowed)

    def points(self, numbers: Mapping[L, int]) -> list[Point]:
        """Return a counter's series, at most ``limit`` and one for the overflow."""
        known, points, rest = self._known, [], 0
        for labels, number in numbers.items():
            open_labels = labels[: self._leading]
            if open_labels not in known:
                if len(known) >= self.limit:
                    rest += number
                    continue
                known.add(open_labels)
            points.append(Point(labels, number))
        self.overflowed = rest
        if rest:
            points.append(Point((OTHER,) * len(points[0].labels), rest))
        return points
