"""The power fails in the middle of the journal's writing: every cut of a recorded run, with what a disk may do then."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore.journal import Journal, JournalRow
from eventcore.journal_config import JournalConfig
from tests.support.power import Disk

CHECKPOINTS = "PRAGMA wal_autocheckpoint = 20"  # every 20 pages instead of every 1,000, so that cuts hit them
HANDLERS = ("audit", "outbox")


class Run:
    """A run of the journal on a recording disk, with what was promised after which operation of the disk."""

    def __init__(self, folder, *, weakened=()):
        self.disk = Disk((CHECKPOINTS, *weakened))
        self.stored = {}  # (handler, number): operations when its receipt resolved
        self.dismissed = {}  # (handler, number): operations when it was to be acknowledged, and when that had resolved
        self.rows = {}
        self.number = 0
        self.is_weakened = bool(weakened)
        for life in range(3):  # each ends with a checkpoint, and the WAL file deleted
            journal = Journal(JournalConfig(path=folder / "journal.db"), open_file=self._open)
            for step in range(12):
                self._step(journal, random.Random(100 * life + step))
            journal.close()

    def _open(self, path, **options):
        connection = self.disk.open(path, **options)
        if self.is_weakened:  # the journal's own setting must not undo it
            run = connection.execute
            connection.execute = lambda s, v=(): run("SELECT 1" if "synchronous" in s else s, v)
        return connection

    def _step(self, journal, chance):
        receipts = []
        for handler in HANDLERS * 2:
            rows = [self._row(handler, chance.choice((10, 500, 9000))) for _ in range(chance.randint(1, 4))]
            receipts.append((rows, handler, journal.append(handler, rows)))
            numbers = [row.time_ns for row in rows]
            receipts[-1][2].add_done_callback(lambda _, handler=handler, numbers=numbers: self._note(handler, numbers))
        for _, _, receipt in receipts:
            receipt.wait(10)
        waiting = journal.read("outbox", 0, 1000)
        if len(waiting) > 5:
            gone = waiting[:-5]
            aside = [row.position for row in gone[::7]]
            begun = len(self.disk.operations)
            journal.set_aside(aside, "poison").wait(10)
            journal.acknowledge("outbox", gone[-1].position).wait(10)
            for row in gone:
                if row.position not in aside:
                    self.dismissed["outbox", row.time_ns] = (begun, len(self.disk.operations))

    def _row(self, handler, size):
        self.number += 1
        row = JournalRow("power.row", "end", self.number, 9, f"id-{self.number}", os.urandom(size))
        self.rows[handler, self.number] = row
        return row

    def _note(self, handler, numbers):
        for number in numbers:
            self.stored[handler, number] = len(self.disk.operations)

    def lost_after(self, place, folder, seed):
        """Cut the power after ``place`` operations; return the acknowledged rows that are not there any more.

        The journal must open what is left and find nothing wrong with it, have no row that it was never given, and
        none that had been acknowledged by its handler.
        """
        self.disk.after_cut(place, folder, random.Random(seed))
        path = Path(folder, "journal.db")
        journal = Journal(JournalConfig(path=path))
        try:
            found = {(handler, row.time_ns): row for handler in HANDLERS for row in journal.read(handler, 0, 10_000)}
            aside = {(letter.handler, letter.time_ns): letter for letter in journal.dead_letters()}
            for key, row in found.items():
                assert row[:6] == self.rows[key][:6], f"{key} has changed"
            for key, letter in aside.items():
                assert (letter.id, letter.envelope) == self.rows[key][4:6], f"{key} has changed"
            assert not found.keys() & aside.keys()
            back = [key for key in found if key in self.dismissed and self.dismissed[key][1] <= place]
            assert not back or self.is_weakened, f"acknowledged by their handler, and back: {back}"
        finally:
            journal.close()
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        must = {key for key, when in self.stored.items() if when <= place}
        must -= {key for key, (begun, _) in self.dismissed.items() if begun < place}
        return must - found.keys() - aside.keys()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a recorded run."""
    return Run(tmp_path_factory.mktemp("power"))


@pytest.mark.slow
@settings(max_examples=250, deadline=None, database=None, derandomize="CI" in os.environ)
@given(data=st.data())
def test_a_power_cut_loses_no_acknowledged_row(run, data):
    """``kill -9`` or a power cut loses no acknowledged row and corrupts nothing, wherever the cut is."""
    place = data.draw(st.integers(0, len(run.disk.operations)), "operations before the cut")
    with tempfile.TemporaryDirectory() as folder:
        lost = run.lost_after(place, folder, data.draw(st.integers(0, 2**32), "what becomes of what was not synced"))
        assert not lost


@pytest.mark.slow
def test_the_cut_is_felt_where_nothing_is_synced(tmp_path):
    """The same cuts do lose acknowledged rows, or break the file, where SQLite is told not to sync: it is no sham."""
    run = Run(tmp_path, weakened=("PRAGMA synchronous = OFF",))
    harmed = 0
    for seed in range(40):
        place = random.Random(seed).randint(len(run.disk.operations) // 4, len(run.disk.operations))
        with tempfile.TemporaryDirectory() as folder:
            try:
                harmed += bool(run.lost_after(place, folder, seed))
            except Exception:  # noqa: BLE001 - a file that cannot be read is harm, too
                harmed += 1
    assert harmed >= 10
