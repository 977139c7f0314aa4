"""The application behind an ASGI server (version 3 of the interface)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from eventcore.http import HttpRequest
from eventcore_http.application import headers_of

if TYPE_CHECKING:
    from eventcore_http.application import Application

__all__ = ["ASGIApplication", "asgi"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Message, Receive, Send], Awaitable[None]]


def asgi(application: Application) -> ASGIApplication:
    """Return ``application`` as an ASGI application, wherever it is mounted."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            await _answer(application, scope, send)
        else:
            raise NotImplementedError(f"ASGI scope {scope['type']!r} is not served here; only http is")

    return app


async def _live(receive: Receive, send: Send) -> None:
    """Agree to a server's start and stop: there is nothing to do for either."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(application: Application, scope: Message, send: Send) -> None:
    response = await asyncio.to_thread(application.respond, scope["method"], _request(scope))
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers_of(response)]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})


def _request(scope: Message) -> HttpRequest:
    headers: dict[str, str] = {}
    for name, value in scope.get("headers", ()):
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):  # some frameworks leave the mount point in the path
        path = path[len(root) :]
    return HttpRequest(
        path, dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)), headers
    )
