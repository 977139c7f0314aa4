"""Operations that were used wrongly: counted, reported once per type, and raised in strict mode.

A service must not fail because its instrumentation is wrong, and its author must hear of it. An operation that nobody
refers to any more can never end. Finding those must cost the others nothing, so there is no finalizer: now and then the
emitter's table of open operations is searched, and those that nothing else refers to end as ``abandoned``. It is not
done by a callback of the garbage collector: a collection may begin inside ``ContextVar.set``, and Python code that runs
there and sets the variable too (a signal handler, say) can crash the interpreter (CPython 3.11, gh-148891).
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from eventcore.errors import OperationMisuse
from eventcore.vocabulary import Misuse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextvars import Token

    from eventcore.emitter import Emitter
    from eventcore.operation import LiveOperation

__all__ = ["FEW_OPEN", "Misuses"]

FEW_OPEN = 64
"""Open operations that are not searched for dropped ones except when the emitter is flushed."""

MAX_OPEN_OPERATIONS = 10_000
"""Operations that are remembered as open; the oldest beyond that end as abandoned, so that a leak stays bounded."""


class Misuses:
    """What an emitter knows of the misuse of its operations."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = weakref.ref(emitter)
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.RLock()  # re-entrant: a finalizer or signal handler may report, too

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """How often each thing happened, by the operation's name and what happened."""
        return dict(self._counts)

    def report(self, operation: LiveOperation[Any], what: str, remedy: str, *, may_raise: bool = True) -> None:
        """Count a misuse and report the first of its kind; OperationMisuse in strict mode, if it ``may_raise``."""
        key = (operation.event_type.__event__.name, what)
        with self._lock:
            self._counts[key] = count = self._counts.get(key, 0) + 1
        emitter = self._emitter()
        if emitter is None:
            return
        if count == 1:
            emitter.emit(Misuse(operation=key[0], what=what, remedy=remedy))  # type: ignore[arg-type]  # one of its words
        if may_raise and emitter.strict:
            raise OperationMisuse(f"{operation.event_type.__qualname__} {what.replace('_', ' ')}; {remedy}")

    def relieve(self, opened: Mapping[int, LiveOperation[Any]]) -> None:
        """Make room where more operations are open than ``watermark``: end those that were dropped, or the oldest."""
        if len(opened) <= MAX_OPEN_OPERATIONS:
            self.search()
        else:
            oldest = next(iter(opened.values()), None)
            if oldest is not None:
                oldest.abandon()

    def search(self) -> None:
        """End the operations that nobody can end any more as ``abandoned``.

        It is done when the emitter is flushed and when more operations than its ``watermark`` are open, which is then
        set to twice as many as are left, so an operation's cost stays constant.
        """
        emitter = self._emitter()
        if emitter is None:
            return
        held = emitter.open_operations()
        for index in range(len(held)):
            if _is_forsaken(held, index):
                held[index].abandon("nothing refers to it any more; use a with block, or call end()")
        del held
        emitter.watermark = min(MAX_OPEN_OPERATIONS, max(FEW_OPEN, 2 * len(emitter.open_operations())))

    def after_fork(self) -> None:
        """Start anew in a forked child: a thread of the parent's may have held the lock."""
        self._lock = threading.RLock()
        self._counts = {}


def _is_forsaken(held: Sequence[LiveOperation[Any]], index: int) -> bool:
    """Whether only the emitter's table refers to an operation, or besides only a context that has ended.

    A task that ended leaves its context with the operation as the current scope, and nothing refers to that context
    but the operation's own token.
    """
    surplus = _references(held, index) - _ALONE
    token, is_foreign = held[index].holds
    if surplus == 0 or token is None:
        return surplus == 0
    return surplus == 1 + is_foreign and _references(_contexts(token), 0) == _ALONE_CONTEXT + is_foreign


def _references(held: Sequence[object], index: int) -> int:
    return sys.getrefcount(held[index])


def _contexts(token: Token[Any]) -> list[Context]:
    return [found for found in gc.get_referents(token) if isinstance(found, Context)]


class _Sample:
    """Something to count references of."""


_table = {0: _Sample()}
_ALONE = _references(tuple(_table.values()), 0)
"""What ``_references`` gives for what only a table, and a copy of the table, refer to."""

_variable: ContextVar[int] = ContextVar("eventcore_sample")
_token = Context().run(_variable.set, 0)
_ALONE_CONTEXT = _references(_contexts(_token), 0)
"""What it gives for a context that only a token refers to."""
