import json
import os
import threading
import time

import pytest

import eventcore as ec
from tests.support.handlers import Collect, Held


class Numbered(ec.Event, name="numbered", category="data"):
    n: int = 0


class Work(ec.Operation, name="work", category="execution"):
    n: int = 0


@pytest.fixture
def emitter():
    """Return an emitter of the test's own."""
    with ec.Emitter() as emitter:
        yield emitter


def hold(emitter):
    """Attach a handler that holds its first event, until the test releases it."""
    handler = emitter.add_handler(Held(linger_s=0, batch_size=1))
    emitter.emit(Numbered(n=0))
    assert handler.entered.wait(10)
    return handler


def numbers(handler):
    """Return the numbers of the numbered events that a handler got."""
    return [envelope.event.n for envelope in handler.got if envelope.name == "numbered"]


def row_of(emitter, handler):
    """Return the ledger's row of one handler's numbered events."""
    return next(row for row in emitter.ledger().rows if (row.handler, row.event) == (handler.name, "numbered"))


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
    """A forked child starts with fresh threads and empty queues: what waited is counted there as ``forked``."""
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
