"""A real HTTP receiver of webhooks on a free local port; it verifies signatures with the reference implementation."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

HANG = "hang"
RESET = "reset"
DRIP = "drip"
ENDLESS = "endless"
ENDLESS_AND_CLOSE = "endless and close"


@dataclass
class Received:
    """One request: path, headers (names in lower case), exact body, and whether the signature was right."""

    path: str
    headers: dict[str, str]
    body: bytes
    verified: bool
    connection: tuple[str, int]


@dataclass
class Receiver:
    """What arrived, and what is to be answered next: a status, ``(status, headers)`` or one of the words above."""

    secret: str
    requests: list[Received] = field(default_factory=list)
    answers: deque = field(default_factory=deque)
    default: object = 204
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def accept(self, path, headers, body, connection):
        """Verify and record a request; return what to answer."""
        try:
            Webhook(self.secret).verify(body, headers, json_parse=False)
        except WebhookVerificationError:
            verified = False
        else:
            verified = True
        self.requests.append(Received(path, headers, body, verified, connection))
        answer = (self.answers.popleft() if self.answers else self.default) if verified else 401
        self.arrived.release()
        return answer

    def wait_for(self, number):
        """Wait until ``number`` more requests have arrived."""
        for _ in range(number):
            assert self.arrived.acquire(timeout=20), f"only {len(self.requests)} requests arrived"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self):
        """Answer as scripted."""
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver = self.server.receiver
        headers = {key.lower(): value for key, value in self.headers.items()}
        answer = receiver.accept(self.path, headers, body, self.client_address)
        if answer in (HANG, RESET, DRIP, ENDLESS, ENDLESS_AND_CLOSE):
            self.close_connection = True
            if answer == HANG:
                receiver.released.wait(30)
            elif answer == DRIP:
                self._drip(receiver, b"X-Slow: ")
            elif answer != RESET:
                close = b"Connection: close\r\n" if answer == ENDLESS_AND_CLOSE else b""
                self._drip(receiver, close + b"Content-Length: 1000000\r\n\r\n")
            return
        status, extra = answer if isinstance(answer, tuple) else (answer, {})
        text = b"" if status == 204 else b"as scripted"
        self.send_response(status)
        for key, value in extra.items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _drip(self, receiver, begin):
        """Begin a success, then send a byte now and then until the other side has enough."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + begin)
        while not receiver.released.wait(0.02):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    def log_message(self, *_args):
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    receiver: Receiver

    def handle_error(self, *_args):
        """Ignore connections that the other side has cut."""


@contextmanager
def webhook_receiver(secret, *, certificate: Path | None = None):
    """Run a receiver; with ``certificate`` (key and certificate in one PEM file) it speaks https."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.receiver = receiver = Receiver(secret)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    receiver.url = f"{scheme}://127.0.0.1:{server.server_port}/hooks?token=path-secret"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def unused_port():
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
