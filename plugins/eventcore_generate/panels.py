"""Which panels a pack has: those of its guide, then one for each metric, chosen by kind, unit and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventcore.instruments import Codes
from eventcore.monitoring import Panel, Query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventcore.exposition import Metric
    from eventcore.instruments import Instrument
    from eventcore_generate.source import Part

__all__ = ["WINDOW", "panel_of", "panels_of"]

WINDOW = "5m"
"""The range of rates, as in the guides."""

QUANTILES = (0.5, 0.95, 0.99)
_UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit", "celsius": "celsius", "volts": "volt"}


def panels_of(part: Part) -> Iterator[tuple[str, tuple[Panel, ...]]]:
    """Yield the rows of a part's dashboard: title and panels."""
    own = part.monitoring.panels if part.monitoring else ()
    if own:
        yield "Overview", own
    shown = {query.expr for panel in own for query in panel.queries}
    rest = [panel_of(metric, part.instruments.get(metric.name)) for metric in part.metrics]
    rest = [panel for panel in rest if not shown.issuperset(query.expr for query in panel.queries)]
    if rest:
        yield "All metrics", tuple(rest)


def panel_of(metric: Metric, instrument: Instrument | None = None) -> Panel:
    """Return the panel of one metric: rates of counters, quantiles of histograms, values and states of gauges."""
    labels = [label for label, values in metric.labels.items() if values is None or len(values) > 1]
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    by = f" by ({', '.join(labels)})" if labels else ""
    bare = metric.name.removesuffix("_total")
    title = (bare.removesuffix(f"_{metric.unit}") if metric.unit else bare).replace("_", " ").capitalize()
    if metric.kind == "histogram":
        by = f" by ({', '.join(['le', *labels])})"
        rate = f"sum{by} (rate({metric.name}_bucket[{WINDOW}]))"
        queries = tuple(
            Query(f"histogram_quantile({quantile}, {rate})", f"p{quantile * 100:g} {legend}".rstrip())
            for quantile in QUANTILES
        )
        return Panel(title=title, queries=queries, unit=_UNITS.get(metric.unit, "short"), description=metric.help)
    if metric.kind == "counter":
        queries = (Query(f"sum{by} (rate({metric.name}[{WINDOW}]))", legend or title),)
        # Seconds per second are a share: of time spent.
        unit = "percentunit" if metric.unit == "seconds" else "Bps" if metric.unit == "bytes" else "ops"
        return Panel(title=f"{title} per second", queries=queries, unit=unit, description=metric.help)
    states = _states(instrument)
    return Panel(
        title=title,
        queries=(Query(metric.name, legend or title),),
        unit="dateTimeFromNow" if metric.name.endswith("_time_seconds") else _UNITS.get(metric.unit, "short"),
        description=metric.help,
        states=states,
    )


def _states(instrument: Instrument | None) -> dict[float, str]:
    source = instrument.value_source if instrument is not None else None
    return {code: str(state) for state, code in source.codes.items()} if isinstance(source, Codes) else {}
