"""A buffer around a piece of code, everything put back afterwards; what the pytest fixture ``events`` is made of."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from eventcore.emitter import Emitter, get_emitter, set_emitter, unconfigured
from eventcore_buffer.handler import BufferHandler

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["attached_buffer", "stream"]

SHOWN = 50
WIDTH = 300


@contextmanager
def attached_buffer(*, max_size: int = 10_000) -> Iterator[BufferHandler]:
    """Attach a buffer to the emitter in use; if none is configured, to a fresh one that is in use meanwhile.

    Afterwards the handlers and the on/off switch of that emitter are what they were and it is in use again, whatever
    the code inside did: an emitter that it configured and left running is shut down. One that it shut down cannot come
    back; then nothing is configured.
    """
    before = get_emitter()
    buffer = BufferHandler(max_size=max_size)
    if before is unconfigured:
        fresh = Emitter()
        fresh.add_handler(buffer)
        set_emitter(fresh)
        try:
            yield buffer
        finally:
            _shut_down_in_use(unconfigured)
            fresh.shutdown()
            set_emitter(None)
        return
    handlers = before.handlers
    was_enabled = before.is_enabled
    was_shut_down = False

    def note() -> None:
        nonlocal was_shut_down
        was_shut_down = True

    before.on_shutdown.append(note)
    before.add_handler(buffer)
    try:
        yield buffer
    finally:
        _shut_down_in_use(before)
        before.on_shutdown.remove(note)
        for handler in before.handlers:
            if handler not in handlers and not was_shut_down:
                before.remove_handler(handler)
        before.is_enabled = was_enabled
        set_emitter(None if was_shut_down else before)


def _shut_down_in_use(before: Emitter) -> None:
    """Shut down the emitter in use if it is not the one from before: whoever made it left it running."""
    current = get_emitter()
    if current not in (before, unconfigured):
        current.shutdown()


def stream(buffer: BufferHandler) -> str:
    """Return the newest envelopes as text, a line each, times counted from the first one shown."""
    envelopes = tuple(buffer)
    shown = envelopes[-SHOWN:]
    lines = []
    earlier = len(envelopes) - len(shown) + buffer.forgotten
    if earlier:
        lines.append(f"({earlier} earlier ones are not shown)")
    for envelope in shown:
        facts = [f"{key}={value!r}" for key, value in envelope.payload.items()]
        if envelope.span is not None:
            facts.append(f"-> {envelope.outcome} in {envelope.span.duration_ns / 1e6:.3f} ms")
        line = (
            f"{(envelope.time_ns - shown[0].time_ns) / 1e9:+10.6f} s  {envelope.severity.name:<8} {envelope.name}"
            f"  {' '.join(facts)}"
        )
        lines.append(line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…")
    return "\n".join(lines) or "(no events)"
