"""A program that emits and comes to the end its first argument names; its handler writes down what it gets.

Files in the working directory: ``got`` (numbers the handler has received), ``said`` (numbers whose emit has returned),
``account.json`` (the ledger, written last of all at exit), ``ready`` (made once the handler has got something).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from pathlib import Path

import eventcore as ec


class Told(ec.Event, name="chaos.told", category="data"):
    """One event of the program."""

    n: int


class Write(ec.Handler):
    """Writes down the number of each event at once: what it has written survives ``kill -9``."""

    def __init__(self, **options):
        super().__init__(**options)
        self.file = os.open("got", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def handle_batch(self, envelopes):
        """Write one line per event, in one go."""
        text = "".join(f"{envelope.event.n}\n" for envelope in envelopes if envelope.name == "chaos.told")
        os.write(self.file, text.encode())
        Path("ready").touch()


def main(ending, linger_s):
    """Emit 200 events, or go on until a signal comes; then end in the way asked for."""
    configured = []
    atexit.register(write_account, configured)  # first registered, last called: after the emitter's own shutdown
    emitter = ec.configure(service="chaos", handlers={"write": Write(linger_s=linger_s)})
    configured.append(emitter)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "configure() imposes no signal handler"
    if ending == "sigterm_exit":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    elif ending == "sigterm_shutdown":
        signal.signal(signal.SIGTERM, lambda *_: (ec.shutdown(5.0), os.kill(os.getpid(), signal.SIGKILL)))
    elif ending == "sigterm_offered":
        ec.shutdown_on_signals()
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    n = 0
    while n < 200 or ending.startswith(("sigterm", "killed")):
        n += 1
        emitter.emit(Told(n=n))
        os.write(said, b"%d\n" % n)
        if n % 50 == 0:
            time.sleep(0.002)
    if ending == "sys_exit":
        sys.exit(3)
    if ending == "raises":
        raise ValueError("the program is at fault")
    if ending == "interrupted":
        raise KeyboardInterrupt
    if ending == "os_exit":
        os._exit(0)


def write_account(configured):
    """Write the account down, as one file that is there whole or not at all."""
    (emitter,) = configured
    row = next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("write", "chaos.told"))
    account = {
        "emitted": row.emitted,
        "accepted": row.accepted,
        "delivered": row.delivered,
        "failed": row.failed,
        "pending": row.pending,
        "dropped": dict(row.dropped),
        "is_in_use": ec.get_emitter() is emitter,
    }
    Path("account.tmp").write_text(json.dumps(account))
    Path("account.tmp").rename("account.json")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
