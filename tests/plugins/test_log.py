"""The log plugin: what lines say, for people and for machines."""

from __future__ import annotations

import contextlib
import json
import re
import uuid

import numpy as np
import pytest

import eventcore as ec
from eventcore_log.lines import RESERVED, RESERVED_BY_OPERATIONS
from tests.support.log_lines import FILE, Bare, Note, Work, emitting, logged, read, shown

# -- the Tiny Dancer guide's vocabulary, as its log lines need it ------------------------------------------------------

ROUTER = {"category": "model", "logger": "tiny_dancer_router"}


class Initializing(ec.Event, name="guide.initializing", message="Initializing Tiny Dancer router", **ROUTER):
    pass


class BreakerEnabled(
    ec.Event, name="guide.breaker_enabled", message="Circuit breaker enabled with threshold: {threshold}", **ROUTER
):
    threshold: int


class RoutingRequest(
    ec.Operation,
    name="guide.routing_request",
    start_message="Processing routing request",
    message="Routing request completed successfully",
    failure_message="Routing request failed: {error_type}",
    **ROUTER,
):
    candidate_count: int
    inference_time_us: int = ec.unset
    lightweight_routes: int = ec.unset
    powerful_routes: int = ec.unset


class Extracting(ec.Event, name="guide.extracting", severity="debug", message="Extracting features", **ROUTER):
    batch_size: int


class Inference(
    ec.Operation,
    name="guide.inference",
    severity="debug",
    message="Model inference completed",
    failure_message="Model inference failed",
    each=("candidate_id", "confidence"),
    **ROUTER,
):
    candidate_id: ec.Array[str]
    confidence: ec.Array[float] = ec.unset


class Decision(ec.Event, name="guide.decision", severity="debug", message="Routing decision made", **ROUTER):
    candidate_id: str
    use_lightweight: bool
    uncertainty: float


GUIDE = """\
INFO tiny_dancer_router: Initializing Tiny Dancer router
INFO tiny_dancer_router: Circuit breaker enabled with threshold: 5
INFO tiny_dancer_router: Processing routing request candidate_count=3
DEBUG tiny_dancer_router: Extracting features batch_size=3
DEBUG tiny_dancer_router: Model inference completed candidate_id="candidate-1" confidence=0.92
DEBUG tiny_dancer_router: Routing decision made candidate_id="candidate-1" use_lightweight=true uncertainty=0.08
INFO tiny_dancer_router: Routing request completed successfully inference_time_us=245 lightweight_routes=2 \
powerful_routes=1"""


def route_as_in_the_guide(emitter):
    """Emit what the guide's example lines tell of."""
    emitter.emit(Initializing())
    emitter.emit(BreakerEnabled(threshold=5))
    with emitter.operation(RoutingRequest, candidate_count=3) as request:
        emitter.emit(Extracting(batch_size=3))
        with emitter.operation(Inference, candidate_id=["candidate-1"]) as inference:
            inference.set(confidence=np.array([0.92]))
        emitter.emit(Decision(candidate_id="candidate-1", use_lightweight=True, uncertainty=0.08))
        request.set(inference_time_us=245, lightweight_routes=2, powerful_routes=1)


# -- what lines say ----------------------------------------------------------------------------------------------------


class Clock:
    """2025-12-19T06:45:00.123456Z, then a millisecond more at each look."""

    def __init__(self):
        self.now_ns = 1_766_126_700_123_456_789

    def time_ns(self):
        now, self.now_ns = self.now_ns, self.now_ns + 1_000_000
        return now

    monotonic_ns = time_ns


def test_console_lines_are_those_of_the_tiny_dancer_guide():
    """Each line of the guide is found, in its order: level, logger, message and fields, character by character.

    Beside it stand the time, an operation's duration and what it was started with, and the trace.
    """
    lines = shown(route_as_in_the_guide).splitlines()
    wanted_lines = GUIDE.splitlines()
    assert len(lines) == len(wanted_lines)
    for line, wanted in zip(lines, wanted_lines, strict=True):
        found = re.fullmatch(r"\S+Z +(.*?)( duration_ms=[\d.e-]+)?( trace_id=\"\w{32}\" span_id=\"\w{16}\")?", line)
        assert found[1].replace("successfully candidate_count=3 ", "successfully ") == wanted


def test_json_lines_carry_the_tiny_dancer_guides_content():
    """Message, level, logger and each field of the guide's lines stand in the JSON, with their types."""
    lines = logged(route_as_in_the_guide)
    wanted_lines = GUIDE.splitlines()
    assert len(lines) == len(wanted_lines)
    for line, wanted in zip(lines, wanted_lines, strict=True):
        level, rest = wanted.split(" ", 1)
        assert line["level"] == level.lower()
        assert line["logger"] == "tiny_dancer_router"
        text, fields = re.fullmatch(r"tiny_dancer_router: (.*?)((?: \w+=\S+)*)", rest).groups()
        assert line["event"] == text
        for field in fields.split():
            key, value = field.split("=")
            assert line[key] == json.loads(value)
    assert lines[1]["threshold"] == 5


def test_json_has_the_fields_of_the_tinyllm_guide_and_no_empty_ones():
    """Outside a trace nothing but what is known appears, under the guide's names."""
    with ec.configure(
        service="tinyllm",
        version="0.1.0",
        clock=Clock(),
        handlers={"log": {"format": "json", "output": FILE, "exclude": "eventcore.*"}},
    ) as emitter:
        emitter.emit(Bare())
    (line,) = read()
    assert uuid.UUID(line.pop("id")).version == 7
    assert re.fullmatch(r"2025-12-19T06:45:00\.1\d\d456Z", line.pop("timestamp"))
    assert line == {
        "event": "bare.fact",
        "level": "info",
        "logger": "bare",
        "name": "bare.fact",
        "category": "data",
        "app": "tinyllm",
        "version": "0.1.0",
    }


def test_environment_is_on_every_line_where_it_is_set():
    """The setting ``environment`` is seen in the log."""
    handlers = {"log": {"format": "json", "output": FILE}}
    with ec.configure(service="shop", environment="production", handlers=handlers):
        pass
    assert {line["environment"] for line in read()} == {"production"}


def test_lines_in_a_trace_carry_its_ids():
    """An event carries the ids of the operation it happens in, and the operation its own, in one trace."""
    seen = []

    def code(emitter):
        with emitter.operation(Work):
            seen.append(ec.current_trace())
            emitter.emit(Bare())
        emitter.emit(Bare())

    inside, operation, outside = logged(code)
    for line in (inside, operation):
        assert (line["trace_id"], line["span_id"]) == (seen[0].trace_id, seen[0].span_id)
    assert "trace_id" not in outside
    assert "span_id" not in outside


def test_console_lines_end_with_the_trace():
    """Trace and span ids stand at the end of a line for people too."""
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    def code(emitter):
        with ec.continue_trace(header):
            emitter.emit(Note(text="hello"))

    line = shown(code).rstrip()
    assert line.endswith(' hello trace_id="0af7651916cd43dd8448eb211c80319c" span_id="b7ad6b7169203331"')


def test_bound_fields_correlation_id_and_tags_are_shown():
    """What is bound around an emit stands in its line, and what the event says itself goes before."""

    def code(emitter):
        with ec.bound(request_id="req-1", text="bound", correlation_id="c-1"):
            emitter.emit(Note(text="own"), tags=["a", "b"])

    (line,) = logged(code)
    assert (line["request_id"], line["text"], line["correlation_id"]) == ("req-1", "own", "c-1")
    assert line["tags"] == ["a", "b"]


def test_an_operation_tells_how_it_ended():
    """Duration and outcome stand in its line; a failure adds the error's type and its stack."""

    def code(emitter):
        with emitter.operation(Work):
            pass
        with contextlib.suppress(LookupError), emitter.operation(Work):
            raise LookupError("no such route")

    good, bad = logged(code)
    assert good["outcome"] == "success"
    assert 0 < good["duration_ms"] < 1000
    assert not {"error_type", "exception"} & good.keys()
    assert (bad["outcome"], bad["level"], bad["error_type"]) == ("failure", "error", "LookupError")
    assert bad["exception"].startswith("Traceback (most recent call last):")
    assert bad["exception"].endswith("LookupError: no such route")
    assert "test_log.py" in bad["exception"]


def test_results_that_were_not_set_do_not_appear():
    """An unset result is no field of the line, in particular no null and no zero."""

    def code(emitter):
        with emitter.operation(RoutingRequest, candidate_count=3) as request:
            request.set(inference_time_us=0)

    line = logged(code)[-1]
    assert line["inference_time_us"] == 0
    assert not {"lightweight_routes", "powerful_routes"} & line.keys()


def test_declared_fields_without_a_value_do_not_appear():
    """An optional field that is None is left out like one that is unset; a None given without a class is kept."""

    class Optional(ec.Event, name="optional", category="data"):
        request_id: str | None = None

    def code(emitter):
        emitter.emit(Optional())
        ec.emit_event("x", data={"result": None})

    declared, given = logged(code)
    assert "request_id" not in declared
    assert given["result"] is None


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_start_line_has_the_start_fields_only(delivery):
    """The start line knows nothing of the end, even where it is written after the operation has ended."""

    def code(emitter):
        with emitter.operation(RoutingRequest, candidate_count=3) as request:
            request.set(inference_time_us=245)

    start, end = logged(code, delivery=delivery, linger_s=0.2)
    assert start["event"] == "Processing routing request"
    assert start["candidate_count"] == 3
    assert not {"inference_time_us", "duration_ms", "outcome"} & start.keys()
    assert start["span_id"] == end["span_id"]
    assert start["timestamp"] <= end["timestamp"]


def test_only_types_with_a_start_message_have_start_lines():
    """An operation that does not ask for it has one line."""

    def code(emitter):
        with emitter.operation(Work):
            pass

    assert [line["event"] for line in logged(code)] == ["work"]


def test_a_type_with_a_message_for_its_start_only_has_no_line_for_a_good_end():
    """What was announced and went well is not told twice under a bare name; what went wrong is told."""

    class Announced(ec.Operation, name="announced", category="data", start_message="Extracting features"):
        pass

    def code(emitter):
        with emitter.operation(Announced):
            pass
        with contextlib.suppress(LookupError), emitter.operation(Announced):
            raise LookupError

    lines = logged(code)
    assert [(line["event"], line.get("outcome")) for line in lines] == [
        ("Extracting features", None),
        ("Extracting features", None),
        ("announced failure", "failure"),
    ]


class Scored(
    ec.Operation,
    name="scored",
    category="model",
    message="{candidate_id} of {count}: {score:.1f}",
    each=("candidate_id", "score"),
):
    count: int
    candidate_id: ec.Array[str]
    score: ec.Array[float] = ec.unset


def test_a_batch_has_one_line_per_element():
    """Aligned arrays become a line per element, each with its own message; the other fields stand in all."""

    def code(emitter):
        with emitter.operation(Scored, count=2, candidate_id=["a", "b"]) as scored:
            scored.set(score=np.array([0.5, 0.25]))

    lines = logged(code)
    assert [(line["candidate_id"], line["score"], line["count"]) for line in lines] == [("a", 0.5, 2), ("b", 0.25, 2)]
    assert [line["event"] for line in lines] == ["a of 2: 0.5", "b of 2: 0.2"]


def test_an_event_about_many_things_has_one_line_per_element():
    """Plain events with aligned arrays are expanded like operations."""

    class Decided(ec.Event, name="decided", category="model", message="Routing decision made", each=("item", "chosen")):
        item: ec.Array[str]
        chosen: ec.Array[bool]

    lines = logged(emitting(Decided(item=["a", "b"], chosen=[True, False])))
    assert [(line["event"], line["item"], line["chosen"]) for line in lines] == [
        ("Routing decision made", "a", True),
        ("Routing decision made", "b", False),
    ]


def test_a_batch_that_failed_is_one_line():
    """The stack of a failed batch is told once, beside the arrays."""

    def code(emitter):
        with contextlib.suppress(LookupError), emitter.operation(Inference, candidate_id=["a", "b"]):
            raise LookupError

    (line,) = logged(code)
    assert (line["event"], line["candidate_id"]) == ("Model inference failed", ["a", "b"])


def test_arrays_that_are_not_aligned_are_left_out():
    """A batch whose arrays differ in length costs no line: the one that does not fit is left out."""

    def code(emitter):
        with emitter.operation(Scored, count=2, candidate_id=["a", "b"]) as scored:
            scored.set(score=[0.5])

    lines = logged(code)
    assert [line["candidate_id"] for line in lines] == ["a", "b"]
    assert not any("score" in line for line in lines)


def test_a_format_that_does_not_fit_a_missing_result_shows_a_dash():
    """A number's format for a result that was never set does not cost the line."""

    class Timed(ec.Operation, name="timed", category="data", message="took {took_s:.3f} s in {place}"):
        place: str
        took_s: float = ec.unset

    def code(emitter):
        with emitter.operation(Timed, place="here"):
            pass

    assert logged(code)[0]["event"] == "took - s in here"


# -- without a class ---------------------------------------------------------------------------------------------------


def test_events_without_a_class_are_flat():
    """``emit_event`` shows its message and its data as fields of the line; without a message, its name."""

    def code(_emitter):
        ec.emit_event("task_started", data={"task_id": "abc", "text": "of the data"})
        ec.emit_event("task.done", category="execution", message="All done", data={"n": 1}, tags=["x"])

    first, second = logged(code)
    assert (first["event"], first["task_id"], first["text"]) == ("task_started", "abc", "of the data")
    assert not {"data", "error_type", "error_message", "stack_trace", "exception"} & first.keys()
    assert (second["event"], second["name"], second["n"], second["tags"]) == ("All done", "task.done", 1, ["x"])


def test_an_error_event_carries_type_message_and_stack():
    """``emit_error_event`` shows the error under the names that operations use."""

    def code(_emitter):
        try:
            {}["k"]
        except KeyError as error:
            ec.emit_error_event("lookup failed", error=error, data={"error_type": "of the data"})

    (line,) = logged(code)
    assert (line["event"], line["level"], line["error_type"]) == ("lookup failed", "error", "KeyError")
    assert line["error_message"] == "'k'"
    assert line["exception"].startswith("Traceback")


def test_loggers_write_lines_of_their_own_name():
    """``get_logger`` shows its name, bound fields, fields and exceptions; in the console the stack follows the line."""

    def code(_emitter):
        logger = ec.get_logger("app.executor", component="executor")
        logger.info("node_executed", node_id="entry", tokens_used=45)
        try:
            int("risky")
        except ValueError:
            logger.exception("operation_failed")

    executed, failed = logged(code)
    assert (executed["event"], executed["logger"], executed["component"]) == (
        "node_executed",
        "app.executor",
        "executor",
    )
    assert (executed["node_id"], executed["tokens_used"]) == ("entry", 45)
    assert not {"data", "text", "logger_name"} & executed.keys()
    assert failed["exception"].endswith("ValueError: invalid literal for int() with base 10: 'risky'")
    lines = shown(code).splitlines()
    assert lines[0].endswith(' INFO app.executor: node_executed component="executor" node_id="entry" tokens_used=45')
    assert lines[2] == "    Traceback (most recent call last):"
    assert lines[-1] == "    ValueError: invalid literal for int() with base 10: 'risky'"


def test_spans_without_a_class_are_debug_lines():
    """``ec.span`` shows its attributes under its name, below INFO, so that it is not seen by default."""

    def code(_emitter):
        with ec.span("load.index", path="/x"):
            pass

    (line,) = logged(code)
    assert (line["event"], line["level"], line["path"], line["outcome"]) == ("load.index", "debug", "/x", "success")
    assert logged(code, min_severity="info") == []


# -- names that are taken ----------------------------------------------------------------------------------------------


def test_payload_fields_whose_name_is_taken_stand_under_fields():
    """A field called like one of ours is kept under ``fields``; neither hides the other."""

    class Clash(ec.Event, name="clash", category="data"):
        name: str
        id: int
        level: str
        fields: list[int]
        outcome: str

    event = Clash(name="n", id=7, level="high", fields=[1], outcome="fine")
    (line,) = logged(emitting(event))
    assert line["fields"] == {"name": "n", "id": 7, "level": "high", "fields": [1]}
    assert (line["name"], line["level"], line["outcome"]) == ("clash", "info", "fine")
    assert ' fields.name="n" fields.id=7 fields.level="high" fields.fields=[1] outcome="fine"' in shown(emitting(event))


@pytest.mark.parametrize("name", sorted(RESERVED_BY_OPERATIONS))
def test_no_field_given_without_a_class_overwrites_ours(name):
    """Data and bound fields of any taken name are kept apart, on events and on operations."""
    given = {name: "mine"}

    def code(emitter):
        if name in RESERVED:  # the others are taken on operations only
            ec.emit_event("some.event", data=given)
        if name != "correlation_id":  # which ec.bound takes for what it is
            with ec.bound(**given), emitter.operation(Work):
                pass

    lines = logged(code)
    assert lines
    for line in lines:
        assert line["fields"] == given
        assert line.get(name) != "mine"
