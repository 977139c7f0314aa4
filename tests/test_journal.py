"""The journal: one SQLite file, written by one thread, that keeps what it has acknowledged."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest

import eventcore as ec
from eventcore.journal import Journal, JournalRow
from eventcore.journal_config import JournalConfig


def row(number, size=0):
    """Return a row that bears a number."""
    return JournalRow("test.row", "end", number, 9, f"id-{number}", b"%d" % number + b"x" * size)


@pytest.fixture
def path(tmp_path):
    """Return where the journal is."""
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path):
    """Return an open journal."""
    journal = Journal(JournalConfig(path=path))
    yield journal
    journal.close()


def numbers(journal, handler="h", after=0, limit=10_000):
    """Return the numbers of the rows that a handler would read."""
    return [found.time_ns for found in journal.read(handler, after, limit)]


def test_rows_come_back_in_the_order_of_their_append(journal):
    """A handler reads its rows as they were appended, with rising positions, and never those of another."""
    journal.append("h", [row(1), row(2)]).wait(5)
    journal.append("other", [row(9)]).wait(5)
    journal.append("h", [row(3)]).wait(5)
    found = journal.read("h", 0, 10)
    assert [r.time_ns for r in found] == [1, 2, 3]
    assert [r.position for r in found] == sorted(r.position for r in found)
    assert found[0][:6] == row(1)[:6]
    assert numbers(journal, after=found[0].position, limit=1) == [2]


def test_a_receipt_resolves_after_the_commit(journal, path):
    """When a receipt has resolved, another connection to the file sees the row."""
    position = journal.append("h", [row(1)]).wait(5)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT position, time_ns FROM rows").fetchall() == [(position, 1)]


def test_a_receipt_can_be_awaited(journal):
    """Awaiting a receipt gives its position too."""

    async def main():
        return await journal.append("h", [row(1)])

    assert asyncio.run(main()) == 1


def test_appends_share_commits(journal):
    """What comes in while a commit is on its way shares the next one: far fewer commits than appends."""
    commits = []
    journal._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    with journal._using:  # a commit that takes its time
        receipts = [journal.append("h", [row(n)]) for n in range(500)]
    for receipt in receipts:
        receipt.wait(5)
    assert numbers(journal) == list(range(500))
    assert len(commits) <= 500 / 100 + 2


def test_many_threads_keep_their_order(journal):
    """Rows of each of several threads stay in that thread's order."""

    def write(thread):
        for n in range(100):
            receipt = journal.append("h", [JournalRow(f"thread.{thread}", "end", n, 9, "", b"{}")])
        receipt.wait(10)

    threads = [threading.Thread(target=write, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = journal.read("h", 0, 1000)
    for t in range(4):
        assert [r.time_ns for r in found if r.event == f"thread.{t}"] == list(range(100))


def test_an_acknowledged_row_is_gone(journal):
    """Acknowledging moves the cursor, deletes what it has passed, and gives its room back."""
    journal.append("h", [row(n) for n in range(5)]).wait(5)
    journal.acknowledge("h", 3).wait(5)
    assert numbers(journal) == [3, 4]
    assert journal.cursor("h") == 3
    assert journal.rows == 2
    assert journal.bytes == 2


def test_a_slow_handler_keeps_its_rows(journal):
    """One handler's acknowledgement leaves the rows of another alone."""
    journal.append("fast", [row(1)]).wait(5)
    journal.append("slow", [row(2)]).wait(5)
    journal.acknowledge("fast", 2).wait(5)
    assert journal.handlers() == {"slow": 1}


def test_a_restart_finds_rows_and_cursors(journal, path):
    """What was not acknowledged is there after a restart; positions go on where they were, also when all is gone."""
    journal.append("h", [row(1), row(2)]).wait(5)
    journal.acknowledge("h", 1)
    journal.close()
    again = Journal(JournalConfig(path=path))
    assert numbers(again) == [2]
    assert again.cursor("h") == 1
    assert again.waiting("h") == {("test.row", "end"): 1}
    again.acknowledge("h", 2)
    again.close()
    third = Journal(JournalConfig(path=path))
    assert third.append("h", [row(3)]).wait(5) == 3
    assert numbers(third, after=third.cursor("h")) == [3]
    third.close()


@pytest.mark.parametrize("limit", [{"max_rows": 3}, {"max_bytes": 33}])
def test_what_meets_the_limit_is_refused(path, limit):
    """Beyond ``max_rows`` or ``max_bytes`` the rest of an append is refused; acknowledging makes room again."""
    journal = Journal(JournalConfig(path=path, **limit))
    receipt = journal.append("h", [row(n, 10) for n in range(5)])
    receipt.wait(5)
    assert receipt.accepted == 3
    assert numbers(journal) == [0, 1, 2]
    assert journal.append("h", [row(9, 10)]).accepted == 0
    assert journal.fill == 1
    journal.acknowledge("h", 2).wait(5)
    assert journal.append("h", [row(9, 10)]).accepted == 1
    journal.close()
    assert len(sqlite3.connect(path).execute("SELECT * FROM rows").fetchall()) == 2


def test_only_its_owner_may_read_it(journal, path):
    """The file and its companions have mode 0600, whatever the umask says."""
    journal.append("h", [row(1)]).wait(5)
    for found in path.parent.glob("journal.db*"):
        assert stat.S_IMODE(found.stat().st_mode) == 0o600, found


def test_closing_writes_what_waits(journal, path):
    """Closing commits what was appended before, refuses what comes after, and may be repeated."""
    receipts = [journal.append("h", [row(n)]) for n in range(50)]
    assert journal.close()
    assert [r.wait(0) for r in receipts] == list(range(1, 51))
    with pytest.raises(ec.NotDurable, match="closed"):
        journal.append("h", [row(1)]).wait(5)
    assert journal.close()


# -- files that are no journals ----------------------------------------------------------------------------------------


def test_a_foreign_file_is_one_clear_error(path):
    """A file that is no SQLite file is refused by name, with the remedy, and left as it was."""
    path.write_text("my diary\n" * 1000)
    with pytest.raises(ec.ConfigurationError, match=r"journal\.db: is no SQLite file.*journal\.path"):
        Journal(JournalConfig(path=path))
    assert path.read_text().startswith("my diary")


def test_a_foreign_database_is_one_clear_error(path):
    """A SQLite file of another program is refused, and left as it was."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ec.ConfigurationError, match="no journal of eventcore"):
        Journal(JournalConfig(path=path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [50, 5000, 20_000])
def test_a_truncated_file_is_one_clear_error(journal, path, cut):
    """A journal that was cut short is refused with the remedy, wherever the cut is."""
    journal.append("h", [row(n, 500) for n in range(100)]).wait(5)
    journal.close()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ec.ConfigurationError, match=r"truncated or damaged.*move it away"):
        Journal(JournalConfig(path=path))


def test_a_later_format_is_refused(journal, path):
    """A journal of a later version is refused instead of misread."""
    journal.close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 2")
    with pytest.raises(ec.ConfigurationError, match="has format 2, this version of eventcore reads 1"):
        Journal(JournalConfig(path=path))


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path):
    """The error names the journal and the reason."""
    with pytest.raises(ec.ConfigurationError, match="cannot be written: No such file"):
        Journal(JournalConfig(path=tmp_path / "nowhere" / "journal.db"))


def test_a_second_process_is_refused(journal, path):
    """A journal belongs to one process: a second one gets an error that names the first."""
    code = f"""
import eventcore as ec
from eventcore.journal import Journal
from eventcore.journal_config import JournalConfig
try:
    Journal(JournalConfig(path={str(path)!r}))
except ec.ConfigurationError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout
    assert f"in use by another emitter (process {os.getpid()})" in said
    with pytest.raises(ec.ConfigurationError, match="in use"):
        Journal(JournalConfig(path=path))
    journal.close()
    Journal(JournalConfig(path=path)).close()


# -- I/O errors --------------------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, signal, sys, time
import eventcore as ec
from eventcore.journal import Journal, JournalRow
from eventcore.journal_config import JournalConfig

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
said = []
journal = Journal(JournalConfig(path=sys.argv[1]), said.append)
row = lambda n: JournalRow("test.row", "end", n, 9, "", b"x" * 1000)
acknowledged = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
try:
    while True:
        journal.append("h", [row(acknowledged)]).wait(10)
        acknowledged += 1
except ec.NotDurable as error:
    print(error)
assert journal.problem is not None
assert acknowledged > 20
while not said:
    time.sleep(0.001)  # it is told after the receipts
assert said[0] is not None
try:
    journal.append("h", [row(-1)]).wait(10)
    raise SystemExit("poisoned, and yet it accepts")
except ec.NotDurable:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.reopen()
assert said[-1] is None
found = [r.time_ns for r in journal.read("h", 0, 10**6)]
assert found == list(range(acknowledged)), (found, acknowledged)
assert journal.rows == acknowledged
assert journal.append("h", [row(acknowledged)]).wait(10) > 0
journal.close()
print("well")
"""


def test_a_disk_that_is_full_poisons_it_until_it_was_verified(path):
    """An I/O error refuses what waits and what comes, and loses nothing acknowledged; reopening verifies."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.endswith("well\n"), done.stderr
    assert "cannot be written" in done.stdout


def test_what_was_refused_does_not_come_back(journal, path):
    """A commit may reach the file although its sync failed: what was refused is deleted when the file is reopened."""
    journal.append("h", [row(1)]).wait(5)
    journal._poison(OSError("the sync failed"))
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO rows SELECT 2, handler, event, phase, 2, severity, id, envelope FROM rows")
    assert journal.reopen()
    assert numbers(journal) == [1]
    assert journal.rows == 1


# -- fork --------------------------------------------------------------------------------------------------------------

FORK = """
import os, sys
from eventcore.journal import Journal, JournalRow
from eventcore.journal_config import JournalConfig

path = sys.argv[1]
row = lambda n: JournalRow("test.row", "end", n, 9, "", b"{}")
journal = Journal(JournalConfig(path=path))
journal.append("h", [row(1)]).wait(5)
child = os.fork()
if child == 0:
    assert journal.read("h", 0, 10) == [] and journal.rows == 0
    journal.append("h", [row(100), row(101)]).wait(5)
    assert [r.time_ns for r in journal.read("h", 0, 10)] == [100, 101]
    os._exit(0 if journal.path.name.endswith(f".fork-{os.getpid()}") else 1)
assert os.waitpid(child, 0)[1] == 0
journal.append("h", [row(2)]).wait(5)
assert [r.time_ns for r in journal.read("h", 0, 10)] == [1, 2]
journal.close()
again = Journal(JournalConfig(path=path))
assert [r.time_ns for r in again.read("h", 0, 10)] == [1, 2, 100, 101]
assert again.rows == 4
again.close()
print(sorted(os.listdir(os.path.dirname(path))))
"""


def test_a_forked_child_has_a_file_of_its_own(path):
    """A child never uses its parent's connection: it opens a file of its own, which the next start takes over."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['journal.db', 'journal.db.lock']"
