"""Below the table: throughput by threads, and the caller's time while a handler is slow or down."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from pathlib import Path

import eventcore as ec
from tests.benchmarks.receiver import Receiver
from tests.benchmarks.signals import paced
from tests.benchmarks.work import Charge, Ours

CALLS, ROUNDS, PACED_CALLS = 20_000, 5, 2_000


class Slow(ec.Handler):
    """Takes 50 ms per batch."""

    kind = "slow"

    def handle_batch(self, envelopes) -> None:
        time.sleep(0.05)


class Down(ec.Handler):
    """Fails always, so that it is in quarantine most of the time."""

    kind = "down"

    def handle_batch(self, envelopes) -> None:
        raise ConnectionError("the receiver is down")


def throughput() -> list[str]:
    lines = ["W per second by emitting threads (all together; then until everything was delivered):"]
    with tempfile.TemporaryDirectory() as folder:
        receiver = Receiver()
        ours = Ours(receiver, Path(folder))
        try:
            for threads in (1, 2, 4, 8):
                emitting, whole = [], []
                for _ in range(ROUNDS):
                    gc.collect()
                    begin = time.perf_counter()
                    running = [threading.Thread(target=_emit, args=(ours, CALLS // threads)) for _ in range(threads)]
                    for thread in running:
                        thread.start()
                    for thread in running:
                        thread.join()
                    emitting.append(CALLS / (time.perf_counter() - begin))
                    ours.flush()
                    whole.append(CALLS / (time.perf_counter() - begin))
                    receiver.take()
                emitted, delivered = sorted(emitting)[ROUNDS // 2], sorted(whole)[ROUNDS // 2]
                lines.append(f"  {threads} thread{'s' if threads > 1 else ' '}  {emitted:>8,.0f}  {delivered:>8,.0f}")
        finally:
            ours.close()
            receiver.close()
    return lines


def _emit(ours: Ours, calls: int) -> None:
    work = ours.work
    for _ in range(calls):
        work()


class _Alone:
    """W's caller with one handler of our own, so that only its state differs."""

    def __init__(self, handler: ec.Handler | None) -> None:
        self.emitter = ec.Emitter(shutdown_timeout_s=1.0)
        if handler is not None:
            self.emitter.add_handler(handler)

    def work(self) -> None:
        with self.emitter.operation(Charge, provider="stripe", amount=12.5):
            pass

    def flush(self) -> None:
        self.emitter.flush(10.0)


def slow_or_down() -> list[str]:
    lines = ["caller at 1,000/s while one queued handler is …     p50      p99    p99.9  longest (µs)"]
    for name, handler in (
        ("well", ec.Handler),
        ("slow (50 ms a batch)", Slow),
        ("slow, its queue full (100)", lambda: Slow(queue_size=100, batch_size=1)),
        ("down", Down),
    ):
        made = _Well() if handler is ec.Handler else handler()
        side = _Alone(made)
        side.work()
        took = sorted(paced(side, PACED_CALLS))
        ledger = side.emitter.ledger()
        side.emitter.shutdown(1.0)
        figures = [took[len(took) * share // 1000] / 1000 for share in (500, 990, 999)] + [took[-1] / 1000]
        row = next(row for row in ledger.rows if (row.handler, row.event) == (made.name, "bench.charge"))
        assert row.accepted == PACED_CALLS + 1, ledger
        fate = ", ".join(f"{what} {number}" for what, number in row.dropped.items())
        fate = ", ".join(filter(None, (f"delivered {row.delivered}", f"failed {row.failed}" * bool(row.failed), fate)))
        lines.append(f"  {name:<46}" + "".join(f"{figure:>9.1f}" for figure in figures) + f"  {fate}")
    return lines


class _Well(ec.Handler):
    kind = "well"

    def handle_batch(self, envelopes) -> None:
        """Do nothing."""


CASES = []
BELOW = [throughput, slow_or_down]
