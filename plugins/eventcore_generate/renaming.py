"""Panels and alerts of a pack whose metrics the settings give other names (``rename`` of a metric handler).

Queries name series, so each series' name is replaced by the one that it is exposed under; texts in quotes, which are
label values, stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from eventcore.monitoring import Alert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.monitoring import Monitoring, Panel, Recording, RuleGroup, SeriesValues

__all__ = ["renamed"]

_WORD = re.compile(r'"(?:\\.|[^"\\])*"|[A-Za-z_:][A-Za-z0-9_:]*')


def renamed(monitoring: Monitoring, names: Mapping[str, str]) -> Monitoring:
    """Return what is watched, with series under their new names; ``names``: old to new, of series."""
    if not names:
        return monitoring
    return replace(
        monitoring,
        panels=tuple(_panel(panel, names) for panel in monitoring.panels),
        groups=tuple(_group(group, names) for group in monitoring.groups),
    )


def _expression(text: str, names: Mapping[str, str]) -> str:
    return _WORD.sub(lambda match: names.get(match[0], match[0]), text)


def _panel(panel: Panel, names: Mapping[str, str]) -> Panel:
    return replace(panel, queries=tuple(replace(one, expr=_expression(one.expr, names)) for one in panel.queries))


def _group(group: RuleGroup, names: Mapping[str, str]) -> RuleGroup:
    return replace(group, rules=tuple(_rule(rule, names) for rule in group.rules))


def _rule(rule: Alert | Recording, names: Mapping[str, str]) -> Alert | Recording:
    expr = _expression(rule.expr, names)
    if not isinstance(rule, Alert):
        return replace(rule, expr=expr)
    bad = replace(rule.bad, series=_series(rule.bad.series, names))
    return replace(rule, expr=expr, bad=bad, good=_series(rule.good, names))


def _series(samples: SeriesValues, names: Mapping[str, str]) -> SeriesValues:
    return {_expression(series, names): values for series, values in samples.items()}
