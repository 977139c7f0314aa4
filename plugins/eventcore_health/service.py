"""The service behind ``[health]``."""

from __future__ import annotations

import os
import pkgutil
import threading
import weakref
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from eventcore.errors import ConfigurationError
from eventcore.health import HealthCheck, HealthResult, HealthStatus
from eventcore.service import Service, ServiceConfig, secret_of
from eventcore_health.error_rate import ErrorRateHealthCheck
from eventcore_health.external import TIMEOUT_S, ExternalServiceHealthCheck
from eventcore_health.system import (
    CRITICAL_THRESHOLD,
    WARNING_THRESHOLD,
    DiskSpaceHealthCheck,
    MemoryHealthCheck,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.emitter import Emitter
    from eventcore.plugins import Plugins

__all__ = ["HealthService"]

STOP_TIMEOUT_S = 1.0


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    critical: bool = Field(default=False, description="Whether readiness fails when this check is unhealthy.")


class _Share(_Table):
    warning_threshold: float = Field(WARNING_THRESHOLD, gt=0, le=1, description="Share in use that is degraded.")
    critical_threshold: float = Field(CRITICAL_THRESHOLD, gt=0, le=1, description="Share in use that is unhealthy.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.warning_threshold > self.critical_threshold:
            raise ValueError(
                f"warning_threshold {self.warning_threshold} is above critical_threshold {self.critical_threshold}"
            )
        return self

    @property
    def thresholds(self) -> dict[str, Any]:
        return {**self.model_dump(include={"warning_threshold", "critical_threshold", "critical"})}


class _DiskSpace(_Share):
    path: str = Field("/", min_length=1, description="A path on the file system that is checked.")
    paths: tuple[str, ...] = Field((), description="Further ones; their checks are named disk_space_<path>.")


class _Errors(_Table):
    max_errors: int = Field(10, ge=1, description="As many errors in the window are degraded.")
    window_s: float = Field(300.0, gt=0, description="Length of the window.")


class _External(_Table):
    url: str = Field(min_length=1, repr=False, description="What is asked with GET; 200 is healthy.")
    timeout_s: float = Field(TIMEOUT_S, gt=0, le=60, description="How long it may take.")
    token: SecretStr | None = Field(
        None, repr=False, description="Bearer token for it, or 'env:NAME' for a variable that holds one."
    )


class _Custom(_Table):
    use: str = Field(description="'package.module:name' of an ec.HealthCheck, or of a function that returns a result.")
    timeout_s: float = Field(5.0, gt=0, description="How long it may take.")
    ttl_s: float = Field(1.0, ge=0, description="How long its result is shown again.")


class HealthService(Service):
    """Checks memory, disk space, external services and what else it is told, on a schedule and when it is asked."""

    class Config(ServiceConfig):
        """Options of the table ``[health]``."""

        interval_s: float = Field(
            30.0, ge=0, description="Pause between runs of all checks, so that changes are noticed; 0: only when asked."
        )
        memory: _Share | None = Field(
            default_factory=lambda: _Share.model_validate({}), description="Memory in use; false leaves it out."
        )
        disk_space: _DiskSpace | None = Field(
            default_factory=lambda: _DiskSpace.model_validate({}), description="Disk in use; false leaves it out."
        )
        errors: _Errors | None = Field(
            None, description="Errors among the process's own events; left out unless there is a table."
        )
        external: dict[str, _External] = Field(default_factory=dict, description="Services by name.")
        checks: dict[str, _Custom] = Field(default_factory=dict, description="Checks of your own, by name.")

        @field_validator("memory", "disk_space", "errors", mode="before")
        @classmethod
        def _switched(cls, value: Any) -> Any:
            return ({} if value else None) if isinstance(value, bool) else value

    config: Config

    def __init__(self, config: ServiceConfig, emitter: Emitter, plugins: Plugins) -> None:
        super().__init__(config, emitter, plugins)
        self._missing: ConfigurationError | None = None
        self.checks = self._made()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def _made(self) -> list[HealthCheck]:
        config = self.config
        checks: list[HealthCheck] = []
        if config.memory:
            checks.append(MemoryHealthCheck(**config.memory.thresholds))
        if config.disk_space:
            disk = config.disk_space
            checks.append(DiskSpaceHealthCheck(disk.path, **disk.thresholds))
            checks += [DiskSpaceHealthCheck(p, **disk.thresholds, name=f"disk_space_{p}") for p in disk.paths]
        if config.errors:
            errors = config.errors
            checks.append(
                ErrorRateHealthCheck(self.emitter, errors.max_errors, errors.window_s, critical=errors.critical)
            )
        for name, service in config.external.items():
            try:
                token = secret_of(service.token, f"option 'external.{name}.token'")
            except ConfigurationError as error:
                self._missing = self._missing or error  # it cannot start; who only asks for a report sees it there
                checks.append(HealthCheck(name, _lacking(str(error)), critical=service.critical))
                continue
            try:
                check = ExternalServiceHealthCheck(
                    name,
                    service.url,
                    timeout_s=service.timeout_s,
                    critical=service.critical,
                    headers={"Authorization": f"Bearer {token}"} if token else None,
                )
            except ValueError as error:
                raise ConfigurationError(f"option 'external.{name}.url': {error}") from None
            checks.append(check)
        checks += [_custom(name, custom) for name, custom in config.checks.items()]
        return checks

    def start(self) -> None:
        """Run the checks on schedule from now on.

        ConfigurationError: a token is missing, or there is no such path in ``disk_space``.
        """
        if self._missing is not None:
            raise self._missing
        for check in self.checks:
            if isinstance(check, DiskSpaceHealthCheck) and not os.path.exists(check.path):  # noqa: PTH110 - a text
                raise ConfigurationError(f"disk_space names {check.path!r}: there is no such path on this machine")
        self.begin()

    def begin(self) -> None:
        """Start the thread that runs the checks (anew in a forked child)."""
        if self.config.interval_s:
            self._stopping = threading.Event()
            self._thread = threading.Thread(target=self._go_on, name="eventcore-health", daemon=True)
            self._thread.start()
            _SERVICES.add(self)

    def _go_on(self) -> None:
        stopping = self._stopping
        while not stopping.is_set():
            self.emitter.health.report(self.plugins)
            stopping.wait(self.config.interval_s)

    def stop(self) -> None:
        """Stop, within a second; a check that hangs is left behind."""
        _SERVICES.discard(self)
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"<HealthService {', '.join(check.name for check in self.checks) or 'no checks'}>"


def _lacking(what: str) -> Callable[[], HealthResult]:
    return lambda: HealthResult(HealthStatus.UNHEALTHY, what)


def _custom(name: str, table: _Custom) -> HealthCheck:
    try:
        found = pkgutil.resolve_name(table.use)
    except Exception as error:  # noqa: BLE001 - whatever the module does when it is imported
        raise ConfigurationError(
            f"option 'checks.{name}.use': {table.use!r} cannot be imported: {error}; expected 'package.module:name'"
        ) from None
    run = found.run if isinstance(found, HealthCheck) else found
    if not callable(run) or isinstance(run, type):
        raise ConfigurationError(
            f"option 'checks.{name}.use': {table.use!r} is {found!r}: expected an ec.HealthCheck or a function"
        )
    return HealthCheck(name, run, critical=table.critical, timeout_s=table.timeout_s, ttl_s=table.ttl_s)


_SERVICES: weakref.WeakSet[HealthService] = weakref.WeakSet()


def _after_fork() -> None:
    for service in list(_SERVICES):
        service.begin()


os.register_at_fork(after_in_child=_after_fork)
