"""Errors of the webhook plugin; raised in its worker, counted and reported by the bus.

    EventCoreError
    └── WebhookError             an event was not delivered
        ├── NoAnswer             the endpoint could not be reached, or was silent for too long
        ├── AddressRefused       the endpoint's name leads to an address that is not public
        └── EndpointGone         the endpoint said 410 Gone; it gets no more events

``WebhookVerificationError``, for receivers, is in ``eventcore_webhook.signing``.
"""

from __future__ import annotations

from eventcore.errors import EventCoreError

__all__ = ["AddressRefused", "EndpointGone", "NoAnswer", "WebhookError"]


class WebhookError(EventCoreError):
    """An event was not delivered: the answer was no success, and retries are used up or make no sense."""


class NoAnswer(WebhookError):
    """No connection, or no answer in time; worth a retry."""


class AddressRefused(WebhookError):
    """The endpoint's name leads to a loopback, private or otherwise non-public address; ``allow_private`` allows it."""


class EndpointGone(WebhookError):
    """The endpoint answered 410 Gone and is disabled until the next start."""
