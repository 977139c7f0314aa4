"""A Dockerfile for the application."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath
from typing import Annotated

import typer

from eventcore_generate.output import Files, header
from eventcore_generate.serving import APP, Serving
from eventcore_generate.source import Source  # noqa: TC001 - the command line reads the annotations

__all__ = ["Base", "Install", "Run", "dockerfile", "run_of"]

Base = Annotated[str, typer.Option(metavar="IMAGE", help="Image to build on.")]
Install = Annotated[str, typer.Option(metavar="WHAT", help="What pip installs, such as '.[all]'.")]
Run = Annotated[str | None, typer.Option(metavar="COMMAND", help="What runs the application; default: python -m NAME.")]

_PROBE = "import urllib.request; urllib.request.urlopen({url!r}, timeout=2)"
_PROBE_TLS = (
    "import ssl, urllib.request; urllib.request.urlopen({url!r}, timeout=2, context=ssl._create_unverified_context())"
)

_IGNORED = (".git", "**/.venv*", "**/__pycache__", "**/.*_cache", "**/.env", "**/*.log", "**/logs")
"""What is no part of the application, or a secret; Docker reads this beside the Dockerfile that it belongs to."""


def dockerfile(source: Source, *, base: Base = "python:3.11-slim", install: Install = ".", run: Run = None) -> Files:
    """Make a Dockerfile: the application as a user of its own, with its ports and a health check."""
    serving = Serving.of(source)
    folders = [APP, *([serving.log_folder] if serving.log_folder else [])]
    url = f"{serving.scheme}://127.0.0.1:{serving.health_port}/livez"
    probe = (_PROBE_TLS if serving.is_tls else _PROBE).format(url=url)
    variables = {**serving.variables, **_config(source)}
    lines = [
        f"FROM {base}",
        f"WORKDIR {APP}",
        "COPY . .",
        f"RUN pip install --no-cache-dir {shlex.join(shlex.split(install))}",
        "# Folders that a volume may take the place of belong to the user, who is nobody else's.",
        f"RUN useradd --system --uid 10001 --home-dir {APP} app \\",
        f" && mkdir -p {' '.join(folders)} && chown app {' '.join(folders)}",
        "USER app",
        "ENV PYTHONUNBUFFERED=1" + "".join(f" \\\n    {name}={value}" for name, value in variables.items()),
        "# Metrics and health",
        f"EXPOSE {' '.join(map(str, serving.ports))}",
        f"HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD {json.dumps(['python', '-c', probe])}",
        "# SIGTERM ends it in order where the application calls ec.shutdown_on_signals().",
        f"CMD {json.dumps(run_of(source, run))}",
    ]
    ignored = "".join(f"{pattern}\n" for pattern in _IGNORED)
    return {
        "Dockerfile": header("dockerfile") + "\n".join(lines) + "\n",
        "Dockerfile.dockerignore": header("dockerfile") + ignored,
    }


def run_of(source: Source, run: str | None) -> list[str]:
    """Return the command that runs the application, in words."""
    return shlex.split(run) if run else ["python", "-m", source.slug.replace("-", "_")]


def _config(source: Source) -> dict[str, str]:
    """Return the variable that names the settings, unless they lie where they are found anyway."""
    file = source.settings.sources.file
    if file is None or file.is_absolute() or len(file.parts) == 1:
        return {}
    return {"EVENTCORE_CONFIG": str(PurePosixPath(APP, *file.parts))}
