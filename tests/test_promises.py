import ast
import asyncio
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated

import pytest

import eventcore as ec
from eventcore.journal_config import JournalConfig
from tests.support.handlers import Collect, Held

TESTS = Path(__file__).parent

# The sentences are those of the design; each names tests whose docstrings quote it.
ROWS = {
    "1. The caller is never harmed": {
        "`emit` neither raises nor blocks because of a handler, except where the event type asks for durability or the"
        " delivery says `block`.": [
            "chaos/test_handlers.py::test_all_emitters_finish_while_a_handler_is_still_held",
        ],
        "It costs close to nothing when nobody listens.": ["test_emitter.py::test_nothing_wanted_costs_no_envelope"],
        "A wrong event raises where it is built (pydantic's error, naming type and field).": [
            "test_events.py::test_a_wrong_event_raises_where_it_is_built",
            "test_bad_input.py::test_event_with_a_wrong_field",
        ],
    },
    "2. Nothing is lost silently": {
        "Nothing is lost silently.": [
            "chaos/test_handlers.py::test_a_batch_that_raises_fails_as_a_whole",
            "chaos/test_handlers.py::test_handlers_come_and_go_in_a_storm",
        ],
        "Every drop has a reason and a count, visible as metrics, in `inspect`, in the console and in tests.": [
            "test_ledger.py::test_every_drop_has_a_reason_and_a_count",
            "test_promises.py::test_drops_are_visible_as_metrics",
        ],
    },
    "3. A bad handler hurts only itself": {
        "A bad handler hurts only itself.": [
            "chaos/test_handlers.py::test_a_handler_that_raises_costs_nobody_else_an_event",
            "chaos/test_handlers.py::test_a_slow_handler_is_slow_for_itself_alone",
        ],
        "Exceptions are isolated; repeated failure quarantines the handler (half-open probes let it back), reported"
        " once through the others.": [
            "test_emitter.py::test_a_failing_handler_is_reported_once_through_the_others",
            "test_emitter.py::test_a_quarantined_handler_may_come_back",
        ],
        "A handler that emits or logs while handling cannot recurse without bound;": [
            "test_emitter.py::test_a_handler_that_emits_its_own_event_cannot_recurse_without_bound",
        ],
        "one that hangs cannot hang `shutdown`.": [
            "chaos/test_handlers.py::test_a_hanging_handler_is_given_up_and_counted",
            "test_shutdown.py::test_a_handler_that_hangs_cannot_hang_shutdown",
            "test_shutdown.py::test_a_handler_whose_close_or_flush_hangs_cannot_hang_shutdown",
        ],
    },
    "4. Durable means durable": {
        "An audit-class event goes through the same ordered queue as everything else of that handler;": [
            "test_promises.py::test_an_audit_event_keeps_its_place",
        ],
        "`emit` waits for its commit receipt, bounded by `commit_timeout`;": [
            "test_promises.py::test_an_audit_emit_waits_for_its_receipt",
        ],
        "`await emit_durable` waits without blocking the loop.": [
            "test_promises.py::test_emit_durable_leaves_the_loop_alone",
        ],
        "Failure raises `NotDurable` unless configured otherwise.": [
            "test_promises.py::test_what_is_not_durable_raises",
        ],
        "An audit type without a durable handler is a configuration error.": [
            "test_durable.py::test_an_audit_type_without_a_durable_handler_is_a_configuration_error",
        ],
        "`kill -9` or a power cut loses no acknowledged row and corrupts nothing.": [
            "chaos/test_process_life.py::test_kill_9_loses_no_acknowledged_row",
            "chaos/test_power_loss.py::test_a_power_cut_loses_no_acknowledged_row",
        ],
    },
    "5. Order": {
        "A handler sees one thread's events in emit order, possibly with gaps.": [
            "test_delivery.py::test_a_handler_sees_one_threads_events_in_emit_order",
        ],
        "Retries hold their batch at the head;": [
            "test_durable.py::test_a_handler_that_fails_for_a_while_loses_nothing"
        ],
        "leftovers of an earlier run come first.": ["test_durable.py::test_leftovers_of_an_earlier_run_come_first"],
        "Webhook endpoints may opt out.": ["plugins/test_webhook.py::test_an_endpoint_may_opt_out_of_order"],
    },
    "6. Exporters swap by configuration": {
        "Exporters swap by configuration. No line of application code changes.": [
            "test_promises.py::test_exporters_swap",
        ],
    },
    "7. What is declared is emitted, what is queried exists": {
        "Every declared series, span, log and event is seen live in a test;": [
            "test_coverage.py::test_every_declared_series_has_data_in_prometheus",
            "test_coverage.py::test_every_declared_span_arrives_over_otlp",
            "test_coverage.py::test_every_declared_event_is_in_the_log",
        ],
        "every panel and rule names only what the catalog knows, and its query can return data.": [
            "lint/test_lint_generated.py::test_what_is_generated_resolves",
            "lint/test_lint_generated.py::test_committed_deployments_resolve",
        ],
    },
    "8. Bounded": {
        "Queues, label sets, buffers, caches, retries, open operations: each has a limit, a default, and a count of"
        " what met it.": [
            "test_promises.py::test_queues_and_open_operations_are_bounded",
            "test_promises.py::test_label_sets_and_buffers_are_bounded",
            "test_dead_letters.py::test_retries_end_although_nothing_gets_through",
        ],
    },
    "9. Secrets stay in": {
        "No sensitive value reaches a handler, a disk, a queue on disk or an exception message unredacted:": [
            "test_emitter.py::test_no_handler_sees_a_sensitive_value",
            "test_events.py::test_a_validation_error_shows_no_sensitive_value",
            "test_secrets_stay_in.py::test_no_handler_sees_a_secret_in_an_exception",
        ],
        "`Sensitive` fields and the pattern net are applied as the worker's first step;": [
            "test_envelope.py::test_the_pattern_net_is_the_workers_first_step",
        ],
        "inline sinks see only fields they compiled for, never `Sensitive` ones;": [
            "test_promises.py::test_inline_sinks_see_nothing_sensitive",
        ],
        "nothing sensitive is ever a label.": ["test_instruments.py::test_nothing_sensitive_is_ever_a_label"],
    },
    "10. No surprises": {
        "No thread, socket or file before `configure()`;": ["test_import.py::test_nothing_runs_before_configure"],
        "everything started is stopped by `shutdown(timeout)`, in bounded time, at exit too;": [
            "chaos/test_process_life.py::test_a_program_that_ends_has_its_events_delivered",
            "test_shutdown.py::test_everything_is_shut_down_at_exit",
        ],
        "a forked child starts with fresh threads, locks, salts and empty queues.": [
            "test_fork.py::test_a_forked_child_starts_empty",
        ],
    },
    "At the edges": {
        "emitting before `configure()` goes to a last-resort stderr handler from WARNING up, and is counted.": [
            "test_last_resort.py::test_before_configure_warnings_go_to_stderr",
        ],
        "A second `configure()` is an error unless `replace=True`.": [
            "test_setup.py::test_a_second_configure_is_an_error",
        ],
        "A crash loses best-effort queues up to the linger time, and the documentation says so.": [
            "chaos/test_process_life.py::test_a_crash_loses_what_waited_and_nothing_else",
            "chaos/test_process_life.py::test_a_process_that_leaves_without_cleaning_up_loses_what_waited",
        ],
        "Operations still open at shutdown end as `abandoned`.": [
            "test_operations.py::test_operations_open_at_shutdown_end_as_abandoned",
        ],
        "Counters of dead threads are folded, not leaked.": ["test_ledger.py::test_dead_threads_are_folded"],
        "A replayed event of an older or newer shape keeps its unknown fields.": [
            "test_durable.py::test_a_replayed_event_of_another_shape_keeps_its_unknown_fields",
        ],
    },
}

QUOTED_WORDS = 4  # so many words in a row, or the whole sentence if it is shorter, make a quotation


def words(text):
    """Return the words of a text, without marks and case."""
    return re.findall(r"[a-z0-9_']+", text.lower())


def quotes(docstring, sentence):
    """Whether a docstring has enough words in a row from a sentence."""
    said, asked = f" {' '.join(words(docstring))} ", words(sentence)
    size = min(QUOTED_WORDS, len(asked))
    return any(f" {' '.join(asked[i : i + size])} " in said for i in range(len(asked) - size + 1))


@cache
def docstrings():
    """Return the docstring of every test function, by its id, without importing anything."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[f"{path.relative_to(TESTS).as_posix()}::{node.name}"] = ast.get_docstring(node) or ""
    return found


def test_every_promise_has_a_row():
    """The ten promises and the edges are all here, each with tested sentences."""
    assert [title.partition(".")[0] for title in ROWS] == [*map(str, range(1, 11)), "At the edges"]
    for title, rows in ROWS.items():
        assert rows, title
        assert all(rows.values()), title


def test_the_rows_are_the_whole_design(checkout):
    """The rows hold every sentence of the design's promises and edges, word for word; nothing is left out."""
    data = os.environ.get("EVENTCORE_DATA", checkout.parent / "shared" / "data")
    design = Path(data).parent / "DESIGN.md"
    if not design.is_file():
        pytest.skip(f"the design is not here: {design}")
    paragraphs = design.read_text().partition("## Promises")[2].partition("\n## ")[0]
    left = f" {' '.join(words(re.sub('(?m)^[0-9]+[.]', '', paragraphs)))} "
    assert len(left.split()) > 300, "the design has another shape than this test knows"
    claims = [sentence for rows in ROWS.values() for sentence in rows]
    claims += [title.partition(". ")[2] or title for title in ROWS]
    for claim in sorted(claims, key=len, reverse=True):
        left = left.replace(f" {' '.join(words(claim))} ", " ")
    assert left.split() == []


@pytest.mark.parametrize("sentence", [sentence for rows in ROWS.values() for sentence in rows])
def test_every_sentence_is_quoted_by_its_tests(sentence):
    """Each test that a sentence names is there, and its docstring quotes the sentence."""
    (tests,) = (rows[sentence] for rows in ROWS.values() if sentence in rows)
    for test in tests:
        assert test in docstrings(), f"{test} is not there any more"
        assert quotes(docstrings()[test], sentence), f"{test} does not quote it: {docstrings()[test]}"


# -- sentences that no other test is about -----------------------------------------------------------------------------


class Paid(ec.Event, name="promise.paid", category="user", message="{amount} paid"):
    amount: int
    card: Annotated[str, ec.Sensitive] = "4111 1111 1111 1111"


class Audited(ec.Event, name="promise.audited", category="security", durable=True):
    amount: int


class Work(ec.Operation, name="promise.work", category="execution"):
    n: int = 0


@pytest.fixture
def durable():
    """Return an emitter and its durable handler; a commit that takes longer than 0.1 s comes too late."""
    with ec.Emitter(journal=JournalConfig(commit_timeout_s=0.1)) as emitter:
        yield emitter, emitter.add_handler(Collect(delivery="durable"))


def test_drops_are_visible_as_metrics():
    """Every drop has a reason and a count, visible as metrics: the series says what the ledger says."""
    held = Held(queue_size=1, batch_size=1, linger_s=0)
    emitter = ec.configure(service="x", handlers={"metric": {"exporter": "prometheus"}, "held": held}, http={"port": 0})
    emitter.emit(Paid(amount=0))
    assert held.entered.wait(10)
    for n in range(20):
        emitter.emit(Paid(amount=n))
    dropped = emitter.ledger().handler("held").dropped["full"]
    labels = {"handler": "held", "outcome": "dropped", "reason": "full"}
    assert emitter.handler("metric").value("eventcore_events_total", labels) == dropped >= 19
    held.release.set()


def test_an_audit_event_keeps_its_place(durable):
    """An audit-class event goes through the same ordered queue as everything else of that handler."""
    emitter, handler = durable
    for n in range(0, 20, 2):
        emitter.emit(Paid(amount=n))
        emitter.emit(Audited(amount=n + 1))
    assert emitter.flush(10)
    assert [envelope.get("amount") for envelope in handler.got] == list(range(20))


def test_an_audit_emit_waits_for_its_receipt(durable):
    """``emit`` waits for its commit receipt, bounded by ``commit_timeout``: too late a commit is not acknowledged."""
    emitter, handler = durable
    emitter.emit(Audited(amount=1))
    assert emitter.attachments[0].queue.depth == 0, "returned before its row was committed"
    with emitter.durability.journal._using, pytest.raises(ec.NotDurable):  # a disk that stands still
        emitter.emit(Audited(amount=2))
    assert emitter.flush(10)
    assert [envelope.get("amount") for envelope in handler.got] == [1, 2], "late, and not lost"


def test_emit_durable_leaves_the_loop_alone(durable):
    """``await emit_durable`` waits without blocking the loop: other tasks go on while the disk stands still."""
    emitter, handler = durable

    async def main():
        journal = emitter.durability.journal
        with journal._using:
            waiting = asyncio.create_task(emitter.emit_durable(Paid(amount=1)))
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await waiting

    asyncio.run(main())
    assert emitter.flush(10)
    assert [envelope.get("amount") for envelope in handler.got] == [1]


@pytest.mark.parametrize("configured", ["raise", "count"])
def test_what_is_not_durable_raises(configured):
    """Failure raises ``NotDurable`` unless configured otherwise; then it is counted."""
    with ec.Emitter(journal=JournalConfig(commit_timeout_s=0.05, on_not_durable=configured)) as emitter:
        emitter.add_handler(Collect(delivery="durable"))
        with emitter.durability.journal._using:
            if configured == "raise":
                with pytest.raises(ec.NotDurable):
                    emitter.emit(Audited(amount=1))
            else:
                emitter.emit(Audited(amount=1))
        assert emitter.ledger().unconfirmed == 1


def test_exporters_swap(tmp_path):
    """Exporters swap by configuration. No line of application code changes: one function, two destinations."""

    def application():
        ec.get_emitter().emit(Paid(amount=7))

    collected = Collect()
    with ec.configure(service="x", handlers={"mine": collected}):
        application()
    (tmp_path / "eventcore.toml").write_text('[handlers.log]\nformat = "json"\noutput = "log.json"\n')
    with ec.configure(service="x"):
        application()
    assert [envelope.event.amount for envelope in collected.got if envelope.name == "promise.paid"] == [7]
    lines = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert [line["amount"] for line in lines if "amount" in line] == [7]


def test_queues_and_open_operations_are_bounded(monkeypatch):
    """A queue and the table of open operations: each has a limit, a default, and a count of what met it."""
    assert ec.HandlerConfig().queue_size == 10_000
    monkeypatch.setattr("eventcore.misuse.MAX_OPEN_OPERATIONS", 5)
    held = Held(queue_size=3, batch_size=1, linger_s=0)
    with ec.Emitter() as emitter:
        emitter.add_handler(held, name="held")
        emitter.emit(Paid(amount=0))
        assert held.entered.wait(10)
        for n in range(10):
            emitter.emit(Paid(amount=n))
        assert emitter.ledger().handler("held").dropped == {"full": 7}
        emitter.watermark = 5  # from how many on the table is looked at
        operations = [emitter.operation(Work, n=n).__enter__() for n in range(8)]
        for operation in reversed(operations):
            operation.suspend()
        assert len(emitter.open_operations()) == 5
        assert emitter.ledger().operations["abandoned"] == 3
        held.release.set()


class Tagged(ec.Event, name="promise.tagged", category="user"):
    tag: Annotated[str, ec.Label]


def test_label_sets_and_buffers_are_bounded():
    """Label sets and buffers: each has a limit, a default, and a count of what met it."""
    tags = ec.Counter("promise_tagged_total", on=Tagged, labels={"tag": "tag"}, help="Tagged.")
    with ec.configure(
        instruments=[tags], handlers={"metric": {"max_series": 10}, "buffer": {"max_size": 4}}
    ) as emitter:
        metric, buffer = emitter.handler("metric"), emitter.handler("buffer")
        defaults = [type(handler.config)().model_dump() for handler in (metric, buffer)]
        assert (defaults[0]["max_series"], defaults[1]["max_size"]) == (1000, 1000)
        for n in range(25):
            emitter.emit(Tagged(tag=f"t{n}"))
        assert emitter.flush()
        stats = metric.cardinality_stats()["promise_tagged_total"]
        assert (stats["series"], stats["overflowed"]) == (11, 15), "ten, and the one for the others"
        assert metric.value("promise_tagged_total", {"tag": "other"}) == 15
        assert len(buffer) == 4
        assert buffer.forgotten == emitter.ledger().handler("buffer").delivered - 4 >= 21


def test_inline_sinks_see_nothing_sensitive():
    """Inline sinks see only fields they compiled for, never ``Sensitive`` ones, also beside a queued handler."""
    with ec.Emitter() as emitter:
        inline = emitter.add_handler(Collect(delivery="inline"), name="inline")
        emitter.add_handler(Collect(), name="queued")
        emitter.emit(Paid(amount=1))
    (envelope,) = inline.got
    assert "4111" not in repr(envelope) + repr(envelope.event) + repr(dict(envelope.payload))
