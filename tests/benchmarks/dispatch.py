"""Dispatch alone: events nobody wants, a few inline handlers, many types and handlers."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Literal

import blinker

import eventcore as ec
from tests.benchmarks.paired import Result, compare


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
    def emitter_with(types: int, handlers: int) -> tuple[ec.Emitter, list[ec.Event]]:
        emitter = with_three_handlers()
        for number in range(handlers - 3):
            emitter.add_handler(Noop(events="unmatched.*"), name=f"other{number}")
        made = [_make(number) for number in range(types)]
        events = [event_type() for event_type in made]
        for event in events:
            emitter.emit(event)
        return emitter, events

    many, many_events = emitter_with(1000, 20)
    few, few_events = emitter_with(10, 3)
    cycle = [many_events[index * 97 % 1000] for index in range(100)]
    short = [few_events[index % 10] for index in range(100)]

    def ours() -> None:
        emit = many.emit
        for event in cycle:
            emit(event)

    def peer() -> None:
        emit = few.emit
        for event in short:
            emit(event)

    return compare(
        "1,000 types, 20 handlers, 3 match (per 100 emits)", ours, "10 types, 3 handlers", peer, calls=200, reach=1.05
    )


def _make(number: int) -> type[ec.Event]:
    name = f"bench.kind{number}"
    return type(ec.Event)(f"Kind{number}", (ec.Event,), {"__module__": __name__}, name=name, category=ec.Category.DATA)


CASES = [unwanted, against_blinker, against_bubus, many_types]
