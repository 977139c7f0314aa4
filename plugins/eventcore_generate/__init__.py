"""Generated from the catalog: dashboards, rules, deployments, references; and a linter for those written by hand."""

from __future__ import annotations

from eventcore.plugins import hookimpl

__all__ = ["eventcore_commands"]


@hookimpl
def eventcore_commands() -> dict[str, str]:
    """Return the commands ``eventcore generate …`` and ``eventcore lint``."""
    return {"generate": "eventcore_generate.cli:app", "lint": "eventcore_generate.lint_command:app"}
