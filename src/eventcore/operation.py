"""A running operation: ids and clock on entry, one validation and one emit at its end.

``with emitter.operation(ChargeCard, provider="stripe") as op`` in a block, ``async with`` alike, or as a decorator on a
function, coroutine function, generator or async generator. Not in ``__del__`` or a signal handler: those may run in
the middle of a ``ContextVar.set``, and up to CPython 3.11 another one there can crash the interpreter (gh-148891).
Emitting events is safe.
"""

# ruff: noqa: SLF001 - an operation is a part of its emitter

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from traceback import TracebackException
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from eventcore.context import NOTHING_CARRIED, SCOPE, Carried, Scope, parse_id
from eventcore.decoration import decorated
from eventcore.envelope import Envelope
from eventcore.errors import OperationMisuse, did_you_mean
from eventcore.events import ENVELOPE_FACTS, OUTCOMES, Event, Operation, Severity
from eventcore.extras import NO_EXTRAS, Extras
from eventcore.lanes import Lane
from eventcore.sampling import ALL_TRACES, LOW_BITS
from eventcore.validation import build, salvage

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from eventcore.context import ContextProvider
    from eventcore.dispatch import Route
    from eventcore.emitter import Emitter
    from eventcore.event_spec import EventSpec

__all__ = ["LiveOperation"]

F = TypeVar("F", bound=Callable[..., Any])
O = TypeVar("O", bound=Operation)  # noqa: E741 - O as in operation


_scope_here, _enter_scope, _leave_scope = SCOPE.get, SCOPE.set, SCOPE.reset
"""By names of their own: CPython 3.11 makes a bound method for each call of a method of what was imported."""


class LiveOperation(Scope, Generic[O]):
    """An operation between its start and its end; made by ``emitter.operation``.

    It is its own scope: entering it is the hot path, and one object is cheaper than three. It waits in queues, and how
    much memory it takes is how soon no cache holds it any more: what few operations have is in its ``extras``.
    """

    __slots__ = (
        "__weakref__",
        "_emitter",
        "_foreign",
        "_started",
        "_token",
        "duration_ns",
        "extras",
        "fields",
        "is_open",
        "is_taken",
        "lane",
        "made",
        "outcome",
        "parent_is_remote",
        "parent_span_id",
        "route",
        "sequence",
        "start_ns",
    )
    is_remote = False
    # While it waits in queues itself, from its end on: its route, the number of its envelope, that envelope once the
    # first worker has made it and until the last one has taken it, and whether any has.
    route: Route
    sequence: int
    made: Envelope | None
    is_taken: bool

    def __init__(
        self, emitter: Emitter, event_type: type[O], fields: dict[str, Any], carried: Carried = NOTHING_CARRIED
    ) -> None:
        self._emitter = emitter
        self.fields = fields
        self.start_ns = 0
        self.outcome: str | None = None
        self.extras = NO_EXTRAS
        self.parent_span_id = 0
        self.parent_is_remote = False
        self.duration_ns = 0
        self.is_open = False
        self.carried = carried  # what is bound to it alone, until it is entered
        self._foreign: tuple[ContextProvider, Any] | None = None
        self._token: Token[Scope] | None = None
        self._started = -1
        try:
            lane = emitter.lanes[event_type]
        except KeyError:
            lane = emitter.lanes[event_type] = Lane(event_type)
        self.lane = lane
        names = lane.names
        for name in fields:
            if name not in names:
                self._refuse(fields)

    @property
    def operation(self) -> LiveOperation[O]:  # type: ignore[override]  # in its own scope it is the operation
        """Itself: the innermost operation of this scope."""
        return self

    @property
    def event_type(self) -> type[O]:
        """Its type."""
        return cast("type[O]", self.lane.event_type)

    @property
    def spec(self) -> EventSpec:
        """The facts of its type."""
        return self.lane.spec

    # -- what few have -----------------------------------------------------------------------------------------------

    def own_extras(self) -> Extras:
        """Return its extras, to be changed."""
        if self.extras is NO_EXTRAS:
            self.extras = Extras()
        return self.extras

    @property
    def tags(self) -> Sequence[str]:
        """Its tags, which may be set until its end."""
        return self.extras.tags

    @tags.setter
    def tags(self, tags: Sequence[str]) -> None:
        self.own_extras().tags = tags

    @property
    def error(self) -> TracebackException | None:
        """The error that it ended with, without locals."""
        return self.extras.error

    @property
    def error_type(self) -> str | None:
        """The name of that error's type."""
        return self.extras.error_type

    @property
    def invalid(self) -> tuple[str, ...]:
        """The names of results that were left out, as they were not valid."""
        return self.extras.invalid

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Other spans that it is linked to: pairs of trace and span id."""
        return self.extras.links

    @property
    def span_name(self) -> str | None:
        """What an instrumented library called its span, where that is not its type's name."""
        return self.extras.span_name

    @property
    def span_attributes(self) -> Mapping[str, Any] | None:
        """What instrumented libraries put on its span beside its fields."""
        return self.extras.span_attributes

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self.start_ns:
            raise OperationMisuse(
                f"{self.event_type.__qualname__} was started already; call emitter.operation() for another"
            )
        emitter = self._emitter
        parent = _scope_here()
        provider = emitter.context_provider
        if provider is not None:
            parent = provider.parent(parent) or parent
        # Called by a name of their own: CPython 3.11 does not specialise a method call on what is an attribute.
        random_bits, time_ns, monotonic_ns = emitter.ids.random_bits, emitter.time_ns, emitter.monotonic_ns
        trace_id = parent.trace_id
        if trace_id:
            self.trace_id = trace_id
            self.sampled = parent.sampled
            self.parent_span_id = parent.span_id
            if parent.is_remote:
                self.parent_is_remote = True
                if emitter.remote_bound is not None:  # no handler leaves the decision to the caller
                    self.sampled = (trace_id & LOW_BITS) < emitter.remote_bound
        else:
            self.trace_id = trace_id = random_bits(128) or 1
            bound = emitter.trace_bound
            self.sampled = bound == ALL_TRACES or (trace_id & LOW_BITS) < bound
        self.span_id = random_bits(64) or 1
        if self.carried is NOTHING_CARRIED:
            self.carried = parent.carried
        else:
            self.carried = self.carried.inside(parent.carried)
        began_ns = self._started
        self.start_ns = time_ns() if began_ns < 0 else time_ns() - monotonic_ns() + began_ns
        lane, opened = self.lane, emitter._open
        if lane.start is not None or lane.routes is not emitter._routes:
            emitter.announce_start(self)
        emitter._per_thread.cells.counts[emitter._ledger.started] += 1
        opened[self.span_id] = self
        if len(opened) > emitter.watermark:
            emitter.misuses.relieve(opened)
        self._token = _enter_scope(self)
        if provider is not None:
            self._foreign = (provider, provider.enter(self))
        self.is_open = True
        self._started = monotonic_ns() if began_ns < 0 else began_ns
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        outcome: str | None = None,
    ) -> None:
        """End it, with an ``outcome`` where it does not follow; in one piece, as cold caches feel each function."""
        if not self.is_open:
            self._ended_already()
            return
        emitter = self._emitter
        monotonic_ns = emitter.monotonic_ns
        self.duration_ns = monotonic_ns() - self._started
        self.is_open = False
        # One that the bus abandons may have been left by other means: it has a scope to leave where it is in force.
        is_left = self._leave() if outcome != "abandoned" or SCOPE.get() is self else True
        if outcome is None:
            if error is None:
                error = self.extras.given
            outcome = "success" if error is None else _outcome_of(error)
        self.outcome = outcome
        if error is not None:
            self._keep(error)
        emitter.operation_ended(self)
        if not is_left and outcome != "abandoned":
            remedy = "end it in the context that entered it, or call suspend() there before"
            emitter.misuses.report(self, "ended_elsewhere", remedy, may_raise=error is None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def end(self, outcome: str | None = None, error: BaseException | None = None) -> None:
        """End it by hand, where no ``with`` block fits.

        ``outcome`` is one of the four; by default ``failure`` after ``fail()`` or with an ``error``, else ``success``.
        """
        error = error or self.extras.given
        if outcome is None:
            outcome = "success" if error is None else "failure"
        if outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome {outcome!r}{did_you_mean(outcome, OUTCOMES)}")
        self.__exit__(None, error, None, outcome)

    @property
    def holds(self) -> tuple[Token[Scope] | None, bool]:
        """Its token while its scope is entered, and whether another tracing system's context refers to it."""
        return self._token, self._foreign is not None

    def abandon(self, remedy: str = "use a with block, or call end()", *, is_misuse: bool = True) -> bool:
        """End it as ``abandoned``, for the bus: nobody else will, or can; False if it has ended.

        At shutdown that is no misuse: a service that is stopped has requests under way.
        """
        if not self.is_open:
            return False
        self.__exit__(None, None, None, "abandoned")
        if is_misuse:
            self._emitter.misuses.report(self, "never_ended", remedy, may_raise=False)
        return True

    # -- in a queue --------------------------------------------------------------------------------------------------

    def envelope(self) -> Envelope:
        """Return the envelope of its end, for the worker of one of its queues; the first that asks makes it for all."""
        envelope = self.made
        if envelope is None:  # another worker may be at it at the same time: it makes an equal one
            self.is_taken = True
            route, time_ns = self.route, self.start_ns + self.duration_ns
            ids, tags = self._emitter.ids, self.extras.tags
            envelope = Envelope(None, route.severity, tags, time_ns, self.sequence, ids, self, self)
            envelope.takers = len(route.calls)
            self.made = envelope
        envelope.takers -= 1
        if envelope.takers <= 0:
            self.made = None  # they would keep each other alive
        return envelope

    def keys_for(self, _handler: str) -> tuple[tuple[str, str]]:
        """Return what each handler counts its end under."""
        return ((self.lane.spec.name, "end"),)

    def _keep(self, error: BaseException) -> None:
        named = getattr(error, "error_type", None)
        extras = self.own_extras()
        extras.error_type = named if isinstance(named, str) and named else type(error).__qualname__
        extras.error = TracebackException.from_exception(error, capture_locals=False, lookup_lines=False)
        extras.given = None

    def _ended_already(self) -> None:
        if self.outcome == "abandoned":  # by shutdown, most likely: its block is left later, and that is no mistake
            self._leave()
        elif self.start_ns:
            self._emitter.misuses.report(self, "ended_twice", "end() is not for use inside a with block")
        else:
            self._emitter.misuses.report(self, "ended_before_start", "enter it with a with block, or with __enter__()")

    def _leave(self) -> bool:
        """Leave its scope; False in another context than it was entered in, whose scope is not ours to change."""
        token = self._token
        if token is not None:
            try:
                _leave_scope(token)
            except ValueError:
                return False
            self._token = None
            if self._foreign is not None:
                (provider, foreign_token), self._foreign = self._foreign, None
                provider.exit(foreign_token)
        return True

    def disown(self) -> None:
        """Leave its end to another process (after a fork): ending it here does nothing."""
        self.is_open = False
        self.outcome = "abandoned"

    def suspend(self) -> None:
        """Leave its scope without ending it, so that it can be ended in another context (thread or task).

        It must be called in the context that entered it; elsewhere it does nothing.
        """
        self._leave()

    def resume(self) -> None:
        """Enter its scope again after ``suspend``, here."""
        self._token = SCOPE.set(self)
        provider = self._emitter.context_provider
        if provider is not None:
            self._foreign = (provider, provider.enter(self))

    def build(self) -> O:
        """Return the validated event (called once, where it is first needed)."""
        try:
            return build(self.event_type, self.fields)
        except Exception as error:
            # An exception on its way out must not be replaced, and the bus that abandons is nobody to raise at.
            if self._emitter.strict and self.error is None and self.outcome != "abandoned":
                raise
            event, wrong, reason = salvage(self.event_type, self.fields, error)
            if not self.invalid:
                self.own_extras().invalid = wrong
                self._emitter.report_invalid(self.event_type, wrong, reason)
            return event

    # -- what happens inside -----------------------------------------------------------------------------------------

    def set(self, **results: Any) -> None:
        """Give results; they are validated once, after the end."""
        if not self.spec.names.issuperset(results):
            self._refuse(results)
        if not self._has_ended("set() it before its end"):
            self.fields.update(results)

    def event(self, event: Event, *, severity: Severity | str | None = None, tags: Sequence[str] = ()) -> None:
        """Emit an event inside this operation."""
        self._has_ended("emit before its end")  # emitted all the same: it did happen
        token = SCOPE.set(self)
        try:
            self._emitter.emit(event, severity=severity, tags=tags)
        finally:
            SCOPE.reset(token)

    def since(self, began_ns: int) -> Self:
        """Let it have begun earlier, at a time of ``emitter.monotonic_ns``; to be called before it is entered."""
        if self.start_ns:
            raise OperationMisuse(f"{self.event_type.__qualname__} was started already: call since() before")
        self._started = began_ns
        return self

    def step(
        self,
        event_type: type[Operation],
        began_ns: int,
        ended_ns: int,
        error: BaseException | None = None,
        /,
        **fields: Any,
    ) -> None:
        """Emit an operation inside this one that is over already; the times are of ``emitter.monotonic_ns``.

        With an ``error`` it has failed. Raises TypeError for a field that the type does not have.
        """
        if self._has_ended("emit before its end") and self.outcome == "abandoned":
            return
        emitter = self._emitter
        step = LiveOperation(emitter, event_type, fields)
        start_ns = self.start_ns + began_ns - self._started
        step.was(self, self.trace_id, start_ns, ended_ns - began_ns, is_sampled=self.sampled)
        if error is not None:
            step.outcome = _outcome_of(error)
            step._keep(error)
        emitter.announce_start(step)
        emitter._per_thread.cells.counts[emitter._ledger.started] += 1
        emitter.operation_ended(step)

    def was(self, parent: Scope, trace_id: int, start_ns: int, duration_ns: int, *, is_sampled: bool) -> None:
        """Become an operation inside ``parent`` that has succeeded and never was a scope (called by the bus)."""
        self.trace_id, self.sampled = trace_id, is_sampled
        self.span_id = self._emitter.ids.random_bits(64) or 1
        self.parent_span_id, self.parent_is_remote = parent.span_id, parent.is_remote
        self.carried = parent.carried
        self.start_ns, self.duration_ns = start_ns, duration_ns
        self.outcome = "success"

    def fail(self, error: BaseException) -> None:
        """Let it end as a failure although no exception leaves the block."""
        if not self._has_ended("fail() it before its end"):
            self.own_extras().given = error

    def link(self, trace_id: str, span_id: str) -> None:
        """Link another span, by its ids (32 and 16 hexadecimal digits)."""
        ids = (parse_id(trace_id, 32), parse_id(span_id, 16))
        if not self._has_ended("link() it before its end"):
            self.own_extras().links = (*self.links, ids)

    def _has_ended(self, remedy: str) -> bool:
        """Whether it has ended, which is misuse."""
        if self.outcome is None:
            return False
        if self.outcome != "abandoned":  # the bus may have ended it while its block still runs
            self._emitter.misuses.report(self, "used_after_end", remedy)
        return True

    def _refuse(self, fields: Mapping[str, Any]) -> None:
        spec = self.spec
        wrong = next(key for key in fields if key not in spec.fields)
        if wrong in ENVELOPE_FACTS:
            raise TypeError(
                f"{self.event_type.__qualname__}: {wrong!r} is stamped by the bus; it is no field to be given"
            )
        raise TypeError(f"{self.event_type.__qualname__} has no field {wrong!r}{did_you_mean(wrong, spec.fields)}")

    # -- as a decorator ----------------------------------------------------------------------------------------------

    def __call__(self, function: F) -> F:
        """Wrap ``function`` so that each call of it is an operation of its own."""

        def fresh() -> LiveOperation[O]:
            return LiveOperation(self._emitter, self.event_type, dict(self.fields), self.carried)

        return decorated(function, fresh)

    def __repr__(self) -> str:
        state = "open" if self.is_open else self.outcome or "not started"
        hidden = self.spec.sensitive
        shown = {key: "…" if key in hidden else value for key, value in self.fields.items()}
        return f"<operation {self.spec.name} {state} {shown!r}>"


def _outcome_of(error: BaseException) -> str:
    return "failure" if isinstance(error, Exception) else "cancelled"
