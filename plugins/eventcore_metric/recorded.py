"""Metrics by hand, recorded: the families they fill, written by any thread."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from math import isfinite
from typing import TYPE_CHECKING, Any

from eventcore_metric.series import MAX_INITIAL_SERIES, CounterFamily, GaugeFamily, HistogramFamily

if TYPE_CHECKING:
    from eventcore.by_hand import HandMade
    from eventcore_metric.series import AnyFamily, Store

__all__ = ["Recorded"]


class Recorded:
    """Fills one family. The lock is held for a few lines; it may be taken again by a signal handler of its holder."""

    def __init__(self, hand: HandMade, limit: int, store: Store) -> None:
        metric = hand.metric
        self.family: AnyFamily
        if metric.kind == "counter":
            self.family = CounterFamily(metric, limit, store)
        elif metric.kind == "gauge":
            self.family = GaugeFamily(metric, limit, store, hand.across)
        else:
            self.family = HistogramFamily(metric, limit, store)
        self._family: Any = self.family  # the kind fits: each declaration calls only its own methods
        self._lock = threading.RLock()
        self._initialise()

    def _initialise(self) -> None:
        """Make the series that are known beforehand, so that ``rate()`` sees the first increment; not of gauges."""
        metric = self.family.metric
        if metric.kind != "gauge" and (metric.combinations or MAX_INITIAL_SERIES + 1) <= MAX_INITIAL_SERIES:
            for labels in itertools.product(*(sorted(values or ()) for values in metric.labels.values())):
                self.family.at(labels)

    def add(self, labels: tuple[str, ...], amount: float) -> None:
        """Add to a counter or gauge."""
        with self._lock:
            if self._is_taken(amount, takes_negative=self.family.metric.kind == "gauge"):
                self._family.at(labels).value += amount

    def set(self, labels: tuple[str, ...], value: Any) -> None:
        """Set a gauge, to any number."""
        with self._lock:
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                self.family.rejected += 1
            else:
                self._family.at(labels).value = number

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        """Add an observation to a histogram."""
        with self._lock:
            if self._is_taken(value, takes_negative=True):
                series = self._family.at(labels)
                series.counts[bisect_left(self._family.bounds, value)] += 1
                series.sum += value

    def _is_taken(self, number: Any, *, takes_negative: bool) -> bool:
        """Whether it is a finite number: a single NaN in a sum would make all later rates NaN."""
        try:
            if isfinite(number) and (takes_negative or number >= 0):
                return True
        except (TypeError, OverflowError):
            pass
        self.family.rejected += 1
        return False

    def after_fork(self) -> None:
        """In a forked child: start at zero; the lock may have been held."""
        self._lock = threading.RLock()
        self.family.after_fork()
