"""AsyncAPI 3.0: the events as messages that the service sends, signed as Standard Webhooks asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore_generate.output import Files, header, yaml_text
from eventcore_generate.schema import bodies
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from eventcore.events import Event

__all__ = ["asyncapi"]

_SCHEMA_FORMAT = "application/schema+json;version=draft-2020-12"


def asyncapi(source: Source) -> Files:
    """Make an AsyncAPI 3.0 document of the events as messages.

    It has one channel with all messages, and an operation that sends each. The channel has no address: it is the URL of
    a webhook, which belongs to its receiver.
    """
    schemas, shared = bodies(source.events, "#/components/schemas/{model}")
    messages = {name: _message(name, event_type) for name, event_type in source.events.items()}
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Events of {source.service}",
            "version": source.resource.version,
            "description": "Generated from the catalog of eventcore.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "events": {
                "address": None,
                "title": "Events",
                "description": "One webhook endpoint; which events it gets is said in its handler's settings.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"http": {"bindingVersion": "0.3.0"}},
            }
        },
        "operations": {
            f"send.{name}": {
                "action": "send",
                "channel": {"$ref": "#/channels/events"},
                "messages": [{"$ref": f"#/channels/events/messages/{name}"}],
                "bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}},
            }
            for name in messages
        },
        "components": {
            "messages": messages,
            "messageTraits": {"webhook": _webhook()},
            "schemas": {**schemas, **shared},
        },
    }
    return {"asyncapi.yaml": header("asyncapi") + yaml_text(document)}


def _message(name: str, event_type: type[Event]) -> dict[str, Any]:
    spec = event_type.__event__
    return {
        "name": name,
        "title": event_type.__name__,
        "summary": (event_type.__doc__ or "").strip().partition("\n")[0],
        "contentType": "application/json",
        "tags": [{"name": spec.category.value}, {"name": spec.severity.name.lower()}],
        "traits": [{"$ref": "#/components/messageTraits/webhook"}],
        "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": {"$ref": f"#/components/schemas/{name}"}},
    }


def _webhook() -> dict[str, Any]:
    """Return what all messages have: the headers of Standard Webhooks."""
    return {
        "headers": {
            "type": "object",
            "properties": {
                "webhook-id": {"type": "string", "description": "The event's id; the same in a repeated delivery."},
                "webhook-timestamp": {"type": "string", "description": "When it was sent, in Unix seconds."},
                "webhook-signature": {"type": "string", "description": "v1, and the HMAC-SHA256 of id, time and body."},
            },
            "required": ["webhook-id", "webhook-timestamp", "webhook-signature"],
        }
    }
