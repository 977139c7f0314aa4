"""A program that emits audit-class events through the journal until it is killed; a second run hands over the rest.

Argument: ``emit`` or ``drain``. Files: ``journal.db``, ``said`` (numbers whose emit has returned), ``got`` (numbers
that the handler has received, over both runs).
"""

from __future__ import annotations

import os
import sys
import time

import eventcore as ec
from eventcore.journal_config import JournalConfig


class Told(ec.Event, name="chaos.told", category="security", durable=True):
    """One audit-class event of the program."""

    n: int


class Slow(ec.Handler):
    """Takes its time while events come in, so that a kill always finds some that are stored and not handled."""

    pause_s = 0.005

    def handle(self, envelope):
        """Write the number down."""
        time.sleep(self.pause_s)
        write("got", envelope.get("n"))


def write(name, n):
    """Append a number to a file, so that it survives the process."""
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, f"{n}\n".encode())
    os.close(file)


def main(what):
    """Emit for ever, or wait until all that was left is handled."""
    emitter = ec.Emitter(journal=JournalConfig(path="journal.db"))
    emitter.add_handler(Slow(delivery="durable"), name="slow")
    if what == "drain":
        Slow.pause_s = 0
        assert emitter.flush(30)
        assert emitter.shutdown(10).is_clean
        return
    n = 0
    while True:
        n += 1
        emitter.emit(Told(n=n))
        write("said", n)


if __name__ == "__main__":
    main(sys.argv[1])
