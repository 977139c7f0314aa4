"""``eventcore debug emit-event`` and ``test-trace``: real events through the configured handlers, and what came of it.

Handlers are attached for real, so lines are written and webhooks called. Services such as the HTTP server are not
started, since the process that is asked about may hold their ports; durable handlers get a journal of the trial's own.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.adhoc import emit_event as emit
from eventcore.adhoc import get_logger, span
from eventcore.cli.output import AsJson, fail, say, say_about, say_json
from eventcore.cli.source import Config, say_source
from eventcore.errors import EventCoreError
from eventcore.events import Category, Severity
from eventcore.example import Witness
from eventcore.explanation import explain_envelope
from eventcore.inspection import head_of
from eventcore.rehearsal import rehearse
from eventcore.setup import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope

__all__ = ["emit_event", "try_trace"]

Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the handlers.")]

GOOD = ("delivered", "filtered", "sampled out")


def emit_event(
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="Dotted name, such as test.event.")],
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="Its message.")],
    *,
    severity: Annotated[str, typer.Option(help="trace, debug, info, warning, error or critical.")] = "info",
    category: Annotated[str, typer.Option(help="system, execution, model, cache, security, …")] = "system",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Emit a test event through the configured handlers, for real, and say what each did with it.

    Exit code 1 when a handler failed or dropped it. JSON: event, severity, handlers (name, did, why, output).
    """
    try:
        asked = (Category.parse(category.lower()), Severity.parse(severity))
    except ValueError as error:
        fail(error)
    with _configured(config) as (emitter, witness):
        emit(event_type, *asked, message=message)
        (envelope,) = [one for one in witness.envelopes if one.name != "eventcore.handler"]
        emitter.flush(timeout)
        done = [_did(emitter, witness, envelope, number) for number in range(len(emitter.attachments) - 1)]
        answer = {"source": "fresh", **head_of(emitter), "event": envelope.name, "severity": severity, "handlers": done}
    if as_json:
        say_json(answer)
    else:
        say_source(answer, is_trial=True)
        say(f"{envelope.name} emitted, {severity}", style="bold")
        _say_done(done)
    if any(one["did"] not in GOOD for one in done):
        raise typer.Exit(1)


def try_trace(*, timeout: Timeout = 30.0, as_json: AsJson = False, config: Config = None) -> None:
    """Run a test operation with a log line inside, for real, and show that their trace ids correlate.

    Exit code 1 when no handler put the line out with the ids of the operation, or one failed. JSON: trace_id, span_id,
    correlated, line and span (each: handlers with name, did, why, output).
    """
    with _configured(config) as (emitter, witness):
        with span("eventcore.test_trace") as operation:
            operation.sampled = True  # whatever the share: this one is wanted
            get_logger("eventcore.test_trace").info("a line inside the test operation")
        line, end = (one for one in witness.envelopes if one.name in ("log.record", "eventcore.test_trace"))
        emitter.flush(timeout)
        numbers = range(len(emitter.attachments) - 1)
        lines = [_did(emitter, witness, line, number) for number in numbers]
        spans = [_did(emitter, witness, end, number) for number in numbers]
        head = head_of(emitter)
    ids = (end.trace_id, end.span_id)
    shown = [one for one in lines if one["did"] == "delivered" and all(str(i) in (one["output"] or "") for i in ids)]
    is_well = (line.trace_id, line.span_id) == ids and all(one["did"] in GOOD for one in (*lines, *spans))
    answer = {
        "source": "fresh",
        **head,
        "trace_id": end.trace_id,
        "span_id": end.span_id,
        "correlated": bool(is_well and shown),
        "line": lines,
        "span": spans,
    }
    if as_json:
        say_json(answer)
    else:
        _say_trace(answer)
    if not answer["correlated"]:
        raise typer.Exit(1)


@contextmanager
def _configured(config: str | None) -> Iterator[tuple[Emitter, Witness]]:
    folder = TemporaryDirectory(prefix="eventcore-")
    try:
        settings = rehearse(config).settings
        services: dict[str, Any] = dict.fromkeys(settings.services if settings else ())
        if "http" in services and settings and settings.sources.variables.get("ENABLE_METRICS"):
            services["http"] = {"host": "127.0.0.1", "port": 0}  # the variable insists on a server
        # A journal of its own: what another process left in the configured one is not for a trial to deliver.
        journal = {"path": str(Path(folder.name) / "journal.db")}
        emitter = configure(config=config, replace=True, journal=journal, **services)
    except EventCoreError as error:
        folder.cleanup()
        fail(error)
    witness = Witness()
    emitter.add_handler(witness)
    with folder, emitter:
        yield emitter, witness


def _did(emitter: Emitter, witness: Witness, envelope: Envelope, number: int) -> dict[str, Any]:
    """Return what the handler at ``number`` did with the envelope, by its account."""
    attachment = emitter.attachments[number]
    name = attachment.name
    rows = [row for row in emitter.ledger().rows if (row.handler, row.event) == (name, envelope.name)]
    explained = explain_envelope(attachment, envelope)
    reasons = [e.payload["reason"] for e in witness.envelopes if e.payload.get("handler") == name]
    did, why = "filtered", "; ".join(f"by {stop['clause']}: {stop['why']}" for stop in explained["stopped_by"])
    if any(row.failed for row in rows):
        did, why = "failed", reasons[0] if reasons else ""
    elif any(row.dropped.total() for row in rows):
        did, why = "dropped", ", ".join(reason for row in rows for reason in row.dropped)
    elif any(row.pending for row in rows):
        did, why = "still waiting", "it did not finish in time; wait longer with --timeout"
    elif any(row.delivered for row in rows):
        did, why = "delivered", ""
    elif any(row.sampled for row in rows):
        did, why = "sampled out", "by its sampling; eventcore explain shows it"
    output = explained["output"] if did == "delivered" else None
    return {"name": name, "kind": attachment.handler.kind, "did": did, "why": why, "output": output}


def _say_done(done: list[dict[str, Any]]) -> None:
    for one in done:
        say_about(one["name"], f"{one['did']} {one['why']}".rstrip(), width=14)
        if one["output"]:
            say_about("", one["output"], width=14)


def _say_trace(answer: dict[str, Any]) -> None:
    say_source(answer, is_trial=True)
    say(f"trace id {answer['trace_id']}, span id {answer['span_id']}", style="bold")
    say("log line inside the operation:")
    _say_done(answer["line"])
    say("the operation itself:")
    _say_done(answer["span"])
    say()
    if answer["correlated"]:
        say("Trace ids correlate.", style="bold")
    else:
        say("Trace ids do not correlate: no handler put out the line with the ids of the operation.", style="bold")
    if not any(one["kind"] == "span" for one in answer["span"]):
        say("No handler exports spans; [handlers.span] in the settings adds one.")
