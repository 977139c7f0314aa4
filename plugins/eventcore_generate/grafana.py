"""Dashboards for Grafana, one per pack, built with Grafana's own foundation SDK.

The SDK is imported when a dashboard is made: it is large, and the other commands do without it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from eventcore_generate.output import Files  # noqa: TC001 - the command line reads the annotations
from eventcore_generate.panels import panels_of
from eventcore_generate.source import Source  # noqa: TC001 - the same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventcore.monitoring import Panel
    from eventcore_generate.source import Part

__all__ = ["grafana"]

DATASOURCE = "datasource"
"""The dashboard's variable that says which Prometheus to ask."""

SPAN, HEIGHT = 12, 8
"""Two panels in a row, of 24 columns."""

_COLOURS = ("green", "yellow", "red", "blue", "purple", "orange")


def grafana(source: Source) -> Files:
    """Make dashboards for Grafana, one per pack."""
    return dict(_dashboards(source))


def _dashboards(source: Source) -> Iterator[tuple[str, str]]:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    for part in source.parts:
        dashboard = _dashboard(source, part)
        if dashboard is not None:
            # Sorted, since the SDK does not promise an order; decoded again, so that it is our JSON's layout.
            content = json.loads(json.dumps(dashboard.build(), cls=JSONEncoder, sort_keys=True))
            yield f"{part.name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _dashboard(source: Source, part: Part) -> Any:
    from grafana_foundation_sdk.builders import dashboard as build
    from grafana_foundation_sdk.models import dashboard as models

    rows = list(panels_of(part))
    if not rows:
        return None
    made = (
        build.Dashboard(part.title)
        .uid(f"{source.slug}-{part.name}".replace("_", "-")[:40])
        .description("Made by `eventcore generate grafana` from the catalog.")
        .tags(["eventcore", source.service])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(build.DatasourceVariable(DATASOURCE).label("Prometheus").type("prometheus"))
    )
    number = 0
    for title, panels in rows:
        number += 1
        made = made.with_row(build.Row(title).id(number))
        for panel in panels:
            number += 1
            made = made.with_panel(_panel(panel, number))
    return made


def _panel(panel: Panel, number: int) -> Any:
    from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, timeseries
    from grafana_foundation_sdk.models import common as common_models
    from grafana_foundation_sdk.models import dashboard as models

    datasource = models.DataSourceRef(type_val="prometheus", uid=f"${{{DATASOURCE}}}")
    kind = statetimeline if panel.states else stat if panel.kind == "stat" else timeseries
    made: Any = kind.Panel().title(panel.title).id(number).datasource(datasource).span(SPAN).height(HEIGHT)
    about = [panel.description] if panel.description else []
    if panel.correction is not None:
        about += [f"The guide has `{panel.correction.original}`: {panel.correction.reason}"]
    if about:
        made = made.description("\n\n".join(about))
    if panel.unit:
        made = made.unit(panel.unit)
    if panel.states:
        results = {
            f"{code:g}": models.ValueMappingResult(text=state, color=_COLOURS[place % len(_COLOURS)], index=place)
            for place, (code, state) in enumerate(panel.states.items())
        }
        made = made.mappings([models.ValueMap(options=results)]).fill_opacity(70).line_width(0)
        made = made.show_value(common_models.VisibilityMode.AUTO)
    if kind is stat:
        made = made.color_mode(common_models.BigValueColorMode.VALUE)
    else:
        legend = common.VizLegendOptions().show_legend(show_legend=True)
        legend = legend.display_mode(common_models.LegendDisplayMode.LIST)
        made = made.legend(legend.placement(common_models.LegendPlacement.BOTTOM))
    if kind is timeseries:
        made = made.min(0).fill_opacity(10).show_points(common_models.VisibilityMode.NEVER)
    for place, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + place)).datasource(datasource)
        made = made.with_target(target.legend_format(query.legend) if query.legend else target)
    return made
