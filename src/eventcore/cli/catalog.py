"""``eventcore catalog``: event types, metric packs and instruments, and what a change of them would break."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from eventcore.cli.output import AsJson, fail, say, say_json, say_table
from eventcore.cli.source import Config, Import, Url, say_source, source_of
from eventcore.errors import EventCoreError
from eventcore.snapshot import changes, load_snapshot, snapshot_text

__all__ = ["catalog"]


def catalog(
    *,
    as_json: AsJson = False,
    url: Url = None,
    config: Config = None,
    modules: Import = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a snapshot, for the repository.", dir_okay=False)
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say what breaks against a snapshot; exit code 1 if anything does."),
    ] = None,
) -> None:
    """List event types and metric packs of the installed plugins; with --url, all that the process knows.

    JSON: events (name, category, severity, operation, fields with role, unit, values), packs by name and instruments
    given in code (name, kind, labels with their values, events). With --compare: compatible, changes.
    """
    try:
        source = source_of(url, config, modules)
        if save is not None or compare is not None:
            snapshot = source.snapshot()
            before = None if compare is None else load_snapshot(compare)
            if save is not None:
                _write(save, snapshot_text(snapshot))
            if before is not None:
                _say_changes(changes(before, snapshot), str(compare), as_json=as_json)
            return
        answer = source.catalog()
    except EventCoreError as error:
        fail(error)
    if as_json:
        say_json(answer)
        return
    say_source(answer)
    say_table(
        ("event", "category", "severity", "fields"),
        [
            (
                event["name"] + (" (operation)" if event["operation"] else ""),
                event["category"],
                event["severity"],
                ", ".join(event["fields"]),
            )
            for event in answer["events"]
        ],
        title="Event types",
    )
    lists = {f"Metric pack {name}": items for name, items in answer["packs"].items()}
    for title, items in (lists | ({"Given in code": answer["instruments"]} if answer["instruments"] else {})).items():
        say_table(
            ("metric", "kind", "labels", "from"),
            [(item["name"], item["kind"], ", ".join(item["labels"]), ", ".join(item["events"])) for item in items],
            title=title,
        )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{path}: cannot be written: {error.strerror}")


def _say_changes(found: list[str], file: str, *, as_json: bool) -> None:
    if as_json:
        say_json({"compatible": not found, "changes": found})
    elif found:
        for change in found:
            say(change)
        say(f"{len(found)} changes break users of {file}; undo them, or accept them with --save {file}", style="red")
    else:
        say(f"compatible with {file}")
    if found:
        raise typer.Exit(1)
