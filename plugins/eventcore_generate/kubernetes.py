"""Manifests for Kubernetes: a Deployment that is probed and scraped, its Service, and a ServiceMonitor on request."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from eventcore.errors import ConfigurationError
from eventcore_generate.output import Files, header, yaml_text
from eventcore_generate.prometheus import PATH, ScrapeInterval
from eventcore_generate.serving import Serving
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

__all__ = ["kubernetes"]

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([EPTGMk]|[EPTGMK]i)?")
"""https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/, as far as memory has it."""


def kubernetes(
    source: Source,
    *,
    image: Annotated[str | None, typer.Option(help="Image of the application; default: NAME:VERSION.")] = None,
    replicas: Annotated[int, typer.Option(min=0, help="How many run.")] = 2,
    memory: Annotated[str, typer.Option(help="Memory that it is given at most.")] = "256Mi",
    service_monitor: Annotated[
        bool, typer.Option("--service-monitor", help="Add a ServiceMonitor of the Prometheus operator.")
    ] = False,
    scrape_interval: ScrapeInterval = "15s",
) -> Files:
    """Make Kubernetes manifests: Deployment with probes and annotations, Service, ServiceMonitor."""
    if not _QUANTITY.fullmatch(memory):
        raise ConfigurationError(f"--memory {memory!r}: write a number of bytes, with a unit as in 256Mi or 1Gi")
    serving = Serving.of(source)
    name = source.slug
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/version": _label(source.resource.version)}
    selector = {"app.kubernetes.io/name": name}
    manifests = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": selector},
                "template": {
                    "metadata": {"labels": labels, "annotations": _annotations(serving)},
                    "spec": _pod(source, serving, image or f"{name}:{source.resource.version}", memory),
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "selector": selector,
                "ports": [{"name": "metrics", "port": serving.port, "targetPort": "metrics"}],
            },
        },
    ]
    if service_monitor:
        endpoint = {"port": "metrics", "path": PATH, "interval": scrape_interval, "scheme": serving.scheme}
        manifests.append(
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "ServiceMonitor",
                "metadata": {"name": name, "labels": labels},
                "spec": {"selector": {"matchLabels": selector}, "endpoints": [endpoint]},
            }
        )
    return {"k8s.yaml": header("k8s") + "---\n".join(yaml_text(manifest) for manifest in manifests)}


def _label(text: str) -> str:
    """Return ``text`` as a label's value may be: letters, digits, dots and hyphens, at most 63."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("._-")


def _annotations(serving: Serving) -> dict[str, str]:
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(serving.port),
        "prometheus.io/path": PATH,
    }
    return annotations | ({"prometheus.io/scheme": "https"} if serving.is_tls else {})


def _pod(source: Source, serving: Serving, image: str, memory: str) -> dict[str, Any]:
    has_health_port = serving.health_port != serving.port
    health = "health" if has_health_port else "metrics"
    ports = [{"name": "metrics", "containerPort": serving.port}]
    if has_health_port:
        ports.append({"name": "health", "containerPort": serving.health_port})
    container: dict[str, Any] = {
        "name": source.slug,
        "image": image,
        "ports": ports,
        "env": [{"name": name, "value": value} for name, value in serving.variables.items()],
        # Alive is whatever answers; only readiness looks at anything else.
        "startupProbe": _probe(serving, "/livez", health, periodSeconds=2, failureThreshold=30),
        "livenessProbe": _probe(serving, "/livez", health, periodSeconds=10, failureThreshold=3),
        "readinessProbe": _probe(serving, "/readyz", health, periodSeconds=5, failureThreshold=2),
        "resources": {"requests": {"cpu": "100m", "memory": memory}, "limits": {"memory": memory}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod: dict[str, Any] = {
        # Longer than shutdown may take, so that what waits is delivered.
        "terminationGracePeriodSeconds": serving.grace_s,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    if serving.log_folder is not None:
        container["volumeMounts"] = [{"name": "logs", "mountPath": serving.log_folder}]
        pod["securityContext"]["fsGroup"] = 10001
        pod["volumes"] = [{"name": "logs", "emptyDir": {"sizeLimit": "1Gi"}}]
    return pod


def _probe(serving: Serving, path: str, port: str, **numbers: int) -> dict[str, Any]:
    scheme = {"scheme": "HTTPS"} if serving.is_tls else {}
    return {"httpGet": {"path": path, "port": port, **scheme}, "timeoutSeconds": 3, **numbers}
