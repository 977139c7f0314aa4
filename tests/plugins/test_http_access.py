"""Who may read, over what, and how much a client may say: authentication, TLS, the port for health, limits."""

import asyncio
import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

import pytest
import trustme
from typer.testing import CliRunner

import eventcore as ec
import eventcore_http
from eventcore.cli import app
from eventcore_http import Access, server


def start(**http):
    """Return the service of an emitter with a metric handler."""
    return ec.configure(service="test", handlers={"metric": {}}, http={"port": 0, **http}).services["http"]


def ask(url, method="GET", *, context=None, **headers):
    """Return status, headers and body, whatever the status."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def basic(pair):
    """Return the header of basic authentication."""
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


# -- authentication ----------------------------------------------------------------------------------------------------

BEARER = {"token": "t0ken"}
BASIC = {"username": "prometheus", "password": "pa:ss wörd"}


@pytest.mark.parametrize(
    ("options", "said", "status"),
    [
        (BEARER, "Bearer t0ken", 200),
        (BEARER, "bearer  t0ken ", 200),
        (BEARER, None, 401),
        (BEARER, "", 401),
        (BEARER, "Bearer", 401),
        (BEARER, "Bearer wrong", 401),
        (BEARER, "Bearer t0ken2", 401),
        (BEARER, basic("prometheus:t0ken"), 401),
        (BASIC, basic("prometheus:pa:ss wörd"), 200),
        (BASIC, basic("prometheus:wrong"), 401),
        (BASIC, basic("wrong:pa:ss wörd"), 401),
        (BASIC, basic("prometheus"), 401),
        (BASIC, "Basic ???", 401),
        (BASIC, "Basic", 401),
        (BASIC, "Bearer pa:ss w", 401),
        ({**BEARER, **BASIC}, "Bearer t0ken", 200),
        ({**BEARER, **BASIC}, basic("prometheus:pa:ss wörd"), 200),
        ({**BEARER, **BASIC}, "Digest x", 401),
    ],
)
def test_readers_must_authenticate(options, said, status):
    """With token, password or both, only who sends them reads; the 401 says how, and nothing else."""
    http = start(**options)
    for path in ("/metrics", "/health", "/", "/debug/eventcore", "/no/such/path"):
        got, headers, body = ask(http.url + path, **({} if said is None else {"Authorization": said}))
        assert got == (404 if status == 200 and path == "/no/such/path" else status)
        if status == 401:
            assert body == b"authentication required\n"
            assert ("Bearer" in headers["WWW-Authenticate"]) == ("token" in options)
            assert ("Basic" in headers["WWW-Authenticate"]) == ("username" in options)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz?verbose", "/livez/"])
def test_probes_need_no_authentication(path):
    """``/livez`` and ``/readyz`` are public unless the settings say otherwise."""
    assert ask(start(**BEARER).url + path)[0] == 200
    ec.shutdown()
    assert ask(start(**BEARER, public=[]).url + path)[0] == 401


@pytest.mark.parametrize(("options", "is_open"), [({}, True), (BEARER, False)])
def test_public_probes_tell_no_more_than_they_must(options, is_open):
    """Where readers authenticate, ``/readyz`` says which critical check fails, and no more; ``/health`` says all."""
    http = start(**options)
    found = ec.HealthResult(ec.HealthStatus.UNHEALTHY, "db1.internal refused", {"host": "db1.internal"})
    ec.get_emitter().health.add_check(ec.HealthCheck("db", lambda: found, critical=True))
    status, _, body = ask(f"{http.url}/readyz")
    assert (status, json.loads(body)["checks"]["db"]["status"]) == (503, "unhealthy")
    assert (b"db1.internal" in body) == is_open
    verbose = ask(f"{http.url}/readyz?verbose")[2].decode()
    reason = ": db1.internal refused" if is_open else ""
    assert verbose == f"[-]db failed{reason}\nreadyz check failed\n"
    assert b"db1.internal" in ask(f"{http.url}/health", Authorization="Bearer t0ken")[2]


@pytest.mark.parametrize("path", ["/livez/../metrics", "/livez%2f..%2fmetrics", "/LIVEZ", "/livez;/metrics"])
def test_no_path_gets_around_it(path):
    """A path that resembles a public one is not public."""
    assert ask(start(**BEARER).url + path)[0] == 401


def test_settings_say_which_paths_are_public():
    """``public`` takes paths and patterns."""
    http = start(**BEARER, public=["/metrics", "/health*"])
    assert [ask(http.url + p)[0] for p in ("/metrics", "/health", "/healthz", "/livez")] == [200, 200, 200, 401]


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_other_methods_are_refused_alike(method):
    """Without authentication every method is a 401."""
    assert ask(f"{start(**BEARER).url}/metrics", method)[0] == 401


def test_secrets_come_from_the_environment(monkeypatch):
    """``env:NAME`` names a variable; what it holds is shown nowhere."""
    monkeypatch.setenv("READ_TOKEN", "fr0m-env")
    http = start(token="env:READ_TOKEN")
    said = {"Authorization": "Bearer fr0m-env"}
    assert ask(f"{http.url}/metrics", **said)[0] == 200
    shown = ask(f"{http.url}/debug/eventcore", **said)[2].decode() + repr(http) + repr(http.config) + repr(http.access)
    assert "fr0m-env" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "env:NO_SUCH_TOKEN"}, "option 'token' names the environment variable 'NO_SUCH_TOKEN', which is not"),
        ({"token": ""}, "option 'token' is empty"),
        ({"username": "me"}, "option 'password' is missing"),
        ({"password": "s3cret"}, "option 'username' is missing"),
        ({"username": "a:b", "password": "s3cret"}, "must not contain a colon"),
        ({"keyfile": "x.pem"}, "'keyfile' needs 'certfile' beside it"),
        ({"certfile": "none.pem"}, "cannot read none.pem: No such file or directory"),
        ({"port": 9, "health_port": 9}, "'health_port' is 9, as 'port' is"),
    ],
)
def test_mistakes_are_one_clear_error(options, message):
    """A setting that cannot be meant is one error that names it, and quotes no secret."""
    with pytest.raises(ec.ConfigurationError, match="http") as caught:
        start(**options)
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def wsgi_status(application, path, **environ):
    """Return the status that a WSGI application gives."""
    said = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", **environ}
    application(environ, lambda status, headers: said.append(int(status.split()[0])))
    return said[0]


def asgi_status(application, path, headers=()):
    """Return the status that an ASGI application gives."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": list(headers)}
    asyncio.run(application(scope, None, send))
    return sent[0]["status"]


def test_mounted_applications_ask_for_the_same():
    """Applications mounted elsewhere take their authentication from ``[http]``, which need not start a server."""
    http = start(**BEARER, serve=False)
    assert repr(http) == "<HttpService mounted>"
    assert not [thread for thread in threading.enumerate() if thread.name == "eventcore-http"]
    wsgi, asgi = eventcore_http.wsgi_app(), eventcore_http.asgi_app()
    assert [wsgi_status(wsgi, path) for path in ("/metrics", "/livez")] == [401, 200]
    assert [asgi_status(asgi, path) for path in ("/metrics", "/livez")] == [401, 200]
    assert wsgi_status(wsgi, "/metrics", HTTP_AUTHORIZATION="Bearer t0ken") == 200
    assert asgi_status(asgi, "/metrics", [(b"authorization", b"Bearer t0ken")]) == 200


def test_mounted_applications_may_have_their_own():
    """An application given an ``Access`` uses that, whatever the settings say."""
    start()
    wsgi = eventcore_http.wsgi_app(access=Access(username="a", password="b", public=()))
    assert wsgi_status(wsgi, "/livez") == 401
    assert wsgi_status(wsgi, "/livez", HTTP_AUTHORIZATION=basic("a:b")) == 200


def test_commands_authenticate(monkeypatch):
    """Commands send ``EVENTCORE_TOKEN``, or user and password of the URL; without them one error says so."""
    http = start(**BEARER, **BASIC)
    result = CliRunner().invoke(app, ["health", "--url", http.url])
    assert result.exit_code == 2
    assert "EVENTCORE_TOKEN" in result.stderr
    url = http.url.replace("//", "//prometheus:pa%3Ass%20w%C3%B6rd@")
    shown = CliRunner().invoke(app, ["health", "--json", "--url", url])
    assert (shown.exit_code, json.loads(shown.stdout)["source"]) == (0, http.url)
    monkeypatch.setenv("EVENTCORE_TOKEN", "t0ken")
    assert CliRunner().invoke(app, ["health", "--url", http.url]).exit_code == 0


# -- a port for health -------------------------------------------------------------------------------------------------


def test_health_may_have_a_port_of_its_own():
    """The further port has the health paths and nothing else; the first has everything."""
    http = start(health_port=0)
    assert http.health_url != http.url
    found = [ask(http.health_url + path)[0] for path in ("/health", "/healthz", "/livez", "/readyz")]
    assert found == [200] * 4
    status, _, body = ask(f"{http.health_url}/metrics")
    assert (status, b"/metrics" in body) == (404, False)
    assert [ask(http.health_url + path)[0] for path in ("/", "/debug/eventcore")] == [404, 404]
    assert [ask(http.url + path)[0] for path in ("/health", "/metrics")] == [200, 200]


def test_a_health_port_in_use_leaves_nothing_running():
    """Where the further port is taken, the error names its option, and the first is let go."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        with pytest.raises(ec.ConfigurationError, match=r"\[http\] health_port = …"):
            start(port=port, health_port=other.getsockname()[1])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=1)


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority():
    """Return a certificate authority of the test's own."""
    return trustme.CA()


def certified(authority, folder):
    """Write a certificate for loopback and its key; return the options that name them."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    return {"certfile": str(folder / "cert.pem"), "keyfile": str(folder / "key.pem")}


@pytest.fixture
def trusting(authority):
    """Return the context of a client that trusts that authority alone."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls_serves_who_trusts_it(authority, trusting, tmp_path):
    """With a certificate the server speaks TLS, on both ports; who does not trust it or speaks plainly gets nothing."""
    http = start(**certified(authority, tmp_path), health_port=0)
    assert http.url.startswith("https://127.0.0.1:")
    assert ask(f"{http.url}/metrics", context=trusting)[0] == 200
    assert ask(f"{http.health_url}/health", context=trusting)[0] == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(f"{http.url}/metrics")
    with pytest.raises(OSError):
        ask(f"http://127.0.0.1:{http.port}/metrics")
    assert ask(f"{http.url}/livez", context=trusting)[0] == 200


def test_a_command_says_how_to_trust_a_certificate(authority, tmp_path, monkeypatch):
    """``--url`` against a certificate that nobody here trusts is one error with the remedy, and that works."""
    http = start(**certified(authority, tmp_path))
    command = ["health", "--url", http.url]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert f"error: the certificate of {http.url} is not trusted" in refused.stderr
    assert "in the variable SSL_CERT_FILE" in refused.stderr
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    assert CliRunner().invoke(app, command).exit_code == 0
    elsewhere = CliRunner().invoke(app, ["health", "--url", http.url.replace("127.0.0.1", "localhost")])
    assert elsewhere.exit_code == 2
    assert "is not trusted (Hostname mismatch" in elsewhere.stderr
    assert "ask by a name that it has" in elsewhere.stderr


def test_old_tls_is_refused(authority, trusting, tmp_path):
    """Nothing below TLS 1.2 is spoken."""
    http = start(**certified(authority, tmp_path))
    trusting.minimum_version = ssl.TLSVersion.TLSv1_2
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    assert ask(f"{http.url}/livez", context=trusting)[0] == 200
    context = http._servers[0]._tls._context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_key_and_certificate_may_be_one_file(authority, trusting, tmp_path):
    """``certfile`` may hold the key too."""
    certified(authority, tmp_path)
    http = start(certfile=str(tmp_path / "both.pem"))
    assert ask(f"{http.url}/livez", context=trusting)[0] == 200


def test_a_renewed_certificate_is_used_without_restart(authority, trusting, tmp_path):
    """When the files change, further connections see the new certificate; half a file changes nothing."""
    http = start(**certified(authority, tmp_path))

    def serial():
        with (
            socket.create_connection(("127.0.0.1", http.port), timeout=10) as plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            return secure.getpeercert()["serialNumber"]

    first = serial()
    assert serial() == first
    (tmp_path / "cert.pem").write_text("-----BEGIN CERT")
    assert serial() == first
    certified(authority, tmp_path)
    assert serial() != first


def test_a_key_of_another_certificate_is_one_clear_error(authority, tmp_path):
    """Files that do not belong together are named."""
    options = certified(authority, tmp_path)
    (tmp_path / "other").mkdir()
    other = certified(authority, tmp_path / "other")
    with pytest.raises(ec.ConfigurationError, match="they do not belong together"):
        start(certfile=options["certfile"], keyfile=other["keyfile"])


def test_an_encrypted_key_needs_its_password(authority, trusting, tmp_path, monkeypatch):
    """``keyfile_password`` opens an encrypted key."""
    options = certified(authority, tmp_path)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", options["keyfile"], "-aes256", "-passout", "pass:s3cret", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("KEY_PASSWORD", "s3cret")
    http = start(certfile=options["certfile"], keyfile=str(locked), keyfile_password="env:KEY_PASSWORD")
    assert ask(f"{http.url}/livez", context=trusting)[0] == 200
    ec.shutdown()
    with pytest.raises(ec.ConfigurationError, match="an encrypted key needs 'keyfile_password'"):
        start(certfile=options["certfile"], keyfile=str(locked), keyfile_password="wrong")


def test_clients_that_do_not_shake_hands_hold_nobody_up(authority, trusting, tmp_path):
    """Fifty connections that never begin TLS leave the server answering others."""
    http = start(**certified(authority, tmp_path))
    with connected(http, 50):
        assert ask(f"{http.url}/livez", context=trusting)[0] == 200


def test_shutdown_cuts_tls_connections(authority, trusting, tmp_path):
    """A connection that has shaken hands and says nothing ends with the server."""
    http = start(**certified(authority, tmp_path))
    with connected(http, 1) as (plain,), trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        secure.sendall(b"GET /")
        assert ec.shutdown().is_clean
        with suppress(ssl.SSLEOFError, ConnectionResetError):  # cut, not closed: that is what is asked for
            assert secure.recv(100) == b""


# -- limits ------------------------------------------------------------------------------------------------------------


@contextmanager
def connected(http, number):
    """Hold connections."""
    clients = [socket.create_connection(("127.0.0.1", http.port), timeout=10) for _ in range(number)]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n", b"414"),
        (b"GET / HTTP/1.0\r\n" + b"A: " + b"b" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.0\r\n" + b"".join(b"H%d: " % n + b"x" * 1000 + b"\r\n" for n in range(90)) + b"\r\n", b"431"),
        (b"GET / HTTP/1.0\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(200)) + b"\r\n", b"431"),
    ],
)
def test_a_head_has_a_limit(head, status):
    """A request line or headers beyond 64 KiB, or more than a hundred headers, are told so; the server goes on."""
    http = start()
    with connected(http, 1) as (client,):
        with suppress(OSError):  # the answer came while we were talking
            client.sendall(head)
        with suppress(ConnectionResetError):  # the rest of what we said was never read: refused all the same
            assert status in client.recv(100).split(b"\r\n")[0]
    assert ask(f"{http.url}/livez")[0] == 200


def test_a_silent_client_under_tls_is_let_go(authority, tmp_path, monkeypatch):
    """A connection on which the handshake never comes is closed by the server."""
    monkeypatch.setattr(server, "IO_TIMEOUT_S", 0.05)
    http = start(**certified(authority, tmp_path))
    with connected(http, 1) as (client,):
        assert client.recv(100) == b""


def test_importing_the_plugin_imports_no_tls():
    """The plugin stays light: ssl comes with the service."""
    code = "import eventcore_http, sys; sys.exit('ssl' in sys.modules)"
    environ = {**os.environ, "PYTHONWARNINGS": "ignore"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environ).returncode == 0
