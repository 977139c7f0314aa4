"""Operations that are told when they are over: with all that happened inside, in one go, off the caller's path.

A request of some microseconds cannot pay for five operations, each with ids, a scope and a place in every queue. Its
code keeps the times and values that it has anyway and hands them over at the end, ``emitter.record(ROUTED, values)``:
one place in each queue. The first worker that takes it calls ``unfold``, which says what happened, and makes the
envelopes for all. What is emitted is the same as from operations that were entered and left: each is counted, filtered
and delivered by itself, the inner ones first.

Where one of them has to be decided in the caller (by a handler that is inline, durable or samples, or ``strict``), they
are made and delivered there, one by one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from eventcore.context import SCOPE, Scope
from eventcore.delivery import Queue
from eventcore.dispatch import START, Unsampled
from eventcore.envelope import Envelope
from eventcore.errors import DefinitionError
from eventcore.events import Event, Operation, Severity
from eventcore.ledger import BundleKey
from eventcore.operation import LiveOperation
from eventcore.sampling import ALL_TRACES, LOW_BITS
from eventcore.validation import build, salvage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from eventcore.dispatch import Attachment, Route, Routes
    from eventcore.emitter import Emitter
    from eventcore.ledger import Ledger, OperationKey, RouteKey

__all__ = ["Bundle", "Past", "Recording", "Recordings"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Past:
    """What has happened: the fields of an operation or event, and when it began and ended (an event: twice the same).

    Times are of the emitter's monotonic clock, in nanoseconds.
    """

    began_ns: int
    ended_ns: int
    fields: dict[str, Any] = field(default_factory=dict)


class Recording(Generic[V]):
    """How an operation that is over is told: its type, those of its ``parts`` in order, and what makes them of a value.

    ``unfold(value)`` returns a `Past` for the operation, then one for each part. It runs in a worker, later: ``value``
    must not be changed any more. DefinitionError for a type that cannot be emitted.
    """

    def __init__(
        self, operation: type[Operation], parts: Sequence[type[Event]], unfold: Callable[[V], Sequence[Past]]
    ) -> None:
        for kind in (operation, *parts):
            if kind.is_abstract():
                raise DefinitionError(f"{kind!r} is no event type with a name, so it cannot be recorded")
        if not operation.__event__.is_operation:
            raise DefinitionError(f"{operation.__qualname__} is an event: what is recorded as a whole is an operation")
        self.operation = operation
        self.parts = tuple(parts)
        self.unfold = unfold

    def __repr__(self) -> str:
        return f"<Recording of {self.operation.__event__.name} with {len(self.parts)} parts>"


class _Member(NamedTuple):
    """One envelope: the place of what it tells among the `Past` (0: the operation itself), and its route."""

    place: int
    route: Route


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of a recording: decided once, like a route.

    ``taken``: which of the members each handler takes. ``key``: what all is counted under; ``uncounted``: the part of
    it that delivering one by one does not count. ``is_for_workers``: whether nothing has to be decided in the caller.
    """

    emitter: Emitter
    recording: Recording[Any]
    members: tuple[_Member, ...]
    taken: Mapping[str, Sequence[int]]
    queues: tuple[tuple[Queue, Attachment], ...]
    key: BundleKey
    uncounted: Sequence[RouteKey | OperationKey]
    is_sampled: bool
    is_for_workers: bool
    wants_thread: bool


class Bundle:
    """A recorded operation on its way: one place in a queue, several envelopes for its worker."""

    __slots__ = ("_is_reported", "_made", "_parent", "_plan", "_thread", "_trace_id", "_value")

    def __init__(self, plan: _Plan, value: Any, parent: Scope, trace_id: int) -> None:
        self._plan = plan
        self._value = value
        self._parent = parent
        self._trace_id = trace_id
        self._thread = threading.current_thread().name if plan.wants_thread else None
        self._made: dict[str, list[Envelope]] = {}
        self._is_reported = False

    def envelopes_for(self, handler: str) -> list[Envelope]:
        """Return the envelopes that the handler takes: the same for all handlers, made by the first that asks.

        Raises what ``unfold`` raises, and ValueError where it told something else than was declared.
        """
        made = self._made.get("")
        if made is None:
            try:
                made = self._made.setdefault("", self.envelopes())  # another worker may be at it at the same time
            except Exception as error:
                self.report(error)
                raise
        taken = self._made[handler] = [made[place] for place in self._plan.taken[handler]]
        return taken

    def report(self, error: Exception) -> None:
        """Report, once, that nobody can know what happened."""
        if not self._is_reported:
            self._is_reported = True
            kind = self._plan.recording.operation
            self._plan.emitter.report_invalid(kind, (), f"unfold raised {type(error).__name__}: {error}")

    def was_taken(self, handler: str) -> bool:
        """Whether the handler's worker has it."""
        return handler in self._made

    def keys_for(self, handler: str) -> list[tuple[str, str]]:
        """Return event name and phase of each envelope that the handler takes."""
        keys = [self._plan.members[place].route.key for place in self._plan.taken[handler]]
        return [(key.event, key.phase) for key in keys]

    def envelopes(self) -> list[Envelope]:
        """Make the envelopes of all members."""
        emitter, recording, ids = self._plan.emitter, self._plan.recording, self._plan.emitter.ids
        kinds: tuple[type[Event], ...] = (recording.operation, *recording.parts)
        told = recording.unfold(self._value)
        if len(told) != len(kinds):
            raise ValueError(f"{recording}: unfold told of {len(told)} instead of {len(kinds)}")
        to_wall_ns = emitter.time_ns() - emitter.monotonic_ns()
        outer = self._lived(recording.operation, told[0], self._parent, to_wall_ns)
        lived = {0: outer}
        envelopes = []
        event: Event | None
        live: LiveOperation[Any] | None
        for place, route in self._plan.members:
            kind, past = kinds[place], told[place]
            phase = route.key.phase
            if issubclass(kind, Operation):
                live = scope = lived.get(place) or lived.setdefault(place, self._lived(kind, past, outer, to_wall_ns))
                event = live.build() if emitter.strict else None
            else:
                live, scope = None, outer
                event = self._event(kind, past.fields)
            time_ns = to_wall_ns + (past.began_ns if phase == START else past.ended_ns)
            envelope = Envelope(event, route.severity, (), time_ns, ids.next_sequence(), ids, scope, live, phase)
            if self._thread is not None:
                envelope.thread = self._thread
            envelopes.append(envelope)
        return envelopes

    def _lived(self, kind: type[Operation], past: Past, parent: Scope, to_wall_ns: int) -> LiveOperation[Any]:
        live = LiveOperation(self._plan.emitter, kind, past.fields)
        start_ns, duration_ns = past.began_ns + to_wall_ns, past.ended_ns - past.began_ns
        live.was(parent, self._trace_id, start_ns, duration_ns, is_sampled=self._plan.is_sampled)
        return live

    def _event(self, kind: type[Event], fields: dict[str, Any]) -> Event:
        try:
            return build(kind, fields)
        except Exception as error:
            if self._plan.emitter.strict:
                raise
            event, wrong, reason = salvage(kind, fields, error)
            self._plan.emitter.report_invalid(kind, wrong, reason)
            return event


class Recordings:
    """Delivers what is recorded on one emitter."""

    def __init__(self, emitter: Emitter, ledger: Ledger, deliver: Callable[[Route, Envelope], None]) -> None:
        self._emitter = emitter
        self._ledger = ledger
        self._per_thread = ledger.per_thread
        self._deliver = deliver

    def take(self, routes: Routes) -> None:
        """Go by these routes from now on."""
        self._routes = routes
        self._plans: dict[bool, dict[Recording[Any], _Plan]] = {True: {}, False: {}}

    def record(self, recording: Recording[V], value: V) -> None:
        """Deliver an operation that is over, with its parts."""
        emitter = self._emitter
        parent, provider = SCOPE.get(), emitter.context_provider
        if provider is not None:
            parent = provider.parent(parent) or parent
        trace_id, is_sampled = parent.trace_id, parent.sampled
        if not trace_id:
            trace_id = emitter.ids.random_bits(128) or 1
            is_sampled = emitter.trace_bound == ALL_TRACES or (trace_id & LOW_BITS) < emitter.trace_bound
        elif parent.is_remote and emitter.remote_bound is not None:
            is_sampled = (trace_id & LOW_BITS) < emitter.remote_bound
        plan = self._plans[is_sampled].get(recording) or self._planned(recording, is_sampled=is_sampled)
        bundle = Bundle(plan, value, parent, trace_id)
        cells = self._per_thread.cells
        if not plan.is_for_workers or cells.handling is not None or emitter.strict:
            self._deliver_here(plan, bundle)
            return
        counts = cells.counts
        number = counts[plan.key] = counts[plan.key] + 1
        began = 0 if number & emitter.timed_mask else emitter.monotonic_ns()
        passed = 0  # counted right after the call, as in Emitter._deliver
        try:
            for queue, _ in plan.queues:
                queue.put(bundle)
                passed += 1
        except BaseException:
            self._count_interrupted(plan, passed, bundle)
            raise
        if began:
            emitter.emit_times.add(emitter.monotonic_ns() - began)

    def _deliver_here(self, plan: _Plan, bundle: Bundle) -> None:
        counts = self._per_thread.cells.counts
        try:
            envelopes = bundle.envelopes()
        except Exception as error:
            if self._emitter.strict:
                raise
            bundle.report(error)
            counts[plan.key] += 1
            for key in {member.route.key for member in plan.members}:
                for name in key.accepted:
                    self._ledger.count(name, key.event, key.phase, "invalid")
            return
        for each in plan.uncounted:
            counts[each] += 1
        for member, envelope in zip(plan.members, envelopes, strict=True):
            self._deliver(member.route, envelope)

    def _count_interrupted(self, plan: _Plan, passed: int, bundle: Bundle) -> None:
        """Count what a KeyboardInterrupt, or what a signal handler raised, cut off; a queue may hold it already."""
        for queue, attachment in plan.queues[passed:]:
            if not (queue.holds(bundle) or bundle.was_taken(attachment.name)):
                for event, phase in bundle.keys_for(attachment.name):
                    self._ledger.count(attachment.name, event, phase, "failed")

    # -- what becomes of a recording ---------------------------------------------------------------------------------

    def _planned(self, recording: Recording[Any], *, is_sampled: bool) -> _Plan:
        members, ignored = [], []
        for place, route in self._found(recording, is_sampled=is_sampled):
            if route.sinks:
                members.append(_Member(place, route))
            elif route.key.unsampled:
                ignored.append(route.key)
        routes = [member.route for member in members]
        attachments = {attachment.name: attachment for route in routes for _, attachment in route.sinks}
        taken = {
            name: [place for place, route in enumerate(routes) if attachment in [a for _, a in route.sinks]]
            for name, attachment in attachments.items()
        }
        started, succeeded = self._ledger.started, self._ledger.succeeded
        operations = 1 + sum(issubclass(kind, Operation) for kind in recording.parts)
        uncounted: tuple[RouteKey | OperationKey, ...] = (*ignored, *[started, succeeded] * operations)
        queues = tuple((a.queue, a) for a in attachments.values() if type(a.queue) is Queue)
        plan = self._plans[is_sampled][recording] = _Plan(
            self._emitter,
            recording,
            tuple(members),
            taken,
            queues,
            BundleKey((*(route.key for route in routes), *uncounted)),
            uncounted,
            is_sampled,
            is_for_workers=len(queues) == len(attachments)
            and not any(r.inline or r.key.sampling or r.severity >= Severity.ERROR for r in routes),
            wants_thread=any(attachment.handler.wants_thread for attachment in attachments.values()),
        )
        return plan

    def _found(self, recording: Recording[Any], *, is_sampled: bool) -> Iterator[tuple[int, Route]]:
        """Yield the routes of all that is told, in the order in which it is emitted."""
        routes = self._routes
        yield 0, routes[recording.operation, START]
        for place, kind in (*enumerate(recording.parts, 1), (0, recording.operation)):
            if place and issubclass(kind, Operation):
                yield place, routes[kind, START]
            route = routes[kind, None]
            yield (
                place,
                route if is_sampled or not issubclass(kind, Operation) else routes[kind, Unsampled(route.severity)],
            )
