"""What is wrong with an expression, in the words of whoever has to mend it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Problem", "closest"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: its kind, what is wrong, what to do, and the part of the expression that it is about."""

    code: str
    message: str
    remedy: str
    token: str


def closest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return ``did you mean 'x'?`` for a close match, else nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=likeness)
    return f"did you mean {close[0]!r}?" if close else ""
