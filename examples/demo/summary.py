"""What the demo prints at its end: what happened, as the signals tell it, and whether they agree."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from receiver import Receiver
    from rich.console import Console


class Tally:
    """What the demo itself saw, to hold the signals against."""

    def __init__(self) -> None:
        self.latencies_us: list[int] = []
        self.lightweight = 0
        self.powerful = 0
        self.errors: Counter[str] = Counter()
        self.bad_lines: list[str] = []

    @property
    def requests(self) -> int:
        return len(self.latencies_us) + self.errors.total()


def show(console: Console, tally: Tally, emitter: Any, receiver: Receiver) -> bool:
    """Print the summary; return whether all signals agree with what was done."""
    console.rule("eventcore demo")
    _show_requests(console, tally, _moves(emitter))
    _show_outputs(console, emitter, receiver)
    ledger = emitter.ledger()
    _show_ledger(console, ledger)
    checks = list(_agreement(tally, emitter))
    for what, expected, found in checks:
        mark = "[green]agrees[/]" if expected == found else f"[red]differs: {expected} were done[/]"
        console.print(f"  {what:<48} {found:>7}  {mark}")
    return ledger.is_settled and all(expected == found for _, expected, found in checks)


def _show_requests(console: Console, tally: Tally, moves: list[str]) -> None:
    decisions = tally.lightweight + tally.powerful
    share = 100 * tally.lightweight / decisions if decisions else 0.0
    table = Table.grid(padding=(0, 2))
    errors = ", ".join(f"{kind} {number}" for kind, number in tally.errors.most_common()) or "none"
    table.add_row("requests", f"{tally.requests}: {len(tally.latencies_us)} routed, {tally.errors.total()} failed")
    table.add_row("errors", errors)
    table.add_row(
        "decisions", f"{decisions}: {tally.lightweight} lightweight ({share:.1f} %), {tally.powerful} powerful"
    )
    if len(tally.latencies_us) > 1:
        cuts = statistics.quantiles(tally.latencies_us, n=100, method="inclusive")
        table.add_row(
            "latency", f"p50 {cuts[49]:.0f} µs, p95 {cuts[94]:.0f} µs, p99 {cuts[98]:.0f} µs (features to decision)"
        )
    if moves:
        table.add_row("breaker", " → ".join(("closed", *moves)))
    for line in tally.bad_lines:
        table.add_row("bad line", line)
    console.print(table)
    console.print()


def _moves(emitter: Any) -> list[str]:
    """Return the states that the circuit breaker went through, as the buffer saw them."""
    if "buffer" not in {handler.name for handler in emitter.handlers}:
        return []
    return [envelope.event.state for envelope in emitter.handler("buffer").get_events(type="circuit.*")]


def _show_outputs(console: Console, emitter: Any, receiver: Receiver) -> None:
    table = Table.grid(padding=(0, 2))
    for handler in emitter.handlers:
        facts = ", ".join(f"{key} {value}" for key, value in handler.describe().items())
        table.add_row(handler.name, facts)
    for name, service in emitter.services.items():
        table.add_row(name, f"{service.url}/metrics while it runs (--serve keeps it up)")
    got = ", ".join(f"{kind} {number}" for kind, number in Counter(receiver.accepted).items())
    table.add_row("receiver", f"{got or 'nothing arrived'}; signatures verified, {receiver.refused} refused")
    console.print(table)
    console.print()


def _show_ledger(console: Console, ledger: Any) -> None:
    table = Table(
        "handler", title="Ledger: every envelope accounted for", title_justify="left", box=box.SIMPLE, padding=0
    )
    for column in ("emitted", "filtered", "accepted", "delivered", "pending", "failed", "dropped"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in ledger.handlers.items():
        numbers = (row.emitted, row.filtered, row.accepted, row.delivered, row.pending, row.failed, row.dropped.total())
        table.add_row(name, *map(str, numbers))
    console.print(table)
    started, ended = ledger.operations["started"], ledger.operations["ended"]
    console.print(f"  operations: {started} started, {ended} ended, {ledger.open_operations} open\n")


def _agreement(tally: Tally, emitter: Any) -> Any:
    """Yield ``(what, expected, found)`` for each signal that can be read back."""
    names = {handler.name for handler in emitter.handlers}
    if "metric" in names:
        value = emitter.handler("metric").value
        done = ("tiny_dancer_routing_requests_total", {"status": "success"})
        yield "metric: requests with status success", len(tally.latencies_us), int(value(*done) or 0)
        done = ("tiny_dancer_routing_requests_total", {"status": "failure"})
        yield "metric: requests with status failure", tally.errors.total(), int(value(*done) or 0)
        kinds = ("lightweight", "powerful")
        decided = sum(int(value("tiny_dancer_routing_decisions_total", {"model_type": kind}) or 0) for kind in kinds)
        yield "metric: decisions", tally.lightweight + tally.powerful, decided
    log = Path("log.jsonl")
    if "log" in names and log.is_file():
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        events = Counter(line["event"] for line in lines)
        yield "log: requests completed", len(tally.latencies_us), events["Routing request completed successfully"]
        yield "log: requests failed", tally.errors.total(), events["Routing request failed"]
        yield "log: decisions", tally.lightweight + tally.powerful, events["Routing decision made"]
    spans = Path("spans.jsonl")
    if "span" in names and spans.is_file():
        found: Counter[str] = Counter()
        for line in spans.read_text(encoding="utf-8").splitlines():
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    found.update(span["name"] for span in scope["spans"])
        yield "spans: routing_request", tally.requests, found["routing_request"]
    if "buffer" in names:
        yield "buffer: routed requests", tally.requests, len(emitter.handler("buffer").get_events(type="router.route"))
