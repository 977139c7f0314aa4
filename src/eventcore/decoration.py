"""Running each call of a function inside an operation, whatever kind of function it is.

A generator's body runs inside the operation's scope, and its consumer outside: the scope is left at each ``yield`` and
entered again when the body goes on. So nothing leaks between them, and a generator may be closed by another task.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from eventcore.operation import LiveOperation

__all__ = ["decorated"]

F = TypeVar("F", bound=Callable[..., Any])


def decorated(function: F, fresh: Callable[[], LiveOperation[Any]]) -> F:  # noqa: C901 - one branch per kind of function
    """Return ``function`` with each call of it run inside ``fresh()``."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            body = function(*args, **kwargs)
            with fresh() as operation:
                step: Callable[[], Any] = body.__anext__
                while True:
                    try:
                        item = await step()
                    except StopAsyncIteration:
                        return
                    operation.suspend()
                    try:
                        sent = yield item
                    except GeneratorExit:
                        operation.resume()
                        await body.aclose()
                        raise
                    except BaseException as error:  # noqa: BLE001 - thrown in by the consumer: the body must see it
                        step = functools.partial(body.athrow, error)
                    else:
                        step = functools.partial(body.asend, sent)
                    operation.resume()

        return cast("F", async_generator)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with fresh():
                return await function(*args, **kwargs)

        return cast("F", coroutine)
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from _run_generator(fresh(), function(*args, **kwargs)))

        return cast("F", generator)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with fresh():
            return function(*args, **kwargs)

    return cast("F", plain)


def _run_generator(operation: LiveOperation[Any], body: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    with operation:
        step: Callable[[], Any] = functools.partial(next, body)
        while True:
            try:
                item = step()
            except StopIteration as stop:
                return stop.value
            operation.suspend()
            try:
                sent = yield item
            except GeneratorExit:
                operation.resume()
                body.close()
                raise
            except BaseException as error:  # noqa: BLE001 - thrown in by the consumer: the body must see it
                step = functools.partial(body.throw, error)
            else:
                step = functools.partial(body.send, sent)
            operation.resume()
