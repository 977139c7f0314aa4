"""Work in a forked child, for the tests of the kit."""

from __future__ import annotations

import os
import select
import signal
import traceback
import warnings
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_forked_child"]


def in_forked_child(work: Callable[[], str], patience_s: float) -> str:
    """Run ``work`` in a forked child and return what it returns, the traceback of what it raises, or that it hangs."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads; that is the point
        child = os.fork()
    if child == 0:
        _answer(writing, work)
    os.close(writing)
    try:
        if not select.select([reading], [], [], patience_s)[0]:
            os.kill(child, signal.SIGKILL)
            return "it did not end"
        with open(reading, "rb", closefd=False) as pipe:
            return pipe.read().decode()
    finally:
        os.close(reading)
        os.waitpid(child, 0)


def _answer(writing: int, work: Callable[[], str]) -> NoReturn:
    try:
        try:
            text = work()
        except BaseException:  # noqa: BLE001 - whatever it is, it is told, and pytest must not run on in the child
            text = traceback.format_exc()
        os.write(writing, text.encode("utf-8", "replace"))
    finally:
        os._exit(0)
