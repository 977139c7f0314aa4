"""What is watched of a metric pack: panels of dashboards, alerts, recording rules, alerts over logs. Pure data.

It lies beside the pack's instruments and is contributed by the plugin that offers the pack (hook
``eventcore_monitoring``); ``eventcore generate`` makes files for Grafana, Prometheus and log stores from it. An alert
brings a bad and a good case, so that it can be shown to fire in the one and to be silent in the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from eventcore.errors import DefinitionError

__all__ = ["Alert", "BadCase", "Correction", "LogAlert", "Monitoring", "Panel", "Query", "Recording", "RuleGroup"]

DURATION = re.compile(r"(\d+)([smhd])")
_LABEL = re.compile(r"\$labels\.(\w+)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

SeriesValues = Mapping[str, str]
"""Samples one minute apart, by series, in promtool's notation: ``{'x_total{a="b"}': "0+60x20"}``."""


def seconds(duration: str, where: str) -> int:
    """Return the seconds of a Prometheus duration of one unit, such as ``5m``; DefinitionError says where it is."""
    match = DURATION.fullmatch(duration)
    if match is None:
        raise DefinitionError(f"{where}: {duration!r} is no duration; write a number and a unit, such as 30s, 5m or 1h")
    return int(match[1]) * _SECONDS[match[2]]


@dataclass(frozen=True, slots=True)
class Correction:
    """That an expression is not what a guide printed: what it printed, and why that cannot return data."""

    original: str
    reason: str


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and the legend of its series (Grafana's template over labels: ``{{status}}``)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel of a dashboard.

    ``unit`` is a unit of Grafana (``s``, ``bytes``, ``percentunit``, ``ops``); ``states`` gives numbers names and makes
    the panel a time line of states.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"
    description: str = ""
    states: Mapping[float, str] = field(default_factory=dict)
    correction: Correction | None = None

    def __post_init__(self) -> None:
        if not self.queries:
            raise DefinitionError(f"panel {self.title!r} has no query; name at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCase:
    """A case in which an alert must fire: after ``after``, for a series with ``labels``, with ``value`` in its text."""

    series: SeriesValues
    after: str
    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert: fires when ``expr`` has returned data for as long as ``for_`` says.

    ``bad`` is a case in which it must fire, ``good`` the samples of one in which it must be silent at the same time.
    """

    name: str
    expr: str
    for_: str
    summary: str
    bad: BadCase
    good: SeriesValues
    description: str = ""
    severity: Literal["info", "warning", "critical"] = "warning"
    correction: Correction | None = None

    def __post_init__(self) -> None:
        where = f"alert {self.name!r}"
        if seconds(self.bad.after, where) < seconds(self.for_, where):
            raise DefinitionError(f"{where}: its bad case ends after {self.bad.after}, before for_ {self.for_} is over")
        for label in _LABEL.findall(self.summary + self.description):
            if label not in self.bad.labels:
                raise DefinitionError(f"{where}: its text names label {label!r}, which its bad case does not have")


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording rule: the result of ``expr`` is kept as the series ``name`` (``level:metric:operations``)."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogAlert:
    """An alert over log lines: more than ``above`` of those that ``where`` selects, within ``window``.

    ``where``: ``name`` (of the event), ``outcome`` or a payload field to its value; under which key a line has it
    depends on the schema of the log.
    """

    name: str
    where: Mapping[str, str]
    window: str
    above: int
    summary: str
    severity: Literal["info", "warning", "critical"] = "warning"

    def __post_init__(self) -> None:
        seconds(self.window, f"log alert {self.name!r}")
        if not self.where:
            raise DefinitionError(
                f"log alert {self.name!r} selects every line; name at least one fact or field in where={{…}}"
            )


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules that are evaluated together, in order; alerts of one name in several groups do not clash."""

    name: str
    rules: tuple[Alert | Recording, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    """All that is watched of one pack; ``title`` is that of its dashboard."""

    title: str
    panels: tuple[Panel, ...] = ()
    groups: tuple[RuleGroup, ...] = ()
    log_alerts: tuple[LogAlert, ...] = ()

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """The alerts of all groups."""
        return tuple(rule for group in self.groups for rule in group.rules if isinstance(rule, Alert))
