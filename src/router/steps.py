"""The steps of a request as operations, which cost nothing where no handler wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import eventcore as ec

__all__ = ["UNWANTED", "step"]


class Unwanted:
    """An operation that no handler wants: it costs nothing and is not counted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let everything pass."""

    def set(self, **_: object) -> None:
        """Take no results."""


UNWANTED = Unwanted()


def step(emitter: ec.Emitter, kind: type[ec.Operation], **fields: Any) -> Any:
    """Return the operation where any handler wants it, else nothing that costs anything."""
    return emitter.operation(kind, **fields) if emitter.enabled(kind) else UNWANTED
