"""Memory and disk space, as shares of what there is.

In a container memory is what the control group allows, not what the host has; without that a process is killed while
its host looks idle. Page cache that the kernel can drop is not counted as used.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

from eventcore.health import HealthCheck, HealthResult, HealthStatus

__all__ = ["CRITICAL_THRESHOLD", "WARNING_THRESHOLD", "DiskSpaceHealthCheck", "MemoryHealthCheck"]

WARNING_THRESHOLD = 0.8
CRITICAL_THRESHOLD = 0.95

_CGROUP = Path("/sys/fs/cgroup")


class MemoryHealthCheck(HealthCheck):
    """Memory in use, of the control group where it has a limit, else of the machine; shares of 0 to 1."""

    def __init__(
        self,
        warning_threshold: float = WARNING_THRESHOLD,
        critical_threshold: float = CRITICAL_THRESHOLD,
        *,
        critical: bool = False,
        cgroup: Path = _CGROUP,
    ) -> None:
        super().__init__("memory", critical=critical)
        self.thresholds = _checked(warning_threshold, critical_threshold)
        self._cgroup = cgroup

    def run(self) -> HealthResult:
        """Compare the share in use with the thresholds."""
        memory = psutil.virtual_memory()
        total, available, source = memory.total, memory.available, "machine"
        limited = _cgroup_memory(self._cgroup)
        if limited is not None and limited[0] < total:
            total, used = limited
            available, source = max(0, min(available, total - used)), "control group"
        share = 1.0 - available / total
        details = {
            "usage_percent": round(share, 4),
            "available_bytes": available,
            "total_bytes": total,
            "used_bytes": total - available,
            "process_bytes": psutil.Process().memory_info().rss,
            "of": source,
        }
        return _judged("memory", share, self.thresholds, details)


class DiskSpaceHealthCheck(HealthCheck):
    """Space in use on the file system that holds ``path``, of what this user may use; shares of 0 to 1."""

    def __init__(
        self,
        path: str | os.PathLike[str] = "/",
        warning_threshold: float = WARNING_THRESHOLD,
        critical_threshold: float = CRITICAL_THRESHOLD,
        *,
        critical: bool = False,
        name: str = "disk_space",
    ) -> None:
        super().__init__(name, critical=critical)
        self.path = os.fspath(path)
        self.thresholds = _checked(warning_threshold, critical_threshold)

    def run(self) -> HealthResult:
        """Compare the share in use with the thresholds; a path that cannot be read is unhealthy."""
        try:
            total, used, free = shutil.disk_usage(self.path)
        except OSError as error:
            return HealthResult(
                HealthStatus.UNHEALTHY, f"Disk check failed: {self.path}: {error.strerror}", {"path": self.path}
            )
        share = used / (used + free) if used + free else 1.0  # as df: what is reserved for root is nobody's here
        details = {
            "path": self.path,
            "usage_percent": round(share, 4),
            "total_bytes": total,
            "used_bytes": used,
            "free_bytes": free,
        }
        return _judged("disk", share, self.thresholds, details)


def _checked(warning: float, critical: float) -> tuple[float, float]:
    if not 0 < warning <= critical <= 1:
        raise ValueError(
            f"thresholds are shares, 0 < warning_threshold <= critical_threshold <= 1, not {warning} and {critical}"
        )
    return warning, critical


def _judged(what: str, share: float, thresholds: tuple[float, float], details: dict[str, object]) -> HealthResult:
    warning, critical = thresholds
    if share >= critical:
        return HealthResult(HealthStatus.UNHEALTHY, f"Critical {what} usage: {share:.1%}", details)
    if share >= warning:
        return HealthResult(HealthStatus.DEGRADED, f"High {what} usage: {share:.1%}", details)
    return HealthResult(HealthStatus.HEALTHY, f"{what.capitalize()} usage normal: {share:.1%}", details)


def _cgroup_memory(root: Path) -> tuple[int, int] | None:
    """Return limit and use in bytes of the process's control group, version 2 or 1; None where there is no limit."""
    for limit, use, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in (root / _own_group(), root):
            try:
                most = int((folder / limit).read_text())
                used = int((folder / use).read_text())
                stat = dict(line.split() for line in (folder / limit).with_name("memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # not this version, or "max": no limit
                continue
            return most, max(0, used - int(stat.get(cache, 0)))
    return None


def _own_group() -> str:
    """Return the path of the process's control group below the root; "" where it cannot be read."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
