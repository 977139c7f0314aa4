"""Where a webhook goes: a URL, taken apart once, and what of it may be shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from eventcore.errors import ConfigurationError

__all__ = ["Endpoint"]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed URL. Its path and query often hold a token, so only the origin is ever shown."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Take ``url`` apart; ConfigurationError says what is wrong with it, without showing it."""
        try:
            parsed = parse_url(url)
        except LocationParseError:
            raise ConfigurationError("option 'url' is no URL, such as https://example.com/hooks") from None
        scheme = (parsed.scheme or "").lower()
        if scheme not in _PORTS:
            raise ConfigurationError(f"option 'url' must begin with https:// or http://, not {scheme!r}")
        if not parsed.host:
            raise ConfigurationError("option 'url' has no host")
        if parsed.auth:
            raise ConfigurationError("option 'url' must not contain user and password; requests are signed instead")
        host = parsed.host.strip("[]")
        return cls(scheme, host, parsed.port or _PORTS[scheme], parsed.request_uri)

    @property
    def authority(self) -> str:
        """The header ``Host``: the port is left out where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: what errors and descriptions show."""
        return f"{self.scheme}://{self.authority}"
