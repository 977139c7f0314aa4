"""What is decided about a type of operation: looked up once in an operation's life, not at each of its stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventcore.dispatch import START, Unsampled

if TYPE_CHECKING:
    from eventcore.dispatch import Route, Routes
    from eventcore.event_spec import EventSpec
    from eventcore.events import Event

__all__ = ["Lane"]


class Lane:
    """One type of operation on one emitter: its facts, and the routes that such operations take.

    ``routes`` are those that it was made for, None before the first start. An operation keeps its lane; where the
    emitter has other routes by then, since handlers came or went, it goes on along another one.
    """

    __slots__ = ("event_type", "is_plain", "names", "routes", "spec", "start", "success", "unsampled_success")

    def __init__(self, event_type: type[Event], routes: Routes | None = None) -> None:
        spec: EventSpec | None = getattr(event_type, "__event__", None)
        if spec is None or not spec.is_operation:
            raise TypeError(f"{event_type!r} is no ec.Operation with a name, so it cannot be started") from None
        self.event_type = event_type
        self.spec = spec
        self.names = spec.names
        self.is_plain = spec.is_plain
        self.routes = routes
        start = None if routes is None else routes[event_type, START]
        self.start = start if start is not None and start.sinks else None
        """The route of starts, where anybody wants to hear of them."""
        self.success: Route | None = None
        """The route of those that end well, once one has; ``unsampled_success`` in a trace that is not recorded."""
        self.unsampled_success: Route | None = None

    def along(self, routes: Routes) -> Lane:
        """Return the lane of the same type along other routes."""
        return Lane(self.event_type, routes)

    def end(self, outcome: str, *, is_sampled: bool) -> Route:
        """Return the route of operations that end with ``outcome``."""
        assert self.routes is not None  # noqa: S101 - what ends has started, along some; for the type checker
        severity = self.spec.severity_of(outcome)
        route = self.routes[self.event_type, severity if is_sampled else Unsampled(severity)]
        if outcome == "success":
            if is_sampled:
                self.success = route
            else:
                self.unsampled_success = route
        return route
