"""A small server of the standard library's, made safe against slow clients.

One thread and one request per connection. Four limits keep a slow, half-open or talkative client from harming others:
a time for each read or write, a time for the whole connection, a size of the request's head, and a number of
connections, beyond which a client is told 503. TLS shakes hands in the connection's thread, under the same limits.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from eventcore.http import HttpRequest
from eventcore_http.application import headers_of, reason_of

if TYPE_CHECKING:
    from eventcore_http.application import Application
    from eventcore_http.tls import Certificate

__all__ = ["Server"]

IO_TIMEOUT_S = 5.0
CONNECTION_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 100
MAX_HEAD_BYTES = 65_536
POLL_S = 0.5

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\n\r\ntoo many connections\n"


class _Head:
    """Gives the lines of a request's head, up to a size: http.server alone would take a hundred lines of 64 KiB."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_HEAD_BYTES

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("head")
        return line

    def close(self) -> None:
        self._file.close()


class _RequestHandler(BaseHTTPRequestHandler):
    """Reads one request, answers it, and writes no access log."""

    server: Server
    timeout = IO_TIMEOUT_S

    def setup(self) -> None:
        """Read through a limit."""
        super().setup()
        self.rfile: Any = _Head(self.rfile)

    def handle_one_request(self) -> None:
        """Read and answer one request; a first line that is too long is told so."""
        try:
            super().handle_one_request()
        except LineTooLong:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)

    def answer(self) -> None:
        """Answer the request that has just been read."""
        path, _, query = self.path.partition("?")
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        request = HttpRequest(unquote(path), dict(parse_qsl(query, keep_blank_values=True)), headers)
        response = self.server.application.respond(self.command, request)
        self.send_response(response.status, reason_of(response.status))
        for name, value in headers_of(response):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def __getattr__(self, name: str) -> Any:
        """Answer every method alike (http.server looks for ``do_<METHOD>``): the application says which it takes."""
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def version_string(self) -> str:
        """Return the ``Server`` header: what this is, and no versions."""
        return "eventcore"

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: who scrapes how often is not worth a line."""


class Server(ThreadingHTTPServer):
    """Serves an application until it is stopped. OSError where it cannot listen."""

    daemon_threads = True
    request_queue_size = 128
    timeout = POLL_S

    def __init__(self, host: str, port: int, application: Application, tls: Certificate | None = None) -> None:
        self.application = application
        self._tls = tls
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._connections: dict[Any, float] = {}
        self._stopping = threading.Event()
        super().__init__((host, port), _RequestHandler)
        self._thread = threading.Thread(target=self._serve, name="eventcore-http", daemon=True)
        self._thread.start()
        _SERVERS.add(self)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.server_port

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, as the base class does: that may take long."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def stop(self, timeout_s: float) -> None:
        """Stop listening and cut what is still open; calling it again does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections
        self._thread.join(timeout_s)
        self.server_close()
        self._cut(older_than_s=-1.0)

    def _serve(self) -> None:
        with suppress(OSError, ValueError):  # stop() has closed the socket under it
            while not self._stopping.is_set():
                self.handle_request()
                self._cut(older_than_s=CONNECTION_TIMEOUT_S)

    def _cut(self, *, older_than_s: float) -> None:
        oldest = time.monotonic() - older_than_s
        for connection, since in self._connections.copy().items():
            if since < oldest:
                with suppress(OSError):  # the socket's own, also under TLS, whose thread is at work with it
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread of its own, or turn it away when there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            with suppress(OSError):
                request.settimeout(0.1)
                request.sendall(_BUSY)
            self.shutdown_request(request)
            return
        self._connections[request] = time.monotonic()
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer on a connection, in its thread; with TLS after shaking hands."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(IO_TIMEOUT_S)
        secure = self._tls.wrap(request)
        self._connections[secure] = self._connections.pop(request, time.monotonic())
        try:
            secure.do_handshake()
            super().finish_request(secure, client_address)
        finally:
            self.shutdown_request(secure)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a connection that broke go: routes that fail are reported by the application, and the rest is weather."""

    def after_fork(self) -> None:
        """In a forked child: close the child's copies of the sockets; the parent goes on serving."""
        self._stopping.set()
        self.socket.close()
        for connection in self._connections:
            connection.close()


_SERVERS: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork() -> None:
    for server in list(_SERVERS):
        server.after_fork()


os.register_at_fork(after_in_child=_after_fork)
