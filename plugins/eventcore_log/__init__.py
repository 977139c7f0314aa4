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


@ec.hookimpl
def eventcore_services() -> Mapping[str, str]:
    """Offer the service behind the table ``[logging]``, which takes in the standard library's log records."""
    return {"logging": "eventcore_log.stdlib:LoggingService"}
