import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import Annotated, Literal
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client.parser import text_string_to_metric_families

import eventcore as ec
import eventcore_http
from eventcore.in_use import unconfigured
from eventcore.plugins import Plugins
from eventcore_http import server
from eventcore_http.service import HttpService


class Paid(ec.Event, name="shop.paid", category="user"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]


PAID = ec.Counter("shop_paid_total", on=Paid, labels={"currency": "currency"}, help="Payments.")


class Extra:
    """A plugin with routes and health checks that a test may set."""

    def __init__(self, **checks):
        self.checks = checks

    @ec.hookimpl
    def eventcore_routes(self):
        return [
            ec.HttpRoute("/echo", self.echo, "what was asked"),
            ec.HttpRoute("/broken", self.broken, "raises"),
            ec.HttpRoute("/wrong", lambda _: "text", "returns no response"),
            ec.HttpRoute("/livez", self.broken, "tries to take an own path"),
        ]

    @ec.hookimpl
    def eventcore_health_checks(self):
        return [
            ec.HealthCheck(name, lambda status=status: ec.HealthResult(status, "so it is"), critical="critical" in name)
            for name, status in self.checks.items()
        ]

    @staticmethod
    def echo(request):
        facts = {"path": request.path, "query": dict(request.query), "agent": request.headers.get("x-agent")}
        return ec.HttpResponse(json.dumps(facts).encode(), "application/json", 203, {"X-Extra": "1"})

    @staticmethod
    def broken(request):
        raise RuntimeError("the password is hunter2")


def start(**options):
    """Return a running emitter with a metric handler, and the HTTP service on a free port."""
    options = {"handlers": {"metric": {}}, "instruments": [PAID], "http": {"port": 0}, **options}
    emitter = ec.configure(service="test", **options)
    return emitter, emitter.services.get("http")


def ask(url, method="GET", **headers):
    """Return status, headers and body of a response, whatever its status."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def paid(body):
    """Return the payments that an exposition shows, all currencies together."""
    families = text_string_to_metric_families(body.decode())
    return sum(s.value for family in families for s in family.samples if s.name == "shop_paid_total")


# -- what is served ----------------------------------------------------------------------------------------------------


def test_a_scrape_over_http_shows_what_was_emitted():
    """``/metrics`` of the running server shows the counts of the moment, as text that Prometheus reads."""
    emitter, http = start()
    emitter.emit(Paid(currency="eur"))
    status, headers, body = ask(f"{http.url}/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'shop_paid_total{currency="eur"} 1.0\nshop_paid_total{currency="usd"} 0.0\n' in body
    assert emitter.handler("metric").describe()["url"] == f"{http.url}/metrics"


def test_openmetrics_is_served_where_it_is_asked_for():
    """The Accept header chooses the format, as Prometheus itself sends it."""
    _, http = start()
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    _, headers, body = ask(f"{http.url}/metrics", Accept=accept)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


def test_scrapes_while_events_flow_never_go_back():
    """While four threads emit, each scrape shows at least what the one before showed, and the last one everything."""
    emitter, http = start()
    threads = [
        threading.Thread(target=lambda: [emitter.emit(Paid(currency="eur")) for _ in range(1_000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    seen = [0.0]
    while any(thread.is_alive() for thread in threads):
        seen.append(paid(ask(f"{http.url}/metrics")[2]))
    assert seen == sorted(seen)
    assert paid(ask(f"{http.url}/metrics")[2]) == 4_000


def test_the_index_lists_what_there_is():
    """``/`` lists own routes and those of plugins, with a word about each."""
    _, http = start(plugins=[Extra()])
    status, _, body = ask(f"{http.url}/")
    paths = [line.split()[0] for line in body.decode().splitlines()]
    debug = [f"/debug/eventcore{part}" for part in ("", "/catalog", "/explain")]
    extra = ["/health", "/healthz", "/livez", "/metrics", "/readyz", "/wrong"]
    assert (status, paths) == (200, ["/", "/broken", *debug, "/echo", *extra])


def test_an_unknown_path_is_answered_with_the_list():
    """A path that is not there is a 404 that says which ones are."""
    _, http = start()
    status, _, body = ask(f"{http.url}/metricz")
    assert status == 404
    assert b"/metrics " in body
    assert b"metricz" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_refused(method):
    """Anything but GET and HEAD is a 405 that says what is allowed."""
    _, http = start()
    status, headers, _ = ask(f"{http.url}/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/echo", "/nothing"])
def test_head_has_the_headers_and_no_body(path):
    """HEAD answers like GET, with the length of the body and without it."""
    _, http = start(plugins=[Extra()])
    expected, headers, body = ask(http.url + path)
    status, got, nothing = ask(http.url + path, "HEAD")
    assert (status, nothing) == (expected, b"")
    assert got["Content-Type"] == headers["Content-Type"]
    if path != "/metrics":  # which grows as it is scraped
        assert got["Content-Length"] == str(len(body))


def test_requests_reach_a_plugins_route_whole():
    """A route gets path, query and headers, and decides on status, type and headers of the response."""
    _, http = start(plugins=[Extra()])
    status, headers, body = ask(f"{http.url}/echo/?a=1&b=x%20y", **{"X-Agent": "me"})
    assert (status, headers["Content-Type"], headers["X-Extra"]) == (203, "application/json", "1")
    assert json.loads(body) == {"path": "/echo/", "query": {"a": "1", "b": "x y"}, "agent": "me"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/broken", "RuntimeError: the password is hunter2"),
        ("/wrong", "TypeError: a route returns an HttpResponse, not str"),
    ],
)
def test_a_route_that_fails_tells_the_client_nothing(path, reason):
    """A route that raises is a 500 without internals; what happened is an event for the handlers."""
    emitter, http = start(plugins=[Extra()])
    failures = []
    emitter.add_handler(Keep(failures))
    status, _, body = ask(http.url + path)
    assert (status, body) == (500, b"internal error\n")
    assert [e.message for e in failures] == [f"HTTP route {path} failed: {reason}"]
    assert ask(f"{http.url}/livez")[0] == 200


class Keep(ec.Handler):
    delivery = "inline"

    def __init__(self, kept):
        super().__init__(events="eventcore.route_failed")
        self.kept = kept

    def handle(self, envelope):
        self.kept.append(envelope)


def test_a_handler_added_at_run_time_has_its_route():
    """Routes follow the handlers: one attached later is served at once, one removed is gone."""
    from eventcore_metric.handler import MetricHandler

    emitter, http = start(handlers={"keep": Keep([])})
    assert ask(f"{http.url}/metrics")[0] == 404
    handler = emitter.add_handler(MetricHandler())
    assert ask(f"{http.url}/metrics")[0] == 200
    emitter.remove_handler(handler)
    assert ask(f"{http.url}/metrics")[0] == 404


# -- health ------------------------------------------------------------------------------------------------------------

HEALTHY, DEGRADED, UNHEALTHY = ec.HealthStatus.HEALTHY, ec.HealthStatus.DEGRADED, ec.HealthStatus.UNHEALTHY


@pytest.mark.parametrize(
    ("checks", "health", "ready"),
    [
        ({}, 200, 200),
        ({"disk": DEGRADED, "critical model": DEGRADED}, 200, 200),
        ({"disk": UNHEALTHY, "critical model": HEALTHY}, 503, 200),
        ({"disk": HEALTHY, "critical model": UNHEALTHY}, 503, 503),
    ],
)
def test_health_readiness_and_liveness(checks, health, ready):
    """Unhealthy checks fail ``/health``, critical ones ``/readyz``; ``/livez`` depends on nothing."""
    _, http = start(plugins=[Extra(**checks)])
    status, headers, body = ask(f"{http.url}/health")
    report = json.loads(body)
    assert (status, headers["Content-Type"]) == (health, "application/json")
    assert report["checks"].keys() == {"handler_metric", *checks}
    assert report["checks"]["handler_metric"]["status"] == "healthy"
    status, _, body = ask(f"{http.url}/readyz")
    assert (status, json.loads(body)["ready"]) == (ready, ready == 200)
    assert ask(f"{http.url}/livez")[::2] == (200, b"ok\n")


# -- the server --------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_clear_error():
    """Where another listens already, configure() says which port and what to do, and leaves nothing running."""
    before = set(threading.enumerate())  # of a test before, one may be about to end
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ec.ConfigurationError) as caught:
            start(http={"port": port})
    assert str(caught.value).endswith(
        f"port {port} on 127.0.0.1 is in use; choose another with [http] port = … or stop what listens there"
    )
    assert set(threading.enumerate()) <= before
    assert ec.get_emitter() is unconfigured


def test_an_address_of_another_machine_is_one_clear_error():
    """A host that is not this machine's is refused with the name of the option."""
    with pytest.raises(ec.ConfigurationError, match=r"cannot listen on 192\.0\.2\.1, port 0: .*\[http\] host = …"):
        start(http={"host": "192.0.2.1", "port": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"port": 70000}, "option 'port' is 70000"), ({"prot": 1}, "unknown option 'prot'; did you mean 'port'?")],
)
def test_mistakes_in_options_are_one_clear_error(options, message):
    """A wrong option of ``[http]`` names the option and what was expected."""
    with pytest.raises(ec.ConfigurationError, match="http") as caught:
        start(http=options)
    assert message in str(caught.value)


def test_the_server_may_listen_on_ipv6():
    """An IPv6 address is served, and written in brackets in the URL."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        _, http = start(http={"host": "::1", "port": 0})
    except ec.ConfigurationError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    assert http.url == f"http://[::1]:{http.port}"
    assert ask(f"{http.url}/livez")[0] == 200


@contextmanager
def silent_clients(http, number, *, said=b""):
    """Hold connections that say little and then nothing."""
    clients = [socket.create_connection(("127.0.0.1", http.port), timeout=10) for _ in range(number)]
    try:
        for client in clients:
            client.sendall(said)
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("said", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost:"])
def test_silent_clients_do_not_block_others(said):
    """Fifty connections that never finish their request leave the server answering others."""
    _, http = start()
    with silent_clients(http, 50, said=said):
        assert ask(f"{http.url}/metrics")[0] == 200


def test_silent_clients_are_let_go(monkeypatch):
    """A connection on which nothing comes is closed by the server."""
    monkeypatch.setattr(server._RequestHandler, "timeout", 0.05)
    _, http = start()
    with silent_clients(http, 1) as (client,):
        assert client.recv(100) == b""


def test_dripping_clients_are_let_go(monkeypatch):
    """A connection that goes on for too long is closed, however busy it looks."""
    monkeypatch.setattr(server, "CONNECTION_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server.Server, "timeout", 0.05)
    _, http = start()
    with silent_clients(http, 1, said=b"GET / HTTP/1.1\r\n") as (client,):
        client.settimeout(0.01)
        while True:
            try:
                client.sendall(b"X: y\r\n")
                if client.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:  # closed: that is what is waited for; a server that goes on meets the test's timeout
                break


def test_too_many_connections_are_told_so(monkeypatch):
    """Beyond the limit a client is told 503 at once, and is served again when others have gone."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    _, http = start()
    with silent_clients(http, 2), silent_clients(http, 1) as (third,):
        assert third.recv(100).startswith(b"HTTP/1.0 503 ")
    status = 503
    while status == 503:
        status = ask(f"{http.url}/livez")[0]
    assert status == 200


def test_shutdown_ends_the_server():
    """After shutdown nobody listens, no thread is left, and stopping again does nothing."""
    _, http = start()
    with silent_clients(http, 1) as (client,):
        assert ask(f"{http.url}/livez")[0] == 200
        assert ec.shutdown().is_clean
        assert client.recv(100) == b""
    http.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", http.port), timeout=1)
    assert not [thread for thread in threading.enumerate() if thread.name == "eventcore-http"]


def test_stopping_what_was_never_started_does_nothing():
    """A service that could not start can be stopped."""
    http = HttpService(HttpService.Config(), ec.get_emitter(), Plugins())
    http.stop()
    assert repr(http) == "<HttpService http://127.0.0.1:9090>"


def test_a_forked_child_does_not_hold_the_port():
    """A child that lives on neither answers for the parent nor keeps its port."""
    _, http = start()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    try:
        assert ask(f"{http.url}/livez")[0] == 200
        ec.shutdown()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", http.port), timeout=1)
    finally:
        os.write(writer, b"x")
        assert os.waitpid(child, 0)[1] == 0
        os.close(reader)
        os.close(writer)


def test_the_server_writes_no_log(capfd):
    """Requests, good, bad or broken off, leave nothing on stderr."""
    _, http = start()
    ask(f"{http.url}/livez")
    ask(f"{http.url}/nothing")
    with silent_clients(http, 1, said=b"nonsense\r\n\r\n") as (client,):
        assert client.recv(1000)
    with silent_clients(http, 1, said=b"GET /metrics HTTP/1.0\r\n\r\n"):
        pass
    ec.shutdown()
    assert capfd.readouterr().err == ""


# -- mounted elsewhere -------------------------------------------------------------------------------------------------


def wsgi_call(app, path, method="GET", **environ):
    """Call a WSGI application behind the standard library's validator; return status, headers and body."""
    setup_testing_defaults(environ)
    environ = {"QUERY_STRING": "", **environ, "PATH_INFO": path, "REQUEST_METHOD": method}
    said = {}

    def start_response(status, headers, exc_info=None):
        said.update(status=status, headers=dict(headers))
        return lambda _: None

    answer = validator(app)(environ, start_response)
    try:
        return said["status"], said["headers"], b"".join(answer)
    finally:
        answer.close()


def test_mounted_in_a_wsgi_application():
    """``wsgi_app()`` is a valid WSGI application that answers as the server does, under any mount point."""
    emitter, _ = start(http=None, plugins=[Extra()])
    emitter.emit(Paid(currency="usd"))
    app = eventcore_http.wsgi_app(emitter, Plugins(extra=[Extra()]))
    status, headers, body = wsgi_call(app, "/metrics", SCRIPT_NAME="/ops")
    assert (status, headers["Content-Type"]) == ("200 OK", "text/plain; version=0.0.4; charset=utf-8")
    assert headers["Content-Length"] == str(len(body))
    assert paid(body) == 1
    assert wsgi_call(app, "/livez")[2] == b"ok\n"
    assert wsgi_call(app, "/metrics", "HEAD")[2] == b""
    assert wsgi_call(app, "/metrics", "POST")[0] == "405 Method Not Allowed"
    assert wsgi_call(app, "")[0] == "200 OK"
    assert wsgi_call(app, "/broken")[0] == "500 Internal Server Error"
    _, _, body = wsgi_call(app, "/echo", QUERY_STRING="a=1", HTTP_X_AGENT="me")
    assert json.loads(body) == {"path": "/echo", "query": {"a": "1"}, "agent": "me"}


def asgi_call(app, path, method="GET", **scope):
    """Call an ASGI application with a scope of our own; return status, headers and body."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [],
        **scope,
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    first, second = sent
    assert (first["type"], second["type"]) == ("http.response.start", "http.response.body")
    return first["status"], {k.decode(): v.decode() for k, v in first["headers"]}, second["body"]


def test_mounted_in_an_asgi_application():
    """``asgi_app()`` answers as the server does, whether or not the mount point is left in the path."""
    emitter, _ = start(http=None)
    emitter.emit(Paid(currency="usd"))
    app = eventcore_http.asgi_app(emitter, Plugins(extra=[Extra()]))
    status, headers, body = asgi_call(app, "/metrics", root_path="/ops")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert paid(body) == paid(asgi_call(app, "/ops/metrics", root_path="/ops")[2]) == 1
    assert asgi_call(app, "/livez")[2] == b"ok\n"
    assert asgi_call(app, "/ops", root_path="/ops")[0] == 200
    assert asgi_call(app, "/metrics", "HEAD")[2] == b""
    assert asgi_call(app, "/nothing")[0] == 404
    assert asgi_call(app, "/metrics", "DELETE")[0] == 405
    assert asgi_call(app, "/broken")[0] == 500
    headers = [(b"X-Agent", b"me"), (b"x-agent", b"you")]
    _, _, body = asgi_call(app, "/echo", query_string=b"a=1", headers=headers)
    assert json.loads(body) == {"path": "/echo", "query": {"a": "1"}, "agent": "me, you"}


def test_an_asgi_server_may_start_and_stop_it():
    """The lifespan of an ASGI server is agreed to, a websocket is refused, another protocol is an error."""
    app = eventcore_http.asgi_app(ec.get_emitter(), Plugins())

    async def conversation(scope, *messages):
        incoming, sent = list(messages), []

        async def receive():
            return incoming.pop(0)

        async def send(message):
            sent.append(message["type"])

        await app(scope, receive, send)
        return sent

    lifespan = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert asyncio.run(conversation({"type": "lifespan"}, *lifespan)) == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert asyncio.run(conversation({"type": "websocket"})) == ["websocket.close"]
    with pytest.raises(NotImplementedError, match="smtp"):
        asyncio.run(conversation({"type": "smtp"}))


def test_a_mounted_application_follows_the_emitter_in_use():
    """Without an emitter given, the one in use at each request answers, also after another configure()."""
    app = eventcore_http.wsgi_app()
    assert wsgi_call(app, "/metrics")[0] == "404 Not Found"
    emitter, _ = start(http=None)
    emitter.emit(Paid(currency="eur"))
    assert paid(wsgi_call(app, "/metrics")[2]) == 1


def test_importing_the_plugin_imports_no_server():
    """Installing the plugin costs no import of http.server or asyncio until it is configured."""
    code = "import eventcore_http, sys; sys.exit('http.server' in sys.modules or 'asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
