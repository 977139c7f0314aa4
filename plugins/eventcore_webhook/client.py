"""One HTTP request at a time to one endpoint, in bounded time, to a vetted address, redirects not followed.

urllib3's connections are used without its pools: there is one worker, and what a pool would add (retries, redirects,
proxies from the environment) is what a webhook must not do behind the handler's back.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as UrllibTimeoutError

from eventcore_webhook.addresses import Resolver, resolve
from eventcore_webhook.errors import NoAnswer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from eventcore_webhook.endpoint import Endpoint

__all__ = ["Answer", "Client"]

MAX_ANSWER = 64 * 1024
"""Bytes of an answer's body that are read, to be able to use the connection again; nobody looks at them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and, if given, the header ``Retry-After`` of a response."""

    status: int
    retry_after: str | None


class Client:
    """Posts to one endpoint, over one connection that is kept as long as both sides like.

    ``post`` is for one thread; ``close`` may be called from another and ends a request that is under way.
    """

    def __init__(
        self, endpoint: Endpoint, *, allow_private: bool, tls: ssl.SSLContext | None, getaddrinfo: Resolver
    ) -> None:
        self._endpoint = endpoint
        self._allow_private = allow_private
        self._tls = tls
        self._getaddrinfo = getaddrinfo
        self._connection: HTTPConnection | None = None
        self._is_closed = False
        self._in_use = threading.Lock()
        self._process = os.getpid()

    def post(self, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Answer:
        """Post ``body`` and return what came back, whatever its status.

        ``timeout_s`` bounds the whole of it from connecting to the last byte read; only a slow name server may take
        longer. Raises NoAnswer, and AddressRefused before anything is sent.
        """
        if self._process != os.getpid():
            self._after_fork()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._cut()

        # A socket's own timeout is per read: an endpoint that sends a byte now and then would never meet it.
        alarm = threading.Timer(timeout_s, expire)
        alarm.daemon = True
        with self._in_use:
            with suppress(RuntimeError):  # no new threads while the interpreter exits; the socket's timeout remains
                alarm.start()
            try:
                return self._exchange(body, headers, time.monotonic() + timeout_s, expired)
            except (OSError, HTTPException, HTTPError) as error:
                self._drop()
                reason = f"{type(error).__name__}: {error}"
                if expired.is_set() or _is_timeout(error):
                    reason = f"no answer within {timeout_s:g} s"
                raise NoAnswer(f"{self._endpoint.origin}: {reason}") from error
            finally:
                alarm.cancel()
                if self._is_closed:
                    self._drop()

    def close(self) -> None:
        """Close the connection; a request under way fails."""
        self._is_closed = True
        self._cut()
        if self._in_use.acquire(timeout=1.0):  # else ``post`` itself drops the connection as soon as it can
            self._drop()
            self._in_use.release()

    def _exchange(self, body: bytes, headers: Mapping[str, str], deadline: float, expired: threading.Event) -> Answer:
        connection = self._connected(deadline)
        connection.request(
            "POST",
            self._endpoint.target,
            body=body,
            headers={"Host": self._endpoint.authority, **headers},
            preload_content=False,
            decode_content=False,
        )
        response = connection.getresponse()
        if expired.is_set():  # cut off among the headers, which http.client takes for their end
            response.close()
            raise TimeoutError
        answer = Answer(response.status, response.headers.get("Retry-After"))
        with suppress(OSError, HTTPException, HTTPError):  # the status is known: the rest changes nothing
            if connection.sock is not None:  # else the endpoint closes it, and reading on would serve nobody
                response.read(MAX_ANSWER)
        if not response.isclosed():
            response.close()
            self._drop()
        return answer

    def _connected(self, deadline: float) -> HTTPConnection:
        """Return the kept connection if it is still good, else a new one to the first address that takes it."""
        endpoint = self._endpoint
        left_s = max(0.1, deadline - time.monotonic())
        if self._connection is not None and self._connection.is_connected:
            self._connection.sock.settimeout(left_s)
            return self._connection
        self._drop()
        problem: Exception = ConnectionError("no address")
        addresses = resolve(
            endpoint.host, endpoint.port, allow_private=self._allow_private, getaddrinfo=self._getaddrinfo
        )
        for index, address in enumerate(addresses):
            if self._is_closed:
                raise ConnectionAbortedError("the handler was closed")
            left_s = max(0.1, (deadline - time.monotonic()) / (len(addresses) - index))
            connection = self._connection = self._open(address, left_s)
            try:
                connection.connect()
                connection.sock.settimeout(max(0.1, deadline - time.monotonic()))
            except (OSError, HTTPError) as error:
                problem = error
                self._drop()
            else:
                return connection
        raise problem

    def _open(self, address: str, timeout_s: float) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(address, self._endpoint.port, timeout=timeout_s)
        return HTTPSConnection(
            address,
            self._endpoint.port,
            timeout=timeout_s,
            ssl_context=self._tls,
            server_hostname=self._endpoint.host,  # asked for by SNI, and the name the certificate must bear
        )

    def _cut(self) -> None:
        """End both directions of the socket, which wakes a thread that waits for it; the socket stays open."""
        sock = getattr(self._connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                # Not SSLSocket.shutdown: it takes the TLS state away under the feet of the reading thread.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _after_fork(self) -> None:
        """Leave the connection to the parent: two processes must not write to one socket."""
        self._process = os.getpid()
        self._in_use = threading.Lock()
        self._drop()  # closes this process's copy only, without a word to the other side


def _is_timeout(error: Exception) -> bool:
    """Whether a socket timed out; urllib3 derives NewConnectionError ("connection refused") from a timeout too."""
    return isinstance(error, TimeoutError | UrllibTimeoutError) and not isinstance(error, NewConnectionError)
