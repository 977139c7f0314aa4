"""Alerts over log lines: for Elasticsearch's Watcher, and for the ruler of Loki.

They read the JSON lines of the log plugin, so they name the keys of its schema. The MoE guide's watch compares
``hits.total`` with a number, which holds only where the search is asked for it as a number; that is said here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventcore.errors import ConfigurationError, did_you_mean
from eventcore_generate.output import Files, header, json_text, yaml_text
from eventcore_generate.prometheus import DEFAULT_WEBHOOK, Webhook
from eventcore_generate.serving import Serving
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.monitoring import LogAlert

__all__ = ["LOKI_RULES", "Keys", "keys_of", "log_alerts"]

LOKI_RULES = "loki-rules.yml"
"""The file's name, as the compose file refers to it."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where lines of one schema have what alerts ask for and what is shipped, as dotted paths."""

    facts: Mapping[str, str]
    fields: str
    level: str = "level"
    timestamp: str = "timestamp"

    def path(self, name: str) -> str:
        """Return the path of a fact or payload field."""
        return self.facts.get(name) or f"{self.fields}{name}"


_SCHEMAS: Mapping[str, Keys] = {
    "tinyllm": Keys({}, ""),
    "moe": Keys({"name": "event.type"}, "data."),
    "tracing": Keys({}, "fields."),
    "ecs": Keys({"name": "event.action", "outcome": "event.outcome"}, "eventcore.", "log.level", "@timestamp"),
}


def keys_of(source: Source) -> Keys:
    """Return the keys of the lines that the settings ask for; ConfigurationError names a schema that is none."""
    schema = Serving.of(source).log_schema
    if schema not in _SCHEMAS:
        raise ConfigurationError(f"[handlers.log]: unknown schema {schema!r}{did_you_mean(schema, _SCHEMAS)}")
    return _SCHEMAS[schema]


def log_alerts(source: Source, *, webhook: Webhook = DEFAULT_WEBHOOK) -> Files:
    """Make alerts over log lines, for Elasticsearch's Watcher and Loki's ruler."""
    found = [(part.name, alert) for part in source.parts if part.monitoring for alert in part.monitoring.log_alerts]
    files = {
        f"watcher/{_file_name(alert.name)}.json": json_text(_watch(source, pack, alert, webhook))
        for pack, alert in found
    }
    groups = [
        {"name": f"{pack}_logs", "rules": [_loki_rule(source, pack, alert) for its, alert in found if its == pack]}
        for pack in dict.fromkeys(pack for pack, _ in found)
    ]
    return {LOKI_RULES: header("log-alerts") + yaml_text({"groups": groups}), **files}


def _file_name(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def _watch(source: Source, pack: str, alert: LogAlert, webhook: str) -> dict[str, Any]:
    message = {"alert": alert.name, "severity": alert.severity, "pack": pack, "summary": alert.summary}
    keys = keys_of(source)
    lines: list[dict[str, Any]] = [{"match": {keys.path(key): value}} for key, value in alert.where.items()]
    return {
        "trigger": {"schedule": {"interval": "1m"}},
        "input": {
            "search": {
                "request": {
                    "indices": [f"{source.slug}-*"],
                    "rest_total_hits_as_int": True,
                    "body": {
                        "size": 0,
                        "track_total_hits": True,
                        "query": {
                            "bool": {"must": [*lines, {"range": {"@timestamp": {"gte": f"now-{alert.window}"}}}]}
                        },
                    },
                }
            }
        },
        "condition": {"compare": {"ctx.payload.hits.total": {"gt": alert.above}}},
        "throttle_period": alert.window,
        "actions": {
            "send_alert": {
                "webhook": {
                    "method": "POST",
                    "url": webhook,
                    "headers": {"Content-Type": "application/json"},
                    "body": json.dumps(message),
                }
            }
        },
        "metadata": {"service": source.service, "pack": pack},
    }


def _loki_rule(source: Source, pack: str, alert: LogAlert) -> dict[str, Any]:
    keys = keys_of(source)
    # Loki's json parser joins the parts of a path by underscores.
    names = {key: keys.path(key).replace(".", "_") for key in alert.where}
    filters = " | ".join(f"{names[key]}={json.dumps(value)}" for key, value in alert.where.items())
    selector = f"{{service={json.dumps(source.service)}}}"
    return {
        "alert": alert.name,
        "expr": f"sum(count_over_time({selector} | json | {filters} [{alert.window}])) > {alert.above}",
        "for": "0m",
        "labels": {"severity": alert.severity, "pack": pack},
        "annotations": {"summary": alert.summary},
    }
