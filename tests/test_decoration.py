import asyncio
import inspect

import pytest

import eventcore as ec
from eventcore.context import ROOT, current_scope
from tests.support.handlers import Collect


class Charge(ec.Operation, name="shop.charge", category="integration"):
    provider: str = "stripe"
    attempts: int = ec.unset


class Boom(Exception):
    pass


@pytest.fixture
def handler(emitter):
    """Return an inline handler that keeps everything."""
    return emitter.add_handler(Collect(delivery="inline"))


def charges(handler):
    """Return the charges that a handler got, as (outcome, payload)."""
    return [(e.outcome, dict(e.payload)) for e in handler.got if e.name == "shop.charge"]


def test_a_function_is_decorated(emitter, handler):
    """As a decorator, each call of a function is an operation of its own."""

    @emitter.operation(Charge, provider="adyen")
    def charge(amount, *, fail=False):
        """Charge."""
        ec.current_operation().set(attempts=amount)
        if fail:
            raise Boom
        return amount * 2

    assert charge(1) == 2
    assert charge(2) == 4
    with pytest.raises(Boom):
        charge(3, fail=True)
    outcomes = [("success", 1), ("success", 2), ("failure", 3)]
    assert [(e.outcome, e.event.attempts) for e in handler.got] == outcomes
    assert len({e.span_id for e in handler.got}) == 3
    assert (charge.__name__, charge.__doc__) == ("charge", "Charge.")


def test_a_recursive_function_nests(emitter, handler):
    """Calls of a decorated function inside itself are children."""

    @emitter.operation(Charge)
    def recurse(n):
        if n:
            recurse(n - 1)

    recurse(2)
    spans = [e.span for e in handler.got]
    assert [s.parent_span_id for s in spans] == [spans[1].span_id, spans[2].span_id, 0]


def test_a_coroutine_function_is_decorated(emitter, handler):
    """As a decorator on a coroutine function, the operation lasts until the coroutine has returned."""

    @emitter.operation(Charge)
    async def charge(n):
        await asyncio.sleep(0)
        ec.current_operation().set(attempts=n)
        return n

    async def main():
        return await asyncio.gather(*(charge(n) for n in range(5)))

    assert inspect.iscoroutinefunction(charge)
    assert asyncio.run(main()) == list(range(5))
    assert sorted(e.event.attempts for e in handler.got) == list(range(5))


def test_a_generator_function_is_decorated(emitter, handler):
    """As a decorator on a generator, the operation lasts from its first item to its last; its result is handed on."""

    @emitter.operation(Charge)
    def items(n):
        for number in range(n):
            ec.current_operation().set(attempts=number)
            yield number
        return "done"

    def consume():
        result = yield from items(3)
        assert result == "done"

    assert list(consume()) == [0, 1, 2]
    assert charges(handler) == [("success", {"provider": "stripe", "attempts": 2})]


def test_a_generator_does_not_leak_its_scope(emitter, handler):
    """Between the items of a generator its consumer is not inside the operation, and inside the body it is."""

    @emitter.operation(Charge)
    def items():
        for _ in range(2):
            inside.append(ec.current_operation())
            yield
            inside.append(ec.current_operation())

    inside, outside = [], []
    for _ in items():
        outside.append(ec.current_operation())
        with emitter.operation(Charge) as mine:
            assert mine.parent_span_id == 0
    assert outside == [None, None]
    assert len(set(map(id, inside))) == 1
    assert inside[0] is not None


def test_interleaved_generators_keep_their_operations(emitter, handler):
    """Two generators that take turns each stay in their own operation."""

    @emitter.operation(Charge)
    def items(n):
        for _ in range(3):
            yield ec.current_operation(), n
            ec.current_operation().set(attempts=n)

    for (one, _), (two, _) in zip(items(1), items(2), strict=True):
        assert one is not two
    assert sorted(e.event.attempts for e in handler.got) == [1, 2]
    assert current_scope() is ROOT


def test_a_generator_takes_what_is_sent_and_thrown(emitter, handler):
    """What the consumer sends or throws into a decorated generator reaches its body."""

    @emitter.operation(Charge)
    def echo():
        sent = yield "first"
        try:
            yield sent
        except Boom:
            yield "caught"

    generator = echo()
    assert next(generator) == "first"
    assert generator.send("hello") == "hello"
    assert generator.throw(Boom()) == "caught"
    assert list(generator) == []
    assert [e.outcome for e in handler.got] == ["success"]


def test_a_generator_that_is_closed_early_is_cancelled(emitter, handler):
    """A generator that its consumer leaves early ends as ``cancelled``, after its own clean-up ran inside."""

    @emitter.operation(Charge)
    def items():
        try:
            yield 1
            yield 2
        finally:
            ec.current_operation().set(attempts=9)

    generator = items()
    next(generator)
    generator.close()
    assert charges(handler) == [("cancelled", {"provider": "stripe", "attempts": 9})]


def test_a_generator_that_raises_fails(emitter, handler):
    """An exception in a generator's body marks failure and reaches the consumer."""

    @emitter.operation(Charge)
    def items():
        yield 1
        raise Boom

    with pytest.raises(Boom):
        list(items())
    assert [e.outcome for e in handler.got] == ["failure"]


def test_an_async_generator_is_decorated(emitter, handler):
    """As a decorator on an async generator, the operation lasts over all items and does not leak to the consumer."""

    @emitter.operation(Charge)
    async def items(n):
        for number in range(n):
            await asyncio.sleep(0)
            ec.current_operation().set(attempts=number)
            yield number

    async def main():
        got = []
        async for item in items(3):
            assert ec.current_operation() is None
            got.append(item)
        return got

    assert asyncio.run(main()) == [0, 1, 2]
    assert charges(handler) == [("success", {"provider": "stripe", "attempts": 2})]


def test_an_async_generator_may_be_closed_by_another_task(emitter, handler):
    """An async generator that another task closes ends as ``cancelled`` and disturbs neither task's scope."""

    @emitter.operation(Charge)
    async def items():
        try:
            while True:
                yield 1
        finally:
            ec.current_operation().set(attempts=5)

    async def main():
        generator = items()
        await anext(generator)

        async def close():
            with ec.bound(task="other"):
                await generator.aclose()
                assert current_scope().bound == {"task": "other"}

        await asyncio.create_task(close())
        assert current_scope() is ROOT

    asyncio.run(main())
    assert charges(handler) == [("cancelled", {"provider": "stripe", "attempts": 5})]


def test_an_async_generator_takes_what_is_sent_and_thrown(emitter, handler):
    """What the consumer sends or throws into a decorated async generator reaches its body."""

    @emitter.operation(Charge)
    async def echo():
        sent = yield "first"
        try:
            yield sent
        except Boom:
            yield "caught"

    async def main():
        generator = echo()
        assert await anext(generator) == "first"
        assert await generator.asend("hello") == "hello"
        assert await generator.athrow(Boom()) == "caught"
        assert [item async for item in generator] == []

    asyncio.run(main())
    assert [e.outcome for e in handler.got] == ["success"]


def test_a_decorated_function_stays_what_it_is(emitter, handler):
    """A decorated generator is still a generator function, so that a second decorator, or a framework, treats it so."""

    @emitter.operation(Charge, provider="adyen")
    @emitter.operation(Charge, provider="stripe")
    def items():
        yield from range(2)

    @emitter.operation(Charge)
    async def async_items():
        yield 1

    assert inspect.isgeneratorfunction(items)
    assert inspect.isasyncgenfunction(async_items)
    assert list(items()) == [0, 1]
    inner, outer = handler.got
    assert inner.span.parent_span_id == outer.span.span_id
