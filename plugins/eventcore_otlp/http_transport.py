"""OTLP over HTTP with protobuf bodies."""

from __future__ import annotations

import email.utils
import gzip
import time
from typing import Any

import urllib3

import eventcore as ec
from eventcore_otlp.transport import RefusedError, Transport, WorthARetryError, excerpt

__all__ = ["HttpTransport"]

RETRIED = frozenset({429, 502, 503, 504})
MAX_RESPONSE = 64 * 1024


class HttpTransport(Transport):
    """POSTs requests over one connection that is kept open."""

    verb = "POST"

    def _connect(self) -> None:
        endpoint = self.endpoint
        self._headers = {
            "User-Agent": f"eventcore/{ec.__version__}",
            **endpoint.headers,
            "Content-Type": "application/x-protobuf",
            **({"Content-Encoding": "gzip"} if endpoint.compression == "gzip" else {}),
        }
        files = {
            "ca_certs": endpoint.certificate,
            "cert_file": endpoint.client_certificate,
            "key_file": endpoint.client_key,
        }
        given: dict[str, Any] = (
            {name: str(path) for name, path in files.items() if path is not None} if endpoint.is_secure else {}
        )
        # One host, so its pool at once: a PoolManager looks for it, by the parsed URL, in each request (0.1 ms of CPU).
        self._pool = urllib3.connection_from_url(endpoint.url, maxsize=1, retries=False, **given)
        self._target = urllib3.util.parse_url(endpoint.url).request_uri

    def _disconnect(self) -> None:
        self._pool.close()

    def _packed(self, body: bytes) -> bytes:
        return gzip.compress(body, compresslevel=5) if self.endpoint.compression == "gzip" else body

    def _attempt(self, body: bytes, timeout_s: float) -> bytes:
        try:
            response = self._pool.urlopen(
                "POST",
                self._target,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(total=timeout_s),
                redirect=False,
                preload_content=False,
            )
            try:
                answer = response.read(MAX_RESPONSE)
                if len(answer) >= MAX_RESPONSE:
                    response.close()  # whatever this is, it is not worth reading to the end
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise WorthARetryError(f"{type(error).__name__}: {error}") from error
        if 200 <= response.status < 300:
            return answer
        problem = f"HTTP {response.status} {excerpt(answer)}".rstrip()
        if response.status in RETRIED:
            raise WorthARetryError(problem, _retry_after_s(response.headers.get("Retry-After")))
        raise RefusedError(problem)


def _retry_after_s(header: str | None) -> float:
    """Return the seconds that a ``Retry-After`` header asks for, be it a number or a date; 0 where it says nothing."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
