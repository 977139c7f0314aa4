"""The ``http`` plugin: one small server for what plugins contribute, or the same as an application to mount.

``[http]`` in the settings starts the server. An application that has a server of its own mounts ``wsgi_app()`` or
``asgi_app()`` there instead, under a path of its choice; with ``serve = false`` ``[http]`` says only who may read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.plugins import hookimpl

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from eventcore.emitter import Emitter
    from eventcore.plugins import Plugins
    from eventcore_http.access import Access as Access
    from eventcore_http.asgi import ASGIApplication

__all__ = ["Access", "asgi_app", "eventcore_events", "eventcore_services", "wsgi_app"]


@hookimpl
def eventcore_services() -> dict[str, str]:
    """Return the service behind the settings table ``[http]``."""
    return {"http": "eventcore_http.service:HttpService"}


@hookimpl
def eventcore_events() -> list[str]:
    """Return the event that reports a route that failed."""
    return ["eventcore_http.events:RouteFailed"]


def wsgi_app(
    emitter: Emitter | None = None, plugins: Plugins | None = None, *, access: Access | None = None
) -> WSGIApplication:
    """Return ``/metrics``, ``/livez``, ``/readyz``, ``/health`` and all other routes as a WSGI application.

    Without ``emitter`` the one in use at each request answers; without ``plugins`` the installed ones are loaded.
    Who may read is said by ``access``, else by the settings ``[http]``, as for the server.
    """
    from eventcore_http.application import Application
    from eventcore_http.wsgi import wsgi

    return wsgi(Application.of(emitter, plugins, access))


def asgi_app(
    emitter: Emitter | None = None, plugins: Plugins | None = None, *, access: Access | None = None
) -> ASGIApplication:
    """Return the same as an ASGI application (asyncio); routes run in a thread, so the loop goes on meanwhile.

    Without ``emitter`` the one in use at each request answers; without ``plugins`` the installed ones are loaded.
    Who may read is said by ``access``, else by the settings ``[http]``, as for the server.
    """
    from eventcore_http.application import Application
    from eventcore_http.asgi import asgi

    return asgi(Application.of(emitter, plugins, access))


def __getattr__(name: str) -> Any:
    if name != "Access":
        raise AttributeError(f"module 'eventcore_http' has no attribute {name!r}")
    from eventcore_http.access import Access

    return Access
