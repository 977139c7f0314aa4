"""The other end of the webhook: a local server that accepts only what is signed (Standard Webhooks 1.0)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """Listens on a free loopback port; ``accepted`` holds the types of events whose signature was right."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(32)
        self.accepted: list[str] = []
        self.refused = 0
        receiver = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                right = receiver.is_signed(self.headers, body)
                if right:
                    receiver.accepted.append(json.loads(body)["type"])
                else:
                    receiver.refused += 1
                self.send_response(204 if right else 401)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing: the demo prints what arrived."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/oncall"

    @property
    def secret(self) -> str:
        return "whsec_" + base64.b64encode(self.key).decode()

    def is_signed(self, headers: object, body: bytes) -> bool:
        """Check one of the signatures over id, timestamp and the exact body, in constant time."""
        text = b".".join([str(headers["webhook-id"]).encode(), str(headers["webhook-timestamp"]).encode(), body])  # type: ignore[index]
        right = base64.b64encode(hmac.new(self.key, text, hashlib.sha256).digest()).decode()
        given = str(headers["webhook-signature"]).split(" ")  # type: ignore[index]
        return any(hmac.compare_digest(signature, f"v1,{right}") for signature in given)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
