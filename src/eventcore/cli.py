"""The command line: which handlers are installed, and what the catalog knows."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from eventcore.catalog import Catalog
from eventcore.errors import EventCoreError
from eventcore.plugins import HandlerKind, Plugins
from eventcore.vocabulary import EVENTS

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Inspect eventcore's plugins and catalog.")
_out = Console()
_err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _main() -> None:
    """Inspect eventcore's plugins and catalog."""


@app.command()
def handlers(*, as_json: AsJson = False) -> None:
    """List the kinds of handlers that installed plugins offer, and whether each can be used."""
    plugins = _plugins()
    rows = [_describe(plugins, kind) for kind in sorted(plugins.handler_kinds().values(), key=lambda kind: kind.kind)]
    rows += [
        {"kind": name, "plugin": name, "version": "?", "delivery": "?", "about": "", "problem": f"broken: {error!r}"}
        for name, error in plugins.broken.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("kind", "plugin", "version", "delivery", "what it does")
    for row in rows:
        table.add_row(row["kind"], row["plugin"], row["version"], row["delivery"], row["problem"] or row["about"])
    _out.print(table)


@app.command()
def catalog(*, as_json: AsJson = False) -> None:
    """List the event types and the metric packs that installed plugins know."""
    try:
        known = Catalog(events=[*EVENTS, *_plugins().events()], packs=_plugins().packs())
        packs = {name: known.pack(name) for name in known.packs}
    except EventCoreError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps(_catalog_json(known, packs), indent=2))
        return
    events = Table("event", "category", "severity", "fields", title="Event types")
    for name, event_type in known.events.items():
        spec = event_type.__event__
        kind = " (operation)" if spec.is_operation else ""
        events.add_row(name + kind, spec.category.value, spec.severity.name.lower(), ", ".join(spec.fields))
    _out.print(events)
    for pack, instruments in packs.items():
        table = Table("metric", "kind", "labels", "from", title=f"Metric pack {pack}")
        for item in instruments:
            table.add_row(item.name, item.kind, ", ".join(item.labels), ", ".join(t.__event__.name for t in item.types))
        _out.print(table)


def _plugins() -> Plugins:
    try:
        return Plugins()
    except EventCoreError as error:
        _fail(error)


def _describe(plugins: Plugins, kind: HandlerKind) -> dict[str, str]:
    row = {"kind": kind.kind, "plugin": kind.plugin, "version": plugins.versions.get(kind.plugin, "?")}
    try:
        handler = kind.load()
    except EventCoreError as error:
        return {**row, "delivery": "?", "about": "", "problem": str(error)}
    about = (handler.__doc__ or "").strip().partition("\n")[0]
    return {**row, "delivery": handler.delivery, "about": about, "problem": ""}


def _catalog_json(known: Catalog, packs: dict[str, Any]) -> dict[str, Any]:
    return {
        "events": [
            {
                "name": name,
                "category": event_type.__event__.category.value,
                "severity": event_type.__event__.severity.name.lower(),
                "operation": event_type.__event__.is_operation,
                "fields": {
                    field.name: {
                        "role": field.role.kind if field.role else None,
                        "unit": field.unit,
                        "values": field.values,
                    }
                    for field in event_type.__event__.fields.values()
                },
            }
            for name, event_type in known.events.items()
        ],
        "packs": {
            pack: [
                {
                    "name": item.name,
                    "kind": item.kind,
                    "labels": {label: item.label_values(label) for label in item.labels},
                    "events": [event_type.__event__.name for event_type in item.types],
                }
                for item in instruments
            ]
            for pack, instruments in packs.items()
        },
    }


def _fail(error: EventCoreError) -> NoReturn:
    _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
