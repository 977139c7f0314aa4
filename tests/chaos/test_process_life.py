import os
import signal
import threading
from collections import Counter

import pytest

import eventcore as ec
from tests.chaos.account import PROGRAMS, Told, balance, ended, in_order, numbers, report, row_of, start
from tests.support.handlers import Collect, eventually

LINGER_S = 0.02


def wait_until_busy(folder, process, times=400):
    """Wait until the program has emitted in earnest and its handler has received something."""

    def busy():
        return process.poll() is not None or (len(numbers(folder / "said")) > times and (folder / "ready").exists())

    assert eventually(busy, 30)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize(
    ("ending", "status"), [("normal", 0), ("sys_exit", 3), ("raises", 1), ("interrupted", -signal.SIGINT)]
)
def test_a_program_that_ends_has_its_events_delivered(tmp_path, ending, status):
    """Everything started is stopped by ``shutdown(timeout)``, in bounded time, at exit too: nothing is lost."""
    process = start("chaos_ending.py", ending, 1, folder=tmp_path)  # lingers for a second: all of it waits at the end
    errors = ended(process, status=status)
    assert ("Traceback" in errors) == (ending in {"raises", "interrupted"})
    assert numbers(tmp_path / "got") == list(range(1, 201))
    account = report(tmp_path / "account.json")
    assert account == {
        "emitted": 200,
        "accepted": 200,
        "delivered": 200,
        "failed": 0,
        "pending": 0,
        "dropped": {},
        "is_in_use": False,
    }


def test_sigterm_turned_into_an_exit_loses_nothing(tmp_path):
    """A SIGTERM handler that calls ``sys.exit`` has everything delivered whose emit had returned."""
    process = start("chaos_ending.py", "sigterm_exit", LINGER_S, folder=tmp_path)
    wait_until_busy(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    ended(process)
    said, got = numbers(tmp_path / "said"), numbers(tmp_path / "got")
    assert got[: len(said)] == said
    assert len(got) - len(said) in {0, 1}, "the emit that was interrupted may have got through"
    assert report(tmp_path / "account.json")["delivered"] == len(got)


def test_shutdown_may_be_called_by_a_signal_handler(tmp_path):
    """``shutdown`` called from a signal handler, in the middle of an emit, delivers what waits and comes back."""
    process = start("chaos_ending.py", "sigterm_shutdown", LINGER_S, folder=tmp_path)
    wait_until_busy(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    ended(process, status=-signal.SIGKILL)  # it kills itself right after: nothing else can have delivered
    said, got = numbers(tmp_path / "said"), numbers(tmp_path / "got")
    assert got[: len(said)] == said
    assert len(got) - len(said) in {0, 1}


def test_the_offered_handler_of_sigterm_loses_nothing(tmp_path):
    """``ec.shutdown_on_signals()`` has everything delivered, and the exit status is still the signal's."""
    process = start("chaos_ending.py", "sigterm_offered", LINGER_S, folder=tmp_path)
    wait_until_busy(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    ended(process, status=-signal.SIGTERM)
    said, got = numbers(tmp_path / "said"), numbers(tmp_path / "got")
    assert got[: len(said)] == said
    assert len(got) - len(said) in {0, 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_crash_loses_what_waited_and_nothing_else(tmp_path, number):
    """A crash loses best-effort queues up to the linger time: what arrived before is there, in order, without gaps."""
    process = start("chaos_ending.py", "killed", LINGER_S, folder=tmp_path)
    wait_until_busy(tmp_path, process)
    assert eventually(lambda: numbers(tmp_path / "got"), 20)
    process.send_signal(number)  # no handler of ours is installed: SIGTERM kills as it does any Python program
    ended(process, status=-number)
    said, got = numbers(tmp_path / "said"), numbers(tmp_path / "got")
    assert got == list(range(1, len(got) + 1))
    assert 0 < len(got) <= len(said) + 1
    assert not (tmp_path / "account.json").exists(), "atexit does not run"


def test_a_process_that_leaves_without_cleaning_up_loses_what_waited(tmp_path):
    """A crash loses best-effort queues: ``os._exit`` runs no exit hook, so it is as sudden as a signal."""
    ended(start("chaos_ending.py", "os_exit", 1, folder=tmp_path))
    got = numbers(tmp_path / "got")
    assert numbers(tmp_path / "said") == list(range(1, 201))
    assert got == list(range(1, len(got) + 1))
    assert len(got) < 200
    assert not (tmp_path / "account.json").exists()


def test_kill_9_loses_no_acknowledged_row(tmp_path):
    """``kill -9`` or a power cut loses no acknowledged row: the next run hands over all whose emit had returned."""
    process = start("chaos_durable.py", "emit", folder=tmp_path)
    assert eventually(lambda: process.poll() is not None or len(numbers(tmp_path / "said")) > 50, 30)
    process.send_signal(signal.SIGKILL)
    ended(process, status=-signal.SIGKILL)
    said, before = numbers(tmp_path / "said"), numbers(tmp_path / "got")
    assert len(before) < len(said), "nothing was left to hand over"
    ended(start("chaos_durable.py", "drain", folder=tmp_path))
    got = numbers(tmp_path / "got")
    assert set(said) <= set(got) <= {*said, len(said) + 1}
    assert list(dict.fromkeys(got)) == sorted(set(got)), "at least once, and in order"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_multiprocessing(tmp_path, method):
    """A forked child starts with empty queues, a spawned one configures its own: no event is lost or sent twice."""
    workers, each = 3, 100
    ended(start("chaos_workers.py", method, workers, each, folder=tmp_path), timeout_s=50)
    assert numbers(tmp_path / "parent") == list(range(2 * each)), "the parent loses nothing"
    assert report(tmp_path / "parent.json")["dropped"] == {}
    for k in range(1, workers + 1):
        assert numbers(tmp_path / f"worker{k}") == [1_000 * k + n for n in range(each)], "nothing of the parent's"
        account = report(tmp_path / f"worker{k}.json")
        assert account["delivered"] == each
        assert account["pending"] == 0
        assert set(account["dropped"]) <= {"forked"}, "copies of what waited in the parent, and nothing else"
    assert len({report(tmp_path / f"{name}.json")["pid"] for name in ("parent", "worker1", "worker2", "worker3")}) == 4


def test_forks_in_mid_stream(tmp_path):
    """A forked child starts with empty queues: over ten forks in mid-stream each event arrives once."""
    received = tmp_path / "received"
    with ec.Emitter() as emitter:

        def write(envelope):
            file = os.open(received, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(file, f"{os.getpid()} {envelope.event.thread} {envelope.event.n}\n".encode())
            os.close(file)

        handler = emitter.add_handler(Collect(act=write, linger_s=0.005))
        parent, children, emitted = os.getpid(), [], 0
        for _ in range(10):
            for _ in range(50):
                emitted += 1
                emitter.emit(Told(n=emitted, thread=parent))
            child = os.fork()
            if child == 0:
                before = row_of(emitter.ledger(), handler.name)
                status = 1 if before.pending else 0
                for n in range(20):
                    emitter.emit(Told(n=n, thread=os.getpid()))
                clean = emitter.shutdown(10).is_clean
                row = row_of(emitter.ledger(), handler.name)
                exact = row.pending == 0 and row.delivered == before.delivered + 20
                os._exit(status or (0 if clean and exact else 2))
            children.append(child)
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert emitter.flush(10)
        row = row_of(balance(emitter, emitted), handler.name)
        assert (row.delivered, row.dropped) == (emitted, Counter())
    lines = [tuple(map(int, line.split())) for line in received.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == emitted + 10 * 20, "nothing lost, nothing twice"
    assert all(received_by == emitted_by for received_by, emitted_by, _ in lines)


def test_forks_while_other_threads_emit():
    """A forked child owes nothing of what other threads were about to queue: its account is exact from the start."""
    stop = threading.Event()
    with ec.Emitter() as emitter:
        handler = emitter.add_handler(Collect(linger_s=0), name="collect")
        emitted = [0, 0, 0]

        def emit(thread):
            while not stop.is_set():
                emitted[thread] += 1
                emitter.emit(Told(n=emitted[thread], thread=thread))

        threads = [threading.Thread(target=emit, args=(thread,)) for thread in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(15):
                child = os.fork()
                if child == 0:
                    is_exact = all(row.pending == 0 for row in emitter.ledger().rows)
                    os._exit(0 if is_exact and emitter.flush(5) else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert emitter.flush(20)
        balance(emitter, sum(emitted))
        assert in_order(handler)


def test_a_full_disk_fails_exactly_the_lines_that_are_missing(tmp_path):
    """A disk that is full: log and span files keep what fitted, the rest is failed, others get everything."""
    limit = 40_000
    environment = {**os.environ, "PYTHONPATH": str(PROGRAMS.parents[1])}
    ended(start("chaos_full_disk.py", limit, folder=tmp_path, env=environment))
    account = report(tmp_path / "account.json")
    for row in account["rows"]:
        assert row["emitted"] == row["accepted"] + row["filtered"] + row["sampled"], row
        assert row["accepted"] == row["delivered"] + row["failed"] + sum(row["dropped"].values()) + row["pending"], row
        assert row["pending"] == 0, row
        assert set(row["dropped"]) <= {"quarantined", "recursion"}, row  # a report of a handler never goes to itself
    rows = {(row["handler"], row["event"]): row for row in account["rows"]}
    spared = Counter(account["spared"])
    for event in ("chaos.told", "chaos.work"):
        assert rows["spared", event]["delivered"] == spared[event] == 400
    log = (tmp_path / "log.json").read_bytes()
    assert len(log) <= limit
    lines = [line for line in log.split(b"\n") if line.endswith(b"}")]
    told = sum(b'"chaos.told"' in line for line in lines)
    assert 0 < told == rows["log", "chaos.told"]["delivered"] < 400
    assert rows["log", "chaos.told"]["failed"] > 0
    assert rows["span", "chaos.work"]["failed"] > 0
    assert rows["span", "chaos.work"]["delivered"] < 400
