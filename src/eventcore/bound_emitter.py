"""An emitter with fields bound to all that goes through it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from eventcore.context import NOTHING_CARRIED, SCOPE, Carried
from eventcore.events import Operation
from eventcore.operation import LiveOperation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventcore.context import Scope
    from eventcore.emitter import Emitter
    from eventcore.events import Event, Severity
    from eventcore.recording import Recording

__all__ = ["BoundEmitter"]

E = TypeVar("E", bound=Operation)
V = TypeVar("V")


class BoundEmitter:
    """Made by ``Emitter.bind``; emits through that emitter."""

    def __init__(self, emitter: Emitter, fields: Mapping[str, Any]) -> None:
        self._emitter = emitter
        self._carried = Carried(dict(fields)) if fields else NOTHING_CARRIED

    def emit(self, event: Event, *, severity: Severity | str | None = None, tags: Sequence[str] = ()) -> None:
        """Emit with the bound fields."""
        token = SCOPE.set(self._scope())
        try:
            self._emitter.emit(event, severity=severity, tags=tags)
        finally:
            SCOPE.reset(token)

    def record(self, recording: Recording[V], value: V) -> None:
        """Emit an operation that is over, with the bound fields."""
        token = SCOPE.set(self._scope())
        try:
            self._emitter.record(recording, value)
        finally:
            SCOPE.reset(token)

    def enabled(self, event_type: type[Event] | Recording[Any], severity: Severity | None = None) -> bool:
        """Whether any handler wants events of this type, or any part of a recording."""
        return self._emitter.enabled(event_type, severity)

    def operation(self, event_type: type[E], /, **fields: Any) -> LiveOperation[E]:
        """Return an operation that has the bound fields, and what is emitted inside it too."""
        return LiveOperation(self._emitter, event_type, fields, self._carried)

    def bind(self, **fields: Any) -> BoundEmitter:
        """Return an emitter with further fields bound."""
        return BoundEmitter(self._emitter, {**self._carried.bound, **fields})

    def _scope(self) -> Scope:
        here = SCOPE.get()
        return here.carrying(self._carried.inside(here.carried))

    def __repr__(self) -> str:
        return f"<{self._emitter!r} with {self._carried.bound!r}>"
