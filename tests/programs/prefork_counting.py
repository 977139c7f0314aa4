"""A prefork service: workers that count by hand and by events until they are told to stop, or are killed.

Arguments: folder for the metrics, folder for the workers' own tallies, port of the parent's ``/metrics``. The parent
forks a worker for each line it reads on stdin (an amount to count), and prints its process id.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import eventcore as ec

STEPS = ec.counter("prefork_steps_total", labels={"worker": Literal["even", "odd"]}, help="Steps, by hand.")
SIZES = ec.histogram("prefork_sizes", help="Sizes, by hand.", buckets=(0.5, 1.5))
BUSY = ec.gauge("prefork_busy", help="Workers at work.", across="sum")


class Stepped(ec.Event, name="prefork.stepped", category="data"):
    parity: Annotated[Literal["even", "odd"], ec.Label]


METRICS = [ec.Counter("prefork_stepped_total", on=Stepped, labels={"parity": "parity"}, help="Steps, by event.")]


def work(emitter: ec.Emitter, tally: Path, amount: int) -> None:
    """Count ``amount`` steps; what was counted is in the tally after each, so that it is known if we are killed."""
    with tally.open("wb+") as file:
        file.truncate(8)
        done = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    BUSY.inc()
    for number in range(amount):
        STEPS.inc(worker="odd" if number % 2 else "even")
        SIZES.observe(1)
        done[0] = number + 1
        emitter.emit(Stepped(parity="odd" if number % 2 else "even"))
        if number % 1000 == 0:
            emitter.flush()


def main() -> None:
    """Fork workers as told."""
    folder, tallies, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    handler = {"multiprocess_dir": str(folder), "process": False, "host": False}
    emitter = ec.configure(service="prefork", instruments=METRICS, handlers={"metric": handler}, http={"port": port})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write(f"{emitter.services['http'].url}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            work(emitter, tallies / str(os.getpid()), int(line))
            signal.pause()  # until it is killed: nothing is said goodbye to
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
