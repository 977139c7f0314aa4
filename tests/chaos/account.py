"""What every test of the suite holds against the ledger: the equations, and counts kept by the test alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import eventcore as ec
from eventcore.ledger import DROP_REASONS

PROGRAMS = Path(__file__).parents[1] / "programs"


class Told(ec.Event, name="chaos.told", category="data"):
    """One event of a test; ``n`` is unique in its thread."""

    n: int = 0
    thread: int = 0


class Work(ec.Operation, name="chaos.work", category="execution"):
    n: int = 0


def balance(emitter, emitted, *, pending=0):
    """Check both equations on every row, and the rows of ``Told`` against ``emitted`` and the handlers' own counts.

    ``emitted`` is how often the test itself has called ``emit``. Handlers tell what they have got by ``got`` (a list
    of envelopes) and how often they raised by ``raised``, as those of tests.support.handlers do.
    """
    ledger = emitter.ledger()
    for row in ledger.rows:
        assert row.emitted == row.accepted + row.filtered + row.sampled, row
        assert row.accepted == row.delivered + row.failed + row.dropped.total() + row.pending, row
        assert row.pending == pending, row
        assert set(row.dropped) <= set(DROP_REASONS), row
    for handler in emitter.handlers:
        row = row_of(ledger, handler.name)
        assert row.emitted == emitted, (handler.name, row)
        assert row.delivered == sum(envelope.name == "chaos.told" for envelope in handler.got), (handler.name, row)
    return ledger


def row_of(ledger, name, event="chaos.told"):
    """Return the handler's row of the tests' own event."""
    return next(row for row in ledger.rows if row.handler == name and row.event == event)


def in_order(handler):
    """Whether the handler has seen each thread's events in emit order, none of them twice."""
    last = Counter()
    for envelope in handler.got:
        if envelope.name == "chaos.told":
            event = envelope.event
            if event.n <= last[event.thread]:
                return False
            last[event.thread] = event.n
    return True


def start(program, *arguments, folder, **options):
    """Start a program of tests/programs in ``folder``; options are those of subprocess.Popen."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(PROGRAMS / program), *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(process, *, status=0, timeout_s=40):
    """Wait for the program, check its exit status, and return what it wrote to stderr."""
    try:
        _, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == status, (process.returncode, errors[-2000:])
    return errors


def numbers(path):
    """Return the numbers that a program's handler has written down, in order."""
    return [int(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


def report(path):
    """Return the account that a program has written when it ended."""
    return json.loads(Path(path).read_text())
