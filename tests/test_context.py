import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import eventcore as ec
from eventcore.context import ROOT, current_scope, format_traceparent, parse_traceparent
from eventcore.propagation import parse_tracestate
from tests.support.handlers import Collect

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"


class Noted(ec.Event, name="noted", category="data"):
    n: int = 0


class Work(ec.Operation, name="work", category="execution"):
    n: int = 0


@pytest.fixture
def handler(emitter):
    """Return an inline handler that keeps everything."""
    return emitter.add_handler(Collect(delivery="inline"))


# -- traceparent -------------------------------------------------------------------------------------------------------


def test_a_traceparent_is_read():
    """A W3C ``traceparent`` gives trace id, span id and the sampled flag."""
    assert parse_traceparent(HEADER) == (int(TRACE, 16), int(SPAN, 16), True)
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00") == (int(TRACE, 16), int(SPAN, 16), False)


def test_only_the_lowest_flag_means_sampled():
    """Other flags than the lowest bit are not ours to read."""
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-02")[2] is False
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-ff")[2] is True


@pytest.mark.parametrize("header", [f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-brings"])
def test_a_future_version_is_read_as_far_as_known(header):
    """A higher version is read as version 00 is, with or without more behind it, as W3C asks."""
    assert parse_traceparent(header) == (int(TRACE, 16), int(SPAN, 16), True)


def test_space_around_the_header_is_ignored():
    """Optional white space around a header value does not matter."""
    assert parse_traceparent(f" {HEADER}\t") is not None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-0A",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-extra",
        f"00-{TRACE}-{SPAN}-01-",
        f"0-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01what",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{'g' * 32}-{SPAN}-01",
        f"{HEADER},{HEADER}",
        f"00-{TRACE}-{SPAN}-01\n00",
        f"00-{'٣' * 32}-{SPAN}-01",
    ],
)
def test_an_invalid_traceparent_is_ignored(header):
    """A header that the W3C rules call invalid is ignored as a whole."""
    assert parse_traceparent(header) is None


def test_a_traceparent_is_written():
    """What is written is what W3C reads: version 00, lower case, padded with zeros."""
    assert format_traceparent(0xABC, 0xDEF, sampled=True) == f"00-{'abc':0>32}-{'def':0>16}-01"
    assert format_traceparent(int(TRACE, 16), int(SPAN, 16), sampled=False) == f"00-{TRACE}-{SPAN}-00"


def test_an_incoming_trace_is_continued(emitter, handler):
    """Operations inside ``continue_trace`` belong to the trace of the caller, and are its span's children."""
    with ec.continue_trace(HEADER, tracestate="vendor=1"), emitter.operation(Work):
        trace = ec.current_trace()
        assert trace.trace_id == TRACE
        assert trace.span_id != SPAN
        assert trace.tracestate == "vendor=1"
        assert trace.sampled
        assert trace.traceparent == f"00-{TRACE}-{trace.span_id}-01"
    span = handler.got[0].span
    assert f"{span.parent_span_id:016x}" == SPAN
    assert span.parent_is_remote
    assert handler.got[0].trace_id == TRACE


def test_an_event_in_an_incoming_trace_bears_its_ids(emitter, handler):
    """A plain event inside ``continue_trace`` has the ids of the incoming span."""
    with ec.continue_trace(HEADER):
        emitter.emit(Noted())
    assert (handler.got[0].trace_id, handler.got[0].span_id) == (TRACE, SPAN)


def test_the_incoming_trace_is_not_the_operation_around_it(emitter, handler):
    """Continuing a trace inside an operation leaves that operation: it is current again afterwards."""
    with emitter.operation(Work) as op:
        with ec.continue_trace(HEADER):
            assert ec.current_operation() is None
            emitter.emit(Noted())
        assert ec.current_operation() is op
    assert handler.got[0].trace_id == TRACE


@pytest.mark.parametrize("header", [None, "", "garbage", f"ff-{TRACE}-{SPAN}-01"])
def test_a_missing_or_malformed_header_starts_no_trace(emitter, handler, header):
    """A missing or malformed header is as none: the operation starts a trace of its own, without a parent."""
    with ec.continue_trace(header, tracestate="vendor=1"), emitter.operation(Work):
        assert ec.current_trace().tracestate is None
    span = handler.got[0].span
    assert span.parent_span_id == 0
    assert span.trace_id != 0
    assert not span.parent_is_remote


def test_baggage_comes_along():
    """Baggage of a request is kept with its trace, and what was there before stays."""
    with ec.continue_trace(HEADER, baggage={"tenant": "a"}), ec.continue_trace(None, baggage={"user": "b"}):
        assert current_scope().baggage == {"tenant": "a", "user": "b"}
    assert current_scope() is ROOT


def test_outside_a_trace_there_are_no_ids():
    """Outside a trace ids and header are None."""
    trace = ec.current_trace()
    assert (trace.trace_id, trace.span_id, trace.traceparent, trace.sampled) == (None, None, None, False)
    assert ec.current_operation() is None


# -- nesting -----------------------------------------------------------------------------------------------------------


def test_operations_nest(emitter, handler):
    """An operation inside another is its child in the same trace; afterwards the outer one is current again."""
    with emitter.operation(Work) as outer:
        assert ec.current_operation() is outer
        with emitter.operation(Work) as inner:
            assert ec.current_operation() is inner
            emitter.emit(Noted())
        assert ec.current_operation() is outer
        assert ec.current_trace().span_id == f"{outer.span_id:016x}"
    assert ec.current_operation() is None
    noted, inside, outside = handler.got
    assert noted.span_id == inside.span_id
    assert inside.span.parent_span_id == outside.span.span_id
    assert {envelope.trace_id for envelope in handler.got} == {outside.trace_id}
    assert outside.span.parent_span_id == 0


def test_separate_operations_are_separate_traces(emitter, handler):
    """Operations that are not nested have traces of their own."""
    for _ in range(2):
        with emitter.operation(Work):
            pass
    assert handler.got[0].trace_id != handler.got[1].trace_id


def test_bound_fields_are_on_everything_inside(emitter, handler):
    """``ec.bound`` puts fields on everything emitted inside; inner ones win and end with their block."""
    with ec.bound(tenant="a", shard=1):
        emitter.emit(Noted())
        with ec.bound(shard=2), emitter.operation(Work):
            emitter.emit(Noted())
        emitter.emit(Noted())
    emitter.emit(Noted())
    bound = [dict(envelope.scope.bound) for envelope in handler.got]
    both = {"tenant": "a", "shard": 2}
    assert bound == [{"tenant": "a", "shard": 1}, both, both, {"tenant": "a", "shard": 1}, {}]


def test_fields_may_be_bound_inside_an_operation(emitter, handler):
    """Binding inside an operation keeps its trace and leaves the operation itself alone."""
    with emitter.operation(Work) as op, ec.bound(step="x"):
        assert ec.current_operation() is op
        emitter.emit(Noted())
    noted, work = handler.got
    assert noted.scope.bound == {"step": "x"}
    assert noted.span_id == work.span_id
    assert work.scope.bound == {}


def test_a_correlation_id_is_an_envelope_fact(emitter, handler):
    """A correlation id bound around an emit is on its envelope, on operations too, and inner blocks inherit it."""
    with ec.bound(correlation_id="req-1"), ec.bound(other=1), emitter.operation(Work):
        emitter.emit(Noted())
    emitter.emit(Noted())
    assert [envelope.correlation_id for envelope in handler.got] == ["req-1", "req-1", None]
    assert handler.got[0].get("correlation_id") == "req-1"
    assert "correlation_id" not in handler.got[0].scope.bound


def test_a_block_that_raises_restores_the_scope(emitter):
    """The scope is restored when a block is left by an exception."""
    with pytest.raises(ZeroDivisionError), ec.bound(a=1), emitter.operation(Work):
        raise ZeroDivisionError
    assert current_scope() is ROOT


# -- threads and tasks -------------------------------------------------------------------------------------------------


def test_a_thread_starts_without_a_scope(emitter):
    """A new thread does not inherit the scope of the one that started it."""
    found = []
    with emitter.operation(Work), ec.bound(a=1):
        thread = threading.Thread(target=lambda: found.append((ec.current_operation(), current_scope().bound)))
        thread.start()
        thread.join()
    assert found == [(None, {})]


def test_a_copied_context_carries_the_scope_into_a_thread(emitter, handler):
    """Operations work across threads: a copied context makes the worker's operation a child."""
    with emitter.operation(Work) as outer:

        def inside():
            with emitter.operation(Work):
                pass

        thread = threading.Thread(target=contextvars.copy_context().run, args=(inside,))
        thread.start()
        thread.join()
        assert ec.current_operation() is outer
    inner, outer = handler.got
    assert inner.span.parent_span_id == outer.span.span_id


def test_an_operation_may_end_in_another_thread(emitter, handler):
    """An operation whose scope was left in one thread may be ended in another."""
    op = emitter.operation(Work).__enter__()
    op.suspend()
    assert current_scope() is ROOT
    thread = threading.Thread(target=op.end)
    thread.start()
    thread.join()
    assert handler.got[0].outcome == "success"
    assert not emitter.open_operations()


def test_threads_do_not_see_each_others_scopes(emitter, handler):
    """Eight threads with nested operations keep their traces apart."""
    barrier = threading.Barrier(8)

    def work(n):
        barrier.wait()
        for _ in range(50):
            with ec.bound(worker=n), emitter.operation(Work, n=n), emitter.operation(Work, n=n):
                assert current_scope().bound == {"worker": n}

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_trace = {}
    for envelope in handler.got:
        by_trace.setdefault(envelope.trace_id, []).append(envelope)
    assert len(by_trace) == 400
    assert all(len({e.event.n for e in trace}) == 1 and len(trace) == 2 for trace in by_trace.values())


def test_tasks_inherit_the_scope_and_keep_their_own(emitter, handler):
    """A task starts in the scope of its creator, and what it enters is its own."""

    async def child(n):
        with ec.bound(child=n):
            async with emitter.operation(Work, n=n):
                await asyncio.sleep(0)
                assert current_scope().bound == {"request": "r", "child": n}
                assert ec.current_operation().fields["n"] == n
                await asyncio.sleep(0)

    async def main():
        with ec.bound(request="r"):
            async with emitter.operation(Work, n=-1) as parent:
                await asyncio.gather(*(child(n) for n in range(10)))
                assert ec.current_operation() is parent

    asyncio.run(main())
    *children, parent = handler.got
    assert {envelope.span.parent_span_id for envelope in children} == {parent.span.span_id}
    assert len({envelope.span_id for envelope in handler.got}) == 11


def test_a_task_that_outlives_an_operation_has_no_open_one(emitter):
    """``current_operation`` is the innermost open operation: one that has ended is none."""

    async def main():
        go = asyncio.Event()

        async def late():
            await go.wait()
            return ec.current_operation(), ec.current_trace().trace_id

        with emitter.operation(Work) as op:
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        go.set()
        return op, await task

    op, (current, trace_id) = asyncio.run(main())
    assert current is None
    assert trace_id == f"{op.trace_id:032x}", "what it emits still belongs to that trace"


def test_scopes_and_traces_print_themselves(emitter):
    """A scope and a trace print their traceparent."""
    with ec.continue_trace(HEADER), ec.bound(a=1):
        assert repr(current_scope()) == f"Scope({HEADER}, bound={{'a': 1}})"
        assert repr(ec.current_trace()) == f"Trace({HEADER})"
    assert repr(ec.current_trace()) == "Trace(none)"


# -- headers in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_a_trace_is_continued_from_http_headers(emitter, handler, case):
    """``continue_trace`` takes the headers of a request, in any case, with tracestate and baggage."""
    headers = {"Host": "x", case("traceparent"): HEADER, case("tracestate"): "vendor=1"}
    headers[case("baggage")] = "tenant=a%20b, user = caf%C3%A9 ;property=1"
    with ec.continue_trace(headers), emitter.operation(Work):
        pass
    envelope = handler.got[0]
    assert (envelope.trace_id, envelope.span.parent_span_id) == (TRACE, int(SPAN, 16))
    assert envelope.scope.tracestate == "vendor=1"
    assert envelope.scope.baggage == {"tenant": "a b", "user": "café"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "garbage", "tracestate": "vendor=1"},
        {"tracestate": "vendor=1"},
        {"traceparent": HEADER, "Traceparent": HEADER},
    ],
)
def test_headers_without_one_valid_traceparent_start_no_trace(headers):
    """Without exactly one valid traceparent no trace is continued, and tracestate is ignored; baggage counts."""
    with ec.continue_trace({**headers, "baggage": "a=1"}) as scope:
        assert (scope.trace_id, scope.tracestate, scope.is_remote) == (0, None, False)
        assert scope.baggage == {"a": "1"}


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("a=1,b=2", "a=1,b=2"),
        (" a=1 ,, \tb=2,", "a=1,b=2"),
        ("tenant@vendor=x y!,0z/*-_=~", "tenant@vendor=x y!,0z/*-_=~"),
        ("", None),
        ("a", None),
        ("a=", None),
        ("A=1", None),
        ("a=1,a=2", None),
        ("a=1,b==2", None),
        ("a=1;2,b=é", None),
        (f"{'k' * 257}=1", None),
        (f"a={'v' * 257}", None),
        (",".join(f"k{i}=v" for i in range(33)), None),
        (",".join(f"k{i}=v" for i in range(32)), ",".join(f"k{i}=v" for i in range(32))),
        (f"first=1,large={'v' * 200},second={'v' * 240},third={'v' * 100}", f"first=1,third={'v' * 100}"),
    ],
)
def test_a_tracestate_is_kept_if_it_is_valid(header, kept):
    """An invalid tracestate is left out whole; a valid one beyond 512 characters loses its large members first."""
    with ec.continue_trace({"traceparent": HEADER, "tracestate": header}) as scope:
        assert scope.traceparent == HEADER
        assert scope.tracestate == kept


def test_a_long_tracestate_loses_its_end():
    """Where no member is large, those at the end go, for the newest stand first."""
    header = ",".join(f"k{i:02}={'v' * 30}" for i in range(20))
    assert len(parse_tracestate(header)) <= 512
    assert header.startswith(parse_tracestate(header))


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("", {}),
        ("garbage", {}),
        ("a=1,garbage,b=2", {"a": "1", "b": "2"}),
        ("a=", {"a": ""}),
        ('=1,two words=1,a=x y,b=",c=\\,d=1', {"d": "1"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=%ff", {"a": "�"}),
        ("a=b=c", {"a": "b=c"}),
        ("é=1,b=é", {}),
    ],
)
def test_malformed_baggage_is_left_out(header, kept):
    """Entries that are malformed are left out, and do not take the others with them."""
    with ec.continue_trace({"baggage": header}) as scope:
        assert scope.baggage == kept


def test_baggage_is_bounded_on_its_way_in():
    """At most 64 entries and 8,192 bytes are taken, whole entries only."""
    with ec.continue_trace({"baggage": ",".join(f"k{i}=v" for i in range(100))}) as scope:
        assert list(scope.baggage) == [f"k{i}" for i in range(64)]
    with ec.continue_trace({"baggage": f"a=1,b={'v' * 8000},c={'v' * 8000},d=1"}) as scope:
        assert scope.baggage == {"a": "1", "b": "v" * 8000}
    with ec.continue_trace({"baggage": f"a={'v' * 9000}"}) as scope:
        assert scope.baggage == {}


# -- headers out -------------------------------------------------------------------------------------------------------


def test_headers_are_written_for_outgoing_calls(emitter):
    """``inject`` writes the three headers of the current span; what comes in goes out."""
    with ec.continue_trace(HEADER, tracestate="vendor=1"), ec.baggage(tenant="a b"), emitter.operation(Work) as op:
        headers = ec.inject()
    assert headers == {
        "traceparent": f"00-{TRACE}-{op.span_id:016x}-01",
        "tracestate": "vendor=1",
        "baggage": "tenant=a%20b",
    }


def test_inject_replaces_what_is_there(emitter):
    """``inject`` writes into the headers it is given, and leaves one of each, whatever case it had."""
    headers = {"Accept": "*/*", "TraceParent": HEADER, "Baggage": "old=1", "TRACESTATE": "old=1"}
    with emitter.operation(Work) as op:
        assert ec.inject(headers) is headers
    assert headers == {"Accept": "*/*", "traceparent": op.traceparent}


def test_inject_outside_a_trace_writes_nothing():
    """Without trace and baggage there is nothing to write."""
    assert ec.inject() == {}


def test_baggage_survives_the_way_through_headers():
    """What ``baggage`` binds, ``continue_trace`` finds on the other side, whatever characters it has."""
    entries = {"plain": "x", "odd": '%, ;="\\é\n☃', "empty": "", "e-mail": "a@b?c"}
    with ec.baggage(**entries):
        headers = ec.inject()
    assert headers["baggage"].isascii()
    assert headers["baggage"].isprintable()
    with ec.continue_trace(headers) as scope:
        assert scope.baggage == entries


def test_baggage_is_bounded_on_its_way_out():
    """At most 64 entries and 8,192 bytes leave; an entry that does not fit does not take the later ones with it."""
    with ec.baggage(**{f"k{i}": "v" for i in range(100)}):
        assert ec.inject()["baggage"].count(",") == 63
    with ec.baggage(large="v" * 8190, small="1"):
        assert ec.inject()["baggage"] == "small=1"


def test_baggage_nests_and_ends_with_its_block():
    """Inner baggage adds to outer baggage; after the block it is gone."""
    with ec.baggage(a="1", b="1"):
        with ec.baggage(b="2"):
            assert current_scope().baggage == {"a": "1", "b": "2"}
        assert current_scope().baggage == {"a": "1", "b": "1"}
    assert current_scope() is ROOT


def test_a_baggage_name_must_fit_a_header():
    """A name that no header can carry is an error where it is given; one from elsewhere is left out."""
    with pytest.raises(ValueError, match="'two words' cannot name baggage"), ec.baggage(**{"two words": "1"}):
        pass
    with ec.continue_trace(None, baggage={"two words": "1", "a": "1"}):
        assert ec.inject() == {"baggage": "a=1"}


# -- bound until unbound -----------------------------------------------------------------------------------------------


def test_fields_are_bound_until_unbound(emitter, handler):
    """``bind_context`` holds for everything emitted in the context until ``unbind_context`` names it."""
    ec.bind_context(request_id="req-123", user_id="user-456", correlation_id="c1")
    emitter.emit(Noted())
    ec.bind_context(user_id="user-789")
    with emitter.operation(Work):
        emitter.emit(Noted())
    ec.unbind_context("user_id", "correlation_id", "never_bound")
    emitter.emit(Noted())
    ec.unbind_context("request_id")
    emitter.emit(Noted())
    seen = [(dict(e.scope.bound), e.scope.correlation_id) for e in handler.got if e.name == "noted"]
    assert seen == [
        ({"request_id": "req-123", "user_id": "user-456"}, "c1"),
        ({"request_id": "req-123", "user_id": "user-789"}, "c1"),
        ({"request_id": "req-123"}, None),
        ({}, None),
    ]


def test_what_is_bound_in_a_block_ends_with_it(emitter):
    """A binding made inside an operation stays inside it, and the operation remains the current one."""
    with emitter.operation(Work) as op:
        ec.bind_context(a=1)
        assert ec.current_operation() is op
        assert current_scope().bound == {"a": 1}
    assert current_scope() is ROOT


def test_tasks_bind_for_themselves():
    """A binding made in a task is not seen by its siblings or by whoever started it."""

    async def task(name):
        ec.bind_context(name=name)
        await asyncio.sleep(0)
        return current_scope().bound

    async def main():
        return await asyncio.gather(task("a"), task("b"))

    assert asyncio.run(main()) == [{"name": "a"}, {"name": "b"}]
    assert current_scope() is ROOT


# -- thread pools ------------------------------------------------------------------------------------------------------


def test_a_pool_runs_in_the_context_of_its_caller(emitter, handler):
    """``in_context`` takes the context into an executor, for many calls at once, and nothing comes back."""
    barrier = threading.Barrier(4)

    def work(n):
        barrier.wait(10)
        ec.bind_context(n=n)
        with emitter.operation(Work, n=n):
            barrier.wait(10)
        return current_scope().bound

    with ThreadPoolExecutor(4) as pool:
        with emitter.operation(Work) as outer, ec.bound(request="r"):
            results = pool.map(ec.in_context(work), range(4))
        assert list(results) == [{"request": "r", "n": n} for n in range(4)]
        assert list(pool.map(lambda _: current_scope(), range(4))) == [ROOT] * 4
    inner = [e for e in handler.got if e.span is not outer]
    assert {e.span.parent_span_id for e in inner} == {outer.span_id}
    assert current_scope() is ROOT


def test_in_context_keeps_name_arguments_and_exceptions():
    """The wrapped function is called as it is, and raises what it raises."""

    def work(a, *, b):
        """Work."""
        if b is None:
            raise LookupError(a)
        return a, b

    wrapped = ec.in_context(work)
    assert (wrapped.__name__, wrapped.__doc__, wrapped(1, b=2)) == ("work", "Work.", (1, 2))
    with pytest.raises(LookupError, match="1"):
        wrapped(1, b=None)


def test_in_context_refuses_what_others_drive():
    """Coroutine functions and generators run in their driver's context, so wrapping them is an error."""

    async def coroutine():
        pass

    def generator():
        yield

    async def async_generator():
        yield

    for function in (coroutine, generator, async_generator):
        with pytest.raises(TypeError, match="in_context takes a plain function"):
            ec.in_context(function)


def test_a_block_in_an_async_generator_may_be_left_in_another_task(emitter, caplog):
    """``bound``, ``baggage`` and ``continue_trace`` in an async generator closed elsewhere harm neither context."""

    async def generator():
        with ec.continue_trace(HEADER), ec.bound(a=1), ec.baggage(b="2"):
            yield

    async def main():
        running = generator()
        await asyncio.create_task(running.__anext__())
        with ec.bound(mine=1):
            await running.aclose()
            assert current_scope().bound == {"mine": 1}
        assert current_scope() is ROOT

    asyncio.run(main())
    assert not caplog.records
