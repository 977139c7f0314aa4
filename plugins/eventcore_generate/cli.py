"""``eventcore generate``: files made from the settings and the catalog.

A maker takes the source, and as keywords the options of its own; its command has the common ones besides. The first
line of its docstring is the command's help.
"""

from __future__ import annotations

import inspect
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.cli.output import fail
from eventcore.errors import EventCoreError
from eventcore_generate.asyncapi import asyncapi
from eventcore_generate.compose import compose
from eventcore_generate.dockerfile import dockerfile
from eventcore_generate.everything import everything
from eventcore_generate.grafana import grafana
from eventcore_generate.kubernetes import kubernetes
from eventcore_generate.log_alerts import log_alerts
from eventcore_generate.output import Files, put
from eventcore_generate.prometheus import alertmanager, prometheus_config
from eventcore_generate.reference import reference
from eventcore_generate.rules import prometheus_rules
from eventcore_generate.schema import json_schema
from eventcore_generate.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAKERS", "app"]

MAKERS: dict[str, Callable[..., Files]] = {
    "grafana": grafana,
    "prometheus-rules": prometheus_rules,
    "prometheus-config": prometheus_config,
    "alertmanager": alertmanager,
    "log-alerts": log_alerts,
    "compose": compose,
    "dockerfile": dockerfile,
    "k8s": kubernetes,
    "docs": reference,
    "json-schema": json_schema,
    "asyncapi": asyncapi,
    "all": everything,
}
"""What can be made, by the name of its command."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Make dashboards, rules, deployments and references from the settings and the catalog.\n\n"
    "What is made depends on these alone: the same settings and code give the same bytes.",
)


def _common(
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write to, instead of standard output."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings to use instead of those found here.")
    ] = None,
    packs: Annotated[
        list[str] | None,
        typer.Option("--pack", metavar="NAME", help="Metric pack instead of the enabled ones; may be repeated."),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="Module of your own event types; may be repeated."),
    ] = None,
    instruments: Annotated[
        list[str] | None,
        typer.Option("--instruments", metavar="MODULE:NAME", help="List given to configure(); may be repeated."),
    ] = None,
) -> tuple[Source, Path | None]:
    """Return what to make files from, and where they go."""
    return Source(config, packs=packs or (), modules=modules or (), instruments=instruments or ()), output


_COMMON = inspect.signature(_common, eval_str=True).parameters


def _command(name: str, make: Callable[..., Files]) -> None:
    own = {key: option for key, option in inspect.signature(make, eval_str=True).parameters.items() if key != "source"}

    def run(**given: Any) -> None:
        try:
            source, output = _common(**{key: value for key, value in given.items() if key in _COMMON})
            put(make(source, **{key: value for key, value in given.items() if key in own}), output)
        except EventCoreError as error:
            fail(error)

    run.__signature__ = inspect.Signature([*own.values(), *_COMMON.values()])  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {}
    app.command(name, help=(make.__doc__ or "").partition("\n")[0])(run)


for _name, _make in MAKERS.items():
    _command(_name, _make)
