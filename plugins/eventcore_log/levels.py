"""From which severity on events are shown: in general, by category, and by name; the most specific word counts.

A name is an event's or its logger's. ``router`` speaks of ``router`` and of all below it (``router.request``), as
loggers of the standard library do; with ``*``, ``?`` or ``[…]`` it is a glob. Of several that fit, the longest counts;
a name goes before a category.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.events import Category, Severity

__all__ = ["Levels"]

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Levels:
    """Immutable: ``replace`` gives a changed copy, which takes the place of the one in use at once."""

    general: Severity
    by_category: Mapping[Category, Severity] = field(default_factory=dict)
    by_name: Mapping[str, Severity] = field(default_factory=dict)

    def of(self, category: Category, *names: str) -> Severity:
        """Return the level for what is in ``category`` and called ``names``."""
        fitting = [pattern for pattern in self.by_name if any(_fits(pattern, name) for name in names)]
        if fitting:
            return self.by_name[max(fitting, key=len)]
        return self.by_category.get(category, self.general)

    def least(self, category: Category, *names: str) -> Severity:
        """Return the lowest level that anything in ``category`` may have whose name is not known yet."""
        return min(self.of(category, *names), *self.by_name.values())

    def with_general(self, level: Severity) -> Levels:
        """Return a copy with another level for everything that has none of its own."""
        return replace(self, general=level)

    def with_category(self, category: Category, level: Severity | None) -> Levels:
        """Return a copy with a level for a category, or (None) without."""
        return replace(self, by_category=_changed(self.by_category, category, level))

    def with_name(self, pattern: str, level: Severity | None) -> Levels:
        """Return a copy with a level for a name or a glob, or (None) without."""
        return replace(self, by_name=_changed(self.by_name, pattern, level))


def _changed(levels: Mapping[K, Severity], key: K, level: Severity | None) -> dict[K, Severity]:
    rest = {known: value for known, value in levels.items() if known != key}
    return rest if level is None else {**rest, key: level}


def _fits(pattern: str, name: str) -> bool:
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.startswith(f"{pattern}.")
