"""The work W against by hand: the caller in a flood and paced, and the CPU that the whole process spends on it."""

from __future__ import annotations

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram

import eventcore as ec
from eventcore.instruments import DEFAULT_BUCKETS
from tests.benchmarks.least import Least
from tests.benchmarks.paired import Result, result
from tests.benchmarks.receiver import Receiver
from tests.benchmarks.work import QUEUE, ByHand, Ours, check_equal

FLOOD_ROUNDS, FLOOD_CALLS = 15, 2_000
PACED_ROUNDS, PACED_SLICES, PACED_CALLS, PACED_PER_S = 5, 3, 1_000, 1_000
COLD_ROUNDS, COLD_CALLS, COLD_BYTES = 9, 50, 64 * 1024 * 1024


@contextlib.contextmanager
def both_sides(interop: str = "off") -> Iterator[tuple[Ours, ByHand]]:
    """Yield both sides after it was proved that they leave the same, warmed up."""
    with tempfile.TemporaryDirectory() as folder:
        receiver = Receiver()
        ours, by_hand = Ours(receiver, Path(folder), interop), ByHand(receiver, Path(folder))
        try:
            check_equal(ours, by_hand, receiver)
            for side in (ours, by_hand):
                flood(side, FLOOD_CALLS)
                receiver.take()
            yield ours, by_hand
        finally:
            ours.close()
            by_hand.close()
            receiver.close()


def flood(side: Ours | ByHand | Least, calls: int) -> tuple[list[int], float]:
    """Return the caller's nanoseconds of each call, and the CPU microseconds per call, flush and threads included."""
    gc.collect()
    clock, work, took = time.perf_counter_ns, side.work, []
    cpu = time.process_time_ns()
    for _ in range(calls):
        start = clock()
        work()
        took.append(clock() - start)
    side.flush()
    return took, (time.process_time_ns() - cpu) / calls / 1000


def paced(side: Ours | ByHand | Least, calls: int) -> list[int]:
    """Return the caller's nanoseconds of each call at ``PACED_PER_S``."""
    gc.collect()
    clock, work, took = time.perf_counter_ns, side.work, []
    begin = clock()
    for number in range(calls):
        wait = begin + number * 1_000_000_000 // PACED_PER_S - clock()
        if wait > 0:
            time.sleep(wait / 1e9)
        start = clock()
        work()
        took.append(clock() - start)
    side.flush()
    return took


def cold(side: Ours | ByHand | Least, calls: int) -> list[int]:
    """Return the caller's nanoseconds of each call, each after so much was read that no cache holds anything of it."""
    gc.collect()
    clock, work, took = time.perf_counter_ns, side.work, []
    read = np.ones(COLD_BYTES // 8).sum
    for _ in range(calls):
        read()
        start = clock()
        work()
        took.append(clock() - start)
    side.flush()
    return took


def w_flood() -> list[Result]:
    rows = []
    for interop, reach in (("off", 1 / 10), ("on", 1 / 6)):
        p50s, cpus = ([], []), ([], [])
        with both_sides(interop) as sides:
            for _ in range(FLOOD_ROUNDS):
                for place, side in enumerate(sides):
                    took, cpu = flood(side, FLOOD_CALLS)
                    p50s[place].append(statistics.median(took) / 1000)
                    cpus[place].append(cpu)
        rows += [
            result(f"W, caller p50, flood, interop {interop}", p50s[0], "by hand", p50s[1], reach=reach),
            result(f"W, CPU of the process, interop {interop}", cpus[0], "by hand", cpus[1], reach=1 / 4),
        ]
    return rows


def w_cold() -> list[Result]:
    p50s = ([], [], [])
    with both_sides() as (ours, by_hand):
        least = Least()
        flood(least, FLOOD_CALLS)
        for _ in range(COLD_ROUNDS):
            for place, side in enumerate((ours, by_hand, least)):
                p50s[place].append(statistics.median(cold(side, COLD_CALLS)) / 1000)
    return [
        result("W, caller p50, with empty caches", p50s[0], "by hand", p50s[1], reach=None, note="shown"),
        result("what it cannot do without, with empty caches", p50s[2], "by hand", p50s[1], reach=None, note="shown"),
    ]


def w_paced() -> list[Result]:
    p50s, p999s, longest = ([], [], []), ([], [], []), ([], [], [])
    with both_sides() as (ours, by_hand):
        least = Least()
        flood(least, FLOOD_CALLS)
        for _ in range(PACED_ROUNDS):
            rounds: tuple[list[int], ...] = ([], [], [])
            for _ in range(PACED_SLICES):
                for place, side in enumerate((ours, by_hand, least)):
                    rounds[place].extend(paced(side, PACED_CALLS))
            for place, took in enumerate(map(sorted, rounds)):
                p50s[place].append(took[len(took) // 2] / 1000)
                p999s[place].append(took[len(took) * 999 // 1000] / 1000)
                longest[place].append(took[-1] / 1000)
    return [
        result("W, caller p50, paced at 1,000/s", p50s[0], "by hand", p50s[1], reach=1 / 10),
        result("what it cannot do without, paced", p50s[2], "by hand", p50s[1], reach=None, note="shown"),
        result("W, caller p99.9, paced", p999s[0], "by hand", p999s[1], reach=None, note="shown"),
        result("W, longest pause of the caller, paced", longest[0], "by hand", longest[1], reach=1.0),
    ]


class Paid(ec.Event, name="bench.paid_metric", category=ec.Category.USER):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]


def metrics() -> list[Result]:
    currency = {"currency": "currency"}
    instruments = (
        ec.Counter("paid_total", on=Paid, help="Payments.", labels=currency),
        ec.Histogram("paid_amount", on=Paid, help="Amounts.", labels=currency, value="amount"),
    )
    emitter = ec.configure(
        service="bench", instruments=instruments, handlers={"metric": {"queue_size": QUEUE}}, replace=True
    )
    event, calls = Paid(currency="eur", amount=1.0), 20_000
    registry = CollectorRegistry()
    counter = Counter("paid", "Payments.", ["currency"], registry=registry).labels("eur")
    histogram = Histogram("amount", "Amounts.", ["currency"], buckets=DEFAULT_BUCKETS, registry=registry).labels("eur")

    def ours() -> None:
        emit = emitter.emit
        for _ in range(calls):
            emit(event)

    def peer() -> None:
        inc, observe = counter.inc, histogram.observe
        for _ in range(calls):
            inc()
            observe(1.0)

    walls, cpus, rounds = ([], []), ([], []), 9
    for _ in range(rounds):
        gc.collect()
        for place, side in enumerate((ours, peer)):
            cpu, wall = time.process_time_ns(), time.perf_counter_ns()
            side()
            walls[place].append((time.perf_counter_ns() - wall) / calls / 1000)
            assert emitter.flush(60.0)
            cpus[place].append((time.process_time_ns() - cpu) / calls / 1000)
    handler = emitter.handler("metric")
    assert handler.value("paid_total", {"currency": "eur"}) == calls * rounds == counter._value.get()
    assert handler.value("paid_amount_count", {"currency": "eur"}) == calls * rounds
    assert emitter.ledger().dropped == 0
    ec.shutdown()
    name = "cached children, inc + observe"
    return [
        result("counter and histogram by an event, caller", walls[0], name, walls[1], reach=1.0),
        result("the same, CPU with the worker's folding", cpus[0], name, cpus[1], reach=1.0),
    ]


CASES = [w_flood, w_paced, w_cold, metrics]
