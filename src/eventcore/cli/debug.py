"""``eventcore debug``: inspect the parts, emit a test event, test a trace."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.cli import rates, trial
from eventcore.cli.output import AsJson, fail, say, say_about, say_json, say_table
from eventcore.cli.source import Config, Url, say_source, source_of
from eventcore.errors import EventCoreError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Inspect the parts, emit a test event, test a trace, look at rates.")


class Component(StrEnum):
    """Parts that ``debug inspect`` can be limited to."""

    METRICS = "metrics"
    EVENTS = "events"
    TELEMETRY = "telemetry"
    LOGS = "logs"


@app.command("inspect")
def inspect(
    *,
    component: Annotated[Component | None, typer.Option(help="Only this part.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Show metrics, events, telemetry and logging: what is on, where it goes, and the account of every handler.

    JSON: source, eventcore, pid, service, settings, enabled, handlers (name, kind, delivery, queue, breaker, filter,
    options, facts, cardinality, ledger), routes, ledger, operations, open_operations, catalog, services,
    broken_plugins; with --component, handlers has only that part's.
    """
    try:
        answer = source_of(url, config).inspection()
    except EventCoreError as error:
        fail(error)
    if as_json:
        say_json(answer if component is None else {**answer, "handlers": _of(answer, component)})
        return
    say_source(answer)
    for number, part in enumerate([component] if component else list(Component)):
        if number:
            say()
        _PARTS[part](answer)


_KINDS = {Component.METRICS: "metric", Component.TELEMETRY: "span", Component.LOGS: "log"}


def _of(answer: dict[str, Any], component: Component) -> list[dict[str, Any]]:
    kind = _KINDS.get(component)
    return [handler for handler in answer["handlers"] if kind in (None, handler["kind"])]


def _say_metrics(answer: dict[str, Any]) -> None:
    found = _of(answer, Component.METRICS)
    if not found:
        say("Metrics System:")
        say("Collector: none; [handlers.metric] in the settings adds one", indent=2)
    for number, handler in enumerate(found):
        if number:
            say()
        facts, stats = handler["facts"], handler["cardinality"] or {}
        say("Metrics System:")
        say(f"Collector: {facts.get('exporter', '?')}", indent=2)
        say(f"Registry: own, of handler {handler['name']!r}", indent=2)
        say(f"Total metrics: {facts.get('metrics', len(stats))}", indent=2)
        if facts.get("url"):
            say(f"Served at: {facts['url']}", indent=2)
        say()
        say("Cardinality Stats:")
        say(f"Total combinations: {sum(one['series'] for one in stats.values())}", indent=2)
        say(f"Max cardinality: {max((one['limit'] for one in stats.values()), default='-')} per metric", indent=2)
        say()
        say("Per-Metric Cardinality:")
        for name, one in stats.items():
            say(f"{name}: {one['series']} combinations, {one['overflowed']} dropped", indent=4)


def _say_events(answer: dict[str, Any]) -> None:
    say("Event System:")
    say(f"Enabled: {answer['enabled']}", indent=2)
    names = [f"{handler['class'].rpartition('.')[2]} ({handler['name']})" for handler in answer["handlers"]]
    say_about("Handlers:", ", ".join(names) or "none")
    say(f"Event types: {answer['catalog']['event_types']}", indent=2)
    say(f"Emitted: {answer['ledger']['emitted']}", indent=2)
    say(f"Open operations: {len(answer['open_operations'])}", indent=2)
    for misuse in answer["misuses"]:
        say(f"Misused: {misuse['operation']} {misuse['what'].replace('_', ' ')}, {misuse['count']} times", indent=2)
    journal = answer["journal"]
    if journal is not None:
        dead = f", {journal['dead_letters']} dead letters" if journal["dead_letters"] else ""
        say(f"Journal: {journal['path']}, {journal['rows']} rows, {journal['bytes']} bytes{dead}", indent=2)
        if journal["problem"]:
            say(f"Journal problem: {journal['problem']}", indent=2)
    for handler in answer["handlers"]:
        queue = handler["queue"]
        if queue is not None and (queue["depth"] or queue["backlog"]):
            kept = f", {queue['backlog']} in the journal" if queue["backlog"] else ""
            say(f"Waiting for {handler['name']}: {queue['depth']} of at most {queue['capacity']}{kept}", indent=2)
    for name, problem in answer["broken_plugins"].items():
        say(f"Broken plugin: {name}: {problem}", indent=2)
    say_table(
        ("handler", "#accepted", "#delivered", "#pending", "#failed", "#filtered", "#sampled", "dropped"),
        [
            (
                handler["name"],
                *(handler["ledger"][key] for key in _COLUMNS),
                ", ".join(f"{reason} {number}" for reason, number in handler["ledger"]["dropped"].items()) or "-",
            )
            for handler in answer["handlers"]
        ],
    )


_COLUMNS = ("accepted", "delivered", "pending", "failed", "filtered", "sampled")


def _say_telemetry(answer: dict[str, Any]) -> None:
    found = _of(answer, Component.TELEMETRY)
    say("Telemetry System:")
    say(f"Enabled: {bool(found)}", indent=2)
    for handler in found:
        _say_facts(handler)


def _say_logs(answer: dict[str, Any]) -> None:
    found = _of(answer, Component.LOGS)
    say("Logging System:")
    say(f"Configured: {bool(found)}", indent=2)
    for handler in found:
        processors = handler["facts"].get("processors", ())
        say_about("Processors:", f"{len(processors)} ({', '.join(processors)})", width=12)
        _say_facts(handler)


def _say_facts(handler: dict[str, Any]) -> None:
    for key, value in {**handler["options"], **handler["facts"]}.items():
        if key != "processors" and value is not None:
            say(f"{key.replace('_', ' ').capitalize()}: {value}", indent=2)


_PARTS: dict[Component, Callable[[dict[str, Any]], None]] = {
    Component.METRICS: _say_metrics,
    Component.EVENTS: _say_events,
    Component.TELEMETRY: _say_telemetry,
    Component.LOGS: _say_logs,
}

app.command("emit-event")(trial.emit_event)
app.command("test-trace")(trial.try_trace)
app.command("error-rate")(rates.error_rate)
app.command("sampling-stats")(rates.sampling_stats)
