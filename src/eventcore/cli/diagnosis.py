"""The checks of ``eventcore doctor``: the troubleshooting sections of the four guides, asked of what is really there.

Each takes what ``inspection.inspect`` says (or asks over the network) and yields findings. None changes anything.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from eventcore.cli.address import Address
from eventcore.errors import EventCoreError, PluginError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.plugins import Plugins

__all__ = [
    "Finding",
    "Findings",
    "cardinality",
    "exposure",
    "extras",
    "handlers",
    "health",
    "logs",
    "metrics_port",
    "otlp",
    "prometheus",
    "sampling",
]

Status = Literal["ok", "warn", "fail"]
Inspection = dict[str, Any]

NEAR_LIMIT = 0.8
RARE = 0.001
TAIL_BYTES = 200_000
HUGE_LOG = 1_000_000_000
CONNECT_S = 2.0
ASK_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it where it is not well."""

    check: str
    status: Status
    message: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """Return it fit for JSON."""
        return asdict(self)


Findings = Iterator[Finding]


# -- what is installed and configured ----------------------------------------------------------------------------------


def extras(plugins: Plugins, used: set[str]) -> Findings:
    """Yield whether plugins can be loaded, and the libraries of handlers and services imported."""
    for name, error in plugins.broken.items():
        yield Finding(f"plugin {name}", "fail", f"cannot be loaded: {error!r}", "repair it, or block it: plugins.block")
    missing: list[str] = []
    for kind, offered in sorted(plugins.handler_kinds().items()):
        try:
            offered.load()
        except PluginError as error:
            if kind in used:
                yield Finding(f"extra {kind}", "fail", str(error), f"pip install 'eventcore[{kind}]'")
            else:
                missing.append(kind)
    for name in sorted(plugins.services()):
        try:
            plugins.service_class(name)
        except PluginError as error:
            if name in used:
                yield Finding(f"extra {name}", "fail", str(error), f"pip install 'eventcore[{name}]'")
            else:
                missing.append(name)
    unused = f"; not installed, and not configured: {', '.join(missing)}" if missing else ""
    yield Finding("extras", "ok", f"what is configured can be imported{unused}")


def handlers(answer: Inspection) -> Findings:
    """Yield whether events are taken, whether handlers are attached, and whether they work."""
    if not answer["enabled"]:
        yield Finding("emitter", "fail", "is switched off: no event is taken", "set emitter.is_enabled = True")
    else:
        yield Finding("emitter", "ok", f"takes events; {answer['ledger']['emitted']} so far")
    attached = answer["handlers"]
    if not attached or all(handler["kind"] == "last_resort" for handler in attached):
        remedy = "add [handlers.log], [handlers.metric], … to eventcore.toml, and call ec.configure()"
        yield Finding("handlers", "fail", "none are registered: events go nowhere", remedy)
        return
    yield Finding("handlers", "ok", ", ".join(f"{handler['name']} ({handler['kind']})" for handler in attached))
    for handler in attached:
        yield from _handler(handler)
    nobody = [name for name, takers in answer["routes"].items() if not takers]
    if nobody and len(nobody) == len(answer["routes"]):
        yield Finding(
            "routes", "warn", "no handler takes any event at its own severity", "look at the handlers' filters"
        )
    journal = answer["journal"]
    if journal and journal["problem"]:
        remedy = "make room, or repair the permissions of its folder"
        yield Finding("journal", "fail", f"cannot be written: {journal['problem']}", remedy)
    elif journal and journal["fill"] >= NEAR_LIMIT:
        yield Finding("journal", "warn", f"{journal['fill']:.0%} full", "see which handler lags, or raise its limit")


def _handler(handler: Inspection) -> Findings:
    name, account = f"handler {handler['name']}", handler["ledger"]
    dropped = sum(account["dropped"].values())
    if handler["breaker"] != "closed":
        message = f"is in quarantine ({handler['breaker']}); {account['failed']} events failed"
        yield Finding(name, "fail", message, "its last errors are in the other handlers, as eventcore.handler")
    elif account["failed"]:
        yield Finding(name, "warn", f"{account['failed']} events failed", "see eventcore.handler in the log")
    if dropped:
        reasons = ", ".join(f"{reason} {number}" for reason, number in account["dropped"].items())
        remedy = "raise queue_size, narrow its filter, or sample" if "full" in account["dropped"] else "see the reasons"
        yield Finding(name, "warn", f"{dropped} events dropped: {reasons}", remedy)
    if "problem" in handler["facts"]:
        yield Finding(name, "warn", f"cannot describe itself: {handler['facts']['problem']}", "report it to its author")
    share = handler["sampling"]["share"]
    if share == 0:
        yield Finding(name, "warn", "takes no event: its sampling is 0", f"[handlers.{handler['name']}] sampling = 1")


# -- spans -------------------------------------------------------------------------------------------------------------


def sampling(answer: Inspection) -> Findings:
    """Yield whether any trace is sampled."""
    spans = [handler for handler in answer["handlers"] if handler["kind"] == "span"]
    if not spans:
        yield Finding("tracing", "ok", "no handler exports spans; [handlers.span] adds one")
    for handler in spans:
        name, facts = f"tracing {handler['name']}", handler["facts"]
        ratio = facts.get("sampling_ratio", handler["options"].get("sampling_ratio", 1.0))
        if facts.get("disabled"):
            yield Finding(name, "fail", f"is disabled {facts['disabled']}", "unset OTEL_SDK_DISABLED")
        elif facts.get("exporter", handler["options"].get("exporter")) == "none":
            yield Finding(
                name, "warn", "exports nothing: its exporter is 'none'", f"[handlers.{handler['name']}] exporter"
            )
        elif ratio == 0:
            remedy = f"[handlers.{handler['name']}] sampling_ratio = 0.1, or OTEL_TRACES_SAMPLER"
            yield Finding(name, "fail", "samples no trace: its ratio is 0", remedy)
        elif ratio < RARE:
            yield Finding(name, "warn", f"samples {ratio:g} of traces", "few are to be found; raise sampling_ratio")
        else:
            yield Finding(name, "ok", f"samples {ratio:g} of traces")


_OTLP_VARIABLES = {"span": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "log": "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"}


def otlp(answer: Inspection) -> Findings:
    """Yield whether the collectors of OTLP exporters can be reached."""
    for handler in answer["handlers"]:
        options, facts = handler["options"], handler["facts"]
        chosen = f"{options.get('exporter')} {options.get('output')} {facts.get('exporter')}"
        if "otlp" not in chosen and "jaeger" not in chosen:
            continue
        address = _endpoint(handler)
        name = f"OTLP {handler['name']}"
        parts = urlsplit(address if "//" in address else f"//{address}")
        port = parts.port or (443 if parts.scheme == "https" else 4318)
        try:
            with socket.create_connection((parts.hostname or "localhost", port), timeout=CONNECT_S):
                yield Finding(name, "ok", f"{parts.hostname}, port {port}, can be reached")
        except OSError as error:
            message = f"nothing listens at {parts.hostname}, port {port} ({error.strerror or error})"
            yield Finding(name, "fail", message, "start the collector (Jaeger, Tempo, …), or set endpoint")


def _endpoint(handler: Inspection) -> str:
    """Return where a handler sends: what it says itself, its option, the variables of OpenTelemetry, the default."""
    facts = handler["facts"]
    own = (facts.get("push") or {}) if handler["kind"] == "metric" else facts  # its other URL is where it is scraped
    said = own.get("url") or handler["options"].get("endpoint")
    if said:
        return str(said)
    variable = _OTLP_VARIABLES.get(handler["kind"], "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    return os.environ.get(variable) or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"


# -- metrics -----------------------------------------------------------------------------------------------------------


def cardinality(answer: Inspection) -> Findings:
    """Yield whether a metric is at its limit of series, or near it."""
    for handler in answer["handlers"]:
        stats: Mapping[str, Any] = handler["cardinality"] or {}
        if handler["kind"] != "metric" or "problem" in stats:
            continue
        name = f"cardinality {handler['name']}"
        over = [metric for metric, one in stats.items() if one["overflowed"]]
        near = [
            m
            for m, one in stats.items()
            if m not in over and one["limit"] and one["series"] >= NEAR_LIMIT * one["limit"]
        ]
        remedy = "drop a label or bin its values; raise max_series only if the values are few"
        if over:
            counted = ", ".join(f"{m} ({stats[m]['overflowed']} counted as 'other')" for m in over)
            yield Finding(name, "fail", f"at its limit: {counted}", remedy)
        if near:
            shown = ", ".join(f"{m} ({stats[m]['series']} of {stats[m]['limit']})" for m in near)
            yield Finding(name, "warn", f"near its limit: {shown}", remedy)
        if not (over or near):
            yield Finding(name, "ok", f"{sum(one['series'] for one in stats.values())} series, none near its limit")


def metrics_port(answer: Inspection, url: str | None, configured: str | None) -> Findings:
    """Yield whether ``/metrics`` answers, at ``url`` of a running process, or where the settings say it would."""
    has_handler = any(h["kind"] == "metric" for h in answer["handlers"])
    if not has_handler:
        remedy = "add [handlers.metric], and [http]"
        yield Finding("metrics", "warn" if (url or configured) else "ok", "no handler makes metrics", remedy)
        return
    address = url or configured
    if address is None:
        if any("otlp" in str(h["options"].get("exporter")) for h in answer["handlers"] if h["kind"] == "metric"):
            yield Finding("metrics", "ok", "pushed over OTLP, not served")
        else:
            remedy = "add [http] to the settings, or mount eventcore_http.wsgi_app() or asgi_app()"
            yield Finding("metrics", "warn", "are made and not served", remedy)
        return
    try:
        got = Address.parse(address).get("/metrics", accept="text/plain", timeout_s=ASK_S)
    except EventCoreError as error:
        remedy = "start the process; see [http] host and port, and the firewall"
        yield Finding("metrics", "fail" if url else "warn", str(error), remedy)
        return
    samples = [line for line in got.body.decode("utf-8", "replace").splitlines() if line and line[0] != "#"]
    if got.status == 401:
        yield Finding("metrics", "warn", f"{_shown(address)} asks for authentication", "give EVENTCORE_TOKEN")
    elif got.status != 200:
        remedy = "is it this process? eventcore handlers --url"
        yield Finding("metrics", "fail", f"{_shown(address)}/metrics answers {got.status}", remedy)
    elif not samples:
        remedy = "emit an event that an instrument is made of; eventcore catalog lists them"
        yield Finding("metrics", "warn", f"{_shown(address)}/metrics has no samples", remedy)
    else:
        yield Finding("metrics", "ok", f"{_shown(address)}/metrics has {len(samples)} samples")


def exposure(host: str, *, is_protected: bool) -> Findings:
    """Yield whether the server is open to others without authentication."""
    is_local = host in ("localhost", "::1") or host.startswith("127.")
    if is_local:
        yield Finding("http", "ok", f"listens on {host}: who scrapes from another machine needs [http] host")
    elif is_protected:
        yield Finding("http", "ok", f"listens on {host}, and asks who reads")
    else:
        remedy = "set [http] token = 'env:…', or host = '127.0.0.1' behind a proxy"
        yield Finding("http", "warn", f"listens on {host}, and anybody who reaches it may read", remedy)


def prometheus(url: str, answer: Inspection, address: str | None) -> Findings:
    """Yield whether a Prometheus server scrapes this process, successfully, and has its series."""
    server = Address.parse(url, option="--prometheus", example="http://localhost:9091")
    try:
        found = _api(server, "/api/v1/targets?state=active")["activeTargets"]
    except (EventCoreError, KeyError, TypeError, ValueError) as error:
        remedy = "give the address of Prometheus, which is not the one that it scrapes"
        yield Finding("prometheus", "fail", f"{server.url} does not answer as Prometheus: {error}", remedy)
        return
    mine = [target for target in found if _is_mine(target, address, answer["service"]["name"])]
    if not mine:
        jobs = ", ".join(sorted({target["labels"].get("job", "?") for target in found})) or "none"
        remedy = f"add targets: ['{urlsplit(address).netloc if address else 'HOST:PORT'}'] to its scrape_configs"
        yield Finding("prometheus", "fail", f"{server.url} has no target for this process; its jobs: {jobs}", remedy)
    for target in mine:
        name = f"prometheus {target['labels'].get('job', '?')}"
        if target["health"] == "up":
            yield Finding(name, "ok", f"{target['scrapeUrl']} is up, scraped {target.get('lastScrape', '?')[:19]}")
        elif target["health"] == "unknown":
            yield Finding(name, "warn", f"{target['scrapeUrl']} was not scraped yet", "wait for its scrape_interval")
        else:
            remedy = "see metrics above; from where Prometheus runs, curl that address"
            yield Finding(name, "fail", f"{target['scrapeUrl']} is down: {target.get('lastError') or '?'}", remedy)
    if any(target["health"] == "up" for target in mine):
        yield from _series(server, answer)


def _series(server: Address, answer: Inspection) -> Findings:
    known = set(_api(server, "/api/v1/label/__name__/values"))
    for handler in answer["handlers"]:
        metrics = [] if handler["kind"] != "metric" else [m for m in handler["cardinality"] or {} if m != "problem"]
        missing = [m for m in metrics if handler["cardinality"][m]["series"] and not _has(known, m)]
        if missing:
            remedy = "wait for the next scrape; see metric_relabel_configs"
            yield Finding("prometheus series", "warn", f"it has none of: {', '.join(missing[:5])}", remedy)
        elif metrics:
            yield Finding("prometheus series", "ok", f"it has every metric of handler {handler['name']!r}")


def _has(known: set[str], metric: str) -> bool:
    return any(f"{metric}{suffix}" in known for suffix in ("", "_total", "_count", "_bucket"))


def _api(server: Address, path: str) -> Any:
    got = server.get(path, timeout_s=ASK_S)
    answer = json.loads(got.body)
    if answer.get("status") != "success":
        raise EventCoreError(f"status {got.status} for {path.partition('?')[0]}")
    return answer["data"]


def _is_mine(target: Mapping[str, Any], address: str | None, service: str) -> bool:
    """Whether a target is this process: the same port, or a job or service label of its name."""
    scraped = urlsplit(target["scrapeUrl"])
    if address is not None and scraped.port == urlsplit(address).port:
        return True
    plain = re.sub(r"[^a-z0-9]", "", service.lower())
    return plain in {re.sub(r"[^a-z0-9]", "", str(v).lower()) for k, v in target["labels"].items() if k != "instance"}


def _shown(address: str) -> str:
    return Address.parse(address).url


# -- logs and health ---------------------------------------------------------------------------------------------------


def logs(answer: Inspection) -> Findings:
    """Yield whether log files hold JSON, and trace ids, by their latest lines; and whether they grow without bound."""
    found = [handler for handler in answer["handlers"] if handler["kind"] == "log"]
    if not found:
        yield Finding("logs", "warn", "no handler writes logs", "add [handlers.log]")
    for handler in found:
        output = str(handler["facts"].get("output") or handler["options"].get("output") or "stderr")
        if output in ("stderr", "stdout", "otlp"):
            yield Finding(f"log {handler['name']}", "ok", f"goes to {output}")
            continue
        yield from _log_file(handler, Path(output))


def _log_file(handler: Inspection, path: Path) -> Findings:
    name, options = f"log {handler['name']}", handler["options"]
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()[1 if size > TAIL_BYTES else 0 :]
    except OSError as error:
        yield Finding(
            name, "warn", f"{path}: {error.strerror}", "nothing was logged yet, or by another user or machine"
        )
        return
    if size > HUGE_LOG and not (options.get("max_bytes") or options.get("rotate_every_s")):
        yield Finding(name, "warn", f"{path} has {size / 1e9:.1f} GB and is not rotated", "set max_bytes, or logrotate")
    if (handler["facts"].get("format") or options.get("format")) != "json" or not lines:
        yield Finding(name, "ok", f"{path}, {size} bytes")
        return
    records, wrong = [], 0
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            wrong += 1
    if wrong:
        message = f"{path}: {wrong} of the latest {len(lines)} lines are no JSON"
        yield Finding(name, "fail", message, "another program writes into it; give each a file of its own")
        return
    traced = sum(1 for record in records if _has_trace_id(record))
    if traced:
        yield Finding(name, "ok", f"{path}: {traced} of the latest {len(records)} lines have a trace id")
    else:
        remedy = "emit and log inside an operation or ec.span(); eventcore debug test-trace tries it"
        yield Finding(name, "warn", f"{path}: none of the latest {len(records)} lines has a trace id", remedy)


def _has_trace_id(record: Any) -> bool:
    """Whether a line has a trace id, under the name that any of the schemas gives it."""
    if not isinstance(record, dict):
        return False
    nested = record.get("trace")
    return bool(record.get("trace_id") or record.get("trace.id") or (isinstance(nested, dict) and nested.get("id")))


def health(report: Inspection) -> Findings:
    """Yield what the health checks found."""
    words: dict[str, Status] = {"healthy": "ok", "unknown": "warn", "degraded": "warn", "unhealthy": "fail"}
    for name, check in report["checks"].items():
        if check["status"] != "healthy":
            yield Finding(f"health {name}", words[check["status"]], check["message"], "see docs/health.md")
    if report["status"] == "healthy":
        yield Finding("health", "ok", f"{report['summary']['total_checks']} checks are healthy")
