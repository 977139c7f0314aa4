"""Carrying a trace in B3 headers, which Zipkin and Envoy speak, beside or instead of W3C's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eventcore as ec
from eventcore.propagation import b3_headers, parse_b3, propagators

TRACE, SHORT, SPAN = "80f198ee56343ba864fe8b2a57d3eff7", "64fe8b2a57d3eff7", "e457b5a2e4d86bd1"
IDS = int(TRACE, 16), int(SPAN, 16)


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans(), st.booleans())
def test_what_is_written_is_read_back(trace_id, span_id, sampled, multi):
    """Ids and decision survive the way through either kind of headers."""
    headers = b3_headers(trace_id, span_id, sampled=sampled, multi=multi)
    assert parse_b3(headers) == (trace_id, span_id, sampled)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"b3": f"{TRACE}-{SPAN}-1"}, (*IDS, True)),
        ({"B3": f"{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"}, (*IDS, True)),
        ({"b3": f"{TRACE.upper()}-{SPAN}-0"}, (*IDS, False)),
        ({"b3": f"{TRACE}-{SPAN}-d"}, (*IDS, True)),
        ({"b3": f"{TRACE}-{SPAN}"}, (*IDS, True)),
        ({"b3": f"{SHORT}-{SPAN}-1"}, (int(SHORT, 16), IDS[1], True)),
        ({"X-B3-TraceId": TRACE, "X-B3-SpanId": SPAN, "X-B3-Sampled": "1"}, (*IDS, True)),
        ({"x-b3-traceid": TRACE, "x-b3-spanid": SPAN, "x-b3-sampled": "0"}, (*IDS, False)),
        ({"x-b3-traceid": TRACE, "x-b3-spanid": SPAN, "x-b3-sampled": "false"}, (*IDS, False)),
        ({"x-b3-traceid": TRACE, "x-b3-spanid": SPAN, "x-b3-flags": "1"}, (*IDS, True)),
        ({"x-b3-traceid": TRACE, "x-b3-spanid": SPAN}, (*IDS, True)),
        ({"b3": "0"}, None),
        ({"b3": f"{'0' * 32}-{SPAN}-1"}, None),
        ({"b3": f"{TRACE}-{'0' * 16}-1"}, None),
        ({"b3": f"{TRACE}-{SPAN}-2"}, None),
        ({"b3": f"{TRACE[:31]}-{SPAN}-1"}, None),
        ({"x-b3-traceid": TRACE}, None),
        ({"x-b3-traceid": "x" * 32, "x-b3-spanid": SPAN}, None),
        ({}, None),
    ],
)
def test_b3_is_read_as_its_specification_says(headers, expected):
    """Both kinds in any case, short trace ids, an open decision (taken as yes) and debug are read; the rest is not."""
    assert parse_b3(headers) == expected
    with ec.continue_trace(headers, formats=["b3"]) as scope:
        assert (scope.trace_id, scope.span_id) == ((0, 0) if expected is None else expected[:2])


@given(st.text(max_size=80))
def test_any_text_as_b3_is_read_or_ignored(text):
    """No header of a stranger's breaks a request."""
    parse_b3({"b3": text})
    parse_b3({"x-b3-traceid": text, "x-b3-spanid": text, "x-b3-sampled": text, "x-b3-flags": text})


def test_without_being_asked_for_b3_is_neither_read_nor_written():
    """By default W3C's headers are in use, and those alone."""
    with ec.continue_trace({"b3": f"{TRACE}-{SPAN}-1"}):
        assert ec.current_trace().trace_id is None
    with ec.continue_trace(f"00-{TRACE}-{SPAN}-01"):
        assert set(ec.inject()) == {"traceparent"}


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("b3", {"b3"}),
        ("b3multi", {"X-B3-TraceId", "X-B3-SpanId", "X-B3-Sampled"}),
        ("tracecontext, B3", {"traceparent", "b3"}),
        ("tracecontext,baggage,b3multi", {"traceparent", "baggage", "X-B3-TraceId", "X-B3-SpanId", "X-B3-Sampled"}),
        ("none", set()),
        ("", {"traceparent", "baggage"}),
    ],
)
def test_otel_propagators_says_what_is_written(monkeypatch, variable, names):
    """``OTEL_PROPAGATORS`` chooses; what an outgoing call had of these before is replaced, in any case."""
    monkeypatch.setenv("OTEL_PROPAGATORS", variable)
    with ec.baggage(user="me"), ec.continue_trace(f"00-{TRACE}-{SPAN}-01"):
        assert set(ec.inject()) == names
        old = {"B3": "old", "x-b3-sampled": "0", "Accept": "*"}
        headers = ec.inject(dict(old))
    assert headers.pop("Accept") == "*"
    assert {name.lower() for name in names} <= {name.lower() for name in headers}
    assert "old" not in headers.values() or "b3" not in names


def test_the_last_format_that_has_a_trace_wins(monkeypatch):
    """Of W3C and B3 headers those asked for last win, and B3 does not take over a tracestate."""
    monkeypatch.setenv("OTEL_PROPAGATORS", "tracecontext,b3")
    headers = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "a=b", "b3": f"{TRACE}-{SPAN}-0"}
    with ec.continue_trace(headers) as scope:
        assert (scope.trace_id, scope.span_id, scope.sampled, scope.tracestate) == (*IDS, False, None)
    with ec.continue_trace({**headers, "b3": "nonsense"}) as scope:
        assert (scope.trace_id, scope.tracestate) == (int("1" * 32, 16), "a=b")
    with ec.continue_trace(headers, formats=["tracecontext"]) as scope:
        assert scope.trace_id == int("1" * 32, 16)


def test_a_propagator_that_is_not_known_is_warned_of_once(monkeypatch):
    """A name that we do not know is left out with a warning, once."""
    monkeypatch.setenv("OTEL_PROPAGATORS", "xray-once,baggage")
    with pytest.warns(UserWarning, match="OTEL_PROPAGATORS names 'xray-once', which is ignored"):
        assert propagators() == ("baggage",)
    assert propagators() == ("baggage",)
