"""The application behind a WSGI server (PEP 3333)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from eventcore.http import HttpRequest
from eventcore_http.application import headers_of, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from eventcore_http.application import Application

__all__ = ["wsgi"]


def wsgi(application: Application) -> WSGIApplication:
    """Return ``application`` as a WSGI application, wherever it is mounted."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        response = application.respond(
            method,
            HttpRequest(
                path=environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace"),
                query=dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)),
                headers={
                    key.removeprefix("HTTP_").replace("_", "-").lower(): value
                    for key, value in environ.items()
                    if key.startswith("HTTP_")
                },
            ),
        )
        start_response(f"{response.status} {reason_of(response.status)}", headers_of(response))
        return [] if method == "HEAD" else [response.body]

    return app
