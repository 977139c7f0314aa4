import importlib
import json
import os
import threading
import time

import pytest

import eventcore as ec
from tests.support.handlers import Collect
from tests.support.numbered import Numbered, Work, hold, numbers, row_of


def forked(work, timeout_s=20):
    """Run ``work`` in a forked child and return the JSON it gives, or fail if it hangs."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            os.write(write_end, json.dumps(work()).encode())
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(write_end, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    deadline = time.monotonic() + timeout_s
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked child hangs")
        time.sleep(0.005)
    with os.fdopen(read_end) as pipe:
        return json.loads(pipe.read())


def test_a_forked_child_starts_empty(emitter):
    """A forked child starts with fresh threads and empty queues: copies of what waited are counted as ``forked``."""
    handler = hold(emitter)
    for n in range(1, 6):
        emitter.emit(Numbered(n=n))

    def child():
        handler.release.set()
        inherited = row_of(emitter, handler)
        emitter.emit(Numbered(n=100))
        flushed = emitter.flush(10)
        row = row_of(emitter, handler)
        return {
            "forked": inherited.dropped["forked"],
            "inherited_pending": inherited.pending,
            "flushed": flushed,
            "got": numbers(handler),
            "pending": row.pending,
            "delivered": row.delivered,
            "operations": len(emitter.open_operations()),
        }

    with emitter.operation(Work):
        result = forked(child)
    assert result == {
        "forked": 6,
        "inherited_pending": 0,
        "flushed": True,
        "got": [100],
        "pending": 0,
        "delivered": 1,
        "operations": 0,
    }
    handler.release.set()
    assert emitter.flush()
    assert numbers(handler) == [0, 1, 2, 3, 4, 5], "the parent loses nothing"
    assert not row_of(emitter, handler).dropped


def test_a_forked_childs_account_is_its_own(emitter):
    """A forked child starts with a fresh ledger: what the parent has counted is the parent's to tell."""
    emitter.add_handler(Collect(delivery="inline"), name="inline")
    queued = emitter.add_handler(Collect(), name="queued")
    with emitter.operation(Work):
        emitter.emit(Numbered(n=1))
    emitter.operation(Work).end()  # a misuse
    assert emitter.flush()
    before = str(emitter.ledger())

    def child():
        fresh = emitter.ledger()
        with emitter.operation(Work):
            emitter.emit(Numbered(n=2))
        flushed = emitter.flush(10)
        after = emitter.ledger()
        rows = {name: [row.emitted, row.accepted, row.delivered, row.recovered] for name, row in after.handlers.items()}
        return [fresh.rows == (), dict(fresh.operations), len(emitter.misuses.counts), flushed, rows, after.outcomes]

    outcomes = {"success": 1, "failure": 0, "cancelled": 0, "abandoned": 0}
    with emitter.operation(Work):  # open in the parent, and not the child's
        told = forked(child)
    assert told == [True, {}, 0, True, {"inline": [2, 2, 2, 0], "queued": [2, 2, 2, 0]}, outcomes]
    assert emitter.flush()
    assert str(emitter.ledger()) != before
    assert queued.names.count("work") == 2


@pytest.mark.parametrize("delivery", ["inline", "queued", "durable"])
def test_a_handler_that_forks_keeps_both_accounts(emitter, delivery):
    """The child of a fork in the middle of a dispatch goes on with it, counts it once, and so does the parent."""
    told = []

    def fork(envelope):
        if envelope.event.n == 1:
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(read_end)
                told.append(write_end)
            else:
                os.close(write_end)
                with os.fdopen(read_end) as pipe:
                    told.append(json.loads(pipe.read() or "null"))
                os.waitpid(child, 0)

    parent = os.getpid()
    emitter.add_handler(Collect(delivery="inline"), name="before")
    emitter.add_handler(Collect(act=fork, delivery=delivery, linger_s=0), name="forks")
    emitter.add_handler(Collect(), name="after")

    def account():
        assert emitter.flush(10)
        rows = emitter.ledger().rows
        assert all(row.accepted + row.recovered == row.settled for row in rows), rows
        assert all(min(row.accepted, row.recovered, row.delivered) >= 0 for row in rows), rows
        return [[row.handler, row.accepted, row.recovered, row.delivered, dict(row.dropped)] for row in rows]

    try:
        for n in range(3):
            emitter.emit(Numbered(n=n))
        if delivery == "inline":
            got = account()
            if os.getpid() != parent:
                os.write(told[0], json.dumps(got).encode())
        else:
            assert emitter.flush(10)  # the child has only the forking thread, which ends with its worker's work
            got = account()
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert [[row[1], row[3]] for row in got] == [[3, 3]] * 3
    if delivery == "inline":
        child = {name: rest for name, *rest in told[0]}
        assert child["before"] == [1, 1, 2, {}]
        assert child["forks"] == [1, 1, 2, {}]


def test_an_operation_of_the_parent_does_not_end_in_a_child(emitter):
    """An operation that was open at the fork ends once, in the parent; in a child its block delivers nothing."""
    handlers = [emitter.add_handler(Collect(delivery=delivery)) for delivery in ("inline", "queued")]
    operation = emitter.operation(Work)

    def child():
        operation.set(n=7)
        operation.__exit__(None, None, None)
        emitter.emit(Numbered(n=1))
        emitter.flush(10)
        is_outside = ec.current_trace().trace_id is None
        return [is_outside, len(emitter.misuses.counts), [handler.names for handler in handlers]]

    with operation:
        told = forked(child)
    assert told == [True, 0, [["numbered"], ["numbered"]]]
    assert emitter.flush()
    assert [[envelope.event.n for envelope in handler.got] for handler in handlers] == [[0], [0]]


def test_a_fork_during_shutdown_leaves_the_child_its_own_end(emitter):
    """A child that was forked while another thread shut the emitter down can shut it down itself, at once."""
    closing, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    class Slow(Collect):
        def close(self):
            super().close()
            if os.getpid() == parent:
                closing.set()
                go_on.wait(20)

    handler = emitter.add_handler(Slow())
    thread = threading.Thread(target=emitter.shutdown, args=(20,))
    thread.start()
    assert closing.wait(10)
    told = forked(lambda: [emitter.shutdown(10).is_clean, handler.closed])
    go_on.set()
    thread.join()
    assert told == [True, 2], "here, and by the thread that is left in the parent"
    assert handler.closed == 1


def test_a_forked_child_has_fresh_locks(emitter):
    """A forked child does not inherit a lock that another thread held: whatever that was, the child goes on."""
    emitter.add_handler(Collect(linger_s=0), name="queued")
    emitter.add_handler(Collect(delivery="inline"), name="inline")
    emitter.emit(Numbered())
    assert emitter.flush()
    attachments = emitter.attachments
    locks = [attachment.quarantine.breaker._lock for attachment in attachments]
    locks += [
        attachments[0].queue._settling,
        attachments[0].queue._starting,
        emitter._attachments.changing,
        emitter._ledger._lock,
    ]
    taken, release = threading.Event(), threading.Event()

    def hold():
        for lock in locks:
            lock.acquire()
        taken.set()
        release.wait(30)
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(10)

    def child():
        def fail(envelope):
            raise OSError("fails in the child")

        emitter.add_handler(Collect(act=fail, delivery="inline"), name="child")
        ec.emit_event("made.in_child", severity="debug")
        for n in range(20):
            emitter.emit(Numbered(n=n))
        flushed = emitter.flush(10)
        emitter.remove_handler("queued")
        return [flushed, emitter.ledger().is_settled, emitter.shutdown(5).abandoned_operations]

    try:
        assert forked(child) == [True, True, 0]
    finally:
        release.set()
        thread.join()


def test_a_fork_waits_for_imports_of_workers(tmp_path, monkeypatch):
    """A worker that imports the event types of plugins leaves no held import lock in a child: the fork waits for it."""
    (tmp_path / "slow_types.py").write_text("import time\nentered.set()\ntime.sleep(0.5)\ndone = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    entered = threading.Event()
    monkeypatch.setattr("builtins.entered", entered, raising=False)

    def contributed():
        assert importlib.import_module("slow_types").done
        return []

    catalog = ec.Catalog(contributed=contributed)
    worker = threading.Thread(target=lambda: catalog.events)
    worker.start()
    assert entered.wait(10)

    def child():
        return [contributed(), "eventcore.handler" in catalog.events]

    assert forked(child, timeout_s=5) == [[], True]
    worker.join()


def test_a_forked_childs_ids_are_its_own(emitter):
    """Parent and child never make the same event id, although both go on from the same state."""
    handler = emitter.add_handler(Collect(delivery="inline"))
    emitter.emit(Numbered())

    def make():
        for n in range(20):
            emitter.emit(Numbered(n=n))
        with emitter.operation(Work):
            pass
        return [envelope.id for envelope in handler.got[1:]] + [handler.got[-1].trace_id]

    child = forked(make)
    assert set(child).isdisjoint(make())
    assert len(set(child)) == 22


def test_a_child_that_shuts_down_leaves_the_parent_alone(emitter):
    """A child that shuts its copy down does not end the parent's."""
    handler = emitter.add_handler(Collect(linger_s=0))
    emitter.emit(Numbered(n=1))
    assert emitter.flush()
    assert forked(lambda: emitter.shutdown(5).is_clean) is True
    emitter.emit(Numbered(n=2))
    assert emitter.flush()
    assert numbers(handler) == [1, 2]
    assert handler.closed == 0
