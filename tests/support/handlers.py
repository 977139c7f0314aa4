"""Small handlers for the tests of the core: they keep what they get, and do what a test asks of them."""

from __future__ import annotations

import threading
import time

import eventcore as ec


class Collect(ec.Handler):
    """Keeps every envelope; ``act`` is called with it before, and may raise, wait or emit."""

    kind = "collect"

    def __init__(self, config=None, *, act=None, **options):
        super().__init__(config, **options)
        self.act = act
        self.got = []
        self.raised = 0
        self.flushed = 0
        self.closed = 0

    def handle(self, envelope):
        if self.act is not None:
            try:
                self.act(envelope)
            except BaseException:
                self.raised += 1
                raise
        self.got.append(envelope)

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed += 1

    @property
    def names(self):
        """Names of the events it got, in order."""
        return [envelope.name for envelope in self.got]

    @property
    def events(self):
        """The events it got, in order."""
        return [envelope.event for envelope in self.got]


class CollectBatches(Collect):
    """Keeps whole batches; ``act`` is called with each."""

    kind = "collect_batches"

    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        self.batches = []

    def handle_batch(self, envelopes):
        self.batches.append(list(envelopes))
        if self.act is not None:
            self.act(envelopes)
        self.got.extend(envelopes)


class CollectStarts(Collect):
    """Asks for the starts of operations, too."""

    def start_sink_for(self, event_type, severity):
        return self.handle


class Held(Collect):
    """Holds every envelope until ``release`` is set; ``entered`` says that it has begun with one."""

    kind = "held"

    def __init__(self, config=None, **options):
        super().__init__(config, act=self._hold, **options)
        self.entered = threading.Event()
        self.release = threading.Event()

    def _hold(self, envelope):
        self.entered.set()
        assert self.release.wait(30), "nobody released the handler"


class Clock:
    """A clock that a test moves."""

    def __init__(self, time_ns=1_700_000_000_000_000_000):
        self.wall = time_ns
        self.monotonic = 1_000_000_000

    def time_ns(self):
        return self.wall

    def monotonic_ns(self):
        return self.monotonic

    def advance(self, seconds):
        """Let both clocks go on."""
        self.wall += int(seconds * 1e9)
        self.monotonic += int(seconds * 1e9)


def eventually(claim, timeout_s=5.0):
    """Wait until ``claim()`` is true and return it; its last value when that never happens."""
    deadline = time.monotonic() + timeout_s
    while not (result := claim()) and time.monotonic() < deadline:
        time.sleep(0.002)
    return result


def workers():
    """Return the threads that eventcore runs at this moment."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("eventcore-")]
