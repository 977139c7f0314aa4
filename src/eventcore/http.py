"""HTTP routes as plugins contribute them: a path and a function from request to response.

They say nothing of the server: the ``http`` plugin serves them, or an application mounts them in its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["HttpRequest", "HttpResponse", "HttpRoute"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A GET request: path, query parameters and headers (names in lower case)."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response with its whole body."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """A path and what answers it; contributed by the hook ``eventcore_routes``."""

    path: str
    respond: Callable[[HttpRequest], HttpResponse]
    description: str = ""
