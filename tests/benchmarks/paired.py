"""Paired rounds: ours and the peer's in turn, in one process, so that drift of the machine hits both alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 15


@dataclass(frozen=True)
class Result:
    """One row of the table; figures in ``unit``, ``ratio`` the median of the rounds' ratios ours / peer."""

    measure: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    spread: tuple[float, float]
    reach: float | None
    unit: str = "µs"
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the ratio is as low as wanted; None where nothing was asked."""
        return None if self.reach is None else self.ratio <= self.reach


def per_call(function: Callable[[], object], calls: int) -> float:
    """Return microseconds per call, less what an empty loop costs."""
    calling = range(calls)
    start = time.perf_counter_ns()
    for _ in calling:
        pass
    empty = time.perf_counter_ns() - start
    start = time.perf_counter_ns()
    for _ in calling:
        function()
    return (time.perf_counter_ns() - start - empty) / calls / 1000


def compare(
    measure: str,
    ours: Callable[[], object],
    peer_name: str,
    peer: Callable[[], object],
    *,
    calls: int,
    reach: float | None,
    after: Callable[[], object] = lambda: None,
    less: Callable[[], object] | None = None,
    note: str = "",
) -> Result:
    """Time both in turn; ``less`` is timed too and taken off ours, ``after`` runs untimed after each round of ours."""
    mine: list[float] = []
    theirs: list[float] = []
    per_call(ours, calls)
    after()
    per_call(peer, calls)
    for _ in range(ROUNDS):
        gc.collect()
        cost = per_call(ours, calls)
        after()
        if less is not None:
            cost -= per_call(less, calls)
        mine.append(cost)
        theirs.append(per_call(peer, calls))
    return result(measure, mine, peer_name, theirs, reach=reach, note=note)


def result(
    measure: str,
    ours: list[float],
    peer_name: str,
    peer: list[float],
    *,
    reach: float | None,
    unit: str = "µs",
    note: str = "",
) -> Result:
    """Return a row from paired samples."""
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
    quarter = len(ratios) // 4
    return Result(
        measure,
        statistics.median(ours),
        peer_name,
        statistics.median(peer),
        statistics.median(ratios),
        (ratios[quarter], ratios[-1 - quarter]),
        reach,
        unit,
        note,
    )
