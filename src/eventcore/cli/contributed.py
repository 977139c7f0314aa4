"""Commands that plugins contribute (hook ``eventcore_commands``), imported when one is asked for.

The own commands come first, so a plugin cannot take their names, and running one of them loads no plugin's commands.
One whose library is missing is listed with the reason, and running it says which extra it needs.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from eventcore.cli.output import fail
from eventcore.errors import EventCoreError
from eventcore.plugins import Plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Commands"]


class Commands(TyperGroup):
    """The own commands, and after them those of the installed plugins."""

    @cached_property
    def contributed(self) -> Mapping[str, Any]:
        """Typer applications of plugins, or their paths, by the name of the command; not those that we have."""
        try:
            found = Plugins().commands()
        except EventCoreError as error:
            fail(error)
        return {name: target for name, target in found.items() if name not in self.commands}

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # the public class of theirs
        """Return the names of all commands."""
        return [*super().list_commands(ctx), *sorted(self.contributed)]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # see above
        """Return a command; one of a plugin is imported now."""
        known = super().get_command(ctx, cmd_name)
        if known is not None or cmd_name not in self.contributed:
            return known
        try:
            app = Plugins.load(self.contributed[cmd_name], f"command {cmd_name!r}")
        except EventCoreError as error:
            app = _unusable(str(error))
        command = get_command(app)
        command.name = cmd_name
        return command


def _unusable(reason: str) -> typer.Typer:
    """Return a command that only says why it cannot run, whatever its arguments."""
    app = typer.Typer(add_completion=False)

    @app.command(
        help=f"Cannot run: {reason}", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
    )
    def say() -> None:
        fail(reason)

    return app
