"""A program whose worker processes emit, as gunicorn's and multiprocessing's do; each has an account of its own.

Arguments: ``fork`` or ``spawn``, number of workers, events of each. Files: ``parent``, ``worker<k>`` (numbers that were
received), ``parent.json``, ``worker<k>.json`` (the accounts).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import eventcore as ec


class Told(ec.Event, name="chaos.told", category="data"):
    """One event of the program."""

    n: int


class Write(ec.Handler):
    """Writes down the number of each event, in the file of the process it runs in."""

    file = "parent"

    def handle_batch(self, envelopes):
        """Write one line per event, in one go."""
        with Path(type(self).file).open("a") as file:
            file.write("".join(f"{envelope.event.n}\n" for envelope in envelopes if envelope.name == "chaos.told"))


def work(method, number, each):
    """Emit in a worker: on what was inherited after a fork, on an emitter of its own after a spawn."""
    Write.file = f"worker{number}"
    if method == "spawn":
        ec.configure(service="chaos", handlers={"write": Write()})
    emitter = ec.get_emitter()
    for n in range(each):
        emitter.emit(Told(n=1_000 * number + n))
    assert emitter.shutdown(10).is_clean
    write_account(emitter, Write.file)


def write_account(emitter, name):
    """Write the account of this process down."""
    row = next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("write", "chaos.told"))
    account = {
        "pid": os.getpid(),
        "delivered": row.delivered,
        "pending": row.pending,
        "dropped": dict(row.dropped),
    }
    Path(f"{name}.json").write_text(json.dumps(account))


def main(method, workers, each):
    """Emit in the parent, start the workers in mid-stream, and go on."""
    emitter = ec.configure(service="chaos", handlers={"write": Write(linger_s=1, queue_size=10_000)})
    for n in range(each):
        emitter.emit(Told(n=n))
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=work, args=(method, k, each)) for k in range(1, workers + 1)]
    for process in processes:
        process.start()
    for n in range(each, 2 * each):
        emitter.emit(Told(n=n))
    for process in processes:
        process.join(30)
        assert process.exitcode == 0, process.exitcode
    assert emitter.shutdown(10).is_clean
    write_account(emitter, "parent")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
