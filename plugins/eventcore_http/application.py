"""What is served, whatever the server: from method and request to response.

Own paths come first and are never looked up among plugins: ``/livez`` says that the process serves, and depends on
nothing else. Plugins are asked for their routes at each request, so a handler added at run time has its route at once.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from eventcore.explanation import explain
from eventcore.health import HealthStatus
from eventcore.http import HttpRequest, HttpResponse, HttpRoute
from eventcore.in_use import get_emitter
from eventcore.inspection import UnknownEvent, catalog_of, head_of, inspect
from eventcore.plugins import Plugins
from eventcore_http.access import Access
from eventcore_http.events import RouteFailed

if TYPE_CHECKING:
    from eventcore.emitter import Emitter

__all__ = ["HEALTH", "Application", "headers_of", "reason_of"]

METHODS = ("GET", "HEAD")
HEALTH = frozenset({"/livez", "/readyz", "/health", "/healthz"})
"""Paths of a port for health alone."""


class Application:
    """Answers requests with the routes of plugins, the health of an emitter, and a list of what there is.

    Without ``access`` the settings ``[http]`` of the emitter say who may read; ``only`` limits it to these paths.
    """

    def __init__(
        self,
        emitter: Emitter | None,
        plugins: Plugins,
        access: Access | None = None,
        *,
        only: frozenset[str] | None = None,
    ) -> None:
        self._emitter = emitter
        self._plugins = plugins
        self._access = access
        self._only = only
        self._own = {
            route.path: route
            for route in (
                HttpRoute("/", self._index, "this list"),
                HttpRoute("/livez", self._livez, "200 while the process serves"),
                HttpRoute(
                    "/readyz", self._readyz, "200 when every critical check passes, else 503; ?verbose lists them"
                ),
                HttpRoute("/health", self._health, "every check as JSON; 503 when one is unhealthy"),
                HttpRoute("/healthz", self._health, "the same"),
                HttpRoute("/debug/eventcore", self._inspect, "handlers, queues, ledger, catalog as JSON"),
                HttpRoute("/debug/eventcore/catalog", self._catalog, "event types and instruments as JSON"),
                HttpRoute("/debug/eventcore/explain", self._explain, "?event=…&severity=…: who takes it, as JSON"),
            )
        }

    @classmethod
    def of(cls, emitter: Emitter | None, plugins: Plugins | None, access: Access | None) -> Self:
        """Return an application for an emitter (None: the one in use at each request) and plugins (None: installed)."""
        return cls(emitter, Plugins() if plugins is None else plugins, access)

    @property
    def emitter(self) -> Emitter:
        """The emitter whose routes and health are shown."""
        return get_emitter() if self._emitter is None else self._emitter

    def routes(self) -> dict[str, HttpRoute]:
        """Return the routes by path: own ones, and of plugins' the first that claims a path."""
        if self._only is not None:
            return {path: route for path, route in self._own.items() if path in self._only}
        routes = dict(self._own)
        for route in self._plugins.routes(self.emitter):
            routes.setdefault(route.path, route)
        return routes

    @property
    def access(self) -> Access:
        """Who may read: as given, else as the emitter's settings say."""
        if self._access is not None:
            return self._access
        configured = getattr(self.emitter.services.get("http"), "access", None)
        return configured if isinstance(configured, Access) else _OPEN

    def respond(self, method: str, request: HttpRequest) -> HttpResponse:
        """Answer a request: 401, 404 with what there is, 405 for all but GET and HEAD, 500 for a route that raises."""
        path = request.path.rstrip("/") or "/"
        try:
            refusal = self.access.refusal(path, request)
            if refusal is not None:
                return refusal
            routes = self._own if path in self._own and self._only is None else self.routes()
            route = routes.get(path)
            if route is None:
                return HttpResponse(f"no such path; there are:\n{_listing(routes)}".encode(), status=404)
            if method not in METHODS:
                return HttpResponse(
                    b"method not allowed; use GET or HEAD\n", status=405, headers={"Allow": ", ".join(METHODS)}
                )
            response = route.respond(request)
            if not isinstance(response, HttpResponse):
                raise TypeError(f"a route returns an HttpResponse, not {type(response).__name__}")  # noqa: TRY301 - reported below
        except Exception as error:  # noqa: BLE001 - a route is somebody else's code; it is reported as an event
            self.emitter.emit(RouteFailed(path=path, reason=f"{type(error).__name__}: {error}"))
            return HttpResponse(b"internal error\n", status=500)
        return response

    # -- own routes --------------------------------------------------------------------------------------------------

    def _index(self, _request: HttpRequest) -> HttpResponse:
        return HttpResponse(_listing(self.routes()).encode())

    @staticmethod
    def _livez(_request: HttpRequest) -> HttpResponse:
        return HttpResponse(b"ok\n")

    def _readyz(self, request: HttpRequest) -> HttpResponse:
        report = self.emitter.health.report(self._plugins, only_critical=True)
        if not self.access.is_open:
            _keep_statuses(report)
        status = 200 if report["ready"] else 503
        return _verbose(report, status) if "verbose" in request.query else _json(report, status=status)

    def _health(self, _request: HttpRequest) -> HttpResponse:
        report = self.emitter.health.report(self._plugins)
        return _json(report, status=503 if report["status"] == HealthStatus.UNHEALTHY.value else 200)

    def _inspect(self, _request: HttpRequest) -> HttpResponse:
        return _json(inspect(self.emitter), status=200)

    def _catalog(self, _request: HttpRequest) -> HttpResponse:
        return _json(catalog_of(self.emitter), status=200)

    def _explain(self, request: HttpRequest) -> HttpResponse:
        try:
            answer = explain(self.emitter, request.query.get("event", ""), request.query.get("severity"))
        except UnknownEvent as error:
            return _json({**head_of(self.emitter), "error": str(error)}, status=404)
        except ValueError as error:
            return _json({**head_of(self.emitter), "error": str(error)}, status=400)
        return _json(answer, status=200)

    def __repr__(self) -> str:
        return f"<Application of {self.emitter!r}>"


_OPEN = Access()


def _listing(routes: dict[str, HttpRoute]) -> str:
    return "".join(f"{path:<24} {route.description}".rstrip() + "\n" for path, route in sorted(routes.items()))


def _json(report: dict[str, object], *, status: int) -> HttpResponse:
    body = json.dumps(report, indent=2, default=str).encode()
    return HttpResponse(body + b"\n", "application/json", status)


def _keep_statuses(report: dict[str, Any]) -> None:
    """Leave of a report what anybody may know: where readers authenticate, probes do not."""
    for check in report["checks"].values():
        check.update(message="", details={})


def _verbose(report: dict[str, Any], status: int) -> HttpResponse:
    """Return the critical checks a line each, as Kubernetes' own servers do for ``?verbose``."""
    lines = [
        f"[-]{name} failed: {check['message']}".removesuffix(": ")
        if check["status"] == HealthStatus.UNHEALTHY.value
        else f"[+]{name} ok"
        for name, check in report["checks"].items()
    ]
    lines.append(f"readyz check {'passed' if status == 200 else 'failed'}")
    return HttpResponse("".join(f"{line}\n" for line in lines).encode(), status=status)


def headers_of(response: HttpResponse) -> list[tuple[str, str]]:
    """Return all headers of a response; the same for HEAD, whose body is left out when it is sent."""
    own = {"Content-Type": response.content_type, "Content-Length": str(len(response.body))}
    return [*own.items(), *response.headers.items()]


def reason_of(status: int) -> str:
    """Return the phrase that goes with a status code; a neutral one for a code that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
