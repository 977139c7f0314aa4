"""Who may read what: a bearer token, a user and password, or both, for every path that is not public.

Names and passwords are compared as digests, in constant time, so that how long an answer takes says nothing of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from eventcore.errors import ConfigurationError
from eventcore.http import HttpResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.http import HttpRequest

__all__ = ["PUBLIC", "Access"]

PUBLIC = ("/livez", "/readyz")
"""What probes ask, which as a rule cannot authenticate."""


class Access:
    """Lets requests through or refuses them; without token and password it lets everything through.

    ``public`` are paths, or patterns with ``*``, that need no authentication. ConfigurationError: a user name without
    password, or the other way round.
    """

    def __init__(
        self, *, token: str = "", username: str = "", password: str = "", public: Sequence[str] = PUBLIC
    ) -> None:
        if bool(username) != bool(password):
            missing = "password" if username else "username"
            raise ConfigurationError(f"option {missing!r} is missing: basic authentication takes both, or use 'token'")
        if ":" in username:
            raise ConfigurationError("option 'username' must not contain a colon: basic authentication cannot send it")
        self.public = tuple(public)
        self._token = _digest(token.encode()) if token else b""
        self._basic = _digest(f"{username}:{password}".encode()) if password else b""

    @property
    def is_open(self) -> bool:
        """Whether everybody may read everything."""
        return not (self._token or self._basic)

    def refusal(self, path: str, request: HttpRequest) -> HttpResponse | None:
        """Return the 401 that a request to ``path`` gets, or None: it may pass."""
        if self.is_open or any(fnmatchcase(path, pattern) for pattern in self.public):
            return None
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        if self._admits(scheme.lower(), said.strip()):
            return None
        schemes = ['Bearer realm="eventcore"'] if self._token else []
        schemes += ['Basic realm="eventcore", charset="UTF-8"'] if self._basic else []
        return HttpResponse(b"authentication required\n", status=401, headers={"WWW-Authenticate": ", ".join(schemes)})

    def _admits(self, scheme: str, said: str) -> bool:
        if scheme == "bearer" and self._token:
            return hmac.compare_digest(_digest(said.encode("latin-1", "replace")), self._token)
        if scheme == "basic" and self._basic:
            try:
                pair = base64.b64decode(said, validate=True)
            except (binascii.Error, ValueError):
                return False
            return hmac.compare_digest(_digest(pair), self._basic)
        return False

    def __repr__(self) -> str:
        kinds = [name for name, kept in (("bearer", self._token), ("basic", self._basic)) if kept]
        return f"<Access {' or '.join(kinds) or 'open'}; public: {', '.join(self.public) or 'nothing'}>"


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
