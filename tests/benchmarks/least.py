"""What an operation of W cannot do without, and nothing else: how much of the paced row there is to win.

Written out in as few functions as it takes: checked names, two ids, three clocks, the context entered and left, the
registry of open operations, counts per thread, one envelope with what its worker needs, three queues with a limit.
There are no parents, errors, links or bound fields, no sampling, nothing counts an interruption, and no worker runs.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict, deque
from contextvars import ContextVar, Token
from typing import Self

from tests.benchmarks.work import QUEUE, Charge

NAMES = Charge.__event__.names
_current: ContextVar[_Operation | None] = ContextVar("least_current", default=None)


class _Envelope:
    __slots__ = ("operation", "sequence", "time_ns")

    def __init__(self, operation: _Operation, sequence: int, time_ns: int) -> None:
        self.operation = operation
        self.sequence = sequence
        self.time_ns = time_ns


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.counts: defaultdict[str, int] = defaultdict(int)


class _Operation:
    __slots__ = ("began_ns", "duration_ns", "fields", "least", "span_id", "start_ns", "token", "trace_id")

    def __init__(self, least: Least, fields: dict[str, object]) -> None:
        if not NAMES.issuperset(fields):
            raise TypeError(f"one of {list(fields)} is no field")
        self.least = least
        self.fields = fields

    def __enter__(self) -> Self:
        _current.get()
        least = self.least
        self.trace_id = least.random_bits(128)
        self.span_id = least.random_bits(64)
        self.start_ns = time.time_ns()
        least.per_thread.counts["started"] += 1
        least.open[self.span_id] = self
        self.token: Token[_Operation | None] = _current.set(self)
        self.began_ns = time.perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.duration_ns = time.perf_counter_ns() - self.began_ns
        _current.reset(self.token)
        least = self.least
        least.open.pop(self.span_id, None)
        counts = least.per_thread.counts
        counts["succeeded"] += 1
        counts["emitted"] += 1
        envelope = _Envelope(self, counts["emitted"], self.start_ns + self.duration_ns)
        for queue in least.queues:
            if len(queue) < QUEUE:
                queue.append(envelope)


class Least:
    """A side of the paced row; it leaves nothing."""

    def __init__(self) -> None:
        self.random_bits = random.Random().getrandbits
        self.per_thread = _PerThread()
        self.open: dict[int, _Operation] = {}
        self.queues: tuple[deque[_Envelope], ...] = (deque(), deque(), deque())

    def operation(self, **fields: object) -> _Operation:
        return _Operation(self, fields)

    def work(self) -> None:
        with self.operation(provider="stripe", amount=12.5):
            pass

    def flush(self) -> None:
        """Empty the queues; fail loudly unless everything is in all of them."""
        done = self.per_thread.counts
        assert done["started"] == done["succeeded"] == done["emitted"]
        assert not self.open
        assert {len(queue) for queue in self.queues} == {done.pop("emitted")}
        done.clear()
        for queue in self.queues:
            queue.clear()
