"""Where the application serves, and what it writes, by its settings: what deployments are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventcore_generate.source import Source

__all__ = ["APP", "Serving"]

APP = "/app"
"""Where the application lies in its image."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Ports, scheme and access of ``/metrics`` and health; folder, level and schema of logs (no folder: stderr)."""

    port: int
    health_port: int
    is_tls: bool
    has_token: bool
    username: str
    logs: str | None
    log_level: str
    log_schema: str
    grace_s: int

    @classmethod
    def of(cls, source: Source) -> Serving:
        """Read the settings of a source."""
        http: dict[str, Any] = source.settings.services.get("http") or {}
        log = next(iter(source.handlers("log")), {})
        outputs = (str(options.get("output", "stderr")) for options in source.handlers("log"))
        files = [PurePosixPath(output) for output in outputs if output not in ("stderr", "stdout", "otlp")]
        return cls(
            port=source.port,
            health_port=int(http.get("health_port") or source.port),
            is_tls=bool(http.get("certfile")),
            has_token=bool(http.get("token")),
            username=str(http.get("username") or ""),
            logs=str(files[0].parent) if files else None,
            log_level=str(log.get("min_severity", "info")),
            log_schema=str(log.get("schema", "tinyllm")),
            grace_s=math.ceil(source.settings.frame.shutdown_timeout_s) + 5,
        )

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "https" if self.is_tls else "http"

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports that are open, each once."""
        return tuple(dict.fromkeys((self.port, self.health_port)))

    @property
    def log_folder(self) -> str | None:
        """The folder of log files in the image, absolute; None where logs go to stderr."""
        if self.logs is None:
            return None
        return self.logs if self.logs.startswith("/") else str(PurePosixPath(APP) / self.logs)

    @property
    def variables(self) -> dict[str, str]:
        """What the environment of a container says: the guides' variables, by the settings, and where to listen."""
        return {
            "ENABLE_METRICS": "true",
            "METRICS_PORT": str(self.port),
            "EVENTCORE_HTTP__HOST": "0.0.0.0",  # noqa: S104 - inside a container that is its own network
            "LOG_LEVEL": self.log_level,
            "LOG_FORMAT": "json",
        }
