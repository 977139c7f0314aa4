"""The process and its host, read at each scrape or push from ``/proc`` and the file system.

prometheus_client's own collector has the process only, and imports nothing more than we do; psutil would be a
dependency for a dozen numbers. Where there is no ``/proc`` the readings that need it are left out.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from eventcore_metric.declared import ACROSS, HOST, PROCESS
from eventcore_metric.readings import Point, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["host_readings", "process_readings"]

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def process_readings() -> list[Reading]:
    """Return CPU time, memory, threads, file descriptors and start of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    values = {"process_cpu_seconds_total": usage.ru_utime + usage.ru_stime}
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    values["process_max_fds"] = float("inf") if limit == resource.RLIM_INFINITY else float(limit)
    try:
        # After the program's name in parentheses, which may hold spaces: field 3 of proc(5) is the first.
        stat = (_PROC / "self" / "stat").read_bytes().rpartition(b")")[2].split()
        values["process_threads"] = float(stat[17])
        values["process_start_time_seconds"] = _boot_time() + float(stat[19]) / _TICKS
        values["process_virtual_memory_bytes"] = float(stat[20])
        values["process_resident_memory_bytes"] = float(stat[21]) * resource.getpagesize()
        values["process_open_fds"] = float(len(os.listdir(_PROC / "self" / "fd")))  # noqa: PTH208 - cheaper than paths
    except OSError:
        pass  # no /proc here: what it alone knows is left out
    return [
        Reading(metric, [Point((), values[metric.name])], ACROSS.get(metric.name, "sum"))
        for metric in PROCESS
        if metric.name in values
    ]


def host_readings(paths: Sequence[str]) -> list[Reading]:
    """Return CPU time and memory of the host, and the space on the file systems that hold ``paths``."""
    points: dict[str, list[Point]] = {metric.name: [] for metric in HOST}
    try:
        points["host_cpu_seconds_total"] = list(_cpu())
        memory = _memory()
        points["host_memory_total_bytes"] = [Point((), memory["MemTotal"])]
        points["host_memory_available_bytes"] = [Point((), memory["MemAvailable"])]
    except (OSError, KeyError):
        pass  # no /proc here, or not Linux's
    for path in paths:
        try:
            disk = os.statvfs(path)
        except OSError:
            continue  # no such path (yet), or an unmounted one: nothing true can be said of it
        points["host_disk_total_bytes"].append(Point((path,), disk.f_blocks * disk.f_frsize))
        points["host_disk_free_bytes"].append(Point((path,), disk.f_bavail * disk.f_frsize))
    now = time.time()
    return [
        Reading(metric, [point._replace(time_s=now) for point in points[metric.name]], ACROSS[metric.name])
        for metric in HOST
        if points[metric.name]
    ]


def _boot_time() -> float:
    for line in (_PROC / "stat").read_bytes().splitlines():
        if line.startswith(b"btime "):
            return float(line.split()[1])
    raise OSError(f"no btime in {_PROC / 'stat'}")


def _cpu() -> Iterable[Point]:
    ticks = (_PROC / "stat").read_bytes().partition(b"\n")[0].split()[1:]
    for mode, number in zip(_CPU_MODES, ticks, strict=False):
        yield Point((mode,), float(number) / _TICKS)


def _memory() -> dict[str, float]:
    rows = (line.split() for line in (_PROC / "meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): float(row[1]) * 1024 for row in rows if len(row) == 3}
