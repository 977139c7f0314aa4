"""What importing and starting cost, in fresh interpreters; and what a buffered event keeps in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tracemalloc

import eventcore as ec
from tests.benchmarks.dispatch import Paid
from tests.benchmarks.paired import Result, result

ROUNDS = 9
_TIMED = "import time; t=time.perf_counter(); {}; print((time.perf_counter()-t)*1000)"


_COMPILED = tempfile.TemporaryDirectory()
# What is installed is compiled: so is all here, on both sides, whatever this process was told about writing files.
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "PYTHONPYCACHEPREFIX": _COMPILED.name,
}


def _fresh(code: str) -> float:
    run = subprocess.run(
        [sys.executable, "-c", _TIMED.format(code)], capture_output=True, text=True, check=True, env=_ENVIRONMENT
    )
    return float(run.stdout.split()[-1])


def importing() -> list[Result]:
    """Beside the bare import stands one with a model: defining the first one is what loads most of pydantic."""
    name = "from eventcore import Event"
    model = "from pydantic import BaseModel; type('M', (BaseModel,), {'__annotations__': {'x': int}})"
    ours, bare, used = [], [], []
    _fresh(f"{name}; {model}")
    for _ in range(ROUNDS):
        ours.append(_fresh(name))
        bare.append(_fresh("from pydantic import BaseModel"))
        used.append(_fresh(model))
    return [
        result(name, ours, "from pydantic import BaseModel", bare, reach=1.2, unit="ms"),
        result(name, ours, "the same, and one model", used, reach=None, unit="ms", note="shown"),
    ]


def first_emit() -> Result:
    start = (
        "import eventcore as ec; e=ec.configure(handlers={'buffer': {}}); ec.emit_event('bench.first', 'system'); "
        "assert len(e.handlers[0]) >= 1"
    )
    ours, peer = [], []
    _fresh(start)
    for _ in range(ROUNDS):
        ours.append(_fresh(start))
        peer.append(_fresh("from pydantic_settings import BaseSettings"))
    return result(
        "configure() and first emit, buffer",
        ours,
        "import pydantic_settings",
        peer,
        reach=None,
        unit="ms",
        note="shown",
    )


class Four(ec.Event, name="bench.four", category=ec.Category.DATA):
    text: str
    number: int
    share: float
    flag: bool


def memory() -> Result:
    count = 10_000

    def size(make) -> float:
        tracemalloc.start()
        kept = make()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept
        return used / count

    def build(number: int) -> Four:
        return Four(text=f"text {number}", number=number, share=number / 3, flag=True)

    def buffered() -> ec.Emitter:
        emitter = ec.configure(handlers={"buffer": {"max_size": count + 10}}, replace=True)
        for number in range(count):
            emitter.emit(build(number))
        return emitter

    buffered()
    ours = [size(buffered) for _ in range(3)]
    peer = [size(lambda: [build(number) for number in range(count)]) for _ in range(3)]
    ec.shutdown()
    return result("memory of a buffered 4-field event", ours, "the instance alone", peer, reach=1.5, unit="B")


CASES = [importing, first_emit, memory]
assert Paid  # the dispatch module is imported so that both share warm caches
