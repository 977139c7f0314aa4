"""The emitter: takes events, stamps envelopes, hands them to the handlers that want them.

``emit`` is the whole of dispatch: look up the route that was compiled for this type and severity, count, stamp, and
call each sink. How handlers come and go is told in ``attaching``, the end in ``closing``.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar

from eventcore.attaching import Attachments
from eventcore.bound_emitter import BoundEmitter
from eventcore.catalog import Catalog
from eventcore.closing import Closing
from eventcore.context import SCOPE
from eventcore.detours import Detours
from eventcore.dispatch import START, Attachment, Route, Routes, Wanted
from eventcore.durable_emit import Durability
from eventcore.envelope import Envelope
from eventcore.events import Event, Operation, Severity
from eventcore.health_monitor import HealthMonitor
from eventcore.ids import Clock, Ids, SystemClock
from eventcore.last_resort import say_plainly
from eventcore.ledger import Cells, Ledger, LedgerSnapshot
from eventcore.misuse import FEW_OPEN, Misuses
from eventcore.operation import LiveOperation
from eventcore.recording import Recordings
from eventcore.resource import Resource
from eventcore.sampling import ALL_TRACES
from eventcore.tags import NO_TAGS, as_tags
from eventcore.timing import NOT_TIMED, EmitTimes
from eventcore.vocabulary import HandlerChanged, InvalidResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from eventcore.context import ContextProvider
    from eventcore.handler import Handler
    from eventcore.journal_config import JournalConfig
    from eventcore.lanes import Lane
    from eventcore.plugins import Plugins
    from eventcore.recording import Recording
    from eventcore.service import Service
    from eventcore.settings import Settings
    from eventcore.shutdown_report import ShutdownReport

__all__ = ["Emitter"]

E = TypeVar("E", bound=Operation)
V = TypeVar("V")


class Emitter:
    """Takes events and operations; an object to pass around.

    Safe to use from any thread, task, finalizer or signal handler: ``emit`` takes no lock, and neither raises nor
    blocks because of a handler (except where a handler's delivery says ``block``).
    """

    # A dictionary shared between instances ends at 30 names; beyond it every look-up on the emit path is dearer.
    __slots__ = (
        "__weakref__",
        "_attachments",
        "_closing",
        "_detours",
        "_enabled",
        "_ledger",
        "_open",
        "_own",
        "_per_thread",
        "_recordings",
        "_routes",
        "_wanted",
        "catalog",
        "clock",
        "context_provider",
        "durability",
        "emit_times",
        "health",
        "ids",
        "lanes",
        "misuses",
        "monotonic_ns",
        "plugins",
        "remote_bound",
        "resource",
        "services",
        "settings",
        "shutdown_timeout_s",
        "strict",
        "time_ns",
        "timed_mask",
        "trace_bound",
        "watermark",
    )

    def __init__(
        self,
        *,
        resource: Resource | None = None,
        catalog: Catalog | None = None,
        clock: Clock | None = None,
        ids: Ids | None = None,
        strict: bool = False,
        shutdown_timeout_s: float = 5.0,
        journal: JournalConfig | None = None,
    ) -> None:
        self.resource = resource or Resource()
        self.catalog = catalog or Catalog()
        self.clock: Clock = clock or SystemClock()
        self.time_ns = self.clock.time_ns
        self.monotonic_ns = self.clock.monotonic_ns
        self.ids = ids or Ids()
        self.strict = strict
        self.shutdown_timeout_s = shutdown_timeout_s
        self.services: dict[str, Service] = {}
        self.trace_bound = 0
        self.remote_bound: int | None = None
        self.timed_mask = NOT_TIMED
        self._ledger = Ledger()
        self._per_thread = self._ledger.per_thread
        self.emit_times = EmitTimes(self._ledger)
        self.durability = Durability(self._ledger, self.catalog, journal, self._report)
        self._detours = Detours(self._ledger, self.durability)
        self._attachments = Attachments(self, self._ledger, self.recompile, self._report)
        self._closing = Closing(self, self._attachments)
        self._recordings = Recordings(self, self._ledger, lambda r, e: self._deliver(r, e, self._per_thread.cells))
        self._take(Routes((), self._ledger))
        self._enabled = True
        self._open: dict[int, LiveOperation[Any]] = {}
        self.context_provider: ContextProvider | None = None
        self.misuses = Misuses(self)
        self.watermark = FEW_OPEN
        """How many operations may be open before they are searched for dropped ones; moved by each search."""
        self.health = HealthMonitor(self)
        self.plugins: Plugins | None = None
        self.settings: Settings | None = None
        _EMITTERS.add(self)

    # -- emitting ----------------------------------------------------------------------------------------------------

    def emit(self, event: Event, *, severity: Severity | str | None = None, tags: Sequence[str] = ()) -> None:
        """Hand an event to every handler that wants it.

        ``severity`` overrides the type's own; ``tags`` are texts (a single one may stand alone). Raises TypeError for
        what is no event and for tags that are no texts; never because of a handler, except NotDurable where the event's
        type is audit-class (``durable=True``): then it waits for the commit.
        """
        if severity.__class__ is str:
            severity = Severity.parse(severity)
        if tags is not NO_TAGS:
            tags = as_tags(tags)
        try:
            route = self._own[type(event)] if severity is None else self._routes[type(event), severity]
        except KeyError:
            route = self._routes[type(event), None]
        if route.sinks:
            cells = self._per_thread.cells
            if route.direct is not None and cells.handling is None:
                self._deliver_directly(route, event, cells)
                return
            ids, time_ns = self.ids, self.time_ns
            next_sequence = ids.next_sequence
            sequence = next_sequence()
            began = 0 if sequence & self.timed_mask else self.monotonic_ns()
            envelope = Envelope(event, route.severity, tags, time_ns(), sequence, ids, SCOPE.get())
            self._deliver(route, envelope, cells)
            if began:
                self.emit_times.add(self.monotonic_ns() - began)

    def announce(self, event: Event, *, severity: Severity | None = None) -> None:
        """Emit what the bus or a handler must say of itself; a warning that no other handler takes goes to stderr."""
        route = self._routes[event.__class__, severity]
        self.emit(event, severity=severity)
        ours = self._per_thread.cells.handling
        if (
            self._enabled
            and route.severity >= Severity.WARNING
            and all(a is ours or a.is_closed for _, a in route.sinks)
        ):
            ids = self.ids
            envelope = Envelope(event, route.severity, (), self.time_ns(), ids.next_sequence(), ids, SCOPE.get())
            say_plainly(route.severity.name, envelope.name, envelope.redact().message or envelope.name)

    def replay(self, envelope: Envelope) -> None:
        """Hand an envelope that was made elsewhere, such as from a file, to every handler that wants its event."""
        route = self._routes[envelope.event.__class__, envelope.severity]
        if route.sinks:
            self._deliver(route, envelope, self._per_thread.cells)

    async def emit_durable(
        self, event: Event, *, severity: Severity | str | None = None, tags: Sequence[str] = ()
    ) -> None:
        """Emit an event, of any type, and wait for its commit without blocking the event loop.

        Raises NotDurable as ``emit`` does, and ConfigurationError where no durable handler takes the event.
        """
        route = self._routes[event.__class__, severity if severity is None else Severity.parse(severity)]
        if self._enabled:
            ids = self.ids
            envelope = Envelope(
                event, route.severity, as_tags(tags), self.time_ns(), ids.next_sequence(), ids, SCOPE.get()
            )
            await self.durability.emit(lambda r, e: self._deliver(r, e, self._per_thread.cells), route, envelope)

    def _deliver(self, route: Route, envelope: Envelope, cells: Cells) -> None:  # noqa: C901 - the heart of dispatch, read in one piece
        counts = cells.counts
        counts[route.key] += 1
        if cells.handling is not None or (route.inline and (cells.depth or route.durable)):
            self._detours.deliver(route, envelope, cells)
            return
        passed = 0  # counted right after the call: an interruption finds out which sink it has hit
        if not route.inline:
            try:
                for sink in route.calls:
                    try:
                        sink(envelope)
                    except Exception as error:  # noqa: BLE001 - the caller is never harmed
                        self._detours.failed(route.sinks[passed][1], route, error)
                    passed += 1
            except BaseException:
                self._detours.interrupted(route, passed, set(), envelope)
                raise
            return
        if route.redact:
            envelope.hide_sensitive()
        failed = None
        cells.depth = 1
        try:
            for sink in route.calls:
                try:
                    sink(envelope)
                except Exception as error:  # noqa: BLE001 - the caller is never harmed; one block per sink is the point
                    attachment = route.sinks[passed][1]
                    failed = (failed or set()) | {attachment.name}
                    self._detours.failed(attachment, route, error)
                passed += 1
        except BaseException:  # KeyboardInterrupt and the like pass, but what they cut off is counted
            self._detours.interrupted(route, passed, failed or set(), envelope)
            raise
        finally:
            cells.depth = 0
        if failed is None:
            counts[route.done] += 1
        else:
            self._detours.done_except(route, failed)

    def _deliver_directly(self, route: Route, event: Event, cells: Cells) -> None:
        """Give the event alone to the one handler that wants it, and wants no more."""
        (sink, done), counts = route.direct, cells.counts  # type: ignore[misc]  # the caller has looked
        counts[route.key] += 1
        next_sequence = self.ids.next_sequence
        began = 0 if next_sequence() & self.timed_mask else self.monotonic_ns()
        try:
            sink(event)
        except Exception as error:  # noqa: BLE001 - the caller is never harmed
            attachment = route.sinks[0][1]
            self._ledger.count(attachment.name, route.key.event, route.key.phase, "failed")
            attachment.quarantine.failed(error)
        except BaseException:  # as in _deliver: what is cut off is counted
            self._ledger.count(route.sinks[0][1].name, route.key.event, route.key.phase, "failed")
            raise
        else:
            counts[done] += 1
        if began:
            self.emit_times.add(self.monotonic_ns() - began)

    def enabled(self, event_type: type[Event] | Recording[Any], severity: Severity | None = None) -> bool:
        """Whether any handler wants events of this type (operations: however they end), or any part of a recording.

        Cheap enough to guard costly preparations. ``severity`` asks about another one than the type's own.
        """
        if severity is None:
            return self._wanted[event_type]
        return bool(self._routes[event_type, severity].sinks)

    def operation(self, event_type: type[E], /, **fields: Any) -> LiveOperation[E]:
        """Return an operation to enter (``with``, ``async with``) or to decorate a function with.

        Raises TypeError for a field that the type does not have.
        """
        return LiveOperation(self, event_type, fields)

    def record(self, recording: Recording[V], value: V) -> None:
        """Emit an operation that is over, and all that happened in it, at the least cost for the caller.

        ``value`` is what the recording's ``unfold`` makes it of, in a worker where that is possible: it must not be
        changed any more. It belongs to the operation that is the current one.
        """
        self._recordings.record(recording, value)

    def bind(self, **fields: Any) -> BoundEmitter:
        """Return this emitter with ``fields`` bound to everything emitted through it."""
        return BoundEmitter(self, fields)

    # -- operations --------------------------------------------------------------------------------------------------

    def announce_start(self, operation: LiveOperation[Any]) -> None:
        """Tell those who asked for it that an operation starts, on the lane of now (called by the operation)."""
        lane = operation.lane
        if lane.routes is not self._routes:
            lane = operation.lane = self._along(lane)
        route = lane.start
        if route is not None:
            event = operation.build()  # now: its results will be set later
            ids, tags, time_ns = self.ids, operation.extras.tags, operation.start_ns
            sequence = ids.next_sequence()
            envelope = Envelope(event, route.severity, tags, time_ns, sequence, ids, operation, operation, START)
            self._deliver(route, envelope, self._per_thread.cells)

    def operation_ended(self, operation: LiveOperation[Any]) -> None:
        """Emit an operation that has ended (called by the operation)."""
        try:  # noqa: SIM105 - no method call, and no suppress(), where callers wait
            del self._open[operation.span_id]
        except KeyError:
            pass
        cells = self._per_thread.cells
        outcome = operation.outcome
        cells.counts[self._ledger.ended[outcome]] += 1
        lane = operation.lane
        if lane.routes is not self._routes:
            lane = operation.lane = self._along(lane)
        route = None
        if outcome == "success":
            route = lane.success if operation.sampled else lane.unsampled_success
        if route is None:
            route = lane.end(outcome, is_sampled=operation.sampled)  # type: ignore[arg-type]  # it has ended
        if not route.sinks:
            if route.key.unsampled:
                cells.counts[route.key] += 1
            return
        ids = self.ids
        next_sequence = ids.next_sequence
        sequence = next_sequence()
        began = 0 if sequence & self.timed_mask else self.monotonic_ns()
        if route.by_workers and lane.is_plain and cells.handling is None and not self.strict:
            # Queued itself; the first worker makes its envelope: memory comes back cold, so the less of it waits.
            operation.route = route
            operation.sequence = sequence
            operation.made = None
            operation.is_taken = False
            self._deliver(route, operation, cells)  # type: ignore[arg-type]  # to queues only, which take it, too
        else:
            event = operation.build() if self.strict or not lane.is_plain else None
            tags, time_ns = operation.extras.tags, operation.start_ns + operation.duration_ns
            envelope = Envelope(event, route.severity, tags, time_ns, sequence, ids, operation, operation)
            self._deliver(route, envelope, cells)
        if began:
            self.emit_times.add(self.monotonic_ns() - began)

    def _along(self, lane: Lane) -> Lane:
        """Return the lane of a type along the routes of now."""
        fresh = self.lanes[lane.event_type] = lane.along(self._routes)
        return fresh

    def open_operations(self) -> tuple[LiveOperation[Any], ...]:
        """Return the operations that have started and not ended."""
        return tuple(self._open.values())

    def report_invalid(self, event_type: type[Event], fields: Sequence[str], reason: str) -> None:
        """Report values that were left out (called by the operation)."""
        self.emit(InvalidResult(operation=event_type.__event__.name, fields=list(fields), reason=reason))

    # -- handlers ----------------------------------------------------------------------------------------------------

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The attached handlers, in the order in which they get an event."""
        return tuple(attachment.handler for attachment in self._attachments.all)

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The attached handlers with their queues and quarantines."""
        return self._attachments.all

    def handler(self, name: str) -> Handler:
        """Return the handler called ``name``; KeyError names those there are."""
        return self._attachments.named(name).handler

    def add_handler(self, handler: Handler, *, name: str | None = None) -> Handler:
        """Attach a handler; events emitted from now on reach it. Returns the handler."""
        self._attachments.add(handler, name)
        return handler

    def remove_handler(self, handler: Handler | str, *, timeout_s: float = 5.0) -> int:
        """Detach a handler, deliver what it had accepted, close it; return how many envelopes were abandoned."""
        return self._attachments.remove(handler, timeout_s)

    def check_durable_types(self) -> None:
        """Raise ConfigurationError for an audit-class event type of the catalog that no durable handler takes."""
        for event_type in self.catalog.registered.values():
            if event_type.__event__.durable:
                self._routes[event_type, None]

    @property
    def is_handling(self) -> bool:
        """Whether this thread is inside a handler: what it logs or emits now is a handler's doing."""
        cells = self._per_thread.cells
        return cells.handling is not None or cells.depth > 0

    @property
    def is_enabled(self) -> bool:
        """Whether events are taken at all; set it to False to silence this emitter."""
        return self._enabled

    @is_enabled.setter
    def is_enabled(self, value: bool) -> None:
        self._enabled = value
        self.recompile()

    def recompile(self) -> None:
        """Ask every handler anew what it wants (called by one that has changed its mind)."""
        with self._attachments.changing:
            ratios = [getattr(a.handler, "sampling_ratio", None) for a in self._attachments.all]
            self.trace_bound = int(max((r for r in ratios if r is not None), default=0.0) * ALL_TRACES)
            heed = [getattr(a.handler, "parent_based", None) for a in self._attachments.all]
            self.remote_bound = self.trace_bound if False in heed and True not in heed else None
            self._take(Routes(self._attachments.all, self._ledger, is_enabled=self._enabled))

    def _take(self, routes: Routes) -> None:
        self._routes, self._own, self._wanted = routes, routes.own, Wanted(routes)
        self._recordings.take(routes)
        self.lanes: dict[type[Event], Lane] = {}  # anew, like the routes: it keeps types alive

    def _report(self, handler: str, error: BaseException | None, what: str) -> None:
        """Tell the other handlers what became of one."""
        reason = (
            f"{type(error).__name__}: {error}" if error else "see its earlier failures" if what != "recovered" else "-"
        )
        severity = Severity.INFO if what == "recovered" else None
        cells = self._per_thread.cells
        before, cells.handling = (
            cells.handling,
            next((a for a in self._attachments.all if a.name == handler), cells.handling),
        )
        try:
            self.announce(HandlerChanged(handler=handler, what=what, reason=reason), severity=severity)  # type: ignore[arg-type]
        finally:
            cells.handling = before

    # -- the account -------------------------------------------------------------------------------------------------

    def ledger(self) -> LedgerSnapshot:
        """Return the account of every envelope so far; exact when nothing is in flight (after ``flush``)."""
        return self._ledger.snapshot(self.durability.state())

    # -- the end -----------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that was accepted before is handed over; False if that took longer than ``timeout_s``."""
        self.misuses.search()
        return self._attachments.flush(timeout_s)

    @property
    def on_shutdown(self) -> list[Callable[[], None]]:
        """What is called when it is shut down, the last one first, before the handlers are closed."""
        return self._closing.before

    def shutdown(self, timeout_s: float | None = None) -> ShutdownReport:
        """End open operations as abandoned, deliver what waits, close every handler, in bounded time; idempotent.

        ``timeout_s`` defaults to the setting ``shutdown_timeout_s``. A second caller waits for the first one's report.
        """
        return self._closing.shutdown(self.shutdown_timeout_s if timeout_s is None else timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def after_fork(self) -> None:
        """Start anew in a forked child: fresh locks, empty queues, no open operations."""
        self._closing.after_fork()
        inherited = self._ledger.after_fork()
        self.misuses.after_fork()
        self.health.after_fork()
        for operation in self._open.values():  # the parent's to end: a with block left here must not deliver it again
            operation.disown()
        self._open.clear()
        copies = {a.name: a.queue.depth + a.queue.backlog for a in self.attachments if a.queue is not None}
        self._attachments.after_fork()
        for row in inherited:
            self._ledger.count(row.handler, row.event, row.phase, "recovered", row.pending)
            number = row.pending
            if self._ledger.cells.depth:  # an emit of this thread is under way, and goes on here, too
                number = min(number, copies.get(row.handler, 0))
                copies[row.handler] = copies.get(row.handler, 0) - number
            if number:
                self._ledger.count(row.handler, row.event, row.phase, "forked", number)

    def __repr__(self) -> str:
        return f"<Emitter {self.resource.service}: {', '.join(a.name for a in self._attachments.all) or 'no handlers'}>"


_EMITTERS: weakref.WeakSet[Emitter] = weakref.WeakSet()


def _after_fork() -> None:
    for emitter in list(_EMITTERS):
        emitter.after_fork()


os.register_at_fork(after_in_child=_after_fork)
