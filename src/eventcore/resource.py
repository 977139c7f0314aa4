"""The resource: who emits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Resource"]


@dataclass(frozen=True, slots=True)
class Resource:
    """Who emits: what exporters put beside every signal."""

    service: str = "unknown_service"
    version: str = "0"
    environment: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
