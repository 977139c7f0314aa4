"""The ``buffer`` plugin: keeps the newest events in memory, for tests and for looking at a running program."""

from __future__ import annotations

# pluggy's marker instead of eventcore's own: pytest imports this package at every start (for the fixture ``events``),
# and must not pay for eventcore in projects that do not use it.
from pluggy import HookimplMarker

__all__ = ["eventcore_handlers"]

hookimpl = HookimplMarker("eventcore")


@hookimpl
def eventcore_handlers() -> dict[str, str]:
    """Return the handler kind ``buffer``."""
    return {"buffer": "eventcore_buffer.handler:BufferHandler"}
