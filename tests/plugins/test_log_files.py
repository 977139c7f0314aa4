"""The log plugin: files that make way for new ones, and are followed where others move them."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import eventcore as ec
from eventcore_log.files import FileOutput, Rotation
from tests.support.log_lines import FILE, Note, configure, read

DAY = 86_400


def numbers(path):
    """Return the numbers that the lines of a file tell."""
    return [int(line["text"].split()[0]) for line in read(path)]


def kept():
    """Return the log files, the oldest first."""
    return sorted(Path().glob("log.json*"), key=lambda path: -int(path.suffix[1:]) if path.suffix != ".json" else 1)


def test_a_file_never_grows_beyond_its_limit_and_no_line_is_lost_or_cut():
    """Batches are parted between lines; files are named by age, and read one after the other they tell all in order."""
    with configure(format="json", output=FILE, max_bytes=2000, backups=100) as emitter:
        for number in range(100):
            emitter.emit(Note(text=f"{number} {'x' * (number % 50)}"))
            if number % 17 == 0:
                emitter.flush()
    files = kept()
    assert len(files) > 10
    assert all(path.stat().st_size <= 2000 for path in files)
    assert [number for path in files for number in numbers(path)] == list(range(100))


def test_old_files_beyond_the_number_kept_are_gone():
    """``backups`` bounds what rotation leaves: the oldest is replaced."""
    with configure(format="json", output=FILE, max_bytes=500, backups=2) as emitter:
        for number in range(50):
            emitter.emit(Note(text=f"{number}"))
    assert [path.name for path in kept()] == ["log.json.2", "log.json.1", "log.json"]
    told = [number for path in kept() for number in numbers(path)]
    assert told == list(range(50 - len(told), 50))


def test_a_line_longer_than_the_limit_stands_alone_in_its_file():
    """What fits into no file is written all the same, whole."""
    with configure(format="json", output=FILE, max_bytes=400) as emitter:
        for number, size in enumerate((1, 1000, 1)):
            emitter.emit(Note(text=f"{number} {'x' * size}"))
    assert [numbers(path) for path in kept()] == [[0], [1], [2]]


def test_a_file_of_yesterday_makes_way_today(tmp_path):
    """A period ends by the clock, also while the program was not running; an empty file is not rotated."""
    now = [0.0]
    path = tmp_path / "app.log"

    def opened():
        return FileOutput(path, Rotation(None, DAY, 3), time_ns=lambda: int(now[0] * 1e9))

    def write(text, day):
        now[0] = day * DAY + 60.0
        output.write([text])
        os.utime(path, (now[0], now[0]))

    output = opened()
    write(b"a\n", 1)
    write(b"b\n", 1)
    write(b"c\n", 2)
    assert (path.read_bytes(), path.with_name("app.log.1").read_bytes()) == (b"c\n", b"a\nb\n")
    output.close()
    output = opened()
    write(b"d\n", 5)
    output.close()
    assert [path.with_name(f"app.log.{n}").read_bytes() for n in (2, 1)] == [b"a\nb\n", b"c\n"]
    assert path.read_bytes() == b"d\n"


@pytest.mark.parametrize("options", [{}, {"max_bytes": 1_000_000}])
def test_a_file_that_others_move_away_is_made_anew(options):
    """After logrotate (or rm) lines go to the path again, without a signal and without loss."""
    with configure(format="json", output="deep/log.json", **options) as emitter:
        path = Path("deep/log.json")
        emitter.emit(Note(text="0"))
        assert emitter.flush()
        path.rename("moved.json")
        emitter.emit(Note(text="1"))
        assert emitter.flush()
        path.unlink()
        path.parent.rmdir()
        emitter.emit(Note(text="2"))
        assert emitter.flush()
        assert emitter.ledger().handler("log").failed == 0
    assert (numbers(Path("moved.json")), numbers(path)) == ([0], [2])


def test_threads_that_write_themselves_share_a_rotating_file():
    """Inline lines from several threads keep to the limit, whole and none lost."""
    with configure(format="json", output=FILE, max_bytes=3000, backups=1000, delivery="inline") as emitter:

        def emit(first):
            for number in range(first, first + 100):
                emitter.emit(Note(text=f"{number}"))

        threads = [threading.Thread(target=emit, args=(first,)) for first in range(0, 400, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(path.stat().st_size <= 3000 for path in kept())
    assert sorted(number for path in kept() for number in numbers(path)) == list(range(400))


def test_a_file_that_is_moved_while_threads_write_costs_no_line():
    """Inline lines of several threads all arrive, in the moved file or the new one: none finds its file closed."""
    stop = threading.Event()
    with configure(format="json", output=FILE, delivery="inline") as emitter:

        def emit(first):
            for number in range(first, first + 500):
                emitter.emit(Note(text=f"{number}"))

        def move():
            number = 0
            while not stop.is_set():
                if FILE.exists():
                    number += 1
                    FILE.rename(f"log.json.{number}")
                time.sleep(0.002)

        threads = [threading.Thread(target=emit, args=(first,)) for first in range(0, 1500, 500)]
        mover = threading.Thread(target=move)
        mover.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        mover.join()
        assert emitter.ledger().handler("log").failed == 0
    assert sorted(number for path in Path().glob("log.json*") for number in numbers(path)) == list(range(1500))


def test_a_lock_that_another_process_holds_does_not_hold_the_worker():
    """Where somebody else is rotating, or hangs at it, lines go on, and the file grows meanwhile."""
    with configure(format="json", output=FILE, max_bytes=500) as emitter:
        emitter.emit(Note(text="0"))
        assert emitter.flush()
        with FILE.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            for number in range(1, 10):
                emitter.emit(Note(text=f"{number}"))
            assert emitter.flush()
            assert [path.name for path in kept()] == ["log.json"]
        emitter.emit(Note(text="10"))
        assert emitter.flush()
    assert [numbers(path) for path in kept()] == [list(range(10)), [10]]


@pytest.mark.slow
def test_processes_that_share_a_rotating_file_lose_nothing():
    """Four processes write one file at once: each line is whole in one of the files, and these are bounded."""
    program = textwrap.dedent("""
        import sys
        import eventcore as ec

        class Note(ec.Event, name="note", category="data"):
            text: str

        options = {"format": "json", "output": "log.json", "max_bytes": 20_000, "backups": 1000, "events": "note"}
        with ec.configure(handlers={"log": options}) as emitter:
            for number in range(int(sys.argv[1]), int(sys.argv[1]) + 1000):
                emitter.emit(Note(text=str(number)))
                if number % 10 == 0:
                    emitter.flush()
    """)
    running = [subprocess.Popen([sys.executable, "-c", program, str(first)]) for first in range(0, 4000, 1000)]
    assert [process.wait(50) for process in running] == [0, 0, 0, 0]
    assert sorted(number for path in kept() for number in numbers(path)) == list(range(4000))
    # Who finds another one renaming does not wait but writes, and that one may be kept from the processor for a while:
    # files exceed the limit by some batches. Without rotation there would be one of about 700,000 bytes.
    assert max(path.stat().st_size for path in kept()) < 100_000


def test_a_full_disk_fails_exactly_the_lines_that_are_missing_while_rotating(tmp_path):
    """Where a batch is parted by a rotation, what was written before the disk was full counts as delivered."""
    program = textwrap.dedent("""
        import resource
        import eventcore as ec
        from eventcore_log.handler import LogHandler

        class Note(ec.Event, name="note", category="data"):
            text: str

        emitter = ec.Emitter()
        emitter.add_handler(LogHandler(format="json", output="log.json", max_bytes=1500, linger_s=0.2), name="log")
        emitter.emit(Note(text="first " + "x" * 1000))
        emitter.flush()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        for number in range(10):
            emitter.emit(Note(text=f"{number} " + "x" * 400))
        emitter.flush()
        row = emitter.ledger().handler("log")
        print(row.delivered, row.failed)
        emitter.shutdown()
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30
    )
    delivered, failed = map(int, done.stdout.split())
    assert delivered + failed == 11
    lines = [line for path in kept() for line in path.read_text().splitlines()]
    whole = [line for line in lines if line.endswith("}")]
    assert len(whole) == delivered
    assert [json.loads(line)["text"].split()[0] for line in whole][:2] == ["first", "0"]


@pytest.mark.parametrize("option", [{"max_bytes": 1000}, {"rotate_every_s": 60}])
@pytest.mark.parametrize("output", ["stderr", "otlp"])
def test_only_files_are_rotated(option, output):
    """A limit for what is no file is a mistake that is named."""
    with pytest.raises(ec.ConfigurationError, match=f"only a file is rotated, and output is '{output}'"):
        configure(output=output, **option)
