"""What the demo prints at its end: what happened, as the signals tell it, and whether they agree."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from answers import ALPHA, PRICES
from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from answers import Answers
    from receiver import Receiver
    from rich.console import Console

    from router import RoutingResponse


class Tally:
    """What the demo itself saw, to hold the signals against."""

    def __init__(self) -> None:
        self.latencies_us: list[int] = []
        self.lightweight = 0
        self.powerful = 0
        self.errors: Counter[str] = Counter()
        self.bad_lines: list[str] = []
        self.answers: Answers | None = None
        """What came of the questions whose answers are known."""

    @property
    def requests(self) -> int:
        return len(self.latencies_us) + self.errors.total()

    def add(self, response: RoutingResponse) -> None:
        """Count a routed request."""
        self.latencies_us.append(response.inference_time_us)
        lightweight = int(response.use_lightweight.sum())
        self.lightweight += lightweight
        self.powerful += response.candidates_processed - lightweight


def show(console: Console, tally: Tally, emitter: Any, receiver: Receiver) -> bool:
    """Print the summary; return whether all signals agree with what was done."""
    console.rule("eventcore demo")
    _show_requests(console, tally, _moves(emitter))
    if tally.answers is not None:
        _show_answers(console, tally.answers)
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


def _show_answers(console: Console, answers: Answers) -> None:
    count, right = answers.count, answers.right
    spent = sum(number * PRICES[name] for name, number in answers.by.items()) / count
    table = Table.grid(padding=(0, 2))
    alone = " and ".join(
        f"{name} alone {right[f'{name} alone'] / count:.0%} at {price:g}" for name, price in PRICES.items()
    )
    rate = (right["weak"] + right["strong"]) / count
    table.add_row("questions", f"{count}: weak answered {answers.by['weak']}, strong {answers.by['strong']}")
    table.add_row("policy", f"{rate:.0%} right at a mean price of {spent:.1f}; {alone}")
    harmed = answers.by["weak"] - right["weak"]
    table.add_row(
        "promise",
        f"at most {ALPHA:.0%} answered weakly and wrong in the long run: {harmed / count:.1%}; the level ends at "
        f"{answers.level:.2f}",
    )
    table.add_row("feedback", f"{count} accepted, {answers.twice} refused as a duplicate; known now: {answers.known}")
    turns = (f"{turn.kind} {'from' if turn.has_begun else 'until'} question {turn.question}" for turn in answers.turns)
    table.add_row("drift", ", ".join(turns) or "none")
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
        yield from _in_metrics(tally, emitter.handler("metric").value)
    if "log" in names and (log := Path("log.jsonl")).is_file():
        yield from _in_log(tally, [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()])
    if "span" in names and (spans := Path("spans.jsonl")).is_file():
        yield from _in_spans(tally, [json.loads(line) for line in spans.read_text(encoding="utf-8").splitlines()])
    if "buffer" in names:
        kept = emitter.handler("buffer").get_events
        yield "buffer: routed requests", tally.requests, len(kept(type="router.route"))
        if tally.answers is not None:
            yield "buffer: feedback accepted", tally.answers.count, len(kept(type="router.feedback_received"))
            yield "buffer: drifts found", tally.answers.drifts, len(kept(type="router.drift_detected"))


def _in_metrics(tally: Tally, value: Any) -> Any:
    def total(name: str, label: str, *values: str) -> int:
        return sum(int(value(name, {label: each}) or 0) for each in values)

    requests = "tiny_dancer_routing_requests_total"
    yield "metric: requests with status success", len(tally.latencies_us), total(requests, "status", "success")
    yield "metric: requests with status failure", tally.errors.total(), total(requests, "status", "failure")
    decided = total("tiny_dancer_routing_decisions_total", "model_type", "lightweight", "powerful")
    yield "metric: decisions", tally.lightweight + tally.powerful, decided
    if tally.answers is not None:
        feedback = "router_feedback_total"
        yield "metric: feedback accepted", tally.answers.count, total(feedback, "status", "accepted")
        yield "metric: feedback refused", tally.answers.twice, total(feedback, "status", "duplicate", "unknown")
        kinds = ("features", "scores", "needs", "calibration")
        yield "metric: drifts found", tally.answers.drifts, total("router_drift_detected_total", "kind", *kinds)


def _in_log(tally: Tally, lines: list[Any]) -> Any:
    messages, names = Counter(line["event"] for line in lines), Counter(line["name"] for line in lines)
    yield "log: requests completed", len(tally.latencies_us), messages["Routing request completed successfully"]
    yield "log: requests failed", tally.errors.total(), messages["Routing request failed"]
    yield "log: decisions", tally.lightweight + tally.powerful, messages["Routing decision made"]
    if tally.answers is not None:
        yield "log: feedback accepted", tally.answers.count, names["router.feedback_received"]
        yield "log: drifts found", tally.answers.drifts, names["router.drift_detected"]


def _in_spans(tally: Tally, lines: list[Any]) -> Any:
    found = Counter(
        span["name"]
        for line in lines
        for resource in line["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    )
    yield "spans: routing_request", tally.requests, found["routing_request"]
    if tally.answers is not None:
        yield "spans: prompt_assessment", tally.answers.count, found["prompt_assessment"]
