"""The ``webhook`` plugin: posts matching events, signed as Standard Webhooks asks."""

from __future__ import annotations

from eventcore.plugins import hookimpl

__all__ = ["eventcore_handlers"]


@hookimpl
def eventcore_handlers() -> dict[str, str]:
    """Return the handler kind ``webhook``."""
    return {"webhook": "eventcore_webhook.handler:WebhookHandler"}
