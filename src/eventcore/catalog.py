"""The catalog: every registered event type and instrument.

Exporters compile from it; documentation, dashboards and checks are generated from it.
"""

from __future__ import annotations

import os
import pkgutil
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from eventcore.errors import ConfigurationError, DefinitionError, EventCoreError, InstrumentError, did_you_mean
from eventcore.vocabulary import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from eventcore.events import Event
    from eventcore.instruments import Instrument

__all__ = ["Catalog"]


class Catalog:
    """Event types by name and instruments by name; both names are unique.

    ``contributed`` returns the event types of plugins, which the bus's own join. It is called when ``events`` is first
    asked for, so that a program that never asks does not import them.
    """

    def __init__(
        self,
        *,
        events: Iterable[type[Event]] = (),
        instruments: Iterable[Instrument] = (),
        packs: Mapping[str, str | Iterable[Instrument]] | None = None,
        contributed: Callable[[], Iterable[type[Event]]] | None = None,
    ) -> None:
        self._contributed = contributed
        self._packs = dict(packs or {})
        self._packed: set[str] = set()
        self._events: dict[str, type[Event]] = {}
        self._plugin_events: Mapping[str, type[Event]] = {}
        self._instruments: dict[str, Instrument] = {}
        self._by_type: dict[type[Event], tuple[Instrument, ...]] = {}
        self.register_events(events)
        self.register(instruments)

    @property
    def events(self) -> Mapping[str, type[Event]]:
        """Event types by dotted name, those of plugins included; of two that bear one name, the one registered."""
        return dict(sorted({**self._of_plugins(), **self._events}.items()))

    @property
    def registered(self) -> Mapping[str, type[Event]]:
        """Event types by dotted name that were given in code, or that an instrument observes."""
        return dict(sorted(self._events.items()))

    def _of_plugins(self) -> Mapping[str, type[Event]]:
        with _importing:
            if self._contributed is not None:
                types: list[type[Event]] = [*EVENTS]
                with suppress(EventCoreError):  # a plugin whose library is missing: what it knows is not known here
                    types += self._contributed()
                self._plugin_events = {event_type.__event__.name: event_type for event_type in types}
                self._contributed = None
        return self._plugin_events

    @property
    def instruments(self) -> Mapping[str, Instrument]:
        """Instruments by metric name."""
        return dict(self._instruments)

    def register_events(self, types: Iterable[type[Event]]) -> None:
        """Add event types; a second type of the same name is an error, the same type made anew replaces the old."""
        for event_type in types:
            if event_type.is_abstract():
                raise DefinitionError(
                    f"{event_type.__qualname__} is abstract (it has no name=) and cannot be registered"
                )
            name = event_type.__event__.name
            known = self._events.get(name)
            if known is not None and known is not event_type and _identity(known) != _identity(event_type):
                raise DefinitionError(
                    f"event name {name!r} is used by two types: {_identity(known)}, {_identity(event_type)}"
                )
            self._events[name] = event_type

    def register(self, instruments: Iterable[Instrument]) -> None:
        """Add instruments, and the event types they observe; a name that is taken is an error naming both."""
        for instrument in instruments:
            known = self._instruments.get(instrument.name)
            if known == instrument:
                continue
            if known is not None:
                if instrument.types == known.types:
                    remedy = "once with other buckets, labels or help: one metric has the same in all handlers"
                else:
                    remedy = "metric names are unique: rename one, or give one instrument several types in on=(…)"
                raise InstrumentError(
                    f"instrument {instrument.name!r} over {_names(instrument)} exists already, over {_names(known)}: "
                    f"{remedy}"
                )
            self.register_events(instrument.types)
            self._instruments[instrument.name] = instrument
            for event_type in instrument.types:
                self._by_type[event_type] = (*self._by_type.get(event_type, ()), instrument)

    def replace(self, instrument: Instrument) -> None:
        """Put another instrument in the place of the one that has its name and event types."""
        known = self._instruments[instrument.name]
        self._instruments[instrument.name] = instrument
        for event_type in instrument.types:
            self._by_type[event_type] = tuple(instrument if i is known else i for i in self._by_type[event_type])

    def instruments_of(self, event_type: type[Event]) -> tuple[Instrument, ...]:
        """Return the instruments that observe events of this type."""
        return self._by_type.get(event_type, ())

    def pack(self, name: str, adapt: Callable[[Instrument], Instrument] | None = None) -> tuple[Instrument, ...]:
        """Register the instruments of the metric pack called ``name``, as ``adapt`` makes them, and return them."""
        if name not in self._packs:
            raise ConfigurationError(
                f"no installed plugin offers a metric pack {name!r}{did_you_mean(name, self._packs)}"
            )
        pack = self._packs[name]
        instruments = tuple(pkgutil.resolve_name(pack) if isinstance(pack, str) else pack)
        if adapt is not None:
            instruments = tuple(map(adapt, instruments))
        self._packed.update(instrument.name for instrument in instruments if instrument.name not in self._instruments)
        self.register(instruments)
        return instruments

    @property
    def given(self) -> tuple[Instrument, ...]:
        """The instruments that were given in code, not by a pack."""
        return tuple(item for name, item in self._instruments.items() if name not in self._packed)

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the metric packs that installed plugins offer."""
        return tuple(sorted(self._packs))

    def __repr__(self) -> str:
        return (
            f"<Catalog: {len({*self._events, *self._plugin_events})} event types, {len(self._instruments)} instruments>"
        )


def _identity(event_type: type[Event]) -> str:
    return f"{event_type.__module__}.{event_type.__qualname__}"


def _names(instrument: Instrument) -> str:
    return ", ".join(repr(event_type.__event__.name) for event_type in instrument.types)


# A fork while another thread imports leaves the module's lock held in the child for ever: a worker of the bus may be at
# it (leftovers of the journal are of types nobody has imported yet), so the fork waits for it, and not for ever.
_importing = threading.RLock()
_held: list[threading.RLock] = []


def _before_fork() -> None:
    if _importing.acquire(timeout=1.0):
        _held.append(_importing)


def _after_fork() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    global _importing  # noqa: PLW0603 - another thread of the parent may have held it after all
    _held.clear()
    _importing = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
