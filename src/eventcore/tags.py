"""Tags: what an emit is given, as handlers get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NO_TAGS", "as_tags"]

NO_TAGS: tuple[str, ...] = ()
"""The one empty tuple: who gives no tags gives this, which costs one comparison."""


def as_tags(tags: Iterable[str] | None) -> tuple[str, ...]:
    """Return tags as a tuple that the caller cannot change any more; a text is one tag, and not its letters.

    A type checker lets a text pass for a sequence of texts, and what is meant by it is beyond doubt. Raises TypeError
    for what holds anything but texts.
    """
    if not tags:
        return NO_TAGS
    if isinstance(tags, str):
        return (tags,)
    try:
        taken = tuple(tags)
    except TypeError:
        raise TypeError(f"tags takes texts, such as tags=('slow', 'eu'), not {tags!r}") from None
    for tag in taken:
        if not isinstance(tag, str):
            raise TypeError(f"tags takes texts, such as tags=('slow', 'eu'); {tag!r} in {tags!r} is none")
    return taken
