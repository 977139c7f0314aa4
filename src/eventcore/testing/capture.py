"""See what a piece of code emits, everything put back afterwards; what the pytest fixture ``events`` is made of."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

from eventcore.emitter import Emitter
from eventcore.handler import Handler
from eventcore.in_use import get_emitter, set_emitter, unconfigured
from eventcore.testing.clock import FakeClock, deterministic_ids
from eventcore.testing.recorded import Recorded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from eventcore.envelope import Envelope

__all__ = ["Recorder", "capture"]

R = TypeVar("R", bound=Recorded)

MAX_SIZE = 10_000


class Recorder(Recorded, Handler):
    """Keeps the newest envelopes, 10,000 of them: events, and operations when they have ended."""

    delivery: ClassVar[Literal["inline", "queued"]] = "inline"
    kind: ClassVar[str] = "recorder"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._envelopes: deque[Envelope] = deque(maxlen=MAX_SIZE)
        # Counted per thread: ``handle`` may run in a finalizer or a signal handler, so it takes no lock.
        self._received: dict[int, int] = {}

    def handle(self, envelope: Envelope) -> None:
        """Keep one envelope."""
        envelope.event  # noqa: B018 - validates an operation now, not when somebody looks
        self._envelopes.append(envelope)
        thread = get_ident()
        self._received[thread] = self._received.get(thread, 0) + 1

    @property
    def forgotten(self) -> int:
        """Envelopes that had to make room for newer ones, or were cleared."""
        return max(0, sum(tuple(self._received.values())) - len(self._envelopes))

    def clear(self) -> None:
        """Forget what was emitted so far."""
        self._received.clear()
        self._envelopes.clear()

    def __len__(self) -> int:
        return len(self._envelopes)

    def __iter__(self) -> Iterator[Envelope]:
        return iter(tuple(self._envelopes))

    def __repr__(self) -> str:
        return f"<Recorder {self.name or self.kind}: {len(self)} events>"


@overload
def capture(
    emitter: Emitter | None = None, *, strict: bool = True, real_clock: bool = False, seed: int = 0
) -> AbstractContextManager[Recorder]: ...
@overload
def capture(
    emitter: Emitter | None = None, *, into: R, strict: bool = True, real_clock: bool = False, seed: int = 0
) -> AbstractContextManager[R]: ...
@contextmanager
def capture(
    emitter: Emitter | None = None,
    *,
    into: Any = None,
    strict: bool = True,
    real_clock: bool = False,
    seed: int = 0,
) -> Iterator[Any]:
    """Record what is emitted inside the ``with`` block, and put everything back afterwards.

    ``emitter`` is by default the one in use; where none is configured, a fresh one is in use meanwhile. Inside, ids
    are deterministic (``seed``), time stands still until ``events.clock.advance(seconds)`` unless ``real_clock``, and
    results that do not validate raise where ``strict``. ``into`` is another handler to record into, of a class derived
    from ``Recorded``.

    Afterwards clock, ids, strictness, handlers and the on/off switch of the emitter are what they were and the same
    emitter is in use as before, whatever the code inside did: an emitter that it configured and left running is shut
    down. One that it shut down cannot come back; then nothing is configured.
    """
    before = get_emitter()
    recorder = Recorder() if into is None else into
    target = before if emitter is None else emitter
    if target is unconfigured:
        with _surroundings(Emitter(), recorder, strict=strict, real_clock=real_clock, seed=seed) as fresh:
            set_emitter(fresh)
            try:
                yield recorder
            finally:
                _shut_down_in_use(unconfigured)
                fresh.shutdown()
                set_emitter(None)
        return
    was_shut_down = False

    def note() -> None:
        nonlocal was_shut_down
        was_shut_down = True

    target.on_shutdown.append(note)
    handlers, was_enabled = target.handlers, target.is_enabled
    try:
        with _surroundings(target, recorder, strict=strict, real_clock=real_clock, seed=seed):
            yield recorder
    finally:
        _shut_down_in_use(before, target)
        target.on_shutdown.remove(note)
        for handler in target.handlers:
            if handler not in handlers and not was_shut_down:
                target.remove_handler(handler)
        target.is_enabled = was_enabled
        set_emitter(None if was_shut_down and before is target else before)


@contextmanager
def _surroundings(emitter: Emitter, recorder: Any, *, strict: bool, real_clock: bool, seed: int) -> Iterator[Emitter]:
    """Attach the recorder; give the emitter the clock, ids and strictness of a test, and its own back."""
    own = {name: getattr(emitter, name) for name in _REPLACED}
    recorder.fake_clock = None
    if not real_clock:
        # The monotonic clock goes on from where it is, so that for what has begun (operations, breakers) time does not
        # go back.
        clock = recorder.fake_clock = FakeClock(monotonic_ns=emitter.monotonic_ns())
        emitter.clock, emitter.time_ns, emitter.monotonic_ns = clock, clock.time_ns, clock.monotonic_ns
    emitter.ids = deterministic_ids(seed)
    emitter.strict = strict
    try:
        emitter.add_handler(recorder)
        yield emitter
    finally:
        for name, value in own.items():
            setattr(emitter, name, value)


_REPLACED = ("clock", "time_ns", "monotonic_ns", "ids", "strict")


def _shut_down_in_use(*known: Emitter) -> None:
    """Shut down the emitter in use if it is not one from before: whoever made it left it running."""
    current = get_emitter()
    if current is not unconfigured and current not in known:
        current.shutdown()
