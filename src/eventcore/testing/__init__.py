"""For tests of code that emits, and of handlers.

``capture()`` shows what a piece of code emits, on a clock that the test moves; with pytest, the fixture ``events`` is
the same. ``HandlerConformance`` checks a handler: subclass it once. Nothing here needs pytest to be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.testing.capture import Recorder, capture
from eventcore.testing.clock import FakeClock, deterministic_ids
from eventcore.testing.recorded import Found, Recorded

if TYPE_CHECKING:
    from eventcore.testing.conformance import HandlerConformance

__all__ = ["FakeClock", "Found", "HandlerConformance", "Recorded", "Recorder", "capture", "deterministic_ids"]


def __getattr__(name: str) -> Any:
    if name == "HandlerConformance":  # brings a vocabulary of its own, which a test of an application does not need
        from eventcore.testing.conformance import HandlerConformance

        return HandlerConformance
    raise AttributeError(f"module 'eventcore.testing' has no attribute {name!r}")
