"""Calling what may hang."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call_bounded"]


def call_bounded(call: Callable[[], object], timeout_s: float) -> str:
    """Run a handler's ``call``, waiting at most ``timeout_s`` for one that hangs; return what went wrong."""
    problems: list[str] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - it is our thread: nobody else could use it; returned as text
            problems.append(repr(error))

    runner = threading.Thread(target=run, name="eventcore-close", daemon=True)
    try:
        runner.start()
    except RuntimeError:  # the interpreter is shutting down: no new threads
        run()
    else:
        runner.join(timeout_s)
        if runner.is_alive():
            return f"did not return within {timeout_s:.2f} s"
    return problems[0] if problems else ""
