"""``eventcore lint``: dashboards, rules and guides held against the catalog."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.catalog import Catalog
from eventcore.cli.output import AsJson, fail, printable, say_json
from eventcore.errors import EventCoreError
from eventcore.exposition import exposition_of, metric_of
from eventcore_generate.lint import lint as lint_files
from eventcore_generate.lint_known import read_exposition
from eventcore_generate.source import BUS_PACK, GIVEN_PACK, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eventcore.plugins import Plugins
    from eventcore_generate.promql_vectors import KnownSeries

__all__ = ["app"]

app = typer.Typer(add_completion=False)

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files, or folders with such files.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings to use instead of those found here.")
]
Pack = Annotated[
    list[str] | None,
    typer.Option("--pack", metavar="NAME", help="Metric pack instead of the enabled ones; may be repeated."),
]
Modules = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Module of your own event types; may be repeated."),
]
Instruments = Annotated[
    list[str] | None,
    typer.Option("--instruments", metavar="MODULE:NAME", help="List given to configure(); may be repeated."),
]
Others = Annotated[
    list[Path] | None,
    typer.Option("--known", metavar="FILE", help="A scrape of another exporter, whose series count as known."),
]
TargetLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--target-label", metavar="NAME", help="Label that scraping adds, such as namespace; may be repeated."
    ),
]


@app.command()
def lint(
    files: Files,
    *,
    as_json: AsJson = False,
    config: Config = None,
    pack: Pack = None,
    modules: Modules = None,
    instruments: Instruments = None,
    known: Others = None,
    target_label: TargetLabels = None,
) -> None:
    """Check every PromQL expression in dashboards (JSON), rules (YAML) and guides (Markdown).

    Says which series, label or label value does not exist in the catalog, which vector match can never join, and which
    function does not fit the metric. Known besides: what Prometheus makes itself (up, scrape_*, ALERTS), recording
    rules and scrape configurations among the files. The catalog is that of the settings: instruments of the enabled
    metric packs (of all installed ones, where no metric handler is configured) and the metrics of plugins.

    Exit codes: 0, 1 for findings, 2 where a file cannot be read. JSON: findings (file, line, where, code, message,
    remedy, expression), files, expressions, left_out (LogQL), packs, series.
    """
    try:
        source = _source(config, pack or (), modules or (), instruments or ())
        exposition = exposition_of(source.catalog, source.plugins)
        packs = [part.name for part in source.parts if part.name not in (BUS_PACK, GIVEN_PACK)]
        elsewhere = _elsewhere(source.plugins, packs)
        report = lint_files(
            files,
            exposition,
            others=_scrapes(known or ()),
            elsewhere=elsewhere,
            target_labels=target_label or (),
        )
    except EventCoreError as error:
        fail(error)
    if as_json:
        say_json({**report.as_dict(), "packs": packs, "series": len(exposition.series)})
    else:
        for finding in report.findings:
            typer.echo(printable(str(finding)))
        typer.echo(
            f"{_number(report.findings, 'finding')} in {_number(range(report.expressions), 'expression')} of "
            f"{_number(range(report.files), 'file')}, held against {len(exposition.series)} series names "
            f"(packs: {', '.join(packs) or 'none'})"
            + (f"; left out: {_number(range(report.left_out), 'expression')} of LogQL" if report.left_out else "")
        )
    if report.findings:
        raise typer.Exit(1)


def _source(config: Path | None, packs: Sequence[str], modules: Sequence[str], instruments: Sequence[str]) -> Source:
    """Return the catalog of the settings; with all installed packs where nothing says which."""
    source = Source(config, packs=packs, modules=modules, instruments=instruments)
    if packs or source.handlers("metric"):
        return source
    return Source(config, packs=source.catalog.packs, modules=modules, instruments=instruments)


def _elsewhere(plugins: Plugins, packs: Sequence[str]) -> dict[str, str]:
    """Return series that packs which are not in use would expose, with how to enable them."""
    names: dict[str, str] = {}
    for pack in plugins.packs().keys() - set(packs):
        with suppress(EventCoreError, ImportError):  # a pack that cannot be loaded is nothing to enable
            for instrument in Catalog(packs=plugins.packs()).pack(pack):
                remedy = f"it is in the metric pack {pack!r}: add it to packs in [handlers.metric]"
                names |= {series.name: remedy for series in metric_of(instrument).series}
    return names


def _scrapes(paths: Iterable[Path]) -> dict[str, KnownSeries]:
    series: dict[str, KnownSeries] = {}
    for path in paths:
        try:
            found = read_exposition(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise EventCoreError(f"--known {path} cannot be read: {error}") from None
        if not found:
            raise EventCoreError(f"--known {path} holds no series; give what the exporter's /metrics answers")
        series |= found
    return series


def _number(things: Any, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
