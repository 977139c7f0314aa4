"""``debug = true``: one switch for DEBUG lines in every log, spans on the console, and series about the bus's own life.

It changes what handlers are configured to, not what is emitted: code need not know of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eventcore.errors import EventCoreError
from eventcore.events import Operation, Severity
from eventcore.instruments import Counter, Histogram, Instrument
from eventcore.profiling import Profile
from eventcore.vocabulary import HandlerChanged, HealthChanged, InvalidResult, Misuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.events import Event
    from eventcore.plugins import Plugins
    from eventcore.settings import Settings

__all__ = ["CONSOLE_SPANS", "debugged", "detailed"]

CONSOLE_SPANS = "debug_spans"
"""Name of the handler that ``debug`` adds."""


def debugged(settings: Settings, plugins: Plugins) -> Settings:
    """Return the settings with every log from DEBUG up, and a handler that writes spans to the console."""
    handlers = {name: dict(table) for name, table in settings.frame.handlers.items()}
    for name, table in handlers.items():
        if table.get("use", name) == "log" and _is_above_debug(table.get("min_severity", "info")):
            table["min_severity"] = "debug"
    spans = [table for name, table in handlers.items() if table.get("use", name) == "span"]
    if not any(table.get("exporter") == "console" for table in spans) and _has_spans(plugins):
        handlers[CONSOLE_SPANS] = {"use": "span", "exporter": "console"}
    return replace(settings, frame=settings.frame.model_copy(update={"handlers": handlers}))


def detailed(types: Iterable[type[Event]]) -> list[Instrument]:
    """Return the instruments of debug mode; durations are of the operations among ``types``.

    Audit-class operations are left out: an instrument would have the catalog ask for a durable handler. So are those
    with payload fields of the names that durations are labelled by, which hide the facts.
    """
    operations: tuple[type[Event], ...] = (*(t for t in types if issubclass(t, Operation) and _is_measurable(t)),)
    return [
        Histogram(
            "eventcore_debug_operation_duration_seconds",
            on=operations or Profile,
            value="duration_s",
            labels={"operation": "event", "outcome": "outcome"},
            help="Duration of every operation whose type was known when eventcore was configured.",
        ),
        Histogram(
            "eventcore_debug_profile_duration_seconds",
            on=Profile,
            value="duration_s",
            labels={"profile": "profile"},
            help="Duration of profiled sections, by their name.",
        ),
        Counter(
            "eventcore_debug_handler_changes_total",
            on=HandlerChanged,
            labels={"what": "what"},
            help="Handlers that failed for the first time in a while, were put in quarantine, or recovered.",
        ),
        Counter(
            "eventcore_debug_health_changes_total",
            on=HealthChanged,
            labels={"status": "status", "before": "before"},
            help="Health checks that found another status than before.",
        ),
        Counter(
            "eventcore_debug_misuses_total",
            on=Misuse,
            labels={"what": "what"},
            help="Operations used against their life cycle, the first of each kind and name.",
        ),
        Counter(
            "eventcore_debug_invalid_results_total",
            on=InvalidResult,
            help="Operations that were given results that do not fit.",
        ),
    ]


def _is_measurable(event_type: type[Event]) -> bool:
    spec = event_type.__event__
    return not spec.durable and not {"event", "outcome", "duration_s"} & spec.fields.keys()


def _is_above_debug(severity: Any) -> bool:
    try:
        return Severity.parse(str(severity).lower()) > Severity.DEBUG if isinstance(severity, str) else True
    except ValueError:  # wrong: the handler's own settings say so better
        return False


def _has_spans(plugins: Plugins) -> bool:
    kind = plugins.handler_kinds().get("span")
    try:
        return kind is not None and kind.load() is not None
    except EventCoreError:  # its library is not installed: debugging works without spans
        return False
