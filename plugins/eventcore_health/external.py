"""Services that this one depends on, asked over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Timeout, parse_url

from eventcore.health import HealthCheck, HealthResult, HealthStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ExternalServiceHealthCheck"]

TIMEOUT_S = 5.0
GRACE_S = 1.0
"""What the check may take beyond its request, so that a slow service is found to be slow, not the check."""


class ExternalServiceHealthCheck(HealthCheck):
    """Asks a service with GET: 200 is healthy, anything else degraded, and no answer unhealthy if it is critical.

    Its name is ``external_<service_name>``. Headers and the URL's query are sent and never shown. ValueError for what
    is no URL.
    """

    def __init__(
        self,
        service_name: str,
        endpoint: str,
        *,
        timeout_s: float = TIMEOUT_S,
        critical: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"external_{service_name}", critical=critical, timeout_s=timeout_s + GRACE_S)
        self.service_name = service_name
        try:
            url = parse_url(endpoint)
        except LocationParseError:
            url = None
        if url is None or url.scheme not in ("http", "https") or not url.host:
            raise ValueError("the address of an external service is a URL, such as http://model-api:8080/health")
        self.endpoint = url._replace(auth=None, query=None, fragment=None).url
        self._url = endpoint
        self._headers = dict(headers or {})
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=1, retries=False, timeout=Timeout(total=timeout_s, connect=timeout_s)
        )

    def run(self) -> HealthResult:
        """Ask, and judge by the status."""
        details: dict[str, Any] = {"service_name": self.service_name, "endpoint": self.endpoint}
        try:
            response = self._pool.request("GET", self._url, headers=self._headers, preload_content=False)
            response.close()  # its status is all that is asked for, however much it has to say
        except (HTTPError, OSError, ValueError) as error:
            status = HealthStatus.UNHEALTHY if self.critical else HealthStatus.DEGRADED
            reason = type(error).__name__
            return HealthResult(status, f"{self.service_name} service unavailable: {reason}", details)
        details["status_code"] = response.status
        if response.status == 200:
            return HealthResult(HealthStatus.HEALTHY, f"{self.service_name} service available", details)
        return HealthResult(HealthStatus.DEGRADED, f"{self.service_name} returned {response.status}", details)
