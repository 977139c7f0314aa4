"""What is true around an emit: the trace, bound fields, baggage and the current operation, in one ContextVar.

A ``Scope`` is immutable by convention: entering an operation or binding fields makes a new one that refers to what it
inherits, so an envelope can keep its scope by reference and read it later in a worker.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from eventcore.operation import LiveOperation

__all__ = [
    "ROOT",
    "Scope",
    "bound",
    "continue_trace",
    "current_operation",
    "current_scope",
    "current_trace",
    "format_traceparent",
    "parse_id",
    "parse_traceparent",
]

_NOTHING: Mapping[str, Any] = {}


class Scope:
    """The surroundings of an emit; ids are integers (0: none), formatted only when somebody reads them."""

    __slots__ = (
        "baggage",
        "bound",
        "correlation_id",
        "is_remote",
        "operation",
        "sampled",
        "span_id",
        "trace_id",
        "tracestate",
    )

    def __init__(  # noqa: PLR0917 - made on the hot path
        self,
        trace_id: int = 0,
        span_id: int = 0,
        sampled: bool = False,  # noqa: FBT001, FBT002 - positional on the hot path
        operation: LiveOperation[Any] | None = None,
        bound: Mapping[str, Any] = _NOTHING,
        correlation_id: str | None = None,
        baggage: Mapping[str, str] = _NOTHING,
        tracestate: str | None = None,
        is_remote: bool = False,  # noqa: FBT001, FBT002 - positional on the hot path
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        self.operation = operation
        self.bound = bound
        self.correlation_id = correlation_id
        self.baggage = baggage
        self.tracestate = tracestate
        self.is_remote = is_remote

    @property
    def traceparent(self) -> str | None:
        """The W3C ``traceparent`` header for outgoing calls, or None outside a trace."""
        return format_traceparent(self.trace_id, self.span_id, sampled=self.sampled) if self.trace_id else None

    def replace(self, **changes: Any) -> Scope:
        """Return a copy with ``changes``."""
        copy = Scope.__new__(Scope)
        for slot in Scope.__slots__:
            setattr(copy, slot, changes[slot] if slot in changes else getattr(self, slot))
        return copy

    def __repr__(self) -> str:
        return f"Scope({self.traceparent or 'no trace'}, bound={dict(self.bound)!r})"


class Trace:
    """The current trace, as text: ``trace_id`` (32 hex digits), ``span_id`` (16), ``traceparent``, ``sampled``."""

    __slots__ = ("sampled", "span_id", "trace_id", "traceparent", "tracestate")

    def __init__(self, scope: Scope) -> None:
        self.trace_id = f"{scope.trace_id:032x}" if scope.trace_id else None
        self.span_id = f"{scope.span_id:016x}" if scope.span_id else None
        self.traceparent = scope.traceparent
        self.tracestate = scope.tracestate
        self.sampled = scope.sampled

    def __repr__(self) -> str:
        return f"Trace({self.traceparent or 'none'})"


ROOT = Scope()
SCOPE: ContextVar[Scope] = ContextVar("eventcore_scope", default=ROOT)

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def format_traceparent(trace_id: int, span_id: int, *, sampled: bool) -> str:
    """Return a W3C Trace Context level 1 ``traceparent`` header."""
    return f"00-{trace_id:032x}-{span_id:016x}-{'01' if sampled else '00'}"


def parse_traceparent(header: str) -> tuple[int, int, bool] | None:
    """Return ``(trace_id, span_id, sampled)``, or None where the W3C rules say that the header is to be ignored."""
    match = _TRACEPARENT.fullmatch(header.strip())
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id:
        return None
    return trace_id, span_id, bool(int(flags, 16) & 1)


def parse_id(text: str, digits: int) -> int:
    """Return a trace id (32 hexadecimal digits) or span id (16) as a number; ValueError for anything else."""
    if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", text) or not int(text, 16):
        raise ValueError(f"{text!r} is no id of {digits} hexadecimal digits (not all zero)")
    return int(text, 16)


def current_scope() -> Scope:
    """Return the scope in force here."""
    return SCOPE.get()


def current_trace() -> Trace:
    """Return the current trace; its ids are None outside one."""
    return Trace(SCOPE.get())


def current_operation() -> LiveOperation[Any] | None:
    """Return the innermost open operation of this context, or None."""
    operation = SCOPE.get().operation
    return operation if operation is not None and operation.is_open else None


@contextmanager
def _entered(scope: Scope) -> Iterator[Scope]:
    token = SCOPE.set(scope)
    try:
        yield scope
    finally:
        with suppress(ValueError):  # left in another context (an async generator closed by another task): it is gone
            SCOPE.reset(token)


@contextmanager
def bound(*, correlation_id: str | None = None, **fields: Any) -> Iterator[Scope]:
    """Bind ``fields`` (and a correlation id) to everything emitted inside the ``with`` block."""
    here = SCOPE.get()
    scope = here.replace(bound={**here.bound, **fields}, correlation_id=correlation_id or here.correlation_id)
    with _entered(scope):
        yield scope


@contextmanager
def continue_trace(
    traceparent: str | None, *, tracestate: str | None = None, baggage: Mapping[str, str] | None = None
) -> Iterator[Scope]:
    """Continue the trace of an incoming request; a missing or malformed header starts none, as W3C asks."""
    here = SCOPE.get()
    parsed = parse_traceparent(traceparent) if traceparent else None
    if parsed is None:
        scope = here.replace(baggage={**here.baggage, **(baggage or {})})
    else:
        trace_id, span_id, sampled = parsed
        scope = here.replace(
            trace_id=trace_id,
            span_id=span_id,
            sampled=sampled,
            tracestate=tracestate,
            baggage={**here.baggage, **(baggage or {})},
            operation=None,
            is_remote=True,
        )
    with _entered(scope):
        yield scope
