"""The span plugin: which traces are recorded, what OTEL_* variables say, and the limits of spans."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import eventcore as ec
from eventcore_otlp.environment import OtelVariableWarning
from eventcore_span.handler import SpanHandler

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REMOTE_UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Holder(ec.Operation, name="test.holder", category=ec.Category.DATA):
    value: Any = ec.unset


def spans(emitter, name="span"):
    """Return what the handler exported so far."""
    assert emitter.flush()
    return emitter.handler(name).exporter.spans


def span_of(emitter, operation=Holder, **fields):
    """Run one operation and return its span."""
    with emitter.operation(operation, **fields):
        pass
    return spans(emitter)[-1]


def counts(emitter, handler="span"):
    """Return one handler's row of the ledger."""
    assert emitter.flush()
    return emitter.ledger().handler(handler)


def test_the_sampling_ratio_is_met_and_decided_by_trace_id():
    """Of 2,000 traces a ratio of 0.3 keeps about 600: exactly those whose low 64 bits are below the bound."""
    made = []
    with ec.configure(ids=ec.Ids(seed=7), handlers={"span": {"exporter": "memory", "sampling_ratio": 0.3}}) as emitter:
        for _ in range(2_000):
            with emitter.operation(Holder):
                made.append(int(ec.current_trace().trace_id, 16))
        kept = [span.trace_id for span in spans(emitter)]
        assert kept == [trace for trace in made if trace & (2**64 - 1) < int(0.3 * 2**64)]
        assert 500 < len(kept) < 700  # 5 standard deviations of a binomial are 102
        row = counts(emitter)
        assert (row.emitted, row.sampled, row.delivered) == (2_000, 2_000 - len(kept), len(kept))


def test_children_and_traceparent_follow_the_decision_of_the_root():
    """A trace is sampled as a whole, and the traceparent inside says so."""
    flags = {}
    with ec.configure(ids=ec.Ids(seed=3), handlers={"span": {"exporter": "memory", "sampling_ratio": 0.5}}) as emitter:
        for _ in range(200):
            with emitter.operation(Holder), emitter.operation(Holder), emitter.operation(Holder):
                trace = ec.current_trace()
                flags[int(trace.trace_id, 16)] = trace.traceparent[-2:]
        kept = [span.trace_id for span in spans(emitter)]
    assert set(flags.values()) == {"00", "01"}
    assert {trace for trace, flag in flags.items() if flag == "01"} == set(kept)
    assert all(kept.count(trace) == 3 for trace in kept)


def test_a_remote_parent_decides():
    """A continued trace keeps its caller's flag, whatever the ratio."""
    with ec.configure(handlers={"span": {"exporter": "memory", "sampling_ratio": 0.0}}) as emitter:
        with ec.continue_trace(REMOTE), emitter.operation(Holder):
            pass
        with emitter.operation(Holder):
            pass
        assert len(spans(emitter)) == 1
    with ec.configure(handlers={"span": {"exporter": "memory", "sampling_ratio": 1.0}}) as emitter:
        with ec.continue_trace(REMOTE_UNSAMPLED), emitter.operation(Holder):
            pass
        assert spans(emitter) == ()


def test_an_unsampled_operation_takes_no_place_in_the_queue():
    """An unsampled operation is counted as sampled out and nothing more: no queue, no worker, whatever its outcome."""
    with ec.configure(handlers={"span": {"exporter": "memory", "sampling_ratio": 0, "queue_size": 1}}) as emitter:
        for number in range(50):
            with emitter.operation(Holder) as operation:
                if number % 2:
                    operation.fail(ValueError("no"))
        assert not any(thread.name == "eventcore-span" for thread in threading.enumerate())
        row = counts(emitter)
        assert (row.emitted, row.sampled, row.accepted, row.dropped.total()) == (50, 50, 0, 0)


def test_other_handlers_get_unsampled_operations():
    """Only spans are sampled by trace: another handler gets every operation."""
    handlers = {"span": {"exporter": "memory", "sampling_ratio": 0}, "buffer": {}}
    with ec.configure(handlers=handlers) as emitter:
        for _ in range(3):
            with emitter.operation(Holder):
                pass
        assert counts(emitter).sampled == 3
        assert counts(emitter, "buffer").delivered == 3 + 1  # and eventcore.started


@pytest.mark.parametrize(
    ("sampler", "argument", "kept"),
    [
        # of 200 roots, of 100 continued traces that are sampled, of 100 that are not
        ("always_on", None, (200, 100, 100)),
        ("always_off", None, (0, 0, 0)),
        ("traceidratio", "0.25", (0.25, 0.25, 0.25)),
        ("parentbased_always_on", None, (200, 100, 0)),
        ("parentbased_always_off", None, (0, 100, 0)),
        ("parentbased_traceidratio", "0.25", (0.25, 100, 0)),
        ("", "0.25", (200, 100, 0)),
    ],
)
def test_samplers_mean_what_opentelemetry_says(monkeypatch, sampler, argument, kept):
    """OTEL_TRACES_SAMPLER decides on roots and on continued traces; the share of a ratio is met by trace id."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    if argument:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    ids = ec.Ids(seed=5)
    remote = [f"{ids.random_bits(128):032x}-{ids.random_bits(64):016x}" for _ in range(100)]
    with ec.configure(ids=ids, handlers={"span": {"exporter": "memory"}}) as emitter:
        for _ in range(200):
            with emitter.operation(Holder, value="root"):
                pass
        for flag in ("01", "00"):
            for header in remote:
                with ec.continue_trace(f"00-{header}-{flag}"), emitter.operation(Holder, value=flag):
                    assert ec.current_trace().sampled == (ec.inject()["traceparent"][-2:] == "01")
        made = [span.attributes["value"] for span in spans(emitter)]
        row = counts(emitter)
    for value, expected, total in zip(("root", "01", "00"), kept, (200, 100, 100), strict=True):
        if isinstance(expected, float):
            assert expected * total * 0.5 < made.count(value) < expected * total * 1.6
        else:
            assert made.count(value) == expected, value
    assert row.emitted == 400
    assert row.sampled == 400 - len(made)


def test_options_win_over_the_sampler_of_the_environment(monkeypatch):
    """A ratio that is given counts, whatever OTEL_TRACES_SAMPLER says; a sampler of no known name is warned of."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with ec.configure(handlers={"span": {"exporter": "memory", "sampling_ratio": 1.0}}) as emitter:
        assert span_of(emitter).name == "test.holder"
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "xray")
    with pytest.warns(OtelVariableWarning, match="OTEL_TRACES_SAMPLER is 'xray' and is ignored"):
        emitter = ec.configure(handlers={"span": {"exporter": "memory"}})
    assert span_of(emitter).name == "test.holder"
    ec.shutdown()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1.5")
    with pytest.warns(OtelVariableWarning, match="OTEL_TRACES_SAMPLER_ARG is '1.5'.*a number from 0 to 1"):
        emitter = ec.configure(handlers={"span": {"exporter": "memory"}})
    assert span_of(emitter).name == "test.holder"


def test_otel_sdk_disabled_turns_spans_off(monkeypatch):
    """With OTEL_SDK_DISABLED=true there are no spans, nothing is sampled, and other handlers go on."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    handlers = {"span": {"exporter": "otlp", "endpoint": "http://127.0.0.1:9"}, "buffer": {}}
    with ec.configure(handlers=handlers) as emitter:
        with emitter.operation(Holder):
            assert ec.inject()["traceparent"].endswith("-00")
        row = counts(emitter)
        assert (row.accepted, row.failed) == (0, 0)
        assert counts(emitter, "buffer").delivered == 2
        assert emitter.handler("span").describe()["disabled"]


def test_the_exporter_none_makes_no_spans_and_keeps_traces():
    """With exporter = 'none' nothing is exported, but ids and decisions go on to the services called."""
    with ec.configure(handlers={"span": {"exporter": "none"}}) as emitter:
        with emitter.operation(Holder):
            assert ec.inject()["traceparent"].endswith("-01")
        assert counts(emitter).accepted == 0
        assert not emitter.enabled(Holder)


def test_variables_stand_in_for_options_that_are_not_given(monkeypatch):
    """OTEL_TRACES_EXPORTER and OTEL_BSP_* say what the options do not; a bad one is warned of and ignored."""
    for name, value in {
        "OTEL_TRACES_EXPORTER": "memory",
        "OTEL_BSP_MAX_QUEUE_SIZE": "77",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "7",
        "OTEL_BSP_SCHEDULE_DELAY": "250",
    }.items():
        monkeypatch.setenv(name, value)
    config = SpanHandler().config
    assert (config.exporter, config.queue_size, config.batch_size, config.linger_s) == ("memory", 77, 7, 0.25)
    assert SpanHandler(exporter="console", linger_s=0.1, batch_size=9).config.linger_s == 0.1
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "many")
    with pytest.warns(OtelVariableWarning, match="OTEL_BSP_MAX_QUEUE_SIZE is 'many'"):
        assert SpanHandler().config.queue_size == 10_000


def test_limits_of_the_environment_hold(monkeypatch):
    """OTEL_SPAN_* and OTEL_ATTRIBUTE_* limits bound spans, the more special one first; what is dropped is counted."""
    for name, value in {
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "9",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "3",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "5",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with ec.configure(handlers={"span": {"exporter": "memory"}}) as emitter:
        with emitter.operation(Holder, value={"a": "123456", "b": "12345", "c": 3}) as op:
            op.link("1" * 32, "2" * 16)
            op.link("3" * 32, "4" * 16)
            op.fail(ValueError("a long story"))
        (span,) = spans(emitter)
    assert span.attributes == {"event.name": "test…", "error.type": "Valu…", "value.a": "1234…"}
    assert (span.dropped_attributes, len(span.links), span.dropped_links) == (2, 1, 1)
    assert span.events[0].attributes["exception.message"] == "a lo…"
    assert len(span.events[0].attributes["exception.stacktrace"]) == 5


def test_each_span_handler_keeps_its_own_ratio():
    """Of two handlers the one with the smaller ratio keeps a part of the other's traces, and whole ones."""
    handlers = {
        "all": {"use": "span", "exporter": "memory"},
        "few": {"use": "span", "exporter": "memory", "sampling_ratio": 0.25},
    }
    with ec.configure(ids=ec.Ids(seed=11), handlers=handlers) as emitter:
        for _ in range(200):
            with emitter.operation(Holder), emitter.operation(Holder):
                pass
        assert len(spans(emitter, "all")) == 400
        few = [span.trace_id for span in spans(emitter, "few")]
    assert 20 < len(set(few)) < 80
    assert all(few.count(trace) == 2 for trace in few)
