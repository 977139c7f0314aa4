"""OpenTelemetry in the same process: its spans under ours, ours under its, with its real SDK."""

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import eventcore as ec
from eventcore.context import ROOT, current_scope
from eventcore_span.handler import SpanHandler
from tests.support.handlers import Collect

REMOTE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Work(ec.Operation, name="work", category="execution"):
    n: int = 0


class Theirs:
    """Another library's tracing: the real SDK, with a provider of its own that is not the global one."""

    def __init__(self, **options):
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False, **options)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("theirs")

    def span(self, name="theirs", **options):
        return self.tracer.start_as_current_span(name, **options)

    @property
    def spans(self):
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def theirs():
    """Return the SDK of another library in this process."""
    return Theirs()


@pytest.fixture
def emitter():
    """Return an emitter that shares parents with OpenTelemetry."""
    with ec.configure(handlers={"span": {"exporter": "memory", "interop": "on"}}) as emitter:
        yield emitter


def ours(emitter):
    """Return our finished spans by name."""
    emitter.flush()
    return {span.name: span for span in emitter.handler("span").exporter.spans}


def ids(span_context):
    """Return what a child takes over of a parent."""
    return span_context.trace_id, span_context.span_id, bool(span_context.trace_flags.sampled)


# -- theirs under ours -------------------------------------------------------------------------------------------------


def test_their_span_finds_our_operation_as_parent(emitter, theirs):
    """An instrumented library's span inside an operation is its child: same trace, same flag, same tracestate."""
    with ec.continue_trace(REMOTE, tracestate="vendor=1"), emitter.operation(Work) as op, theirs.span():
        pass
    span = theirs.spans["theirs"]
    assert ids(span.parent) == (op.trace_id, op.span_id, True)
    assert span.context.trace_id == op.trace_id
    assert span.parent.trace_state.to_header() == "vendor=1"
    assert not span.parent.is_remote


def test_their_span_under_an_unsampled_operation_is_not_sampled(theirs):
    """Our decision holds for them too: nothing of an unsampled trace is recorded."""
    with ec.configure(handlers={"span": {"exporter": "memory", "interop": "on", "sampling_ratio": 0}}) as emitter:
        with emitter.operation(Work) as op, theirs.span() as span:
            assert not trace.get_current_span().is_recording()
            assert span.get_span_context().trace_id == op.trace_id
        assert theirs.spans == {}
        assert ours(emitter) == {}


def test_headers_that_they_write_name_our_operation(emitter):
    """Their propagator writes the header that ours would write."""
    with ec.continue_trace(REMOTE, tracestate="vendor=1"), emitter.operation(Work):
        headers = {}
        TraceContextTextMapPropagator().inject(headers)
        assert headers == ec.inject()


def test_their_context_is_as_before_after_an_operation(emitter, theirs):
    """The operation leaves OpenTelemetry's context as it found it, after an exception too."""
    before = context.get_current()
    with pytest.raises(ZeroDivisionError), emitter.operation(Work):
        raise ZeroDivisionError
    assert context.get_current() is before
    with theirs.span() as span:
        with emitter.operation(Work):
            pass
        assert trace.get_current_span() is span


# -- ours under theirs -------------------------------------------------------------------------------------------------


def test_our_operation_finds_their_span_as_parent(emitter, theirs):
    """An operation inside a span of theirs is its child: same trace, same flag."""
    with theirs.span() as span, emitter.operation(Work):
        pass
    made = ours(emitter)["work"]
    assert (made.trace_id, made.parent_span_id, True) == ids(span.get_span_context())
    assert not made.is_parent_remote


def test_an_unsampled_span_of_theirs_makes_ours_unsampled(emitter):
    """Their decision holds for us too."""
    with Theirs(sampler=ALWAYS_OFF).span() as span, emitter.operation(Work) as op:
        assert (op.trace_id, op.parent_span_id, op.sampled) == ids(span.get_span_context())
        assert not op.sampled
    assert ours(emitter) == {}


def test_a_request_that_they_received_is_continued(emitter):
    """A remote parent that their propagator put into the context is our remote parent, with its tracestate."""
    carrier = {"traceparent": REMOTE, "tracestate": "vendor=1"}
    token = context.attach(TraceContextTextMapPropagator().extract(carrier))
    with emitter.operation(Work) as op:
        assert ec.inject()["tracestate"] == "vendor=1"
    context.detach(token)
    assert f"{op.trace_id:032x}-{op.parent_span_id:016x}" == REMOTE[3:-3]
    assert ours(emitter)["work"].is_parent_remote


def test_spans_of_both_nest_in_the_order_of_their_blocks(emitter, theirs):
    """Ours, theirs, ours, theirs: each is the child of the one around it, in one trace."""
    with (
        emitter.operation(Work) as first,
        theirs.span("second") as second,
        emitter.operation(Work) as third,
        theirs.span("fourth") as fourth,
        emitter.operation(Work) as fifth,
        emitter.operation(Work) as sixth,
    ):
        pass
    second, fourth = (span.get_span_context() for span in (second, fourth))
    assert theirs.spans["second"].parent.span_id == first.span_id
    assert third.parent_span_id == second.span_id
    assert theirs.spans["fourth"].parent.span_id == third.span_id
    assert fifth.parent_span_id == fourth.span_id
    assert sixth.parent_span_id == fifth.span_id
    assert {op.trace_id for op in (third, fifth, sixth)} == {first.trace_id, second.trace_id} == {fourth.trace_id}


def test_bound_fields_and_baggage_survive_their_span(emitter, theirs):
    """What is bound around a span of theirs is still bound in an operation inside it."""
    with ec.bound(a=1, correlation_id="c"), ec.baggage(b="2"), theirs.span(), emitter.operation(Work) as op:
        assert (op.bound, op.correlation_id, op.baggage) == ({"a": 1}, "c", {"b": "2"})


def test_a_trace_that_the_application_continues_wins_over_an_unrelated_span(emitter, theirs):
    """``continue_trace`` inside a span of another trace is what the application said; of the same trace, their span."""
    with theirs.span(), ec.continue_trace(REMOTE), emitter.operation(Work) as op:
        assert f"{op.trace_id:032x}-{op.parent_span_id:016x}" == REMOTE[3:-3]
    with ec.continue_trace(REMOTE):
        parent = TraceContextTextMapPropagator().extract({"traceparent": REMOTE})
        with theirs.span(context=parent) as span, emitter.operation(Work) as op:
            assert op.parent_span_id == span.get_span_context().span_id


# -- tasks, threads, generators ----------------------------------------------------------------------------------------


def test_tasks_keep_their_own_parents(emitter, theirs):
    """Concurrent tasks nest their spans and operations each for itself."""

    async def task(n):
        async with emitter.operation(Work, n=n) as op:
            await asyncio.sleep(0)
            with theirs.span(f"s{n}") as span:
                await asyncio.sleep(0)
                with emitter.operation(Work) as inner:
                    await asyncio.sleep(0)
        return op, span.get_span_context(), inner

    async def main():
        return await asyncio.gather(*(task(n) for n in range(5)))

    for n, (op, span, inner) in enumerate(asyncio.run(main())):
        assert theirs.spans[f"s{n}"].parent.span_id == op.span_id
        assert inner.parent_span_id == span.span_id
        assert inner.trace_id == op.trace_id


def test_a_pool_has_both_contexts(emitter, theirs):
    """``in_context`` takes both contexts into a thread, where the parents are found as before."""

    def work(n):
        with theirs.span(f"s{n}"), emitter.operation(Work) as op:
            return op.parent_span_id

    with emitter.operation(Work) as outer, ThreadPoolExecutor(2) as pool:
        parents = list(pool.map(ec.in_context(work), range(4)))
    assert {theirs.spans[f"s{n}"].parent.span_id for n in range(4)} == {outer.span_id}
    assert parents == [theirs.spans[f"s{n}"].context.span_id for n in range(4)]


def test_a_thread_that_has_only_their_context_finds_our_operation(emitter):
    """Where only OpenTelemetry's context was carried into a thread (as its instrumentation does), ours follows."""
    found = []

    def work(carried):
        token = context.attach(carried)
        with emitter.operation(Work) as op:
            found.append((op.trace_id, op.parent_span_id))
        context.detach(token)

    with emitter.operation(Work) as outer:
        thread = threading.Thread(target=work, args=(context.get_current(),))
        thread.start()
        thread.join()
    assert found == [(outer.trace_id, outer.span_id)]


def test_a_generator_does_not_leak_into_its_consumer(emitter, theirs):
    """A decorated generator's span is current in its body only, in both contexts."""

    @emitter.operation(Work)
    def generator():
        while True:
            with theirs.span() as span:
                pass
            yield trace.get_current_span().get_span_context().span_id, span.parent.span_id

    running = generator()
    current, parent = next(running)
    assert current == parent
    assert trace.get_current_span() is trace.INVALID_SPAN
    with theirs.span("consumer") as consumer:
        assert next(running) == (current, parent)
        assert trace.get_current_span() is consumer
        running.close()
        assert trace.get_current_span() is consumer
    assert ours(emitter)["work"].span_id == current


@pytest.mark.parametrize("is_decorated", [True, False])
def test_an_async_generator_closed_by_another_task_logs_nothing(emitter, theirs, caplog, is_decorated):
    """An async generator closed by another task ends its operation; OpenTelemetry has no failed detach to log."""

    async def body():
        yield 1
        yield 2

    if is_decorated:
        generator = emitter.operation(Work)(body)
    else:

        async def generator():
            with emitter.operation(Work):
                async for item in body():
                    yield item

    async def main():
        running = generator()
        assert await asyncio.create_task(running.__anext__()) == 1
        with theirs.span() as span:
            await asyncio.create_task(running.aclose())
            await running.aclose()
            assert trace.get_current_span() is span
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert current_scope() is ROOT

    with caplog.at_level(logging.DEBUG, logger="opentelemetry"):
        asyncio.run(main())
    assert [record.message for record in caplog.records if record.name.startswith("opentelemetry")] == []
    assert ours(emitter)["work"].status_message == "cancelled"
    assert not emitter.open_operations()


def test_an_operation_that_ends_in_another_thread_logs_nothing(emitter, caplog):
    """An operation may be ended in another thread; that thread's OpenTelemetry context is left alone."""
    op = emitter.operation(Work).__enter__()
    thread = threading.Thread(target=op.end)
    thread.start()
    thread.join()
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    op.suspend()
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_dropped_operation_is_found_with_interop_too(emitter):
    """An operation that a finished context left open is abandoned, although OpenTelemetry's context refers to it."""
    contextvars.copy_context().run(lambda: emitter.operation(Work).__enter__() and None)
    emitter.flush()
    assert emitter.misuses.counts == {("work", "never_ended"): 1}


# -- what they do to our span ------------------------------------------------------------------------------------------


def test_attributes_that_they_set_are_on_our_span(emitter):
    """An attribute that is a field of the operation sets it; others are on the span alone."""
    with emitter.operation(Work), emitter.operation(Work):
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("n", 7)
        span.set_attributes({"http.route": "/a", "http.password": "hunter2"})
        span.update_name("GET /a")
    made = ours(emitter)
    attributes = made["GET /a"].attributes
    assert (attributes["n"], attributes["http.route"], attributes["http.password"]) == (7, "/a", "[REDACTED]")
    assert "http.route" not in made["work"].attributes


def test_attributes_that_they_set_on_an_ad_hoc_span_are_its_attributes(emitter):
    """A span without a class takes any attribute as its own."""
    with ec.span("load", path="x"):
        trace.get_current_span().set_attribute("rows", 3)
    attributes = ours(emitter)["load"].attributes
    assert (attributes["path"], attributes["rows"]) == ("x", 3)


def test_events_that_they_add_are_events_inside_the_operation(emitter):
    """``add_event`` and ``record_exception`` emit events with the operation's ids."""
    handler = emitter.add_handler(Collect(delivery="inline"))
    with emitter.operation(Work) as op:
        trace.get_current_span().add_event("cache.miss", {"key": "k"})
        trace.get_current_span().record_exception(LookupError("gone"))
    miss, happened, end = handler.got
    assert (miss.name, miss.payload["data"], miss.scope) == ("cache.miss", {"key": "k"}, op)
    assert (happened.name, happened.payload["error_type"], happened.scope) == ("exception", "LookupError", op)
    assert end.outcome == "success"


def test_a_status_that_they_set_to_an_error_lets_the_operation_fail(emitter):
    """An error status makes the operation a failure, by the exception that they recorded or the description."""
    with emitter.operation(Work) as first:
        trace.get_current_span().set_status(trace.StatusCode.OK)
        trace.get_current_span().record_exception(LookupError("gone"))
        trace.get_current_span().set_status(trace.StatusCode.ERROR)
    with emitter.operation(Work) as second:
        trace.get_current_span().set_status(trace.Status(trace.StatusCode.ERROR, "bad gateway"))
    assert (first.outcome, first.error_type) == ("failure", "LookupError")
    assert (second.outcome, str(second.error)) == ("failure", "bad gateway")


def test_links_that_they_add_are_ours(emitter, theirs):
    """A link that they add to our span is a link of the operation."""
    with theirs.span() as other:
        pass
    with emitter.operation(Work) as op:
        trace.get_current_span().add_link(other.get_span_context())
    assert op.links == ((other.get_span_context().trace_id, other.get_span_context().span_id),)


def test_what_they_do_to_an_ended_operation_is_ignored(emitter):
    """A span that a library holds on to does nothing after the operation's end, and is no misuse of the caller's."""
    with emitter.operation(Work):
        span = trace.get_current_span()
        span.end()
        assert span.is_recording()
    span.set_attribute("n", 7)
    span.add_event("late")
    span.record_exception(LookupError())
    span.set_status(trace.StatusCode.ERROR)
    span.update_name("late")
    span.add_link(span.get_span_context())
    assert not span.is_recording()
    assert ours(emitter)["work"].attributes["n"] == 0
    assert emitter.misuses.counts == {}


# -- the setting -------------------------------------------------------------------------------------------------------


def test_off_means_off(theirs):
    """With ``interop = "off"`` neither side knows of the other."""
    with ec.configure(handlers={"span": {"exporter": "memory", "interop": "off"}}) as emitter:
        with emitter.operation(Work):
            assert trace.get_current_span() is trace.INVALID_SPAN
        with theirs.span() as span, emitter.operation(Work) as op:
            assert op.trace_id != span.get_span_context().trace_id
        assert emitter.context_provider is None


AUTO = """
import sys
if {before}: import opentelemetry.trace
import eventcore as ec
emitter = ec.configure(handlers={{"span": {{"exporter": {exporter!r}}}}})
print(emitter.handler("span").describe()["interop"], emitter.context_provider is not None)
"""


@pytest.mark.parametrize(
    ("before", "exporter", "expected"),
    [
        (True, "memory", "True True"),
        (False, "memory", "False False"),
        (False, "opentelemetry.sdk.trace.export.in_memory_span_exporter:InMemorySpanExporter", "False False"),
    ],
)
def test_auto_means_if_the_api_is_imported_already(before, exporter, expected):
    """By default it is on where somebody imported OpenTelemetry's API before; our own exporters do not count."""
    code = AUTO.format(before=before, exporter=exporter)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == expected


def test_the_global_tracer_provider_is_left_alone(emitter):
    """No provider is set for the process: that is the application's to do."""
    with emitter.operation(Work):
        assert type(trace.get_tracer_provider()) is trace.ProxyTracerProvider


def test_another_span_handler_takes_over(theirs):
    """While a span handler with interop remains, parents are shared; after the last one, they are not."""
    options = {"use": "span", "exporter": "memory", "interop": "on"}
    with ec.configure(handlers={"one": options, "two": options, "three": {**options, "interop": "off"}}) as emitter:
        emitter.remove_handler("one")
        with theirs.span() as span, emitter.operation(Work) as op:
            assert op.parent_span_id == span.get_span_context().span_id
        emitter.remove_handler("two")
        with theirs.span(), emitter.operation(Work) as op:
            assert op.parent_span_id == 0


def test_requests_are_few_where_each_one_costs():
    """OTLP waits longer for more spans before it exports, unless told otherwise."""
    assert SpanHandler(exporter="otlp").config.linger_s == 0.5
    assert SpanHandler(exporter="otlp", linger_s=0.1).config.linger_s == 0.1
    assert SpanHandler(exporter="memory").config.linger_s == 0.05
