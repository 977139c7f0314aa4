"""The command line: what is installed, what a process does with its events, and whether it does it well.

Commands ask a running process (``--url``, answered by the ``http`` plugin) or look at a fresh emitter with the settings
found here, on which nothing is opened or sent. Exit codes: 0, 1 for a bad answer (unhealthy, not delivered), 2 where
there is none.
"""

from __future__ import annotations

import typer

from eventcore.cli import catalog, debug, doctor, explain, handlers, health, metrics, profile
from eventcore.cli.contributed import Commands

__all__ = ["app"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Look at eventcore: what is installed, what becomes of events, and whether it works.\n\n"
    "With --url a running process answers, without it a fresh emitter with the settings found in this directory. "
    "Exit codes: 0; 1 for a bad answer, such as unhealthy; 2 where there is no answer.",
)
app.command("handlers")(handlers.handlers)
app.command("catalog")(catalog.catalog)
app.command("explain")(explain.explain)
app.command("health")(health.health)
app.command("doctor")(doctor.doctor)
app.command("metrics")(metrics.metrics)
app.command("profile", context_settings=profile.CONTEXT)(profile.profile)
app.add_typer(debug.app, name="debug")
