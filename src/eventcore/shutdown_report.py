"""What ``shutdown`` has to report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ShutdownReport"]


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What ``shutdown`` could not finish in time.

    ``journalled`` counts, per durable handler, what it had not handled: the journal keeps it, and the next run begins
    with it.
    """

    abandoned_envelopes: Mapping[str, int]
    abandoned_operations: int
    errors: tuple[str, ...]
    journalled: Mapping[str, int] = field(default_factory=dict)

    @property
    def loss(self) -> str:
        """What handlers did not get, and what went wrong, for people to read; empty if nothing did."""
        lost = (f"{name}: {number} not delivered" for name, number in self.abandoned_envelopes.items() if number)
        return "; ".join((*lost, *self.errors))

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost; what the journal keeps is not."""
        return not any(self.abandoned_envelopes.values()) and not self.abandoned_operations and not self.errors
