"""Which handlers get an event: decided once per type and severity, not per emit.

``Routes`` is a dictionary that compiles what it does not know yet. When handlers change, a fresh one is built and
swapped in with one assignment; a thread that was compiling goes on writing to the old one, which nobody reads any
more. So the emit path takes no lock, and a compiled decision never carries anything of a single call.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

from eventcore.errors import ConfigurationError
from eventcore.events import OUTCOMES, Event, Severity
from eventcore.ledger import DoneKey, Ledger, RouteKey
from eventcore.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.delivery import Queue
    from eventcore.envelope import Envelope
    from eventcore.handler import DirectSink, Handler, Sink
    from eventcore.isolation import Quarantine
    from eventcore.recording import Recording
    from eventcore.sampling import Takes

__all__ = ["START", "Attachment", "Route", "Routes", "Unsampled", "Wanted"]

START = "start"


@dataclass(frozen=True, slots=True)
class Unsampled:
    """Stands for the severity in the key of a route: an operation of a trace that is not recorded ended with it."""

    severity: Severity


class Attachment:
    """A handler on an emitter, with what the emitter keeps about it: its queue (or none), quarantine and sampler."""

    __slots__ = ("handler", "is_closed", "name", "quarantine", "queue", "sampler")

    def __init__(
        self, name: str, handler: Handler, queue: Queue | None, quarantine: Quarantine, sampler: Sampler
    ) -> None:
        self.name = name
        self.handler = handler
        self.queue = queue
        self.quarantine = quarantine
        self.sampler = sampler
        self.is_closed = False

    @property
    def looks_before_queueing(self) -> bool:
        """Whether each envelope is needed in the caller: for the name of its thread, or to be refused by a journal."""
        return self.handler.wants_thread or (self.queue is not None and self.queue.is_durable)

    def sink_for(self, event_type: type[Event], severity: Severity, phase: str) -> Sink | None:
        """Ask the handler for its sink, behind its filter; one that fails at this gets nothing, and is reported."""
        handler = self.handler
        ask = handler.start_sink_for if phase is START else handler.sink_for
        try:
            return ask(event_type, severity) if handler.config.admits(event_type.__event__, severity) else None
        except Exception as error:  # noqa: BLE001 - a handler's fault must not reach the code that emits
            self.quarantine.failed(error)
            return None

    def takes(self, event_type: type[Event], severity: Severity) -> Takes | None:
        """Return what says of each envelope whether it is taken, the handler itself first; None: every one is."""
        share = self.sampler.takes(severity)
        try:
            draw = self.handler.draw_for(event_type, severity)
        except Exception as error:  # noqa: BLE001 - as in sink_for
            self.quarantine.failed(error)
            return share
        if draw is None or share is None:
            return draw or share
        return lambda envelope: draw(envelope) and share(envelope)

    def direct_for(self, event_type: type[Event], severity: Severity) -> DirectSink | None:
        """Ask the handler likewise for its direct sink; never one that is watched or closed."""
        if self.quarantine.is_watching or self.is_closed:
            return None
        try:
            return self.handler.direct_sink_for(event_type, severity)
        except Exception as error:  # noqa: BLE001 - as above
            self.quarantine.failed(error)
            return None

    def takes_durably(self, accepted: Sequence[str]) -> bool:
        """Whether it is one of those that take every envelope of a route, and its delivery is durable."""
        return self.name in accepted and self.queue is not None and self.queue.is_durable

    def __repr__(self) -> str:
        return f"<Attachment {self.name}: {self.handler!r}, {'queued' if self.queue else 'inline'}>"


class Route:
    """A compiled decision: the sinks that take one event type at one severity, and the keys it is counted under.

    ``direct``: the only handler's own way for the event alone, and the key under which its successes are counted.
    ``by_workers``: nothing of an envelope is looked at before a worker has it, so an operation may be queued without.
    """

    __slots__ = ("by_workers", "calls", "direct", "done", "durable", "inline", "key", "redact", "severity", "sinks")

    def __init__(
        self,
        severity: Severity,
        sinks: tuple[tuple[Sink, Attachment], ...],
        key: RouteKey,
        done: DoneKey,
        *,
        redact: bool,
        durable: bool,
        direct: tuple[DirectSink, DoneKey] | None = None,
    ) -> None:
        self.severity = severity
        self.sinks = sinks
        self.calls = tuple(sink for sink, _ in sinks)
        self.key = key
        self.done = done
        self.inline = durable or any(attachment.queue is None for _, attachment in sinks)
        looks = any(a.looks_before_queueing or a.name in key.sampling for _, a in sinks)
        self.by_workers = not (looks or self.inline)
        self.redact = redact
        self.durable = durable
        self.direct = direct

    def __repr__(self) -> str:
        names = ", ".join(attachment.name for _, attachment in self.sinks)
        return f"<Route {self.key.event} {self.severity.name} {self.key.phase} -> {names or 'nobody'}>"


class Routes(dict[tuple[Any, Any], Route]):
    """Routes by ``(event type, severity)``.

    Severity None means the type's own, ``START`` the start of an operation, ``Unsampled(…)`` its end in a trace that is
    not recorded. What is asked for most has a plain dictionary beside it, which knows what was asked for once: ``own``,
    the routes of types at their own severity.
    """

    def __init__(self, attachments: Sequence[Attachment], ledger: Ledger, *, is_enabled: bool = True) -> None:
        super().__init__()
        self._attachments = tuple(attachments) if is_enabled else ()
        self._is_enabled = is_enabled
        self._ledger = ledger
        self._known: dict[Sink, Sink] = {}  # a look-up of a bound method makes another one: all routes share the first
        self.own: dict[type[Event], Route] = {}

    def __missing__(self, key: tuple[type[Event], Any]) -> Route:
        event_type, severity = key
        if not issubclass(event_type, Event):
            raise TypeError(f"emit takes an ec.Event, not {event_type!r}; for a passing need use ec.emit_event(…)")
        if event_type.is_abstract():
            raise TypeError(f"{event_type.__qualname__} is abstract (it has no name=), so it cannot be emitted")
        if severity is None:
            route = self.own[event_type] = self[event_type, event_type.__event__.severity]
        elif severity is START:
            if event_type.__event__.durable:
                self[event_type, None]  # an operation that could not end durably must not start
            route = self._compile(event_type, event_type.__event__.severity, START)
        elif severity.__class__ is Unsampled:
            route = self._compile(event_type, severity.severity, "end", is_sampled=False)
        else:
            route = self._compile(event_type, Severity(severity), "end")
        self[key] = route
        return route

    def _compile(  # noqa: C901 - a decision, read in one piece
        self, event_type: type[Event], severity: Severity, phase: str, *, is_sampled: bool = True
    ) -> Route:
        spec = event_type.__event__
        sinks: list[tuple[Sink, Attachment]] = []
        accepted, sampling, derived = [], [], []
        filtered: list[str] = []
        unsampled: list[str] = []
        redact = False
        may_fail = spec.is_operation and severity in map(spec.severity_of, ("failure", "cancelled"))
        has_secrets = bool(spec.sensitive) or may_fail  # the exception's text
        for attachment in self._attachments:
            sink = attachment.sink_for(event_type, severity, phase)
            if sink is None or not (is_sampled or attachment.handler.takes_unsampled):
                if phase is not START:  # who never asked for starts does not filter them either
                    (filtered if sink is None else unsampled).append(attachment.name)
                continue
            queue, is_watching = attachment.queue, attachment.quarantine.is_watching
            counts_itself = queue is not None or is_watching or attachment.is_closed
            if queue is not None:
                sink = queue.put_urgent if severity >= Severity.ERROR else queue.put
            elif attachment.is_closed:
                sink = self._refused(attachment)
            else:
                redact = redact or has_secrets
                if is_watching:
                    sink = attachment.quarantine.watch(sink)
            if attachment.handler.wants_thread:
                sink = _noting_thread(sink)
            takes = attachment.takes(event_type, severity)
            if takes is not None:
                sampling.append(attachment.name)
                sink = Sampler.wrap(sink, takes, attachment.name, self._ledger, counts_delivery=not counts_itself)
            else:
                accepted.append(attachment.name)
                if not counts_itself:
                    derived.append(attachment.name)
            sinks.append((self._known.setdefault(sink, sink) if sink.__class__ is MethodType else sink, attachment))
        durable = spec.durable and phase is not START
        if durable and self._is_enabled and not any(a.takes_durably(accepted) for _, a in sinks):
            raise ConfigurationError(
                f"{event_type.__qualname__} ({spec.name!r}) is declared durable=True, but no durable handler takes it "
                f"at severity {severity.name}: give one delivery = 'durable', a filter that admits it, and no sampling"
            )
        is_alone = len(sinks) == len(accepted) == 1 and phase is not START and not durable and not derived
        direct = sinks[0][1].direct_for(event_type, severity) if is_alone else None
        return Route(
            severity,
            tuple(sinks),
            RouteKey(
                spec.name,
                phase,
                tuple(accepted),
                tuple(sampling),
                tuple(filtered),
                spec.category.value,
                severity.name.lower(),
                tuple(unsampled),
            ),
            DoneKey(spec.name, phase, tuple(derived)),
            redact=redact,
            durable=durable,
            direct=None if direct is None else (direct, DoneKey(spec.name, phase, tuple(accepted))),
        )

    def has_takers(self, event_type: type[Event]) -> bool:
        """Whether any handler takes events of a type at its own severity, or operations as they start or end."""
        spec = event_type.__event__
        kinds = (START, *map(spec.severity_of, OUTCOMES)) if spec.is_operation else ()
        return any(self[event_type, kind].sinks for kind in (None, *kinds))

    def _refused(self, attachment: Attachment) -> Sink:
        """Return a sink that counts what comes after an inline handler was closed."""
        count, name = self._ledger.count, attachment.name
        return lambda envelope: count(name, envelope.name, envelope.phase, "shutdown")


def _noting_thread(sink: Sink) -> Sink:
    def noted(envelope: Envelope) -> None:
        envelope.thread = threading.current_thread().name
        sink(envelope)

    return noted


class Wanted(dict["type[Event] | Recording[Any]", bool]):
    """Whether any handler wants a type at its own severity, or an operation however it ends; for ``enabled()``."""

    def __init__(self, routes: Routes) -> None:
        super().__init__()
        self._routes = routes

    def __missing__(self, what: type[Event] | Recording[Any]) -> bool:
        kinds = (what,) if isinstance(what, type) else (what.operation, *what.parts)
        wanted = self[what] = any(self._routes.has_takers(kind) for kind in kinds)
        return wanted
