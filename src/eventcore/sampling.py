"""Which envelopes a handler takes of those that its filter lets through: a share, so many per second, or both.

Three steps, in this order. What is as severe as ``keep_from`` is taken; as severity is known when a route is compiled,
such a route has no sampling in it at all, and neither has any route of a handler without sampling options. Then the
share is drawn: at random, or by trace, so that all that belongs to one trace is taken or left together. What is left
over must find a token in the handler's bucket, which holds as many as ``max_per_second``; so what the share has left
out costs no token. Whatever is left out is counted as ``sampled``.

The share needs no lock. The bucket has one, held for a comparison and an addition, and re-entrant: an emit may come
from a signal handler or a finalizer that interrupts this very thread in between, and would wait for itself. What such
an interruption can do is let one envelope too many through.
"""

from __future__ import annotations

import os
import random
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.envelope import Envelope
    from eventcore.events import Severity
    from eventcore.handler import HandlerConfig, Sink
    from eventcore.ids import Ids
    from eventcore.ledger import Ledger

    Takes = Callable[[Envelope], bool]

__all__ = ["ALL_TRACES", "LOW_BITS", "Sampler", "TokenBucket"]

ALL_TRACES = 1 << 64
"""The bound below which the low bits of every trace id are: all of them are recorded."""
LOW_BITS = ALL_TRACES - 1
"""The bits of a trace id that decide whether it is recorded."""


class Sampler:
    """The sampling of one handler; all its routes share one token bucket, also after they were compiled anew."""

    __slots__ = ("_keep_from", "_takes")

    def __init__(self, config: HandlerConfig, ids: Ids, clock_ns: Callable[[], int]) -> None:
        self._keep_from = config.keep_from
        takes: Takes | None = None
        if config.sampling < 1:
            takes = _by_trace(config.sampling, ids) if config.sampling_by == "trace" else _at_random(config.sampling)
        if config.max_per_second is not None:
            takes = _limited(takes, TokenBucket(config.max_per_second, clock_ns))
        self._takes = takes

    def takes(self, severity: Severity) -> Takes | None:
        """Return what says whether an envelope of this severity is taken; None: every one is."""
        return None if self._keep_from is not None and severity >= self._keep_from else self._takes

    @staticmethod
    def wrap(sink: Sink, takes: Takes, name: str, ledger: Ledger, *, counts_delivery: bool) -> Sink:
        """Return ``sink`` for the envelopes that are taken; both kinds are counted for the handler called ``name``."""
        count = ledger.count

        def sampled(envelope: Envelope) -> None:
            try:
                is_taken = takes(envelope)
            except BaseException:
                count(name, envelope.name, envelope.phase, "accepted")  # and the caller counts that it failed
                raise
            if not is_taken:
                count(name, envelope.name, envelope.phase, "sampled")
                return
            count(name, envelope.name, envelope.phase, "accepted")
            sink(envelope)
            if counts_delivery:
                count(name, envelope.name, envelope.phase, "delivered")

        return sampled


class TokenBucket:
    """Lets at most ``per_second`` calls through in the long run, and at most a second's worth (at least one) at once.

    It is the generic cell rate algorithm (ITU-T I.371), which needs one number: when the bucket will be full again.
    """

    __slots__ = ("__weakref__", "_burst_ns", "_clock_ns", "_full_at", "_interval_ns", "_lock")

    def __init__(self, per_second: float, clock_ns: Callable[[], int]) -> None:
        self._interval_ns = max(1, int(1e9 / per_second))
        self._burst_ns = max(1_000_000_000, self._interval_ns)
        self._clock_ns = clock_ns
        self._full_at = clock_ns()
        self.renew()
        _BUCKETS.add(self)

    def renew(self) -> None:
        """Make the lock new in a forked child: another thread of the parent may have held it."""
        self._lock = threading.RLock()

    def take(self) -> bool:
        """Take a token; False when there is none."""
        with self._lock:
            now = self._clock_ns()
            full_at = max(self._full_at, now) + self._interval_ns
            if full_at - now > self._burst_ns:
                return False
            self._full_at = full_at
            return True


_BUCKETS: weakref.WeakSet[TokenBucket] = weakref.WeakSet()


def _after_fork() -> None:
    for bucket in list(_BUCKETS):
        bucket.renew()


os.register_at_fork(after_in_child=_after_fork)


def _at_random(share: float) -> Takes:
    """Draw each event; start and end of one operation share the draw, for which its random span id serves."""
    bound = int(share * ALL_TRACES)

    def takes(envelope: Envelope) -> bool:
        span = envelope.span
        return random.random() < share if span is None else span.span_id < bound  # noqa: S311 - a draw, no secret

    return takes


def _by_trace(share: float, ids: Ids) -> Takes:
    """Decide by the low 64 bits of the trace id, as OpenTelemetry's TraceIdRatioBased does, and as our spans do.

    So at one ratio the lines that are kept belong to the spans that are kept, in every process of a trace. Outside a
    trace the event's own id decides, by its bits that differ from event to event.
    """
    bound = int(share * ALL_TRACES)

    def takes(envelope: Envelope) -> bool:
        trace_id = envelope.scope.trace_id
        return ((trace_id & LOW_BITS) if trace_id else _mixed(ids.salt + envelope.sequence)) < bound

    return takes


def _limited(share: Takes | None, bucket: TokenBucket) -> Takes:
    take = bucket.take
    if share is None:
        return lambda _: take()
    return lambda envelope: share(envelope) and take()


def _mixed(number: int) -> int:
    """Spread a counter evenly over 64 bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    number &= LOW_BITS
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & LOW_BITS
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & LOW_BITS
    return number ^ number >> 31
