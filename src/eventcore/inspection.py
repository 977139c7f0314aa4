"""What operators are shown of an emitter: a plain dictionary, the same over HTTP and in a fresh process.

Nothing here changes what it looks at; only for a catalog, or for a type that is not known yet, are the types of plugins
imported. Options that are not shown in a ``repr`` (secrets, tokens, addresses that hold them) are left out, and what
looks like a secret in the rest is replaced, as everywhere.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from eventcore import __version__
from eventcore.by_hand import declared
from eventcore.catalog import Catalog
from eventcore.errors import EventCoreError, did_you_mean
from eventcore.events import Event, Severity
from eventcore.exposition import MAX_SERIES, metric_of
from eventcore.redaction import scrub, scrub_mapping
from eventcore.settings import NOT_SETTINGS, PREFIX
from eventcore.vocabulary import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from eventcore.dispatch import Attachment
    from eventcore.emitter import Emitter
    from eventcore.exposition import Metric
    from eventcore.handler import HandlerConfig
    from eventcore.instruments import Instrument
    from eventcore.ledger import LedgerRow
    from eventcore.operation import LiveOperation
    from eventcore.settings import Settings

__all__ = [
    "FORMAT",
    "UnknownEvent",
    "catalog_of",
    "delivery_of",
    "event_type_of",
    "full_catalog",
    "head_of",
    "inspect",
    "known_events",
    "made_events",
    "plain",
    "sampling_of",
]

FORMAT = 1
"""Version of the shapes below; keys may be added to it, none is renamed or removed."""

MAX_OPEN_SHOWN = 100

_FILTER = ("events", "exclude", "categories", "min_severity")


class UnknownEvent(EventCoreError):
    """No event type of that name is known in this process."""


def inspect(emitter: Emitter) -> dict[str, Any]:
    """Return what there is to know of an emitter, fit for JSON.

    Keys: ``eventcore`` (version), ``format``, ``pid``, ``service``, ``settings`` (where they came from), ``enabled``,
    ``handlers`` (each with filter, delivery, queue, breaker, options, what it says of itself, its ledger), ``routes``
    (event name to the handlers that take it at its own severity), ``ledger`` (rows per handler and event type),
    ``emitted_by`` (counts per event, category and severity), ``operations`` and their ``outcomes``, ``misuses`` of
    operations, ``journal`` (null where no handler is durable), ``open_operations`` (the oldest 100), ``catalog``,
    ``services``, ``broken_plugins``.
    """
    ledger = emitter.ledger()
    known = known_events(emitter)
    return {
        **head_of(emitter),
        "enabled": emitter.is_enabled,
        "strict": emitter.strict,
        "handlers": [
            {**_handler(attachment), "ledger": _account(ledger.handler(attachment.name))}
            for attachment in emitter.attachments
        ],
        "routes": {name: _takers(emitter, event_type) for name, event_type in known.items()},
        "ledger": {
            "emitted": ledger.emitted,
            "rows": [
                {"handler": row.handler, "event": row.event, "phase": row.phase, **_account(row)} for row in ledger.rows
            ],
        },
        "emitted_by": [
            {"event": event, "category": category, "severity": severity, "count": count}
            for (event, category, severity), count in sorted(ledger.emitted_by.items())
        ],
        "operations": dict(ledger.operations),
        "outcomes": dict(ledger.outcomes),
        "misuses": [
            {"operation": name, "what": what, "count": count} for (name, what), count in emitter.misuses.counts.items()
        ],
        "journal": _journal(emitter),
        "open_operations": [_open(emitter, one) for one in emitter.open_operations()[:MAX_OPEN_SHOWN]],
        "catalog": {
            "event_types": len(known),
            "instruments": len(emitter.catalog.instruments),
            "packs": list(emitter.catalog.packs),
        },
        "services": {name: scrub(repr(service)) for name, service in emitter.services.items()},
        "broken_plugins": {
            name: scrub(repr(error)) for name, error in (emitter.plugins.broken if emitter.plugins else {}).items()
        },
    }


def head_of(emitter: Emitter) -> dict[str, Any]:
    """Return what every answer begins with: who speaks, and where its settings came from."""
    resource = emitter.resource
    return {
        "eventcore": __version__,
        "format": FORMAT,
        "pid": os.getpid(),
        "service": {"name": resource.service, "version": resource.version, "environment": resource.environment},
        "settings": _origin(emitter.settings),
    }


def _origin(settings: Settings | None) -> dict[str, Any] | None:
    """Return the file, the variables and the keys given in code; None for an emitter made without ``configure()``."""
    if settings is None:
        return None
    sources = settings.sources
    return {
        "file": str(sources.file.absolute()) if sources.file else None,
        "variables": sorted(name for name in sources.variables if name.startswith(PREFIX) and name not in NOT_SETTINGS),
        "code": sorted(sources.given),
    }


def _journal(emitter: Emitter) -> dict[str, Any] | None:
    journal = emitter.durability.journal
    if journal is None:
        return None
    return {
        "path": str(emitter.durability.config.path.absolute()),
        "rows": journal.rows,
        "bytes": journal.bytes,
        "fill": round(journal.fill, 4),
        "dead_letters": journal.dead,
        "problem": None if journal.problem is None else scrub(f"{type(journal.problem).__name__}: {journal.problem}"),
    }


# -- handlers ----------------------------------------------------------------------------------------------------------


def _handler(attachment: Attachment) -> dict[str, Any]:
    handler, config = attachment.handler, attachment.handler.config
    queue = attachment.queue
    stats = getattr(handler, "cardinality_stats", None)
    return {
        "name": attachment.name,
        "kind": handler.kind,
        "class": f"{type(handler).__module__}.{type(handler).__qualname__}",
        "about": (handler.__doc__ or "").strip().partition("\n")[0],
        "delivery": delivery_of(attachment),
        "queue": None
        if queue is None
        else {
            "depth": queue.size,
            "capacity": queue.capacity,
            "backlog": queue.backlog,
            "overflow": config.overflow,
        },
        "breaker": attachment.quarantine.breaker.state.value,
        "filter": {key: plain(getattr(config, key)) for key in _FILTER},
        "sampling": sampling_of(config),
        "options": _options(config),
        "facts": _asked(handler.inspect),
        "cardinality": None if stats is None else _asked(stats),
    }


def delivery_of(attachment: Attachment) -> str:
    """Return how envelopes reach a handler: as configured, else as its kind does."""
    return attachment.handler.config.delivery or attachment.handler.delivery


def sampling_of(config: HandlerConfig) -> dict[str, Any]:
    """Return what share of the events that its filter admits a handler takes."""
    return {
        "share": config.sampling,
        "by": config.sampling_by,
        "max_per_second": config.max_per_second,
        "keep_from": plain(config.keep_from),
    }


def _options(config: HandlerConfig) -> dict[str, Any]:
    """Return the options that were given and may be shown."""
    shown = type(config).model_fields
    given = {key: getattr(config, key) for key in shown if key in config.model_fields_set and shown[key].repr}
    return scrub_mapping({key: plain(value) for key, value in given.items()})


def _asked(question: Callable[[], Any]) -> dict[str, Any]:
    """Return what a handler says of itself; one that fails at this is a finding, no error of the inspection."""
    try:
        return scrub_mapping({str(key): plain(value) for key, value in question().items()})
    except Exception as error:  # noqa: BLE001 - somebody else's code; shown instead of its answer
        return {"problem": scrub(f"{type(error).__name__}: {error}")}


def _account(row: LedgerRow) -> dict[str, Any]:
    return {
        "emitted": row.emitted,
        "accepted": row.accepted,
        "recovered": row.recovered,
        "delivered": row.delivered,
        "pending": row.pending,
        "failed": row.failed,
        "filtered": row.filtered,
        "sampled": row.sampled,
        "dropped": dict(row.dropped),
    }


def _takers(emitter: Emitter, event_type: type[Event]) -> list[str]:
    spec = event_type.__event__
    found = []
    for attachment in emitter.attachments if emitter.is_enabled else ():
        handler = attachment.handler
        try:
            if handler.config.admits(spec, spec.severity) and handler.sink_for(event_type, spec.severity) is not None:
                found.append(attachment.name)
        except Exception:  # noqa: BLE001, S112 - it takes nothing, as in dispatch; emitting reports it
            continue
    return found


def _open(emitter: Emitter, operation: LiveOperation[Any]) -> dict[str, Any]:
    return {
        "event": operation.event_type.__event__.name,
        "age_s": round(max(0, emitter.time_ns() - operation.start_ns) / 1e9, 3),
        "trace_id": f"{operation.trace_id:032x}",
        "span_id": f"{operation.span_id:016x}",
    }


# -- event types and instruments ---------------------------------------------------------------------------------------


def known_events(emitter: Emitter, *, load: bool = False) -> dict[str, type[Event]]:
    """Return the event types made in this process, by name; with ``load``, those that plugins contribute are imported.

    Where several types bear one name, the catalog's is taken, else the one made last.
    """
    found = {event_type.__event__.name: event_type for event_type in made_events()}
    found |= {event_type.__event__.name: event_type for event_type in EVENTS}
    return dict(sorted({**found, **(emitter.catalog.events if load else emitter.catalog.registered)}.items()))


def event_type_of(emitter: Emitter, name: str) -> type[Event]:
    """Return the event type called ``name``; UnknownEvent suggests one that is known."""
    known = known_events(emitter)
    if name not in known:
        known = known_events(emitter, load=True)
    if name not in known:
        raise UnknownEvent(f"no event type {name!r} is known here{did_you_mean(name, known)}")
    return known[name]


def catalog_of(emitter: Emitter) -> dict[str, Any]:
    """Return event types, metric packs, the instruments given in code and metrics by hand, fit for JSON.

    ``events``: name, category, severity, operation, fields (role, unit, values). ``packs``: by name, and
    ``instruments``: each name, kind, labels (name to its values, null where they are not finite), combinations of these
    values (null likewise), events. ``by_hand``: the same, without events. ``max_series``: the strictest limit of the
    handlers.
    """
    catalog = full_catalog(emitter)
    limits = [limit for h in emitter.handlers if (limit := getattr(h.config, "max_series", None)) is not None]
    return {
        **head_of(emitter),
        "events": [_event(event_type) for event_type in catalog.events.values()],
        "packs": {name: [_instrument(item) for item in catalog.pack(name)] for name in catalog.packs},
        "instruments": [_instrument(item) for item in emitter.catalog.given],
        "by_hand": [_metric(hand.metric) for hand in declared()],
        "max_series": min(limits, default=MAX_SERIES),
    }


def full_catalog(emitter: Emitter) -> Catalog:
    """Return a catalog of all event types known here and of the instruments of all packs, in use or not."""
    plugins = emitter.plugins
    catalog = Catalog(events=known_events(emitter, load=True).values(), packs=plugins.packs() if plugins else None)
    for name in catalog.packs:
        catalog.pack(name)
    return catalog


def made_events(base: type[Event] = Event) -> Iterable[type[Event]]:
    """Return the event types made in this process, whoever made them."""
    for made in base.__subclasses__():
        if not made.is_abstract():
            yield made
        yield from made_events(made)


def _event(event_type: type[Event]) -> dict[str, Any]:
    spec = event_type.__event__
    return {
        "name": spec.name,
        "category": spec.category.value,
        "severity": spec.severity.name.lower(),
        "operation": spec.is_operation,
        "durable": spec.durable,
        "fields": {
            field.name: {"role": field.role.kind if field.role else None, "unit": field.unit, "values": field.values}
            for field in spec.fields.values()
        },
    }


def _instrument(item: Instrument) -> dict[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "labels": {label: item.label_values(label) for label in item.labels},
        "combinations": metric_of(item).combinations,
        "events": [event_type.__event__.name for event_type in item.types],
    }


def _metric(item: Metric) -> dict[str, Any]:
    labels = {name: None if values is None else sorted(values) for name, values in item.labels.items()}
    return {"name": item.name, "kind": item.kind, "labels": labels, "combinations": item.combinations, "events": []}


def plain(value: Any) -> Any:  # noqa: PLR0911 - a table of cases
    """Return ``value`` as JSON has it: enum members as in settings, models without their hidden fields."""
    if isinstance(value, Severity):
        return value.name.lower()
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {key: plain(getattr(value, key)) for key in fields if fields[key].repr}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # arrays of numpy and its like
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)
