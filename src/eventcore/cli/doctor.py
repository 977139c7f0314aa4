"""``eventcore doctor``: what the guides' troubleshooting sections would have somebody check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.cli import diagnosis
from eventcore.cli.address import Address
from eventcore.cli.diagnosis import Finding
from eventcore.cli.output import AsJson, fail, say, say_about, say_json
from eventcore.cli.source import Config, Fresh, Running, Source, Url, say_source
from eventcore.errors import EventCoreError
from eventcore.plugins import Plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    *,
    url: Url = None,
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this Prometheus whether it scrapes the process.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Check settings, extras, handlers, the metrics port, Prometheus, OTLP, sampling, cardinality, logs and health.

    Exit code 1 when a check fails. JSON: status (the worst), summary, findings (check, status, message, remedy).
    """
    findings: list[Finding] = []
    head: dict[str, Any] = {}
    if prometheus is not None:
        try:
            Address.parse(prometheus, option="--prometheus", example="http://localhost:9091")
        except EventCoreError as error:
            fail(error)
    try:
        source: Source = Running(url) if url is not None else Fresh(config)
        head = source.inspection()
    except EventCoreError as error:
        remedy = "start the process, with [http] in its settings" if url else "correct it where the message says"
        findings.append(Finding("process" if url else "configuration", "fail", str(error), remedy))
    else:
        findings += _all(source, head, url, prometheus)
    worst = max((finding.status for finding in findings), key=list(_STYLES).index)
    if as_json:
        summary = {status: sum(finding.status == status for finding in findings) for status in _STYLES}
        say_json(
            {
                "source": head.get("source"),
                "status": worst,
                "summary": summary,
                "findings": [finding.as_json() for finding in findings],
            }
        )
    else:
        if head:
            say_source(head)
        _say(findings)
    if worst == "fail":
        raise typer.Exit(1)


def _all(source: Source, answer: dict[str, Any], url: str | None, prometheus: str | None) -> Iterator[Finding]:
    if url is None:
        origin = (answer["settings"] or {}).get("file") or "defaults; no eventcore.toml was found"
        yield Finding("configuration", "ok", f"is valid: {origin}")
        if source.missing:
            unset = f"not set here: {', '.join(source.missing)}"
            yield Finding("secrets", "warn", unset, "set these variables where the process starts")
        used = {handler["kind"] for handler in answer["handlers"]} | set(answer["services"])
        yield from diagnosis.extras(Plugins(), used)
    configured, host, is_protected = source.served()
    yield from diagnosis.handlers(answer)
    yield from diagnosis.metrics_port(answer, url, configured)
    if host is not None:
        yield from diagnosis.exposure(host, is_protected=is_protected)
    if prometheus is not None:
        yield from diagnosis.prometheus(prometheus, answer, url or configured)
    yield from diagnosis.cardinality(answer)
    yield from diagnosis.sampling(answer)
    yield from diagnosis.otlp(answer)
    yield from diagnosis.logs(answer)
    yield from diagnosis.health(source.health())


def _say(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings) + 2
    for finding in findings:
        say_about(finding.check, f"{finding.status:<5} {finding.message}", indent=0, width=width)
        if finding.remedy and finding.status != "ok":
            say_about("", f"      → {finding.remedy}", indent=0, width=width)
    counts = ", ".join(f"{sum(f.status == status for f in findings)} {status}" for status in _STYLES)
    say()
    say(counts, style="bold")
