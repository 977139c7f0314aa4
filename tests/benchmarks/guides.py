"""Below the table: the overhead that the guides promise, claim by claim, measured of ours and of prometheus_client.

Each claim is looked at in a fresh process per side, which prints its figures; nothing else is loaded there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

ROUNDS, SERIES = 5, 10_000
OPS_PER_S, SECONDS, STAGES = 100, 5, 5

_COMMON = """
import gc, json, os, resource, sys, time
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
bare = rss()
"""

_OURS = """
from typing import Annotated, Literal
import eventcore as ec
class Stage(ec.Event, name="guides.stage", category="performance"):
    stage: Annotated[str, ec.Label]
    seconds: Annotated[float, ec.Measure(unit="s")]
instruments = (
    ec.Counter("stages_total", on=Stage, help="Stages.", labels={"stage": "stage"}),
    ec.Histogram("stage_seconds", on=Stage, help="Time.", labels={"stage": "stage"}, value="seconds"),
)
emitter = ec.configure(service="guides", instruments=instruments[:WANTED], handlers={"metric": {"max_series": 20_000}})
handler = emitter.handler("metric")
prepared = Stage(stage="rag", seconds=0.01)
def record(stage="rag"):
    emitter.emit(Stage(stage=stage, seconds=0.01))
def record_prepared():
    emitter.emit(prepared)
def expose():
    return handler.render()
"""

_BY_HAND = """
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
registry = CollectorRegistry()
counter = Counter("stages", "Stages.", ["stage"], registry=registry)
bounds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # ours by default
histogram = Histogram("stage_seconds", "Time.", ["stage"], buckets=bounds, registry=registry) if WANTED == 2 else None
children = (counter.labels("rag"), histogram.labels("rag") if histogram else None)
def record(stage="rag"):
    counter.labels(stage).inc()
    if histogram:
        histogram.labels(stage).observe(0.01)
def record_prepared():
    children[0].inc()
    children[1].observe(0.01)
def expose():
    return generate_latest(registry)
"""

_COST = """
calls = 20_000
def cost(function):
    best = []
    for _ in range(7):
        begin = time.process_time_ns()
        for _ in range(calls):
            function()
        expose()
        best.append((time.process_time_ns() - begin) / calls / 2000)
    return min(best)
figures = {"prepared": cost(record_prepared), "whole": cost(record)}
took = []
for _ in range(2_000):
    time.sleep(0.0005)
    begin = time.perf_counter_ns()
    record()
    took.append((time.perf_counter_ns() - begin) / 2000)
took.sort()
figures |= {"p50": took[1_000], "p999": took[1_998], "longest": took[-1]}
"""

_SHARE = """
def paced(work):
    begin, cpu = time.perf_counter(), time.process_time()
    for number in range(OPS_PER_S * SECONDS):
        wait = begin + number / OPS_PER_S - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        work()
    if work is not idle:
        expose()
    return (time.process_time() - cpu) / (time.perf_counter() - begin) * 100
def idle():
    pass
def operation():
    for stage in ("rag", "assemble", "inference", "post", "stream"):
        record(stage)
operation(); expose()
figures = {"idle": paced(idle), "busy": paced(operation)}
"""

_MEMORY = """
record(); expose(); gc.collect()
figures = {"baseline": rss() - bare}
before = rss()
for number in range(SERIES):
    record(f"stage {number}")
gc.collect()
figures["series"] = (rss() - before) / SERIES
samples = expose().count(b"stage ")
assert samples >= SERIES, samples
"""


_PYDANTIC = """
from pydantic import BaseModel
type("M", (BaseModel,), {"__annotations__": {"x": int}})
figures = {"baseline": rss() - bare}
"""


def _figures(side: str, what: str, wanted: int = 2) -> dict[str, float]:
    """Return what a fresh process measured; it raises where that process failed."""
    constants = f"WANTED, SERIES, OPS_PER_S, SECONDS = {wanted}, {SERIES}, {OPS_PER_S}, {SECONDS}\n"
    code = constants + _COMMON + side + what + "print(json.dumps(figures))\nsys.stdout.flush()\nos._exit(0)"
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ)
    )
    return json.loads(run.stdout)


def _both(what: str, rounds: int, wanted: int = 2) -> tuple[dict[str, float], dict[str, float]]:
    """Return the medians of both sides, measured in turn."""
    sides = []
    found = [[_figures(side, what, wanted) for side in (_OURS, _BY_HAND)] for _ in range(rounds)]
    for place in (0, 1):
        names = found[0][place]
        sides.append({name: statistics.median(pair[place][name] for pair in found) for name in names})
    return sides[0], sides[1]


def claims() -> list[str]:
    ours, hand = _both(_COST, ROUNDS)
    lines = [f"{'what the guides say of metrics, and what was measured':<66}{'ours':>11}  {'prometheus_client':>17}"]

    def row(text: str, mine: float, theirs: float, unit: str) -> None:
        lines.append(f"  {text:<64}{f'{mine:.3g} {unit}':>11}  {f'{theirs:.3g} {unit}':>17}")

    row(
        "Tiny Dancer, < 1 µs: CPU per metric, event built before / cached child",
        ours["prepared"],
        hand["prepared"],
        "µs",
    )
    row("  the same with building the event / with labels(…)", ours["whole"], hand["whole"], "µs")
    row("orchestrator, < 100 µs per recorded metric: caller, p50", ours["p50"], hand["p50"], "µs")
    row("  p99.9", ours["p999"], hand["p999"], "µs")
    row("  longest of 2,000", ours["longest"], hand["longest"], "µs")
    ours, hand = _both(_SHARE, 3)
    rate = f"{OPS_PER_S} requests/s of {STAGES} stages, 2 metrics each"
    row(f"orchestrator, < 1 % CPU: {rate}", ours["busy"], hand["busy"], "%")
    row("  of which the loop that paces it", ours["idle"], hand["idle"], "%")
    counters = _both(_MEMORY, 3, 1)
    both = _both(_MEMORY, 3, 2)
    row("orchestrator, 10 MB: resident memory of import and set-up", *(s["baseline"] / 1e6 for s in both), "MB")
    row("  of which pydantic with one model", _figures("", _PYDANTIC)["baseline"] / 1e6, 0.0, "MB")
    row("  1 kB per metric: per series of a counter", *(s["series"] / 1e3 for s in counters), "kB")
    more = [b["series"] - c["series"] for b, c in zip(both, counters, strict=True)]
    row("  per series of a histogram, 12 buckets", *(size / 1e3 for size in more), "kB")
    return lines


CASES: list[object] = []
BELOW = [claims]
