"""The receipt of an append: what resolves after the commit."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING

from eventcore.errors import NotDurable

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Receipt"]


class Receipt(Future[int]):
    """Resolves to a position once the commit that holds it is done; await it or ``wait`` for it.

    ``accepted`` is how many of the appended rows had room in the journal.
    """

    def __init__(self, accepted: int = 1) -> None:
        super().__init__()
        self.accepted = accepted
        self.set_running_or_notify_cancel()  # a commit cannot be called back: cancelling a waiter only ends its wait

    def wait(self, timeout_s: float | None = None) -> int:
        """Return the position; raises NotDurable when the commit failed or is not done in time."""
        try:
            return self.result(timeout_s)
        except TimeoutError:
            raise self._late(timeout_s) from None

    async def committed(self, timeout_s: float | None = None) -> int:
        """Wait as ``wait`` does, without blocking the event loop."""
        future = asyncio.wrap_future(self)
        future.add_done_callback(asyncio.Future.exception)  # one that comes too late is known to whoever counted it
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout_s)
        except TimeoutError:
            raise self._late(timeout_s) from None

    def __await__(self) -> Generator[object, None, int]:
        return self.committed().__await__()

    @staticmethod
    def _late(timeout_s: float | None) -> NotDurable:
        return NotDurable(
            f"not committed to the journal within {timeout_s} s (setting journal.commit_timeout_s); it may still be"
        )
