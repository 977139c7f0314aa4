"""``eventcore health``: every check, and whether all is well."""

from __future__ import annotations

import typer

from eventcore.cli.output import AsJson, fail, say, say_json, say_table
from eventcore.cli.source import Config, Url, say_source, source_of
from eventcore.errors import EventCoreError
from eventcore.health import HealthStatus

__all__ = ["health"]


def health(*, as_json: AsJson = False, url: Url = None, config: Config = None) -> None:
    """Run the health checks; exit code 1 when one is unhealthy.

    JSON: status, ready, timestamp, summary, and checks by name with status, message, duration_ms, details.
    """
    try:
        report = source_of(url, config).health()
    except EventCoreError as error:
        fail(error)
    if as_json:
        say_json(report)
    else:
        say_source(report)
        say_table(
            ("check", "status", "#ms", "message"),
            [(name, c["status"], c["duration_ms"], c["message"]) for name, c in report["checks"].items()],
        )
        say(f"{report['status']}{'' if report['ready'] else ', not ready'}", style="bold")
    if report["status"] == HealthStatus.UNHEALTHY.value:
        raise typer.Exit(1)
