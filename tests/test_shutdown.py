import subprocess
import sys
import textwrap
import threading

import pytest

import eventcore as ec
from tests.support.handlers import Collect, eventually, workers
from tests.support.numbered import Numbered, Work, hold, numbers, row_of


class Alarm(ec.Event, name="alarm", category="system", severity="error"):
    pass


def test_shutdown_delivers_what_waits(emitter):
    """Shutdown delivers what waits, flushes and closes every handler, once."""
    handlers = [emitter.add_handler(Collect(delivery=delivery)) for delivery in ("queued", "inline")]
    for n in range(500):
        emitter.emit(Numbered(n=n))
    report = emitter.shutdown()
    assert report.is_clean
    for handler in handlers:
        assert numbers(handler) == list(range(500))
        assert handler.closed == 1
    assert emitter.shutdown() is report, "a second shutdown does nothing"
    assert handlers[0].closed == 1
    assert eventually(lambda: not workers())


def test_a_handler_that_hangs_cannot_hang_shutdown(emitter):
    """A handler that hangs cannot hang shutdown; what it held and what waited is counted, now and for ever."""
    handler = hold(emitter)
    other = emitter.add_handler(Collect(), name="other")
    for n in range(1, 6):
        emitter.emit(Numbered(n=n))
    (worker,) = [w for w in workers() if w.name == "eventcore-held"]
    report = emitter.shutdown(0.1)
    assert dict(report.abandoned_envelopes) == {"held": 6, "other": 0}
    assert not report.is_clean
    assert numbers(other) == [1, 2, 3, 4, 5]
    row = row_of(emitter, handler)
    assert (dict(row.dropped), row.pending) == ({"shutdown": 6}, 0)
    handler.release.set()
    worker.join(20)
    assert not worker.is_alive()
    late = row_of(emitter, handler)
    assert (dict(late.dropped), late.delivered, late.pending) == ({"shutdown": 6}, 0, 0), "nothing is counted twice"


@pytest.mark.parametrize("delivery", ["inline", "queued"])
@pytest.mark.parametrize("method", ["close", "flush"])
def test_a_handler_whose_close_or_flush_hangs_cannot_hang_shutdown(method, delivery):
    """A handler whose ``close`` or ``flush`` hangs cannot hang shutdown or flush; the others are closed."""
    release = threading.Event()
    emitter = ec.Emitter()

    class Hanging(Collect):
        def _hang(self):
            release.wait(30)

    setattr(Hanging, method, Hanging._hang)
    emitter.add_handler(Hanging(delivery=delivery))
    other = emitter.add_handler(Collect(), name="other")
    emitter.emit(Numbered())
    done = []

    def end():
        emitter.flush(0.1)
        emitter.shutdown(0.2)
        done.append(True)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join(20)
    try:
        assert done == [True]
        assert other.closed == 1
        assert numbers(other) == [0]
    finally:
        release.set()
        thread.join()


def test_a_handler_whose_close_fails_does_not_stop_the_others(emitter):
    """A handler whose ``close`` raises is reported, and the others are closed."""

    class Broken(Collect):
        def close(self):
            raise OSError("cannot close")

    emitter.add_handler(Broken(delivery="inline"), name="broken")
    other = emitter.add_handler(Collect(), name="other")
    report = emitter.shutdown()
    assert other.closed == 1
    assert len(report.errors) == 1
    assert "broken" in report.errors[0]
    assert "cannot close" in report.errors[0]


def test_a_first_failure_does_not_hold_up_shutdown(emitter):
    """A handler that fails for the first time while the emitter shuts down still gets all that waits."""
    gate = threading.Event()

    def act(envelope):
        gate.wait(30)
        if envelope.event.n == 0:
            raise ValueError("the first")

    handler = emitter.add_handler(Collect(act=act, linger_s=0, batch_size=1))
    for n in range(10):
        emitter.emit(Numbered(n=n))
    reports = []
    thread = threading.Thread(target=lambda: reports.append(emitter.shutdown(20)))
    thread.start()
    assert eventually(lambda: emitter.attachments[0].queue._closed)
    gate.set()
    thread.join()
    assert reports[0].is_clean
    assert numbers(handler) == list(range(1, 10))


def test_emitting_after_shutdown_is_counted(emitter):
    """What is emitted after shutdown is dropped and counted; a closed handler is never called again."""
    handlers = [emitter.add_handler(Collect(delivery=delivery), name=delivery) for delivery in ("queued", "inline")]
    emitter.emit(Numbered(n=1))
    emitter.shutdown()
    emitter.emit(Numbered(n=2))
    with emitter.operation(Work):
        pass
    assert [numbers(handler) for handler in handlers] == [[1], [1]]
    for handler in handlers:
        assert dict(row_of(emitter, handler).dropped) == {"shutdown": 1}
    assert emitter.ledger().is_settled
    assert not workers()


def test_shutdown_from_a_handler_does_not_deadlock(emitter):
    """A handler that shuts its emitter down does not wait for itself, and the ledger balances."""
    handler = emitter.add_handler(Collect(act=lambda envelope: emitter.shutdown(5), linger_s=0))
    emitter.emit(Numbered())
    assert eventually(lambda: handler.closed == 1)
    assert eventually(lambda: emitter.ledger().is_settled)


def test_two_threads_may_shut_down_at_once(emitter):
    """Shutdown is idempotent across threads: both get the same report, and handlers are closed once."""
    handler = emitter.add_handler(Collect())
    emitter.emit(Numbered())
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(emitter.shutdown(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(report) for report in reports}) == 1
    assert (handler.closed, numbers(handler)) == (1, [0])


def test_a_shutdown_that_was_cut_off_is_ended_by_the_next(emitter):
    """Everything started is stopped, at exit too: what Ctrl-C leaves of a shutdown is the next call's."""
    handlers = [emitter.add_handler(Collect(delivery=delivery, linger_s=1)) for delivery in ("queued", "inline")]
    emitter.emit(Numbered(n=1))

    def interrupt():
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    interrupted, stopped = [], []
    emitter.on_shutdown.append(interrupt)
    emitter.on_shutdown.append(lambda: stopped.append(True))  # the last comes first
    with pytest.raises(KeyboardInterrupt):
        emitter.shutdown()
    assert emitter.shutdown(20).is_clean
    assert [numbers(handler) for handler in handlers] == [[1], [1]]
    assert [handler.closed for handler in handlers] == [1, 1]
    assert stopped == [True]
    assert not workers()


def test_what_was_started_last_is_stopped_first(emitter):
    """Everything started is stopped, the last first, and before any handler is closed: it may still emit."""
    handler, order = emitter.add_handler(Collect()), []
    for n in range(3):
        emitter.on_shutdown.append(lambda n=n: (order.append(n), emitter.emit(Numbered(n=n))))
    emitter.shutdown()
    assert order == numbers(handler) == [2, 1, 0]


def test_an_idle_emitter_has_no_threads(emitter):
    """No thread is started before it is needed: a worker starts with the first event for its handler."""
    before = len(workers())
    emitter.add_handler(Collect(events=("numbered",)))
    emitter.emit(Alarm())
    assert len(workers()) == before
    emitter.emit(Numbered())
    assert len(workers()) == before + 1


def test_workers_do_not_keep_a_program_alive(emitter):
    """Workers are daemon threads: a program that ends without shutting down is not held up by them."""
    emitter.add_handler(Collect())
    emitter.emit(Numbered())
    assert all(worker.daemon for worker in workers())


def test_everything_is_shut_down_at_exit(tmp_path):
    """Everything started is stopped at exit too: a program that just ends has its events delivered."""
    program = textwrap.dedent("""
        import eventcore as ec

        class Print(ec.Handler):
            def handle(self, envelope):
                print(envelope.name, flush=True)
            def close(self):
                print("closed", flush=True)

        class Said(ec.Event, name="said", category="data"):
            pass

        emitter = ec.configure(service="x", handlers={"print": Print(linger_s=1)})
        emitter.emit(Said())
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["eventcore.started", "said", "eventcore.stopped", "closed"]
    assert done.stderr == ""
