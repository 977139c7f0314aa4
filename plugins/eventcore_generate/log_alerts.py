"""Alerts over log lines: for Elasticsearch's Watcher, and for the ruler of Loki.

They read the JSON lines of the log plugin, so they name its keys. The MoE guide's watch compares ``hits.total`` with a
number, which holds only where the search is asked for it as a number; that is said here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from eventcore_generate.output import Files, header, json_text, yaml_text
from eventcore_generate.prometheus import DEFAULT_WEBHOOK, Webhook
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from eventcore.monitoring import LogAlert

__all__ = ["LOKI_RULES", "log_alerts"]

LOKI_RULES = "loki-rules.yml"
"""The file's name, as the compose file refers to it."""


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
    lines: list[dict[str, Any]] = [{"match": {key: value}} for key, value in alert.where.items()]
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
    filters = " | ".join(f"{key}={json.dumps(value)}" for key, value in alert.where.items())
    selector = f"{{service={json.dumps(source.service)}}}"
    return {
        "alert": alert.name,
        "expr": f"sum(count_over_time({selector} | json | {filters} [{alert.window}])) > {alert.above}",
        "for": "0m",
        "labels": {"severity": alert.severity, "pack": pack},
        "annotations": {"summary": alert.summary},
    }
