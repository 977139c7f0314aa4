"""What is true around an emit: the trace, bound fields, baggage and the current operation, in one ContextVar.

A ``Scope`` is immutable by convention: entering an operation or binding fields makes a new one that refers to what it
inherits, so an envelope can keep its scope by reference and read it later in a worker.
"""

from __future__ import annotations

import functools
import inspect
import re
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from eventcore.propagation import (
    Propagator,
    b3_headers,
    format_baggage,
    header_values,
    is_baggage_name,
    parse_b3,
    parse_baggage,
    parse_tracestate,
    propagators,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

    from eventcore.operation import LiveOperation

__all__ = [
    "NOTHING_CARRIED",
    "ROOT",
    "Carried",
    "ContextProvider",
    "Scope",
    "baggage",
    "bind_context",
    "bound",
    "continue_trace",
    "current_operation",
    "current_scope",
    "current_trace",
    "format_traceparent",
    "in_context",
    "inject",
    "parse_id",
    "parse_traceparent",
    "unbind_context",
]

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound="MutableMapping[str, str]")


class Carried:
    """What every scope hands on to those inside it as it is: one object, since most operations change none of it."""

    __slots__ = ("baggage", "bound", "correlation_id", "tracestate")

    def __init__(
        self,
        bound: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
        baggage: Mapping[str, str] | None = None,
        tracestate: str | None = None,
    ) -> None:
        self.bound = bound or {}
        self.correlation_id = correlation_id
        self.baggage = baggage or {}
        self.tracestate = tracestate

    def with_bound(self, fields: Mapping[str, Any], correlation_id: str | None = None) -> Carried:
        """Return the same with further ``fields`` bound, and a correlation id if there is one."""
        bound = {**self.bound, **fields}
        return Carried(bound, correlation_id or self.correlation_id, self.baggage, self.tracestate)

    def inside(self, outer: Carried) -> Carried:
        """Return what is carried where these fields are bound inside a scope that carries ``outer``."""
        return self if outer is NOTHING_CARRIED else outer.with_bound(self.bound)

    def with_baggage(self, entries: Mapping[str, str]) -> Carried:
        """Return the same with further baggage."""
        if not entries:
            return self
        return Carried(self.bound, self.correlation_id, {**self.baggage, **entries}, self.tracestate)

    def with_tracestate(self, tracestate: str | None) -> Carried:
        """Return the same with the tracestate of another trace."""
        if tracestate == self.tracestate:
            return self
        return Carried(self.bound, self.correlation_id, self.baggage, tracestate)


NOTHING_CARRIED = Carried()
"""What is carried where nobody has bound anything: to be asked for by ``is``, which is the least to ask."""


class Scope:
    """The surroundings of an emit; ids are integers (0: none), formatted only when somebody reads them."""

    __slots__ = ("carried", "is_remote", "operation", "sampled", "span_id", "trace_id")

    def __init__(  # noqa: PLR0917 - made on the hot path
        self,
        trace_id: int = 0,
        span_id: int = 0,
        sampled: bool = False,  # noqa: FBT001, FBT002 - positional on the hot path
        operation: LiveOperation[Any] | None = None,
        carried: Carried = NOTHING_CARRIED,
        is_remote: bool = False,  # noqa: FBT001, FBT002 - as above
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        self.operation = operation
        self.carried = carried
        self.is_remote = is_remote

    @property
    def bound(self) -> Mapping[str, Any]:
        """Fields bound to everything emitted here."""
        return self.carried.bound

    @property
    def correlation_id(self) -> str | None:
        """The correlation id bound here."""
        return self.carried.correlation_id

    @property
    def baggage(self) -> Mapping[str, str]:
        """What travels on to the services called here."""
        return self.carried.baggage

    @property
    def tracestate(self) -> str | None:
        """The W3C ``tracestate`` of the trace that is continued."""
        return self.carried.tracestate

    @property
    def traceparent(self) -> str | None:
        """The W3C ``traceparent`` header for outgoing calls, or None outside a trace."""
        return format_traceparent(self.trace_id, self.span_id, sampled=self.sampled) if self.trace_id else None

    def carrying(self, carried: Carried) -> Scope:
        """Return the same scope, with something else to hand on."""
        return Scope(self.trace_id, self.span_id, self.sampled, self.operation, carried, self.is_remote)

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


class ContextProvider(Protocol):
    """Another tracing system in this process; ``emitter.context_provider`` ties operations to its context.

    A span handler contributes one. None of its methods may raise.
    """

    def parent(self, here: Scope) -> Scope | None:
        """Return the other system's span in force as a scope, if it is nearer than ``here``; else None."""

    def enter(self, operation: LiveOperation[Any]) -> Any:
        """Make ``operation`` the other system's current span; return a token."""

    def exit(self, token: Any) -> None:
        """Undo ``enter``; called only in the context that it was called in."""


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
    with _entered(here.carrying(here.carried.with_bound(fields, correlation_id))) as scope:
        yield scope


def bind_context(*, correlation_id: str | None = None, **fields: Any) -> None:
    """Bind ``fields`` (and a correlation id) to everything emitted in this context from now on.

    They stay until ``unbind_context``, at the longest until the block that they were bound in is left: an operation,
    ``bound``, ``continue_trace`` or ``baggage``. Other tasks and threads that run already do not see them.
    """
    here = SCOPE.get()
    SCOPE.set(here.carrying(here.carried.with_bound(fields, correlation_id)))


def unbind_context(*names: str) -> None:
    """Take ``names`` (``correlation_id`` may be one) off everything emitted here from now on; unknown ones too."""
    here = SCOPE.get()
    kept = {name: value for name, value in here.bound.items() if name not in names}
    correlation_id = None if "correlation_id" in names else here.correlation_id
    SCOPE.set(here.carrying(Carried(kept, correlation_id, here.baggage, here.tracestate)))


@contextmanager
def baggage(**entries: str) -> Iterator[Scope]:
    """Add entries to the baggage, which travels to the services called inside the ``with`` block.

    It leaves with ``inject``, so nothing secret belongs into it. ValueError for a name that no header can carry.
    """
    for name in entries:
        if not is_baggage_name(name):
            raise ValueError(f"{name!r} cannot name baggage: use ASCII letters, digits, '_', '-' and '.'")
    here = SCOPE.get()
    texts = {name: str(value) for name, value in entries.items()}
    with _entered(here.carrying(here.carried.with_baggage(texts))) as s:
        yield s


@contextmanager
def continue_trace(
    headers: Mapping[str, str] | str | None,
    /,
    *,
    tracestate: str | None = None,
    baggage: Mapping[str, str] | None = None,
    formats: Sequence[Propagator] | None = None,
) -> Iterator[Scope]:
    """Continue the trace of an incoming request, given its HTTP headers (in any case) or its ``traceparent``.

    ``tracestate`` and ``baggage`` count where they do not come with the headers. ``formats`` says which headers are
    read (``tracecontext``, ``baggage``, ``b3``), else ``OTEL_PROPAGATORS``; of several the last that has a trace wins.
    What is missing, malformed or too large is ignored, as W3C asks: without a valid ``traceparent`` (or B3) no trace is
    continued.
    """
    here = SCOPE.get()
    entries = dict(baggage or {})
    parsed = None
    if headers is None or isinstance(headers, str):
        parsed = parse_traceparent(headers) if headers else None
    else:
        traceparents, states, baggages = header_values(headers, "traceparent", "tracestate", "baggage")
        tracestate = ",".join(states) or tracestate
        for name in propagators() if formats is None else formats:
            if name == "baggage":
                entries |= parse_baggage(",".join(baggages))
            elif name != "tracecontext":
                if (found := parse_b3(headers)) is not None:
                    parsed, tracestate = found, None
            elif len(traceparents) == 1:
                parsed = parse_traceparent(traceparents[0]) or parsed
    scope = here.carrying(here.carried.with_baggage(entries))
    if parsed is not None:
        trace_id, span_id, is_sampled = parsed
        carried = scope.carried.with_tracestate(parse_tracestate(tracestate))
        scope = Scope(trace_id, span_id, is_sampled, None, carried, is_remote=True)
    with _entered(scope):
        yield scope


@overload
def inject(headers: None = None, *, formats: Sequence[Propagator] | None = None) -> dict[str, str]: ...
@overload
def inject(headers: H, *, formats: Sequence[Propagator] | None = None) -> H: ...
def inject(headers: Any = None, *, formats: Sequence[Propagator] | None = None) -> Any:
    """Write ``traceparent``, ``tracestate`` and ``baggage`` of this context into the headers of an outgoing call.

    ``formats`` says which headers are written (``tracecontext``, ``baggage``, ``b3``, ``b3multi``), else
    ``OTEL_PROPAGATORS``. Returns ``headers`` (a new dictionary by default); those that they had already are replaced.
    """
    here = SCOPE.get()
    if headers is None:
        headers = {}
    chosen = propagators() if formats is None else formats
    values: dict[str, str | None] = {}
    if "tracecontext" in chosen:
        values["traceparent"] = here.traceparent
        values["tracestate"] = parse_tracestate(here.tracestate) if here.trace_id else None
    if "baggage" in chosen:
        values["baggage"] = format_baggage(here.baggage)
    for name in ("b3", "b3multi"):
        if name in chosen:
            written = b3_headers(here.trace_id, here.span_id, sampled=here.sampled, multi=name == "b3multi")
            values |= written if here.trace_id else dict.fromkeys(written)
    replaced = {name.lower() for name in values}
    for name in [name for name in headers if name.lower() in replaced]:
        del headers[name]
    headers.update({name: value for name, value in values.items() if value})
    return headers


def in_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` as a callable that runs in a copy of the present context, for executors and threads.

    ``pool.submit(ec.in_context(work), item)``; each call gets a copy of its own, so many may run at once. TypeError
    for coroutine functions and generators: they run in the context of whoever drives them.
    """
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise TypeError(f"in_context takes a plain function, not {function!r}; a task carries its context by itself")
    present = copy_context()

    @functools.wraps(function)
    def there(*args: P.args, **kwargs: P.kwargs) -> R:
        return present.copy().run(function, *args, **kwargs)

    return there
