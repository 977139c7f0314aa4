"""``eventcore catalog``: event types, metric packs and instruments, and what a change of them would break."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Any

import typer

from eventcore.cli.output import AsJson, fail, say, say_json, say_table
from eventcore.cli.source import Config, Import, Instruments, Url, say_source, source_of
from eventcore.errors import EventCoreError
from eventcore.snapshot import changes, load_snapshot, snapshot_text

__all__ = ["catalog"]


def catalog(
    *,
    as_json: AsJson = False,
    url: Url = None,
    config: Config = None,
    modules: Import = None,
    instruments: Instruments = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a snapshot, for the repository; with --compare only if nothing breaks.",
            dir_okay=False,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say what breaks against a snapshot; exit code 1 if anything does."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Say which instruments can make too many series; exit code 1 if any does."),
    ] = False,
) -> None:
    """List event types and metric packs of the installed plugins; with --url, all that the process knows.

    JSON: events (name, category, severity, operation, fields with role, unit, values), packs by name, instruments given
    in code and metrics by_hand (name, kind, labels with their values, combinations of these, events). With --compare:
    compatible, changes. With --check: max_series, over (name, combinations), open (names of those with open labels).
    """
    try:
        source = source_of(url, config, modules, instruments, is_for_catalog=True)
        if save is not None or compare is not None:
            snapshot = source.snapshot()
            before = None if compare is None else load_snapshot(compare)
            if before is not None:
                _say_changes(changes(before, snapshot), str(compare), as_json=as_json)
            if save is not None:
                _write(save, snapshot_text(snapshot))
            return
        answer = source.catalog()
    except EventCoreError as error:
        fail(error)
    if check:
        _say_cardinality(answer, as_json=as_json)
        return
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
    lists |= {"Given in code": answer["instruments"], "By hand": answer.get("by_hand", [])}
    for title, items in lists.items():
        if not items:
            continue
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


def _say_cardinality(answer: dict[str, Any], *, as_json: bool) -> None:
    """Hold the worst case of every instrument, by the values that its labels can have, against the limit of series."""
    limit = answer["max_series"]
    lists = (*answer["packs"].values(), answer["instruments"], answer.get("by_hand", []))
    items = {item["name"]: item for items in lists for item in items}
    over = {name: n for name, item in items.items() if (n := item["combinations"]) is not None and n > limit}
    unbounded = [name for name, item in items.items() if item["combinations"] is None]
    if as_json:
        say_json(
            {
                "max_series": limit,
                "over": [{"name": name, "combinations": number} for name, number in over.items()],
                "open": unbounded,
            }
        )
    else:
        for name, number in over.items():
            labels = items[name]["labels"]
            made_of = " x ".join(f"{label} {len(values)}" for label, values in labels.items())
            say(f"{name}: {number} label combinations ({made_of}), the limit is {limit}: drop a label, or use ec.bins")
        say(f"{len(items)} instruments, {len(over)} over the limit of {limit} series each", style="red" if over else "")
        if unbounded:
            say(f"limited only at run time, since a label is open: {', '.join(unbounded)}")
    if over:
        raise typer.Exit(1)


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
