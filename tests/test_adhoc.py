import asyncio
import gc
import sys

import pytest

import eventcore as ec
from eventcore import adhoc, vocabulary
from tests.support.handlers import Collect

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Work(ec.Operation, name="work", category="execution"):
    n: int = 0


@pytest.fixture
def handler():
    """Return an inline handler on the emitter in use."""
    emitter = ec.Emitter()
    handler = emitter.add_handler(Collect(delivery="inline"))
    ec.set_emitter(emitter)
    yield handler
    emitter.shutdown()


@pytest.fixture
def few_names(monkeypatch):
    """Let only three more names be made, and forget them afterwards."""
    monkeypatch.setattr(adhoc, "_types", {})
    monkeypatch.setattr(adhoc, "MAX_NAMES", 3)


def lose(key):
    """Raise what a look-up raises."""
    raise LookupError(key)


# -- emit_event --------------------------------------------------------------------------------------------------------


def test_emit_event_needs_no_class(handler):
    """``emit_event`` emits what has no class: name, category, severity, message, data, tags."""
    ec.emit_event(
        "cache.warmed", category="cache", severity="warning", message="warmed up", data={"keys": 5}, tags=["a"]
    )
    envelope = handler.got[0]
    assert (envelope.name, envelope.category, envelope.severity) == ("cache.warmed", "cache", ec.Severity.WARNING)
    assert envelope.message == "warmed up"
    assert envelope.event.data == {"keys": 5}
    assert list(envelope.tags) == ["a"]


def test_emit_event_takes_positions_as_the_guides_do(handler):
    """The guides call it with category, severity and message by position."""
    ec.emit_event("model.loaded", ec.Category.MODEL, ec.Severity.DEBUG, "loaded", {"size": 1})
    envelope = handler.got[0]
    assert (envelope.category, envelope.severity, envelope.message) == ("model", ec.Severity.DEBUG, "loaded")


def test_each_name_is_a_type_of_its_own(handler):
    """Each name is an event type made once, so filters, routes and the ledger treat it like any other."""
    for _ in range(2):
        ec.emit_event("one.name")
        ec.emit_event("other.name")
    assert len({type(event) for event in handler.events}) == 2
    assert {row.event: row.delivered for row in handler.emitter.ledger().rows} == {"one.name": 2, "other.name": 2}
    only = handler.emitter.add_handler(Collect(events=("one.*",), delivery="inline"))
    ec.emit_event("one.name")
    ec.emit_event("other.name")
    assert only.names == ["one.name"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("User Signed-Up", "user_signed_up"),
        ("Cache.Warm", "cache.warm"),
        ("..a..b..", "a.b"),
        ("_private", "private"),
        ("404", "n404"),
        ("größe", "gr_e"),
        ("", "unnamed"),
        ("!!!", "unnamed"),
        ("a\nb", "a_b"),
    ],
)
def test_any_text_makes_a_name(handler, given, name):
    """Any text makes a dotted lower-case name: a passing need never raises because of its name."""
    ec.emit_event(given)
    assert handler.names == [name]


def test_names_are_guarded(handler, few_names):
    """Names are cardinality-guarded: beyond the limit further ones share the name ``other``, each kind for itself."""
    for n in range(6):
        ec.emit_event(f"user.{n}")
        with ec.span(f"span.{n}"):
            pass
    events = [e.name for e in handler.got if e.span is None]
    spans = [e.name for e in handler.got if e.span is not None]
    assert events == ["user.0", "user.1", "user.2", "other", "other", "other"]
    assert spans == ["span.0", "span.1", "span.2", "other", "other", "other"]
    assert len({type(e.event) for e in handler.got}) == 8


def test_names_beyond_the_limit_cost_no_new_type(handler, few_names):
    """Beyond the limit a new name makes no type: time and memory stay bounded."""
    for n in range(4):
        ec.emit_event(f"user.{n}")
    gc.collect()
    gc.disable()
    try:
        before = len(vocabulary.AdHocEvent.__subclasses__())
        for n in range(4, 40):
            ec.emit_event(f"user.{n}")
        assert len(vocabulary.AdHocEvent.__subclasses__()) == before
    finally:
        gc.enable()


def test_an_event_may_belong_to_another_trace(handler):
    """``trace_id`` puts an event into a trace other than the current one."""
    with handler.emitter.operation(Work) as op:
        ec.emit_event("elsewhere", trace_id=TRACE)
        ec.emit_event("here", trace_id=f"{op.trace_id:032x}")
        ec.emit_event("here")
    elsewhere, here, also_here, work = handler.got
    assert (elsewhere.trace_id, elsewhere.span_id) == (TRACE, None)
    assert (here.trace_id, here.span_id) == (also_here.trace_id, also_here.span_id) == (work.trace_id, work.span_id)
    assert ec.current_trace().trace_id is None


@pytest.mark.parametrize("trace_id", ["xyz", "", "123", "1_" * 16, "-" + "1" * 31, "0x" + "1" * 30, "1" * 40, "0" * 32])
def test_a_wrong_trace_id_is_an_error(handler, trace_id):
    """A trace id is 32 hexadecimal digits, not all zero; anything else is an error that shows it."""
    with pytest.raises(ValueError, match="32"):
        ec.emit_event("x.y", trace_id=trace_id)
    assert not handler.got


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"category": "securty"}, r"'securty'.*security"),
        ({"severity": "eror"}, r"unknown severity 'eror'; did you mean 'error'\?"),
    ],
)
def test_a_wrong_category_or_severity_is_an_error(handler, options, match):
    """A wrong category or severity is a ValueError with the likely one."""
    with pytest.raises(ValueError, match=match):
        ec.emit_event("x.y", **options)


def test_the_callers_data_is_its_own(handler):
    """The event keeps a copy of ``data``: keys that the caller adds later do not show."""
    data = {"a": 1}
    ec.emit_event("x.y", data=data)
    data["b"] = 2
    assert handler.events[0].data == {"a": 1}


# -- emit_error_event --------------------------------------------------------------------------------------------------


def test_an_error_event_has_type_message_and_stack(handler):
    """``emit_error_event`` emits ``<category>.error`` with the error's type, message and stack, without locals."""
    secret = "hunter2"
    try:
        lose("no such key")
    except LookupError as error:
        ec.emit_error_event("lookup failed", error=error, category="cache", data={"key": "k"})
    envelope = handler.got[0]
    event = envelope.event
    assert (envelope.name, envelope.category, envelope.severity) == ("cache.error", "cache", ec.Severity.ERROR)
    assert (event.text, event.error_type, event.error_message) == ("lookup failed", "LookupError", "no such key")
    assert "LookupError: no such key" in event.stack_trace
    assert "test_an_error_event_has_type_message_and_stack" in event.stack_trace
    assert secret not in event.stack_trace.replace('secret = "hunter2"', "")
    assert event.data == {"key": "k"}


def test_an_error_event_needs_no_exception(handler):
    """Without an exception it has a message alone; severity and trace are given as to ``emit_event``."""
    ec.emit_error_event("bad", severity="critical", trace_id=TRACE, tags=("t",))
    envelope = handler.got[0]
    assert (envelope.name, envelope.severity, envelope.trace_id) == ("system.error", ec.Severity.CRITICAL, TRACE)
    assert envelope.event.error_type is None


def test_an_exception_that_cannot_be_printed_is_reported_all_the_same(handler):
    """An exception whose text fails does not make the report of it fail."""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    ec.emit_error_event("mute", error=Mute())
    assert handler.events[0].error_type.endswith("Mute")


# -- span and traced ---------------------------------------------------------------------------------------------------


def test_a_span_is_an_operation_without_a_class(handler):
    """``ec.span(name, **attributes)`` is an operation: name, attributes, nesting, outcome."""
    with ec.span("Load Model", category="model", path="/m", size=3) as op:
        assert ec.current_operation() is op
        with pytest.raises(KeyError), ec.span("inner"):
            raise KeyError
    inner, outer = handler.got
    assert (outer.name, outer.spec.span, outer.category) == ("load_model", "Load Model", "model")
    assert outer.event.attributes == {"path": "/m", "size": 3}
    assert outer.severity is ec.Severity.DEBUG
    assert inner.span.parent_span_id == outer.span.span_id
    assert (inner.outcome, inner.error_type) == ("failure", "KeyError")


def test_a_spans_attributes_may_bear_any_name(handler):
    """An attribute may be called ``name``; the span's own name is given by position."""
    with ec.span("load", name="resnet", id=5):
        pass
    assert handler.events[0].attributes == {"name": "resnet", "id": 5}


def test_a_spans_attributes_may_be_a_mapping(handler):
    """``attributes={…}``, as OpenTelemetry and ``@ec.traced`` take it, is none itself; keywords come last."""
    with ec.span("load", attributes={"http.route": "/pay", "size": 3}, size=4):
        pass
    for other in (None, 7):
        with ec.span("load", attributes=other):
            pass
    assert [e.attributes for e in handler.events] == [{"http.route": "/pay", "size": 4}, {}, {"attributes": 7}]


def test_a_span_takes_further_attributes(handler):
    """``set`` on a span without a class gives it attributes of any names, from afar too; the last value counts."""
    with ec.span("processing", size=3) as op:
        op.set(user_id="user-123", size=4)
        ec.current_operation().set(attributes="any name")
    assert handler.events[0].attributes == {"size": 4, "user_id": "user-123", "attributes": "any name"}


def test_traced_wraps_functions_of_every_kind(handler):
    """``@ec.traced`` works on functions, coroutine functions, generators and async generators, named or not."""

    @ec.traced
    def plain():
        return 1

    @ec.traced()
    async def coroutine():
        await asyncio.sleep(0)
        return 2

    @ec.traced("gen", size=3)
    def generator():
        yield 3

    @ec.traced("agen", category="data", attributes={"name": "x", "category": "y", "self": "z"})
    async def async_generator():
        yield 4

    async def main():
        return await coroutine(), [item async for item in async_generator()]

    assert plain() == 1
    assert list(generator()) == [3]
    assert asyncio.run(main()) == (2, [4])
    name = "test_traced_wraps_functions_of_every_kind"
    assert handler.names == [f"{name}.plain", "gen", f"{name}.coroutine", "agen"]
    assert handler.events[1].attributes == {"size": 3}
    assert handler.events[3].attributes == {"name": "x", "category": "y", "self": "z"}
    assert handler.got[3].category is ec.Category.DATA


def test_traced_takes_an_operation_type(handler):
    """``@ec.traced(Type, …)`` runs each call as that operation; a field it does not have is an error at once."""

    @ec.traced(Work, n=3)
    def work():
        return ec.current_operation().event_type

    assert work() is Work
    assert handler.events[0].n == 3
    with pytest.raises(TypeError, match="Work has no field 'm'"):
        ec.traced(Work, m=1)


def test_traced_uses_the_emitter_in_use_at_the_call(handler):
    """A function decorated at import uses the emitter that is in use when it is called."""

    @ec.traced("load")
    def load():
        pass

    load()
    with ec.Emitter() as other:
        late = other.add_handler(Collect(delivery="inline"))
        ec.set_emitter(other)
        load()
    assert handler.names == late.names == ["load"]


# -- loggers -----------------------------------------------------------------------------------------------------------


def test_a_loggers_lines_are_events(handler):
    """A structured logger's lines are events, with its name, bound fields and severity."""
    logger = ec.get_logger("app.tasks", worker=1).bind(queue="q")
    for method in ("trace", "debug", "info", "warning", "error", "critical"):
        getattr(logger, method)("task_started", task_id="abc")
    assert handler.names == ["log.record"] * 6
    assert [e.severity.name.lower() for e in handler.got] == ["trace", "debug", "info", "warning", "error", "critical"]
    event = handler.events[0]
    assert (event.text, event.logger_name) == ("task_started", "app.tasks")
    assert event.data == {"worker": 1, "queue": "q", "task_id": "abc"}
    assert handler.got[0].message == "task_started"


def test_binding_makes_a_new_logger(handler):
    """``bind`` leaves the logger it was called on alone; a line's own fields win."""
    logger = ec.get_logger("app", a=1)
    logger.bind(a=2).info("x", a=3)
    logger.bind(a=2).info("y")
    logger.info("z")
    assert [event.data["a"] for event in handler.events] == [3, 2, 1]


def test_a_lines_fields_may_bear_any_name(handler):
    """Fields of a line may be called ``text``, ``severity``, ``name`` or ``self``."""
    fields = {"text": "prompt", "severity": "mild", "name": "n", "self": "s", "message": "m"}
    ec.get_logger("app", **fields).info("received", **fields)
    ec.get_logger("app").log("info", "received", **fields)
    assert [event.data for event in handler.events] == [fields, fields]
    assert handler.events[0].text == "received"


def test_a_line_may_carry_an_exception(handler):
    """``exc_info`` and ``exception`` add the error and its stack, without locals."""
    logger = ec.get_logger("app")
    try:
        lose("gone")
    except LookupError as error:
        logger.exception("failed")
        logger.warning("failed", exc_info=True)
        logger.info("failed", exc_info=error)
        logger.info("failed", exc_info=sys.exc_info())
    for nothing in (False, None, True, (None, None, None)):  # outside an except block True finds nothing
        logger.error("failed", exc_info=nothing)
    assert [e.severity.name for e in handler.got] == ["ERROR", "WARNING", "INFO", "INFO", *["ERROR"] * 4]
    for event in handler.events[:4]:
        assert event.data["error_type"] == "LookupError"
        assert event.data["exception"].startswith("Traceback")
        assert event.data["exception"].endswith("LookupError: gone")
    assert [event.data for event in handler.events[4:]] == [{}] * 4


def test_a_line_may_carry_nested_extras(handler):
    """``extra`` is taken for fields, as deep as they are, and a field said directly wins."""
    extra = {"performance": {"duration_seconds": 0.15, "tokens": [128]}, "model": {"name": "mixtral-8x7b"}, "a": 1}
    ec.get_logger("app").info("routed", extra=extra, a=2)
    ec.get_logger("app").info("routed", extra="a text")
    assert [event.data for event in handler.events] == [{**extra, "a": 2}, {"extra": "a text"}]


def test_lines_below_the_level_cost_nothing(handler, monkeypatch):
    """A line that nobody wants is not even put together."""
    made = []
    monkeypatch.setattr("traceback.format_exception", lambda _: made.append(1) or ["text"])
    handler.emitter.remove_handler(handler)
    quiet = handler.emitter.add_handler(Collect(delivery="inline", min_severity="warning"))
    ec.get_logger("app").debug("x", exc_info=LookupError())
    assert (quiet.got, made) == ([], [])
    ec.get_logger("app").warning("x", exc_info=LookupError())
    assert (len(quiet.got), made) == (1, [1])


def test_a_lines_severity_is_checked(handler):
    """A wrong severity is an error with the likely one."""
    with pytest.raises(ValueError, match="unknown severity 'inof'; did you mean 'info'"):
        ec.get_logger("app").log("inof", "x")


# -- log_request -------------------------------------------------------------------------------------------------------


def test_log_request_redacts_headers_and_body(handler):
    """``log_request`` redacts secrets in headers and body, as the guide's example shows."""
    ec.log_request(
        "req-1",
        "POST",
        "/v1/complete",
        headers={"Authorization": "Bearer sk-abc123", "Cookie": "s=1", "X-Api-Key": "k", "Accept": "text/html"},
        body={"prompt": "Hello", "api_key": "secret", "max_tokens": 5, "author": "Ada", "nested": [{"password": "p"}]},
    )
    envelope = handler.got[0]
    assert (envelope.name, envelope.message) == ("log.record", "http_request")
    data = envelope.event.data
    assert (data["request_id"], data["method"], data["path"]) == ("req-1", "POST", "/v1/complete")
    hidden = "[REDACTED]"
    assert data["headers"] == {"Authorization": hidden, "Cookie": hidden, "X-Api-Key": hidden, "Accept": "text/html"}
    assert data["body"] == {
        "prompt": "Hello",
        "api_key": hidden,
        "max_tokens": 5,
        "author": "Ada",
        "nested": [{"password": hidden}],
    }


@pytest.mark.parametrize(
    "body",
    [
        '{"api_key": "hunter2"}',
        "password=hunter2&x=1",
        ["secret: hunter2"],
        b'{"password": "hunter2"}',
        '{"user": {"session": [{"refresh_token": "hunter2"}]}}',
        b"grant=code&client_secret=hunter2",
        "a=1&access%5Ftoken=hunter2",
    ],
)
def test_log_request_redacts_a_body_of_text(handler, body):
    """A body that is text or a list is redacted as well."""
    ec.log_request("1", "POST", "/", body=body)
    assert "hunter2" not in repr(handler.events[0])


@pytest.mark.parametrize(
    "body", ['{"author": "Ada", "max_tokens": 5}', "a=1&b=2", "plain text", b"\xff\x00", "{not json", ""]
)
def test_log_request_leaves_a_body_without_secrets_as_it_is(handler, body):
    """What holds no secret is not rewritten, whatever its form."""
    ec.log_request("1", "POST", "/", body=body)
    assert handler.events[0].data["body"] == body


def test_a_request_that_nobody_wants_to_see_is_not_looked_into(handler):
    """Nothing is searched, copied or parsed where no handler takes the line."""
    handler.emitter.remove_handler(handler)
    ec.log_request("1", "POST", None, headers=object(), body="{")


@pytest.mark.parametrize("path", ["/x?api_key=hunter2", "/x?a=1&password=hunter2&b=2", "/x?a&session_token=hunter2"])
def test_log_request_redacts_the_path(handler, path):
    """Secrets in the query of a path are redacted, too."""
    ec.log_request("1", "GET", path)
    assert "hunter2" not in repr(handler.events[0])
    assert handler.events[0].data["path"].startswith("/x?")


def test_log_request_leaves_the_callers_mappings_alone(handler):
    """The request's own headers and body are not changed."""
    headers, body = {"Authorization": "Bearer abc"}, {"password": "p"}
    ec.log_request("1", "GET", "/", headers, body)
    assert (headers, body) == ({"Authorization": "Bearer abc"}, {"password": "p"})
    assert set(handler.events[0].data) == {"request_id", "method", "path", "headers", "body"}


def test_a_request_without_headers_and_body_has_none(handler):
    """What was not given is not in the line."""
    ec.log_request("1", "GET", "/")
    assert set(handler.events[0].data) == {"request_id", "method", "path"}
