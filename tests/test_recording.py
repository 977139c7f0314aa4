import os
import threading
from typing import Annotated

import pytest

import eventcore as ec
from tests.support.handlers import Clock, Collect, CollectBatches, CollectStarts, Held
from tests.support.numbered import Numbered


class Serve(ec.Operation, name="serve", category="execution", start_message="Serving"):
    path: str
    size: Annotated[int, ec.Measure(unit="By")] = ec.unset


class Read(ec.Operation, name="serve.read", category="data", severity="debug"):
    rows: int


class Ranked(ec.Event, name="serve.ranked", category="data", each=("score",)):
    score: ec.Array[float]


MS = 1_000_000


def unfold(value):
    """Make one request of a number: it reads for 2 ms, ranks, and ends 5 ms after it began."""
    began = value["began"]
    return [
        ec.Past(began, began + 5 * MS, {"path": value["path"], "size": 7}),
        ec.Past(began + MS, began + 3 * MS, {"rows": value["rows"]}),
        ec.Past(began + 4 * MS, began + 4 * MS, {"score": [0.5, 0.25]}),
    ]


SERVED = ec.Recording(Serve, (Read, Ranked), unfold)
NAMES = ["serve", "serve.read", "serve.read", "serve.ranked", "serve"]


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def emitter(clock):
    """Return an emitter with that clock."""
    with ec.Emitter(clock=clock) as emitter:
        yield emitter


def value(emitter, *, rows=3):
    """Return what a request has found that begins now."""
    return {"began": emitter.monotonic_ns(), "path": "/", "rows": rows}


def live(emitter, clock, *, rows=3):
    """Do the same as ``SERVED`` tells, with operations that are entered and left."""
    with emitter.operation(Serve, path="/") as request:
        clock.advance(0.001)
        with emitter.operation(Read, rows=rows):
            clock.advance(0.002)
        clock.advance(0.001)
        emitter.emit(Ranked(score=[0.5, 0.25]))
        clock.advance(0.001)
        request.set(size=7)


def told(envelopes):
    """Return what envelopes say, with ids by the order in which they were met."""
    ids = {0: 0, None: None}

    def known(number):
        return ids.setdefault(number, len(ids))

    return [
        (
            e.name,
            e.phase,
            e.severity,
            dict(e.payload) | {"score": list(e.get("score"))} if e.get("score") else dict(e.payload),
            e.time_ns,
            e.duration_s,
            e.outcome,
            known(e.trace_id),
            known(e.span_id),
            known(e.span.parent_span_id) if e.span else None,
            e.scope.bound,
            e.correlation_id,
        )
        for e in envelopes
        if not e.is_start or e.name != "serve"  # it tells at the start what was known then
    ]


@pytest.mark.parametrize("delivery", ["queued", "inline"])
def test_what_is_recorded_is_what_would_have_been_emitted(emitter, clock, delivery):
    """What is emitted of a recording is the same as from operations that were entered and left."""
    lived = emitter.add_handler(CollectStarts(delivery=delivery))
    with ec.bound(tenant="a", correlation_id="c"):
        began = clock.monotonic
        live(emitter, clock)
        assert emitter.flush()
        expected, lived.got = lived.got, []
        clock.monotonic, clock.wall = began, clock.wall - (clock.monotonic - began)
        found = value(emitter)
        clock.advance(0.005)
        emitter.record(SERVED, found)
    assert emitter.flush()
    assert [e.name for e in lived.got] == NAMES
    assert told(lived.got) == told(expected)
    assert len({e.sequence for e in lived.got}) == len({e.id for e in lived.got}) == len(NAMES)


def test_it_belongs_to_the_current_operation_or_begins_a_trace(emitter):
    """A recording belongs to the operation that is the current one; elsewhere it begins a trace."""
    handler = emitter.add_handler(Collect())
    with emitter.operation(Serve, path="/outer") as outer:
        emitter.record(SERVED, value(emitter))
        trace_id, span_id = outer.trace_id, outer.span_id
    emitter.record(SERVED, value(emitter))
    assert emitter.flush()
    inner, alone = handler.got[2], handler.got[-1]
    assert (inner.name, inner.span.trace_id, inner.span.parent_span_id) == ("serve", trace_id, span_id)
    assert alone.span.trace_id not in {0, trace_id}
    assert alone.span.parent_span_id == 0
    read, ranked = handler.got[-3], handler.got[-2]
    assert read.span.parent_span_id == alone.span.span_id
    assert ranked.span_id == alone.span_id


def test_a_bound_emitter_records_with_its_fields(emitter):
    """What is recorded through a bound emitter has its fields; so have the parts."""
    handler = emitter.add_handler(Collect())
    emitter.bind(tenant="a").record(SERVED, value(emitter))
    assert emitter.flush()
    assert [e.scope.bound for e in handler.got] == [{"tenant": "a"}] * 3


def test_it_keeps_the_order_of_its_thread(emitter):
    """A handler sees one thread's events in emit order, recorded ones among them, in batches of the size asked for."""
    handler = emitter.add_handler(CollectBatches(batch_size=2))
    for n in range(20):
        emitter.emit(Numbered(n=n))
        emitter.record(SERVED, value(emitter, rows=n))
    assert emitter.flush()
    assert handler.names == ["numbered", "serve.read", "serve.ranked", "serve"] * 20
    assert [e.event.rows for e in handler.got if e.name == "serve.read"] == list(range(20))
    assert max(map(len, handler.batches)) == 2


def test_each_handler_gets_what_its_filter_admits(emitter):
    """Each part is filtered, counted and delivered by itself."""
    few = emitter.add_handler(Collect(min_severity="info"), name="few")
    some = emitter.add_handler(Collect(events=("serve.r*",)), name="some")
    none = emitter.add_handler(Collect(events=("other",)), name="none")
    emitter.record(SERVED, value(emitter))
    assert emitter.flush()
    assert few.names == ["serve.ranked", "serve"]
    assert some.names == ["serve.read", "serve.ranked"]
    assert none.got == []
    account = emitter.ledger()
    rows = {(row.handler, row.event): (row.emitted, row.accepted, row.filtered, row.delivered) for row in account.rows}
    assert rows["few", "serve.read"] == (1, 0, 1, 0)
    assert rows["few", "serve"] == rows["few", "serve.ranked"] == (1, 1, 0, 1)
    assert rows["some", "serve"] == rows["none", "serve"] == (1, 0, 1, 0)
    assert account.emitted == 3
    assert account.operations == {"started": 2, "ended": 2}
    assert account.is_settled


def test_enabled_asks_for_all_parts(emitter):
    """``enabled()`` of a recording is whether any handler wants any part of it, however it ends."""
    assert not emitter.enabled(SERVED)
    handler = emitter.add_handler(Collect(events=("serve.ranked",)))
    assert emitter.enabled(SERVED)
    assert not emitter.enabled(Serve)
    emitter.remove_handler(handler)
    emitter.add_handler(Collect(min_severity="error"))
    assert emitter.enabled(Serve)  # a failure is wanted
    assert not emitter.enabled(Ranked)


def test_a_recording_that_nobody_wants_leaves_the_account_right(emitter):
    """Operations that nobody wants are counted as operations; their envelopes are emitted to nobody."""
    emitter.record(SERVED, value(emitter))
    assert emitter.ledger().emitted == 0
    assert emitter.ledger().operations == {"started": 2, "ended": 2}


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_a_full_queue_drops_all_of_it_and_counts_each(emitter, overflow):
    """What a queue has no room for is counted, envelope by envelope; a recording takes one place."""
    handler = emitter.add_handler(Held(queue_size=2, overflow=overflow, linger_s=0, batch_size=1), name="held")
    emitter.emit(Numbered(n=0))
    assert handler.entered.wait(10)
    for n in range(5):
        emitter.record(SERVED, value(emitter, rows=n))
    row = emitter.ledger().handler("held")
    assert (row.accepted, row.dropped["full"], row.pending) == (16, 9, 7)
    queue = emitter.attachments[0].queue
    assert (queue.depth, queue.size, queue.capacity) == (7, 3, 2)  # one of the three places is in its hands
    handler.release.set()
    assert emitter.flush()
    kept = [0, 1] if overflow == "drop_newest" else [3, 4]
    assert [e.event.rows for e in handler.got if e.name == "serve.read"] == kept
    assert emitter.ledger().is_settled


def test_shutdown_counts_what_it_abandons(emitter):
    """What a shutdown abandons is counted envelope by envelope."""
    handler = emitter.add_handler(Held(linger_s=0, batch_size=1), name="held")
    emitter.record(SERVED, value(emitter))
    assert handler.entered.wait(10)
    emitter.record(SERVED, value(emitter))
    report = emitter.shutdown(timeout_s=0.1)
    row = emitter.ledger().handler("held")
    assert row.pending == 0
    assert row.dropped["shutdown"] == report.abandoned_envelopes["held"] == 6
    handler.release.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_leaves_it_to_the_parent(emitter):
    """Nothing of the parent's is sent twice: a child counts what it has inherited as forked, envelope by envelope."""
    handler = emitter.add_handler(Held(linger_s=0, batch_size=1), name="held")
    emitter.emit(Numbered(n=0))
    assert handler.entered.wait(10)
    emitter.record(SERVED, value(emitter))
    child = os.fork()
    if child == 0:
        row = emitter.ledger().handler("held")
        os._exit(0 if (row.recovered, row.dropped["forked"], row.pending) == (4, 4, 0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    handler.release.set()
    assert emitter.flush()
    assert len(handler.got) == 4


def test_many_threads_balance_to_the_last_envelope(emitter):
    """At rest both equations hold exactly, checked against what callers emitted and handlers received."""
    queued = [emitter.add_handler(Collect(queue_size=100_000), name=f"queued_{n}") for n in range(2)]
    per_thread, threads = 500, 8

    def work():
        for n in range(per_thread):
            emitter.record(SERVED, value(emitter, rows=n))
            emitter.emit(Numbered(n=n))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert emitter.flush(30)
    account = emitter.ledger()
    assert account.emitted == 4 * per_thread * threads
    for handler in queued:
        row = account.handler(handler.name)
        assert row.accepted == row.delivered == len(handler.got) == 4 * per_thread * threads
        assert len({e.span_id for e in handler.got if e.name == "serve"}) == per_thread * threads
    first, second = ({e.id for e in handler.got} for handler in queued)
    assert first == second  # the workers share the envelopes
    assert account.is_settled


@pytest.mark.parametrize("delivery", ["queued", "inline"])
@pytest.mark.parametrize("wrong", [lambda _: 1 / 0, lambda _: [], lambda v: [ec.Past(0, 1, {"no": 1})] * 3])
def test_what_cannot_be_unfolded_is_counted_and_reported(emitter, delivery, wrong):
    """An ``unfold`` that fails harms no caller: all of it is counted as invalid, and reported once."""
    handlers = [emitter.add_handler(Collect(delivery=delivery), name=name) for name in ("one", "two")]
    emitter.record(ec.Recording(Serve, (Read, Ranked), wrong), None)
    assert emitter.flush()
    account = emitter.ledger()
    assert [e.event.operation for e in handlers[0].got] == ["serve"]
    for handler in handlers:
        assert handler.names == ["eventcore.invalid_result"]
        assert account.handler(handler.name).dropped["invalid"] == 3
    assert account.is_settled


def test_strict_raises_what_is_wrong_with_it(clock):
    """With ``strict``, for tests, wrong values are raised where they are recorded."""
    with ec.Emitter(clock=clock, strict=True) as emitter:
        emitter.add_handler(Collect())
        with pytest.raises(ZeroDivisionError):
            emitter.record(ec.Recording(Serve, (), lambda _: 1 / 0), None)
        with pytest.raises(ValueError, match="rows"):
            emitter.record(SERVED, value(emitter, rows="many"))
        with pytest.raises(ValueError, match="unfold told of 0 instead of 1"):
            emitter.record(ec.Recording(Serve, (), lambda _: []), None)


def test_a_wrong_value_costs_its_field_only(emitter):
    """Of operations and events with wrong values the valid rest is delivered, and what was left out is reported."""
    handler = emitter.add_handler(Collect())

    def one_wrong(found):
        serve, _, _ = unfold(found)
        return [serve, ec.Past(0, 1, {"rows": "many"}), ec.Past(1, 1, {"score": "text"})]

    emitter.record(ec.Recording(Serve, (Read, Ranked), one_wrong), value(emitter))
    assert emitter.flush()
    by_name = {e.name: e for e in handler.got}
    assert by_name["serve"].payload["size"] == 7
    assert by_name["serve.read"].payload == by_name["serve.ranked"].payload == {}
    reported = [e.event for e in handler.got if e.name == "eventcore.invalid_result"]
    assert {(r.operation, *r.fields) for r in reported} == {("serve.read", "rows"), ("serve.ranked", "score")}


def test_an_interrupted_record_counts_what_it_cut_off(emitter, monkeypatch):
    """A KeyboardInterrupt in the middle passes, and what it cut off is counted as failed."""
    first = emitter.add_handler(Collect(), name="first")
    emitter.add_handler(Collect(), name="second")
    queue = emitter.attachments[1].queue

    def interrupted(_bundle):
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        emitter.record(SERVED, value(emitter))
    monkeypatch.undo()
    assert emitter.flush()
    assert len(first.got) == emitter.ledger().handler("first").delivered == 3
    assert emitter.ledger().handler("second").failed == 3
    assert emitter.ledger().is_settled


def test_a_recording_names_types_that_can_be_emitted():
    """What is no type to be emitted is refused where the recording is made."""
    with pytest.raises(ec.DefinitionError, match="cannot be recorded"):
        ec.Recording(ec.Operation, (), unfold)
    with pytest.raises(ec.DefinitionError, match="cannot be recorded"):
        ec.Recording(Serve, (ec.Event,), unfold)
    with pytest.raises(ec.DefinitionError, match="Ranked is an event"):
        ec.Recording(Ranked, (), unfold)


class Sampled(Collect):
    """Leaves out operations of traces that are not recorded, as the span handler does."""

    takes_unsampled = False
    sampling_ratio = 0.0


def test_what_is_not_sampled_takes_no_place(emitter):
    """Operations of a trace that is not recorded go past handlers that leave those out; their events do not."""
    spans, rest = emitter.add_handler(Sampled(), name="spans"), emitter.add_handler(Collect(), name="rest")
    emitter.recompile()
    emitter.record(SERVED, value(emitter))
    assert emitter.flush()
    assert spans.names == ["serve.ranked"]
    assert rest.names == ["serve.read", "serve.ranked", "serve"]
    row = emitter.ledger().handler("spans")
    assert (row.emitted, row.sampled, row.accepted, row.delivered) == (3, 2, 1, 1)


def test_a_handler_that_samples_decides_in_the_caller(emitter):
    """Where a handler samples, each part is drawn by itself, and counted."""
    emitter.add_handler(Collect(sampling=0.5), name="half")
    for _ in range(200):
        emitter.record(SERVED, value(emitter))
    assert emitter.flush()
    row = emitter.ledger().handler("half")
    assert row.emitted == 600
    assert row.accepted + row.sampled == 600
    assert 150 < row.accepted < 450
    assert row.pending == 0


# -- operations that began earlier, and steps that are over ------------------------------------------------------------


def test_an_operation_may_have_begun_at_the_first_moment(clock):
    """``since`` takes any time of the clock, its beginning too."""
    clock.monotonic = 0
    with ec.Emitter(clock=clock) as emitter:
        handler = emitter.add_handler(Collect(delivery="inline"))
        clock.advance(0.25)
        with emitter.operation(Serve, path="/").since(0):
            clock.advance(0.25)
        assert handler.got[0].duration_s == 0.5


def test_an_operation_may_have_begun_earlier(emitter, clock):
    """``since`` dates an operation back; what is inside may be told as steps with their own times."""
    handler = emitter.add_handler(CollectStarts(delivery="inline"))
    began, wall = clock.monotonic, clock.wall
    clock.advance(0.004)
    with pytest.raises(ZeroDivisionError), emitter.operation(Serve, path="/").since(began) as request:  # noqa: PT012
        request.step(Read, began + MS, began + 2 * MS, rows=1)
        request.step(Read, began + 2 * MS, began + 3 * MS, OSError("gone"), rows=2)
        clock.advance(0.001)
        raise ZeroDivisionError
    assert [(e.name, e.phase, (e.time_ns - wall) // MS, e.outcome) for e in handler.got] == [
        ("serve", "start", 0, None),
        ("serve.read", "start", 1, None),
        ("serve.read", "end", 2, "success"),
        ("serve.read", "start", 2, None),
        ("serve.read", "end", 3, "failure"),
        ("serve", "end", 5, "failure"),
    ]
    assert handler.got[4].error_type == "OSError"
    assert handler.got[-1].duration_s == 0.005
    assert {e.span.parent_span_id for e in handler.got[1:5]} == {handler.got[-1].span.span_id}
    assert emitter.ledger().operations == {"started": 3, "ended": 3}
    with pytest.raises(TypeError, match="no field 'row'"), emitter.operation(Serve, path="/") as request:
        request.step(Read, 0, 1, row=1)
    with pytest.raises(ec.OperationMisuse, match="since"):
        request.since(began)
