"""The settings of the journal: the table ``[journal]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["JournalConfig"]


class JournalConfig(BaseModel):
    """Where the journal of durable handlers is, how large it may grow, and how long an audit-class emit waits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(
        Path("eventcore-journal.db"), description="Its file; made (mode 0600) when the first durable handler starts."
    )
    max_rows: int = Field(1_000_000, ge=1, description="Most envelopes it may hold; what meets the limit is refused.")
    max_bytes: int = Field(
        256 * 1024 * 1024, ge=1, description="Most bytes of envelopes it may hold; what meets the limit is refused."
    )
    max_event_bytes: int = Field(
        1024 * 1024, ge=1, description="Most bytes of one envelope; larger ones are dropped with reason 'too_large'."
    )
    commit_timeout_s: float = Field(
        5.0, gt=0, description="How long the emit of an audit-class event waits for its commit."
    )
    on_not_durable: Literal["raise", "count"] = Field(
        "raise", description="What an audit-class emit does when its event was not committed in time."
    )
    max_attempts: int = Field(
        10,
        ge=1,
        description="How often a handler must fail on an envelope before it can be the envelope's fault: if one behind "
        "it gets through, it is set aside as a dead letter, counted and reported.",
    )
    give_up_after_s: float = Field(
        86_400.0,
        gt=0,
        description="After what time of such failures an envelope is set aside although nothing gets through.",
    )
    max_dead_letters: int = Field(
        10_000, ge=0, description="Most envelopes kept that were set aside; beyond it the oldest are deleted."
    )
