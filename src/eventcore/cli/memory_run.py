"""Runs a Python program and finds what held its memory when it held most; a process of its own, for ``profile``.

tracemalloc is on from the first line of the program. A thread looks how much is traced and takes a snapshot whenever
there is a tenth more than at the one before; the largest is kept, for at the end most has been freed. Taking one costs
time, so it rests ten times as long as the last one took.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
import time
import tracemalloc
from pathlib import Path

__all__ = ["main"]

LOOK_S = 0.02
MORE = 1.1
FIRST_BYTES = 100_000


class _Watch:
    """Keeps the snapshot of the moment with most memory."""

    def __init__(self) -> None:
        self.bytes = 0
        self.snapshot: tracemalloc.Snapshot | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="eventcore-memory", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        pause = LOOK_S
        while not self._over.wait(pause):
            pause = max(LOOK_S, 10 * self._take())

    def _take(self) -> float:
        traced = tracemalloc.get_traced_memory()[0]
        if traced < max(FIRST_BYTES, MORE * self.bytes):
            return 0.0
        began = time.perf_counter()
        self.snapshot, self.bytes = tracemalloc.take_snapshot(), traced
        return time.perf_counter() - began

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        if self.snapshot is None or tracemalloc.get_traced_memory()[0] > self.bytes:
            self.snapshot, self.bytes = tracemalloc.take_snapshot(), tracemalloc.get_traced_memory()[0]


def main() -> None:
    """Run ``OUT FRAMES (-m MODULE | -c CODE | SCRIPT) ARGUMENTS…`` and write stacks and sizes to OUT as JSON."""
    out, frames, *command = sys.argv[1:]
    tracemalloc.start(int(frames))
    watch = _Watch()
    try:
        _run(command)
    finally:
        watch.end()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        Path(out).write_text(json.dumps(_facts(watch, peak)), encoding="utf-8")


def _run(command: list[str]) -> None:
    kind, rest = command[0], command[1:]
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, "")
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - what python -c does
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")


def _facts(watch: _Watch, peak: int) -> dict[str, object]:
    own = (tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__),)
    snapshot = watch.snapshot.filter_traces(own) if watch.snapshot is not None else None
    statistics = snapshot.statistics("traceback") if snapshot is not None else []
    return {
        "peak_bytes": peak,
        "snapshot_bytes": watch.bytes,
        "stacks": [
            {
                "bytes": one.size,
                "blocks": one.count,
                "frames": _frames(one.traceback),
            }
            for one in statistics
        ],
    }


def _frames(traceback: tracemalloc.Traceback) -> list[tuple[str, int]]:
    """Return file and line of each frame, the outermost first, from where the program begins."""
    frames = [(frame.filename, frame.lineno) for frame in traceback]
    begin = next((n for n, (file, _) in enumerate(frames) if file not in (__file__, "<frozen runpy>")), 0)
    return frames[begin:]


if __name__ == "__main__":
    main()
