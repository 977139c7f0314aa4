"""What few operations have, kept apart from what all have: most share one object that holds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from traceback import TracebackException

__all__ = ["NO_EXTRAS", "Extras"]


class Extras:
    """What few operations have: tags, an error, links, and what instrumented libraries gave their span."""

    __slots__ = ("error", "error_type", "given", "invalid", "links", "span_attributes", "span_name", "tags")

    def __init__(self) -> None:
        self.tags: Sequence[str] = ()
        self.given: BaseException | None = None  # to fail(), before the end
        self.error: TracebackException | None = None
        self.error_type: str | None = None
        self.invalid: tuple[str, ...] = ()
        self.links: tuple[tuple[int, int], ...] = ()
        self.span_name: str | None = None
        self.span_attributes: Mapping[str, Any] | None = None


NO_EXTRAS = Extras()
"""Those of all other operations; nobody may change it."""
