"""``eventcore debug error-rate`` and ``sampling-stats``: what a running process counts, and what it leaves out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.cli.output import AsJson, fail, say, say_json, say_table
from eventcore.cli.source import Url, say_source, source_of
from eventcore.errors import EventCoreError
from eventcore.events import Severity

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["error_rate", "sampling_stats"]

_HEAD = ("source", "eventcore", "format", "pid", "service", "settings")

_wait = time.sleep
"""How the window passes: a seam, so that a test decides what happens in it."""

Counts = dict[tuple[str, str, str], int]


def error_rate(
    *,
    url: Url = None,
    window: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long to watch.")] = 5.0,
    fail_above: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="SHARE", help="End with 1 if more events are errors.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Watch a running process for a while: how many of its events are errors, and which; beside all since its start.

    Errors are events of severity error and above, failed operations among them. JSON: window_s, emitted, errors,
    errors_per_s, error_share (null without events), errors_by_event, since_start (emitted, errors, error_share,
    errors_by_event).
    """
    before = _asked(url)
    began = time.monotonic()
    _wait(window)
    after = _asked(url)
    elapsed_s = time.monotonic() - began
    if (before["pid"], before["service"]) != (after["pid"], after["service"]):
        fail(f"{after['source']}: another process answers than {window:g} s ago; it was restarted, ask again", 1)
    then, now = _counts(before), _counts(after)
    rates = _rates({key: number - then.get(key, 0) for key, number in now.items()})
    answer = {
        **{key: after[key] for key in _HEAD},
        "window_s": round(elapsed_s, 3),
        **rates,
        "errors_per_s": round(rates["errors"] / elapsed_s, 4),
        "since_start": _rates(now),
    }
    if as_json:
        say_json(answer)
    else:
        _say_rate(answer)
    if fail_above is not None and (rates["error_share"] or 0.0) > fail_above:
        raise typer.Exit(1)


def sampling_stats(*, url: Url = None, as_json: AsJson = False) -> None:
    """Show for each handler of a running process what its sampling took and left out since the process began.

    JSON: handlers (name, kind, share, by, max_per_second, keep_from, sampling_ratio of spans, offered, taken,
    sampled_out, taken_share; null without events).
    """
    answer = _asked(url)
    rows = [_sampled(handler) for handler in answer["handlers"]]
    if as_json:
        say_json({**{key: answer[key] for key in _HEAD}, "handlers": rows})
        return
    say_source(answer)
    say_table(
        ("handler", "configured", "#offered", "#taken", "#left out", "#share taken"),
        [
            (
                row["name"],
                _configured(row),
                row["offered"],
                row["taken"],
                row["sampled_out"],
                _share(row["taken_share"]),
            )
            for row in rows
        ],
    )


def _asked(url: str | None) -> dict[str, Any]:
    if url is None:
        fail("only a running process has counts; give --url, such as http://127.0.0.1:9090")
    try:
        return source_of(url).inspection()
    except EventCoreError as error:
        fail(error)


def _counts(answer: dict[str, Any]) -> Counts:
    return {(one["event"], one["category"], one["severity"]): one["count"] for one in answer["emitted_by"]}


def _rates(counts: Counts) -> dict[str, Any]:
    emitted = sum(counts.values())
    wrong = {key: n for key, n in counts.items() if n and Severity.parse(key[2]) >= Severity.ERROR}
    errors = sum(wrong.values())
    order: Callable[[tuple[Any, int]], int] = lambda item: -item[1]  # noqa: E731 - a key, and typed
    return {
        "emitted": emitted,
        "errors": errors,
        "error_share": round(errors / emitted, 6) if emitted else None,
        "errors_by_event": [
            {"event": event, "category": category, "severity": severity, "count": count}
            for (event, category, severity), count in sorted(wrong.items(), key=order)
        ],
    }


def _say_rate(answer: dict[str, Any]) -> None:
    say_source(answer)
    total = answer["since_start"]
    say_table(
        ("", "#events", "#errors", "#share"),
        [
            (f"last {answer['window_s']:g} s", answer["emitted"], answer["errors"], _share(answer["error_share"])),
            ("since its start", total["emitted"], total["errors"], _share(total["error_share"])),
        ],
    )
    say(f"{answer['errors_per_s']:g} errors per second", style="bold")
    if total["errors_by_event"]:
        latest = {(one["event"], one["severity"]): one["count"] for one in answer["errors_by_event"]}
        say_table(
            ("event", "severity", "#now", "#since its start"),
            [
                (one["event"], one["severity"], latest.get((one["event"], one["severity"]), 0), one["count"])
                for one in total["errors_by_event"]
            ],
        )


def _sampled(handler: dict[str, Any]) -> dict[str, Any]:
    account = handler["ledger"]
    offered = account["accepted"] + account["sampled"]
    return {
        "name": handler["name"],
        "kind": handler["kind"],
        **handler["sampling"],
        "sampling_ratio": handler["facts"].get("sampling_ratio"),
        "offered": offered,
        "taken": account["accepted"],
        "sampled_out": account["sampled"],
        "taken_share": round(account["accepted"] / offered, 6) if offered else None,
    }


def _configured(row: dict[str, Any]) -> str:
    parts = [f"{row['share']:g} by {row['by']}" if row["share"] != 1 else "all"]
    if row["sampling_ratio"] is not None:
        parts = [f"{row['sampling_ratio']:g} of traces"]
    if row["max_per_second"] is not None:
        parts.append(f"{row['max_per_second']:g} per second")
    if row["keep_from"] is not None:
        parts.append(f"all from {row['keep_from']}")
    return ", ".join(parts)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
