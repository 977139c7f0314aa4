"""The events that ``HandlerConformance`` emits, and values that no output format has a place for."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from eventcore.adhoc import emit_error_event, emit_event, get_logger, span
from eventcore.context import bound
from eventcore.events import Category, Event, Operation, Severity
from eventcore.fields import Array, Measure, Sensitive, unset
from eventcore.in_use import set_emitter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from eventcore.emitter import Emitter

__all__ = ["CARD", "EVENTS", "Poison", "emit_mixture", "emit_some", "unencodable_values"]

CARD = "conformance-card-number"
"""The value of a sensitive field; no handler may ever see it."""


class Stepped(Event, name="conformance.stepped", category=Category.EXECUTION, message="step {number}"):
    """A plain event."""

    number: int


class Worked(Operation, name="conformance.worked", category=Category.EXECUTION, message="work {number} done"):
    """A plain operation with a result that may stay unset."""

    number: int
    result: Annotated[float, Measure(unit="1")] = unset


class SteppedBeside(Stepped, name="conformance.stepped_beside"):
    """The same from a second thread."""


class WorkedBeside(Worked, name="conformance.worked_beside"):
    """The same from a second thread."""


class SteppedInChild(Stepped, name="conformance.stepped_in_child"):
    """The same from a forked child."""


class WorkedInChild(Worked, name="conformance.worked_in_child"):
    """The same from a forked child."""


class Paid(Event, name="conformance.paid", category=Category.SECURITY, severity=Severity.WARNING):
    """An event with a secret."""

    way: Literal["card", "cash"]
    card: Annotated[str, Sensitive]


class Announced(
    Operation,
    name="conformance.announced",
    category=Category.MODEL,
    message="announced {what}",
    start_message="announcing {what}",
    failure_message="{what} failed with {error_type}",
):
    """An operation that says something at its start, too."""

    what: str


class Scored(Operation, name="conformance.scored", category=Category.MODEL, each=("candidates", "scores")):
    """A batch, expanded by handlers that show its elements."""

    candidates: Array[str]
    scores: Array[float] = unset


class Carried(Event, name="conformance.carried", category=Category.DATA):
    """An event that carries anything."""

    value: Any


class CarriedByWork(Operation, name="conformance.carried_by_work", category=Category.DATA):
    """An operation that carries anything."""

    value: Any


class Poisoned(Event, name="conformance.poisoned", category=Category.DATA):
    """An event that cannot be looked at."""

    value: Any


class PoisonedWork(Operation, name="conformance.poisoned_work", category=Category.DATA):
    """An operation that cannot be looked at."""

    value: Any


EVENTS: tuple[type[Event], ...] = (
    Stepped,
    Worked,
    SteppedBeside,
    WorkedBeside,
    SteppedInChild,
    WorkedInChild,
    Paid,
    Announced,
    Scored,
    Carried,
    CarriedByWork,
    Poisoned,
    PoisonedWork,
)


class Poison:
    """Raises when it is shown, iterated or converted."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("poisoned")

    __repr__ = __str__ = __format__ = __iter__ = __len__ = __bool__ = __float__ = __int__ = _refuse


class Mishap(Exception):
    """What a failing operation fails with."""


def emit_some(
    emitter: Emitter, number: int, event_type: type[Stepped] = Stepped, operation_type: type[Worked] = Worked
) -> None:
    """Emit ``number`` events and operations, in an irregular order."""
    for index in range(number):
        if index * index % 7 in (1, 4):
            emitter.emit(event_type(number=index))
        else:
            with emitter.operation(operation_type, number=index):
                pass


def emit_mixture(emitter: Emitter) -> None:
    """Emit something of every kind: with and without results, batches, failures, starts, and without a class."""
    for step in _STEPS:
        step(emitter)


def _plain(emitter: Emitter) -> None:
    with bound(correlation_id="order-7", customer="c1"):
        emitter.emit(Stepped(number=1), severity="critical", tags=("a", "b"))
    emitter.emit(Paid(way="card", card=CARD))


def _results(emitter: Emitter) -> None:
    with emitter.operation(Worked, number=1) as outer, emitter.operation(Worked, number=2) as inner:
        inner.set(result=0.5)
        inner.event(Stepped(number=2))
        outer.link("1" * 32, "2" * 16)


def _failures(emitter: Emitter) -> None:
    with suppress(Mishap), emitter.operation(Worked, number=3):
        raise Mishap("it did not work")
    with suppress(asyncio.CancelledError), emitter.operation(Worked, number=4):
        raise asyncio.CancelledError
    emitter.operation(Worked, number=5).__enter__().end("abandoned")


def _starts(emitter: Emitter) -> None:
    with emitter.operation(Announced, what="work"):
        pass
    with suppress(Mishap), emitter.operation(Announced, what="work"):
        raise Mishap("it did not work")


def _batches(emitter: Emitter) -> None:
    with emitter.operation(Scored, candidates=("a", "b", "c")) as operation:
        operation.set(scores=[0.1, math.nan, 0.3])
    for candidates in (("a", "b"), ()):  # without scores, and without anything
        with emitter.operation(Scored, candidates=candidates):
            pass


def _without_a_class(emitter: Emitter) -> None:
    before = set_emitter(emitter)
    try:
        emit_event("conformance.ad_hoc", category="data", message="by name", data={"nested": {"list": [1, None]}})
        emit_error_event("it did not work", error=Mishap("because"))
        get_logger("conformance").info("a line", number=1)
        with span("conformance.span", number=1):
            pass
    finally:
        set_emitter(before)


_STEPS: tuple[Callable[[Emitter], None], ...] = (_plain, _results, _failures, _starts, _batches, _without_a_class)


def unencodable_values() -> Iterator[tuple[str, Any]]:
    """Yield values that a naive encoder stumbles over, with what they are."""
    circle: list[Any] = [1]
    circle.append(circle)
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep]
    yield "an object", object()
    yield "a class", Mishap
    yield "a function", emit_some
    yield "an exception", Mishap("why")
    yield "bytes that are no text", b"\xff\x00\xfe"
    yield "a lone surrogate", "\ud800"
    yield "control characters", "\x1b[31mred\x00\r\n"
    yield "not a number", math.nan
    yield "infinity", -math.inf
    yield "an integer of 200 bits", 1 << 200
    yield "a complex number", 1j
    yield "a decimal", Decimal("0.10")
    yield "a time", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    yield "a set", {1, "one"}
    yield "keys that are no text", {1: "a", (2, 3): "b", None: "c"}
    yield "a circle", circle
    yield "lists 60 deep", deep
    yield "a long text", "x" * 100_000
