"""``eventcore catalog``: event types, metric packs and instruments."""

from __future__ import annotations

from eventcore.cli.output import AsJson, fail, say_json, say_table
from eventcore.cli.source import Config, Import, Url, say_source, source_of
from eventcore.errors import EventCoreError

__all__ = ["catalog"]


def catalog(*, as_json: AsJson = False, url: Url = None, config: Config = None, modules: Import = None) -> None:
    """List event types and metric packs of the installed plugins; with --url, all that the process knows.

    JSON: events (name, category, severity, operation, fields with role, unit, values), packs by name and instruments
    given in code (name, kind, labels with their values, events).
    """
    try:
        answer = source_of(url, config, modules).catalog()
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
