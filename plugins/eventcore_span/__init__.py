"""The ``span`` plugin: finished operations become trace spans.

This module stays light; the handler and its libraries are imported when a ``span`` handler is configured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import eventcore as ec

if TYPE_CHECKING:
    from collections.abc import Mapping


@ec.hookimpl
def eventcore_handlers() -> Mapping[str, str]:
    """Offer the handler kind ``span``."""
    return {"span": "eventcore_span.handler:SpanHandler"}
