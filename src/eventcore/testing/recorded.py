"""Questions about what was emitted, and assertions whose failure prints the stream."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar, overload

from eventcore.errors import did_you_mean
from eventcore.events import ENVELOPE_FACTS, Event, Severity
from eventcore.fields import unset
from eventcore.testing.table import payload_text, table, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore.ledger import LedgerSnapshot
    from eventcore.testing.clock import FakeClock

__all__ = ["Found", "Recorded"]

__unittest = True  # unittest, like pytest with __tracebackhide__, then leaves these frames out of a traceback

E = TypeVar("E", bound=Event)

POLL_S = 0.002
NEAR_MISSES = 3
FACTS = frozenset(ENVELOPE_FACTS) | {"message"}


class Found(list[E]):
    """The events of an answer, the newest last, typed by their class; ``envelopes`` are theirs, in the same order."""

    def __init__(self, envelopes: Iterable[Envelope]) -> None:
        self.envelopes: list[Envelope] = list(envelopes)
        super().__init__(envelope.event for envelope in self.envelopes)  # type: ignore[misc]  # of that class by query

    def where(self, /, **fields: Any) -> Found[E]:
        """Return those whose payload fields or envelope facts (``outcome``, ``severity``, …) have these values."""
        return Found(envelope for envelope in self.envelopes if not _differences(envelope, fields))


class Recorded:
    """Mixed into a handler that keeps envelopes and yields them when iterated.

    ``what`` is an event class (its subclasses count) or a glob over event names, for events without a class of their
    own. ``fields`` compare payload fields and envelope facts by ``==``, so ``pytest.approx`` and ``mock.ANY`` work; a
    name that the type does not have is a TypeError. A field named like one of a method's own arguments is asked for
    with ``events.of(…).where(times=3)``.
    """

    emitter: Emitter
    fake_clock: FakeClock | None = None

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Envelope]: ...

        @property
        def forgotten(self) -> int:
            """Envelopes that are not kept any more."""

    # -- questions ---------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> FakeClock:
        """The clock in use; RuntimeError where the real one is."""
        if self.fake_clock is None:
            raise RuntimeError("the real clock is in use; leave out real_clock=True to have one that a test can move")
        return self.fake_clock

    def of(self, type: type[E]) -> Found[E]:
        """Return the events of one class (its subclasses count), typed as such, the newest last."""
        return Found(self._matching(type, {}))

    def named(self, glob: str) -> Found[Event]:
        """Return the events whose name matches, such as ``"circuit.*"``."""
        return Found(self._matching(glob, {}))

    def where(self, /, **fields: Any) -> Found[Event]:
        """Return the events, of any type, whose fields or envelope facts have these values."""
        return Found(self._matching("*", fields))

    @overload
    def last(self, what: type[E], /, **fields: Any) -> E: ...
    @overload
    def last(self, what: str, /, **fields: Any) -> Event: ...
    def last(self, what: type[Event] | str, /, **fields: Any) -> Event:
        """Return the newest such event; an AssertionError with the stream where there is none."""
        __tracebackhide__ = True
        return self._expect(what, None, fields)

    def count(self, what: type[Event] | str, /, **fields: Any) -> int:
        """Return how many such events there were."""
        return len(self._matching(what, fields))

    # -- assertions --------------------------------------------------------------------------------------------------

    @overload
    def assert_emitted(self, what: type[E], /, *, times: int | None = None, **fields: Any) -> E: ...
    @overload
    def assert_emitted(self, what: str, /, *, times: int | None = None, **fields: Any) -> Event: ...
    def assert_emitted(self, what: type[Event] | str, /, *, times: int | None = None, **fields: Any) -> Event:
        """Assert that such an event was emitted (``times``: exactly so often, at least 1), and return the newest."""
        __tracebackhide__ = True
        if times is not None and times < 1:
            raise ValueError(f"times={times!r}: say assert_not_emitted")
        return self._expect(what, times, fields)

    def assert_not_emitted(self, what: type[Event] | str, /, **fields: Any) -> None:
        """Assert that no such event was emitted."""
        __tracebackhide__ = True
        found = self._matching(what, fields)
        if found:
            self._fail(f"{_said(what, fields)} was not to be emitted, but was: {_numbers(found)}")

    def assert_order(self, *types: type[Event] | str) -> None:
        """Assert that such events came in this order, others between them or not.

        An operation has its place where it ended.
        """
        __tracebackhide__ = True
        envelopes = iter(tuple(self))
        before: Envelope | None = None
        for what in types:
            is_of = _matcher(what)
            found = next((envelope for envelope in envelopes if is_of(envelope)), None)
            if found is None:
                after = f" after #{before.sequence} {before.name}" if before is not None else ""
                order = ", ".join(_said(each, {}) for each in types)
                self._fail(f"no {_said(what, {})}{after}, where this order was expected: {order}")
            before = found

    def assert_ledger_balances(self, *, timeout_s: float = 5.0) -> LedgerSnapshot:
        """Assert that no envelope of the emitter is unaccounted for, and return its ledger.

        Flushes first; to be asked when nothing emits any more. What waits in queues is counted there, and what is open
        among the operations, independently of the ledger.
        """
        __tracebackhide__ = True
        problems = [] if self.emitter.flush(timeout_s) else [f"flush took longer than {timeout_s:g} s"]
        ledger = self.emitter.ledger()
        queues = {a.name: a.queue for a in self.emitter.attachments if a.queue is not None}
        waiting = {name: queue.depth + queue.backlog for name, queue in queues.items()}  # in memory, in the journal
        for name, row in ledger.handlers.items():
            entered = row.accepted + row.filtered + row.sampled
            if row.emitted != entered:
                problems.append(f"{name}: {row.emitted} emitted, but {entered} accepted, filtered or sampled out")
            if row.pending != waiting.get(name, 0):
                problems.append(f"{name}: {row.pending} pending, but {waiting.get(name, 0)} waiting")
        open_operations = len(self.emitter.open_operations())
        if ledger.open_operations != open_operations:
            problems.append(f"{ledger.open_operations} operations open, but the emitter knows {open_operations}")
        if problems:
            self._fail(f"the ledger does not balance: {'; '.join(problems)}\n{ledger}")
        return ledger

    @overload
    def wait_for(self, what: type[E], /, *, timeout_s: float = 5.0, **fields: Any) -> E: ...
    @overload
    def wait_for(self, what: str, /, *, timeout_s: float = 5.0, **fields: Any) -> Event: ...
    def wait_for(self, what: type[Event] | str, /, *, timeout_s: float = 5.0, **fields: Any) -> Event:
        """Wait (in real time) for another thread to emit such an event, and return the first one."""
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout_s
        while not (found := self._matching(what, fields)):
            if time.monotonic() >= deadline:
                self._fail(f"{_said(what, fields)} was not emitted within {timeout_s:g} s{self._near(what, fields)}")
            time.sleep(POLL_S)
        return found[0].event

    def stream(self) -> str:
        """Return the newest events as a table: sequence, severity, name, outcome, trace and payload."""
        return table(tuple(self), forgotten=self.forgotten)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _matching(self, what: type[Event] | str, fields: Mapping[str, Any]) -> list[Envelope]:
        is_of = _matcher(what)
        of_type = [envelope for envelope in tuple(self) if is_of(envelope)]
        if fields:
            _check_names(what, fields, of_type)
        return [envelope for envelope in of_type if not _differences(envelope, fields)]

    def _expect(self, what: type[Event] | str, times: int | None, fields: Mapping[str, Any]) -> Event:
        __tracebackhide__ = True
        found = self._matching(what, fields)
        if times is None and not found:
            self._fail(f"{_said(what, fields)} was not emitted{self._near(what, fields)}")
        if times is not None and len(found) != times:
            which = f": {_numbers(found)}" if found else self._near(what, fields)
            self._fail(f"{_said(what, fields)} was to be emitted {times}x, but was {len(found)}x{which}")
        return found[-1].event

    def _near(self, what: type[Event] | str, fields: Mapping[str, Any]) -> str:
        """Say in what the events of that type differ from what was asked for."""
        if not fields:
            return ""
        of_type = self._matching(what, {})
        if not of_type:
            return f", nor was any other {_said(what, {})}"
        of_type.sort(key=lambda envelope: (len(_differences(envelope, fields)), -envelope.sequence))
        nearest = of_type[:NEAR_MISSES]
        lines = []
        for envelope in nearest:
            wrong = {key: envelope_value(envelope, key) for key in _differences(envelope, fields)}
            lines.append(f"\n  #{envelope.sequence} has {payload_text(wrong.items())}")
        return f"; nearest{f' of {len(of_type)}' if len(of_type) > len(lines) else ''}:{''.join(lines)}"

    def _fail(self, problem: str) -> Any:
        __tracebackhide__ = True
        raise AssertionError(f"{problem}\n\n{self.stream()}")


def envelope_value(envelope: Envelope, name: str) -> Any:
    """Return a payload field or envelope fact (``ec.unset`` where it has no value); ``message`` counts as one."""
    value = envelope.get(name)
    if value is unset and name == "message" and name not in envelope.spec.fields:
        return envelope.message
    return value


def _differences(envelope: Envelope, fields: Mapping[str, Any]) -> list[str]:
    return [key for key, wanted in fields.items() if not _equals(wanted, envelope_value(envelope, key))]


def _equals(wanted: Any, value: Any) -> bool:
    """Compare as ``==`` does; arrays are equal where their shapes and all elements are."""
    if isinstance(wanted, Severity) and isinstance(value, str):
        return wanted.name.lower() == value
    if value is unset:
        return wanted is unset
    if isinstance(wanted, list | tuple):  # an array field keeps what it was given as a tuple, or as numpy's array
        items = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(items, list | tuple) or len(items) != len(wanted):
            return False
        return all(_equals(a, b) for a, b in zip(wanted, items, strict=True))
    if hasattr(wanted, "shape") and wanted.shape != getattr(value, "shape", None):
        return False
    same = wanted == value
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _matcher(what: type[Event] | str) -> Callable[[Envelope], bool]:
    if isinstance(what, str):
        return lambda envelope: fnmatchcase(envelope.name, what)
    if isinstance(what, type) and issubclass(what, Event):  # type: ignore[redundant-expr]  # not every test is typed
        return lambda envelope: issubclass(envelope.event_type, what)
    raise TypeError(f"expected an event class or a glob over event names, not {what!r}")


def _check_names(what: type[Event] | str, fields: Mapping[str, Any], of_type: list[Envelope]) -> None:
    """Refuse names that no such event can have: a misspelt one would make assert_not_emitted pass for ever."""
    if isinstance(what, str):
        known = FACTS.union(*(envelope.spec.fields for envelope in of_type))
        if not of_type:
            return
    else:
        known = FACTS.union(what.model_fields)
    for name in fields:
        if name not in known:
            raise TypeError(f"{_said(what, {})} has no field and no fact {name!r}{did_you_mean(name, known)}")


def _said(what: type[Event] | str, fields: Mapping[str, Any]) -> str:
    text = repr(what) if isinstance(what, str) else what.__qualname__.rpartition(".")[2]
    return f"{text}({', '.join(f'{key}={text_of(value)}' for key, value in fields.items())})" if fields else text


def _numbers(envelopes: list[Envelope]) -> str:
    return ", ".join(f"#{envelope.sequence}" for envelope in envelopes)
