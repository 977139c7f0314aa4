"""The configurations of Prometheus and Alertmanager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.errors import ConfigurationError
from eventcore_generate.output import Files, header, yaml_text
from eventcore_generate.rules import RULES
from eventcore_generate.serving import Serving
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DEFAULT_WEBHOOK",
    "PATH",
    "ScrapeInterval",
    "Webhook",
    "alertmanager",
    "prometheus_config",
    "prometheus_content",
]

PATH = "/metrics"

ScrapeInterval = Annotated[
    str, typer.Option(help="How often Prometheus scrapes: 5s to develop, 60s for little traffic.")
]
Webhook = Annotated[str, typer.Option(metavar="URL", help="Where Alertmanager posts alerts.")]
DEFAULT_WEBHOOK = "http://localhost:5001/alerts"


def prometheus_config(
    source: Source,
    *,
    target: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Where the application serves; may be repeated.")
    ] = None,
    scrape_interval: ScrapeInterval = "15s",
    alertmanager: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where Alertmanager is.")] = "localhost:9093",
) -> Files:
    """Make prometheus.yml: what is scraped, which rules are evaluated, where alerts go."""
    targets = target or [f"localhost:{source.port}"]
    return {
        "prometheus.yml": header("prometheus-config")
        + prometheus_content(source, targets, scrape_interval, alertmanager)
    }


def prometheus_content(source: Source, targets: Sequence[str], scrape_interval: str, alertmanager: str) -> str:
    """Return prometheus.yml. ConfigurationError: a target with a scheme or a path."""
    for address in (*targets, alertmanager):
        if "/" in address or not address.rpartition(":")[2].isdigit():
            raise ConfigurationError(f"{address!r} is no HOST:PORT; leave out scheme and path, and give the port")
    return yaml_text(
        {
            "global": {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval},
            "rule_files": [RULES],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
            "scrape_configs": [
                {
                    "job_name": source.service,
                    "metrics_path": PATH,
                    **_access(Serving.of(source)),
                    "static_configs": [{"targets": list(targets)}],
                }
            ],
        }
    )


def _access(serving: Serving) -> dict[str, Any]:
    """Return how the server is spoken to where it asks who reads, or speaks TLS; secrets lie in files beside it."""
    access: dict[str, Any] = {}
    if serving.is_tls:
        access |= {"scheme": "https", "tls_config": {"ca_file": "ca.pem"}}
    if serving.has_token:
        access |= {"authorization": {"type": "Bearer", "credentials_file": "token"}}
    elif serving.username:
        access |= {"basic_auth": {"username": serving.username, "password_file": "password"}}
    return access


def alertmanager(source: Source, *, webhook: Webhook = DEFAULT_WEBHOOK) -> Files:  # noqa: ARG001 - makers take the source
    """Make alertmanager.yml: alerts in groups, to a webhook."""
    content: dict[str, Any] = {
        "route": {
            "receiver": "webhook",
            "group_by": ["alertname", "pack"],
            "group_wait": "10s",
            "group_interval": "5m",
            "repeat_interval": "4h",
            "routes": [{"receiver": "webhook", "matchers": ['severity="critical"'], "repeat_interval": "1h"}],
        },
        # What is down has no other complaints worth a message.
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="ServiceDown"'],
                "target_matchers": ['severity="warning"'],
                "equal": ["job"],
            }
        ],
        "receivers": [{"name": "webhook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
    }
    return {"alertmanager.yml": header("alertmanager") + yaml_text(content)}
