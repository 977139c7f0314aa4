"""The log plugin: handlers of kind ``log`` write events as lines, for people (``console``) or machines (``json``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import eventcore as ec

if TYPE_CHECKING:
    from collections.abc import Mapping


@ec.hookimpl
def eventcore_handlers() -> Mapping[str, str]:
    """Offer the handler kind ``log``."""
    return {"log": "eventcore_log.handler:LogHandler"}
