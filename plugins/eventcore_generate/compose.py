"""A stack for Docker Compose: the application, Prometheus, Alertmanager, Grafana and Jaeger; log stores as profiles.

It is the stacks of the guides together, with what keeps them from working mended. Prometheus is on 9091, as the
application has 9090. Retention is set by flags: Prometheus' file has no such keys. Grafana gets a file that says where
dashboards are. Elasticsearch 8 lets Kibana and Filebeat in only if its security is off or set up: it is off, and all
ports are this machine's alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.errors import ConfigurationError
from eventcore_generate.dockerfile import Base, Install, Run, dockerfile
from eventcore_generate.grafana import grafana
from eventcore_generate.log_alerts import LOKI_RULES, keys_of, log_alerts
from eventcore_generate.output import Files, header, yaml_text
from eventcore_generate.prometheus import ScrapeInterval, Webhook, alertmanager, prometheus_content
from eventcore_generate.rules import RULES, prometheus_rules
from eventcore_generate.serving import Serving
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["compose"]

RetentionTime = Annotated[str, typer.Option(help="How long Prometheus keeps samples.")]
RetentionSize = Annotated[str, typer.Option(help="How much Prometheus keeps at most, such as 10GB; default: no limit.")]
Context = Annotated[str, typer.Option(metavar="DIR", help="What the image is built from, seen from compose.yaml.")]
DockerfilePath = Annotated[str, typer.Option("--dockerfile", help="The Dockerfile, seen from --context.")]

WEBHOOK = "http://host.docker.internal:5001/alerts"
"""The machine that runs the containers, as they see it."""

IMAGES: Mapping[str, str] = {
    "prometheus": "prom/prometheus:v3.4.0",
    "alertmanager": "prom/alertmanager:v0.28.1",
    "grafana": "grafana/grafana:12.0.1",
    "jaeger": "jaegertracing/all-in-one:1.76.0",
    "elasticsearch": "elasticsearch:8.17.0",
    "kibana": "kibana:8.17.0",
    "filebeat": "elastic/filebeat:8.17.0",
    "loki": "grafana/loki:3.5.1",
    "alloy": "grafana/alloy:v1.8.0",
}

PROMETHEUS_PORT = 9091
"""Outside its container: the application keeps 9090."""

_DURATION = re.compile(r"\d+(ms|[smhdwy])")
_SIZE = re.compile(r"\d+(B|KB|MB|GB|TB|PB|EB)")
_LOGS = "/var/log/app"
"""Where those who ship logs find the application's."""


def compose(
    source: Source,
    *,
    scrape_interval: ScrapeInterval = "15s",
    retention_time: RetentionTime = "15d",
    retention_size: RetentionSize = "",
    webhook: Webhook = WEBHOOK,
    context: Context = ".",
    dockerfile_path: DockerfilePath = "Dockerfile",
    base: Base = "python:3.11-slim",
    install: Install = ".",
    run: Run = None,
) -> Files:
    """Make a stack for Docker Compose, with all files that it needs.

    Profiles: ``elastic`` (Elasticsearch, Kibana, Filebeat) and ``loki`` (Loki, Alloy). Raises ConfigurationError for a
    duration or size that is none, and for logs that nobody could ship.
    """
    for option, text, pattern in (
        ("--scrape-interval", scrape_interval, _DURATION),
        ("--retention-time", retention_time, _DURATION),
        ("--retention-size", retention_size, _SIZE),
    ):
        if text and not pattern.fullmatch(text):
            raise ConfigurationError(f"{option} {text!r}: write a number and a unit, such as 15s, 15d or 10GB")
    serving = Serving.of(source)
    services = {
        "app": _app(source, serving, context, dockerfile_path),
        "prometheus": _prometheus(serving, retention_time, retention_size),
        "alertmanager": _alertmanager(),
        "grafana": _grafana(),
        "jaeger": _service("jaeger", ports=_local(16686, 4317, 4318)),
        **_elastic(),
        **_loki(),
    }
    volumes = ("logs", "prometheus-data", "grafana-data", "elasticsearch-data", "loki-data")
    content = {"name": source.slug, "services": services, "volumes": {name: {} for name in volumes}}
    about = ("docker compose up -d", "docker compose --profile elastic --profile loki up -d")
    mine = header("compose")
    scrape = prometheus_content(source, [f"app:{serving.port}"], scrape_interval, "alertmanager:9093")
    return {
        "compose.yaml": header("compose", *about) + yaml_text(content),
        **dockerfile(source, base=base, install=install, run=run),
        "prometheus.yml": mine + scrape,
        **prometheus_rules(source),
        **alertmanager(source, webhook=webhook),
        "grafana/provisioning/datasources/datasources.yml": mine + yaml_text(_datasources()),
        "grafana/provisioning/dashboards/dashboards.yml": mine + yaml_text(_providers()),
        **{f"grafana/dashboards/{name}": text for name, text in grafana(source).items()},
        "filebeat.yml": mine + yaml_text(_filebeat(source)),
        "loki.yml": mine + yaml_text(_loki_config()),
        LOKI_RULES: log_alerts(source, webhook=webhook)[LOKI_RULES],
        "config.alloy": mine.replace("#", "//") + _alloy(source),
    }


def _service(name: str, **facts: Any) -> dict[str, Any]:
    return {"image": IMAGES[name], "restart": "unless-stopped", **facts}


def _local(*ports: int) -> list[str]:
    """Return ports as this machine alone sees them: most of these servers ask nobody who they are."""
    return [f"127.0.0.1:{port}:{port}" for port in ports]


def _app(source: Source, serving: Serving, context: str, dockerfile_path: str) -> dict[str, Any]:
    app: dict[str, Any] = {
        "build": {"context": context, "dockerfile": dockerfile_path},
        "image": f"{source.slug}:{source.resource.version}",
        "restart": "unless-stopped",
        "stop_grace_period": f"{serving.grace_s}s",
        "ports": _local(*serving.ports),
        "environment": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318"},
        "depends_on": ["jaeger"],
    }
    return app | ({"volumes": [f"logs:{serving.log_folder}"]} if serving.log_folder else {})


def _prometheus(serving: Serving, retention_time: str, retention_size: str) -> dict[str, Any]:
    secrets = ["ca.pem"] if serving.is_tls else []
    secrets += ["token"] if serving.has_token else ["password"] if serving.username else []
    return _service(
        "prometheus",
        command=[
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            f"--storage.tsdb.retention.time={retention_time}",
            *([f"--storage.tsdb.retention.size={retention_size}"] if retention_size else []),
            "--enable-feature=exemplar-storage",
        ],
        ports=[f"127.0.0.1:{PROMETHEUS_PORT}:9090"],
        volumes=[
            *(f"./{name}:/etc/prometheus/{name}:ro" for name in ("prometheus.yml", RULES, *secrets)),
            "prometheus-data:/prometheus",
        ],
        depends_on=["app", "alertmanager"],
    )


def _alertmanager() -> dict[str, Any]:
    return _service(
        "alertmanager",
        ports=_local(9093),
        volumes=["./alertmanager.yml:/etc/alertmanager/alertmanager.yml:ro"],
        extra_hosts=["host.docker.internal:host-gateway"],
    )


def _grafana() -> dict[str, Any]:
    return _service(
        "grafana",
        ports=_local(3000),
        environment={
            "GF_SECURITY_ADMIN_PASSWORD": "${GRAFANA_ADMIN_PASSWORD:-admin}",
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        },
        volumes=[
            "./grafana/provisioning:/etc/grafana/provisioning:ro",
            "./grafana/dashboards:/var/lib/grafana/dashboards:ro",
            "grafana-data:/var/lib/grafana",
        ],
        depends_on=["prometheus"],
    )


def _elastic() -> dict[str, Any]:
    profile = {"profiles": ["elastic"]}
    return {
        "elasticsearch": _service(
            "elasticsearch",
            **profile,
            environment={
                "discovery.type": "single-node",
                "xpack.security.enabled": "false",
                # Watcher, which runs the log alerts, needs more than the basic licence.
                "xpack.license.self_generated.type": "trial",
                "ES_JAVA_OPTS": "-Xms512m -Xmx512m",
            },
            ports=_local(9200),
            volumes=["elasticsearch-data:/usr/share/elasticsearch/data"],
        ),
        "kibana": _service(
            "kibana",
            **profile,
            environment={"ELASTICSEARCH_HOSTS": "http://elasticsearch:9200"},
            ports=_local(5601),
            depends_on=["elasticsearch"],
        ),
        "filebeat": _service(
            "filebeat",
            **profile,
            user="root",
            command=["filebeat", "-e", "--strict.perms=false"],
            volumes=["./filebeat.yml:/usr/share/filebeat/filebeat.yml:ro", f"logs:{_LOGS}:ro"],
            depends_on=["elasticsearch"],
        ),
    }


def _loki() -> dict[str, Any]:
    profile = {"profiles": ["loki"]}
    return {
        "loki": _service(
            "loki",
            **profile,
            command=["-config.file=/etc/loki/loki.yml"],
            ports=_local(3100),
            # "fake" is the tenant of a Loki without tenants.
            volumes=[
                "./loki.yml:/etc/loki/loki.yml:ro",
                f"./{LOKI_RULES}:/etc/loki/rules/fake/rules.yml:ro",
                "loki-data:/loki",
            ],
        ),
        "alloy": _service(
            "alloy",
            **profile,
            command=["run", "--storage.path=/var/lib/alloy/data", "/etc/alloy/config.alloy"],
            volumes=["./config.alloy:/etc/alloy/config.alloy:ro", f"logs:{_LOGS}:ro"],
            depends_on=["loki"],
        ),
    }


def _datasources() -> dict[str, Any]:
    """Return Grafana's data sources, which lead from an exemplar or a log line to its trace."""
    to_trace = {
        "name": "trace_id",
        "matcherRegex": '"trace[._]id":"(\\w+)"',
        "url": "$${__value.raw}",
        "datasourceUid": "jaeger",
    }
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": "prometheus",
                "type": "prometheus",
                "access": "proxy",
                "url": "http://prometheus:9090",
                "isDefault": True,
                "jsonData": {"exemplarTraceIdDestinations": [{"name": "trace_id", "datasourceUid": "jaeger"}]},
            },
            {"name": "Jaeger", "uid": "jaeger", "type": "jaeger", "access": "proxy", "url": "http://jaeger:16686"},
            {
                "name": "Alertmanager",
                "uid": "alertmanager",
                "type": "alertmanager",
                "access": "proxy",
                "url": "http://alertmanager:9093",
                "jsonData": {"implementation": "prometheus"},
            },
            {
                "name": "Loki",
                "uid": "loki",
                "type": "loki",
                "access": "proxy",
                "url": "http://loki:3100",
                "jsonData": {"derivedFields": [to_trace]},
            },
        ],
    }


def _providers() -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "eventcore",
                "type": "file",
                "folder": "eventcore",
                "allowUiUpdates": False,
                "options": {"path": "/var/lib/grafana/dashboards"},
            }
        ],
    }


def _filebeat(source: Source) -> dict[str, Any]:
    index = source.slug
    return {
        "filebeat.inputs": [
            {
                # The guide's input type "log" is deprecated, and gone in Filebeat 9.
                "type": "filestream",
                "id": index,
                "paths": [f"{_LOGS}/*.json*"],
                # Keys with dots, as ECS has them, become objects.
                "parsers": [
                    {"ndjson": {"target": "", "overwrite_keys": True, "add_error_key": True, "expand_keys": True}}
                ],
            }
        ],
        "output.elasticsearch": {"hosts": ["http://elasticsearch:9200"], "index": f"{index}-%{{+yyyy.MM.dd}}"},
        # Filebeat's own template has an object ``event``, where our lines have a text: they would be refused.
        "setup.template.enabled": False,
        # Filebeat does not start with an index of another name unless these are said.
        "setup.template.name": index,
        "setup.template.pattern": f"{index}-*",
        "setup.ilm.enabled": False,
    }


def _loki_config() -> dict[str, Any]:
    return {
        "auth_enabled": False,
        "server": {"http_listen_port": 3100},
        "common": {
            "path_prefix": "/loki",
            "replication_factor": 1,
            "ring": {"kvstore": {"store": "inmemory"}},
            "storage": {"filesystem": {"chunks_directory": "/loki/chunks", "rules_directory": "/loki/rules"}},
        },
        "schema_config": {
            "configs": [
                {
                    "from": "2024-01-01",
                    "store": "tsdb",
                    "object_store": "filesystem",
                    "schema": "v13",
                    "index": {"prefix": "index_", "period": "24h"},
                }
            ]
        },
        "ruler": {
            "storage": {"type": "local", "local": {"directory": "/etc/loki/rules"}},
            "rule_path": "/loki/rules-temp",
            "alertmanager_url": "http://alertmanager:9093",
            "ring": {"kvstore": {"store": "inmemory"}},
            "enable_alertmanager_v2": True,
            "enable_api": True,
        },
    }


def _alloy(source: Source) -> str:
    """Return the configuration that takes the lines to Loki; ``level`` becomes a label, for its few values."""
    keys = keys_of(source)
    # A key with a dot or a sign in it is quoted in JMESPath.
    level, timestamp = (key if key.isalnum() else f'\\"{key}\\"' for key in (keys.level, keys.timestamp))
    return f"""\
local.file_match "app" {{
  path_targets = [{{"__path__" = "{_LOGS}/*.json*", "service" = "{source.service}"}}]
}}

loki.source.file "app" {{
  targets    = local.file_match.app.targets
  forward_to = [loki.process.app.receiver]
}}

loki.process "app" {{
  stage.json {{
    expressions = {{"level" = "{level}", "timestamp" = "{timestamp}"}}
  }}
  stage.labels {{
    values = {{"level" = "level"}}
  }}
  stage.timestamp {{
    source = "timestamp"
    format = "RFC3339Nano"
  }}
  forward_to = [loki.write.default.receiver]
}}

loki.write "default" {{
  endpoint {{
    url = "http://loki:3100/loki/api/v1/push"
  }}
}}
"""
