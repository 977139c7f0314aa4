"""A program whose log and span files may not grow beyond a limit, as on a disk that is full.

Argument: the limit in bytes. Files: ``log.json``, ``spans.jsonl`` (what fitted), ``account.json`` (the ledger).
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import eventcore as ec
from tests.support.handlers import Collect


class Told(ec.Event, name="chaos.told", category="data"):
    """One event of the program."""

    n: int


class Work(ec.Operation, name="chaos.work", category="execution"):
    """One operation of the program."""

    n: int


def main(limit):
    """Emit far more than fits, and write the account down beside it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python does so anyway; write() then fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    spared = Collect()
    handlers = {
        "log": {"format": "json", "output": "log.json", "delivery": "queued"},
        "span": {"exporter": "file", "path": "spans.jsonl"},
        "spared": spared,
    }
    emitter = ec.configure(service="chaos", handlers=handlers)
    for n in range(400):
        emitter.emit(Told(n=n))
        with emitter.operation(Work, n=n):
            pass
        if n % 20 == 0:
            emitter.flush()
    report = emitter.shutdown(10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rows = [
        {
            "handler": row.handler,
            "event": row.event,
            "emitted": row.emitted,
            "accepted": row.accepted,
            "filtered": row.filtered,
            "sampled": row.sampled,
            "delivered": row.delivered,
            "failed": row.failed,
            "pending": row.pending,
            "dropped": dict(row.dropped),
        }
        for row in emitter.ledger().rows
    ]
    account = {"rows": rows, "spared": spared.names, "abandoned": dict(report.abandoned_envelopes)}
    Path("account.json").write_text(json.dumps(account))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
