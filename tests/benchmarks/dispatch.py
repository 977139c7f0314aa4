"""Dispatch alone: events nobody wants, a few inline handlers, many types and handlers."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Annotated, Literal

import blinker

import eventcore as ec
from tests.benchmarks.paired import ROUNDS, Result, compare, per_call, result

LAYOUTS = 7


class Paid(ec.Event, name="bench.paid", category=ec.Category.USER):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]


class Noop(ec.Handler):
    delivery = "inline"

    def handle(self, envelope):
        """Do nothing."""


def with_three_handlers() -> ec.Emitter:
    emitter = ec.Emitter()
    for number in range(3):
        emitter.add_handler(Noop(), name=f"noop{number}")
    return emitter


def unwanted() -> Result:
    emitter = ec.Emitter()
    logger = logging.getLogger("bench")
    return compare(
        "an event nobody wants: enabled()",
        lambda: emitter.enabled(Paid),
        "logging isEnabledFor",
        lambda: logger.isEnabledFor(logging.DEBUG),
        calls=100_000,
        reach=1.5,
    )


def against_blinker() -> Result:
    emitter = with_three_handlers()
    event = Paid(currency="eur", amount=1.0)
    signal = blinker.Signal()
    receivers = [lambda sender, **kwargs: None for _ in range(3)]
    for receiver in receivers:
        signal.connect(receiver)
    return compare(
        "typed event to 3 inline handlers, less building it",
        lambda: emitter.emit(event),
        "blinker send, 3 receivers",
        lambda: signal.send(None, event=event),
        calls=20_000,
        reach=0.5,
    )


def against_bubus() -> Result:
    from bubus import BaseEvent, EventBus

    class PaidEvent(BaseEvent):
        currency: str
        amount: float

    emitter = with_three_handlers()
    calls = 200

    async def dispatch_all() -> None:
        bus = EventBus(name="bench", max_history_size=10)
        for number in range(3):

            async def handler(event: PaidEvent) -> None:
                """Do nothing."""

            handler.__name__ = f"handler{number}"
            bus.on(PaidEvent, handler)
        for _ in range(calls):
            await bus.dispatch(PaidEvent(currency="eur", amount=1.0))
        await bus.stop()

    def ours() -> None:
        for _ in range(calls):
            emitter.emit(Paid(currency="eur", amount=1.0))

    return compare(
        "the same, all in (per 200 events)",
        ours,
        "bubus dispatch, 3 handlers",
        lambda: asyncio.run(dispatch_all()),
        calls=1,
        reach=0.05,
    )


def many_types() -> Result:
    """Measure several emitters of each kind: where things happen to lie in memory makes one some 2 % faster."""
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(LAYOUTS):
        gc.collect()
        many, few = _emitting(types=1000, handlers=20), _emitting(types=10, handlers=3)
        for function in (many, few):
            per_call(function, 100)
        for _ in range(ROUNDS):
            mine.append(per_call(many, 50))
            theirs.append(per_call(few, 50))
    measure, peer = "1,000 types, 20 handlers, 3 match (per 100 emits)", "10 types, 3 handlers"
    return result(measure, mine, peer, theirs, reach=1.05)


def _emitting(types: int, handlers: int) -> Callable[[], None]:
    """Return what emits 100 events, spread over the types, to the three handlers of a new emitter that want them."""
    emitter = with_three_handlers()
    for number in range(handlers - 3):
        emitter.add_handler(Noop(events="unmatched.*"), name=f"other{number}")
    made = [_make(number) for number in range(types)]
    events = [event_type() for event_type in made]
    for event in events:
        emitter.emit(event)
    cycle = [events[index * 97 % types] for index in range(100)]

    def emit_all() -> None:
        emit = emitter.emit
        for event in cycle:
            emit(event)

    return emit_all


def _make(number: int) -> type[ec.Event]:
    name = f"bench.kind{number}"
    return type(ec.Event)(f"Kind{number}", (ec.Event,), {"__module__": __name__}, name=name, category=ec.Category.DATA)


CASES = [unwanted, against_blinker, against_bubus, many_types]
