"""``eventcore explain``: what becomes of an event."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from eventcore.cli.output import AsJson, fail, say, say_about, say_json
from eventcore.cli.source import Config, Import, Url, say_source, source_of
from eventcore.errors import EventCoreError
from eventcore.inspection import UnknownEvent

__all__ = ["explain"]


def explain(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Dotted name, such as circuit.opened.")],
    *,
    severity: Annotated[str | None, typer.Option(help="Severity to ask for; default: the type's own.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    config: Config = None,
    modules: Import = None,
) -> None:
    """Say which handlers take an event, what stops it at the others, and what each would put out.

    The example is made up from the type's fields; nothing is sent or written. JSON: event, severity, example, and
    handlers with takes, passed, stopped_by (clause, why), sampling, delivery, queue, breaker, start, output.
    """
    try:
        answer = source_of(url, config, modules).explanation(event, severity)
    except EventCoreError as error:
        is_unknown = isinstance(error, UnknownEvent) and not modules
        fail(f"{error}; types of your own are known with --import MODULE or --url" if is_unknown else error)
    if as_json:
        say_json(answer)
        return
    say_source(answer)
    about = answer["event"]
    kind = "operation" if about["operation"] else "event"
    say(f"{about['name']}: {kind}, {about['category']}, {answer['severity']}", style="bold")
    say_about("example", json.dumps(answer["example"], ensure_ascii=False))
    if answer["example_problem"]:
        say_about("", f"(made up, and not valid: {answer['example_problem']})")
    if not answer["handlers"]:
        say("no handlers are attached")
    for handler in answer["handlers"]:
        say()
        _say_handler(handler)
    if answer["problem"]:
        say()
        say_about("problem", answer["problem"])


def _sampling(sampling: dict[str, Any]) -> str:
    drawn = "by trace" if sampling["by"] == "trace" else "at random"
    share = f"a share of {sampling['share']:.4g}, drawn {drawn}" if sampling["share"] < 1 else ""
    limit = f"at most {sampling['max_per_second']:.4g} per second" if sampling["max_per_second"] else ""
    kept = f"all from {sampling['keep_from']} on" if sampling["keep_from"] else ""
    return "; ".join(part for part in (share, limit, kept) if part)


def _say_handler(handler: dict[str, Any]) -> None:
    if not handler["takes"]:
        say(f"{handler['name']}: not taken")
        for stop in handler["stopped_by"]:
            say_about("stopped", f"by {stop['clause']}: {stop['why']}")
        return
    also = ", its start too" if handler["start"] else ""
    say(f"{handler['name']}: taken{also}", style="bold")
    say_about("passes", "; ".join(f"{clause}: {why}" for clause, why in handler["passed"].items()))
    if handler["sampling"] is not None:
        say_about("sampling", _sampling(handler["sampling"]))
    if handler["sampling_ratio"] is not None:
        say_about("traces", f"{handler['sampling_ratio']:.4g} (share recorded of the traces that start here)")
    queue = handler["queue"]
    waiting = f", {queue['depth']} of at most {queue['capacity']} waiting" if queue else ", in the caller"
    state = "" if handler["breaker"] == "closed" else f"; in quarantine (breaker {handler['breaker']})"
    say_about("delivery", f"{handler['delivery']}{waiting}{state}")
    say_about("output", "(it offers no preview)" if handler["output"] is None else handler["output"] or "(nothing)")
