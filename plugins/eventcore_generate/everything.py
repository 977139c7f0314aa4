"""All that can be made, in one folder."""

from __future__ import annotations

import inspect
from typing import Any

from eventcore_generate.asyncapi import asyncapi
from eventcore_generate.compose import compose
from eventcore_generate.kubernetes import kubernetes
from eventcore_generate.log_alerts import log_alerts
from eventcore_generate.output import Files  # noqa: TC001 - the command line reads the annotations
from eventcore_generate.reference import reference
from eventcore_generate.rules import prometheus_rules
from eventcore_generate.schema import json_schema
from eventcore_generate.source import Source  # noqa: TC001 - the same

__all__ = ["everything"]


def everything(source: Source, **options: Any) -> Files:
    """Make all of these, in one folder: the stack for Docker Compose, and beside it the rest.

    ``options`` are those of ``compose``.
    """
    return {
        **compose(source, **options),
        **prometheus_rules(source, tests=True),
        **log_alerts(source, webhook=options["webhook"]),
        **kubernetes(source, service_monitor=True, scrape_interval=options["scrape_interval"]),
        **reference(source),
        **asyncapi(source),
        **json_schema(source),
    }


everything.__signature__ = inspect.signature(compose, eval_str=True)  # type: ignore[attr-defined]  # the command line reads it
