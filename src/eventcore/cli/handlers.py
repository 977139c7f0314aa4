"""``eventcore handlers``: what is installed, or what a running process has attached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.cli.output import AsJson, fail, say_json, say_table
from eventcore.cli.source import Url, say_source, source_of
from eventcore.errors import EventCoreError
from eventcore.plugins import Plugins

if TYPE_CHECKING:
    from eventcore.plugins import HandlerKind

__all__ = ["handlers"]


def handlers(*, as_json: AsJson = False, url: Url = None) -> None:
    """List the kinds of handlers that are installed; with --url, the handlers attached in that process.

    JSON: a list. Installed: kind, plugin, version, delivery, about, problem. Attached: as in debug inspect.
    """
    try:
        if url is not None:
            _attached(source_of(url).inspection(), as_json=as_json)
        else:
            _installed(Plugins(), as_json=as_json)
    except EventCoreError as error:
        fail(error)


def _installed(plugins: Plugins, *, as_json: bool) -> None:
    rows = [_describe(plugins, kind) for kind in sorted(plugins.handler_kinds().values(), key=lambda kind: kind.kind)]
    rows += [
        {"kind": name, "plugin": name, "version": "?", "delivery": "?", "about": "", "problem": f"broken: {error!r}"}
        for name, error in plugins.broken.items()
    ]
    if as_json:
        say_json(rows)
        return
    say_table(
        ("kind", "plugin", "version", "delivery", "what it does"),
        [(row["kind"], row["plugin"], row["version"], row["delivery"], row["problem"] or row["about"]) for row in rows],
    )


def _describe(plugins: Plugins, kind: HandlerKind) -> dict[str, str]:
    row = {"kind": kind.kind, "plugin": kind.plugin, "version": plugins.versions.get(kind.plugin, "?")}
    try:
        handler = kind.load()
    except EventCoreError as error:
        return {**row, "delivery": "?", "about": "", "problem": str(error)}
    about = (handler.__doc__ or "").strip().partition("\n")[0]
    return {**row, "delivery": handler.delivery, "about": about, "problem": ""}


def _attached(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(answer["handlers"])
        return
    say_source(answer)
    say_table(
        ("handler", "kind", "delivery", "#queue", "breaker", "#delivered", "#failed", "#dropped"),
        [
            (
                handler["name"],
                handler["kind"],
                handler["delivery"],
                f"{handler['queue']['depth']}/{handler['queue']['capacity']}" if handler["queue"] else "-",
                handler["breaker"],
                handler["ledger"]["delivered"],
                handler["ledger"]["failed"],
                sum(handler["ledger"]["dropped"].values()),
            )
            for handler in answer["handlers"]
        ],
    )
