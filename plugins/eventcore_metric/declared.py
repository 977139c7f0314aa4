"""The plugin's own metrics, declared: the bus's account, the limits of series, the process and the host.

Data only, no library: the catalog reads it to know all that ``/metrics`` can show. ``ACROSS`` says how a gauge of
several processes becomes one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from eventcore.events import Category, Severity
from eventcore.exposition import Metric
from eventcore.ledger import DROP_REASONS
from eventcore.timing import BATCH_BOUNDS_S, EMIT_BOUNDS_S, WAIT_BOUNDS_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore_metric.readings import Across

__all__ = ["ACROSS", "BUS", "HOST", "LIMITS", "OTEL_NAMES", "OWN", "PROCESS"]

_HANDLER = {"handler": None}
_BUS = "the bus's own account"

BUS = (
    Metric(
        name="eventcore_emitted_total",
        kind="counter",
        help="Events emitted and operations ended, of types and severities that at least one handler takes.",
        labels={
            "event": None,
            "category": frozenset(category.value for category in Category),
            "severity": frozenset(severity.name.lower() for severity in Severity),
        },
        origin=_BUS,
    ),
    Metric(
        name="eventcore_events_total",
        kind="counter",
        help="Events by handler and by what became of them; reason says why an event was dropped.",
        labels={
            "handler": None,
            "outcome": frozenset(("delivered", "failed", "filtered", "sampled", "dropped")),
            "reason": frozenset(("", *DROP_REASONS)),
        },
        origin=_BUS,
    ),
    Metric(name="eventcore_operations_started_total", kind="counter", help="Operations started.", origin=_BUS),
    Metric(
        name="eventcore_operations_ended_total",
        kind="counter",
        help="Operations ended, whatever their outcome.",
        origin=_BUS,
    ),
    Metric(
        name="eventcore_operations_abandoned_total",
        kind="counter",
        help="Operations given up: open at shutdown, or too many open.",
        origin=_BUS,
    ),
    Metric(name="eventcore_operations_open", kind="gauge", help="Operations started and not ended.", origin=_BUS),
    Metric(
        name="eventcore_handler_breaker_state",
        kind="gauge",
        help="State of a handler's breaker: 0 closed, 1 half-open, 2 open (in quarantine).",
        labels=_HANDLER,
        origin=_BUS,
    ),
    Metric(
        name="eventcore_queue_size",
        kind="gauge",
        help="Events waiting or being handled.",
        labels=_HANDLER,
        origin=_BUS,
    ),
    Metric(name="eventcore_queue_capacity", kind="gauge", help="Events that may wait.", labels=_HANDLER, origin=_BUS),
    Metric(
        name="eventcore_queue_wait_seconds",
        kind="histogram",
        help="How long the first event of each batch had waited.",
        labels=_HANDLER,
        buckets=WAIT_BOUNDS_S,
        origin=_BUS,
    ),
    Metric(
        name="eventcore_batch_duration_seconds",
        kind="histogram",
        help="How long a handler took for a batch.",
        labels=_HANDLER,
        buckets=BATCH_BOUNDS_S,
        origin=_BUS,
    ),
    Metric(
        name="eventcore_emit_duration_seconds",
        kind="histogram",
        help="How long an emit held its caller; one of 1,024 is timed.",
        buckets=EMIT_BOUNDS_S,
        origin=_BUS,
    ),
)

_LIMITS = "the metric plugin's limits"

LIMITS = (
    Metric(
        name="eventcore_metric_overflow_total",
        kind="counter",
        help="Observations counted under label values 'other', because the metric is at its limit of series.",
        labels={"metric": None},
        origin=_LIMITS,
    ),
    Metric(
        name="eventcore_metric_rejected_total",
        kind="counter",
        help="Observations left out, because their value is no number that the metric can take.",
        labels={"metric": None},
        origin=_LIMITS,
    ),
)

_PROCESS = "the process, as /proc has it"

PROCESS = (
    Metric(
        name="process_cpu_seconds_total",
        kind="counter",
        help="Total user and system CPU time spent in seconds.",
        origin=_PROCESS,
    ),
    Metric(name="process_resident_memory_bytes", kind="gauge", help="Resident memory size in bytes.", origin=_PROCESS),
    Metric(name="process_virtual_memory_bytes", kind="gauge", help="Virtual memory size in bytes.", origin=_PROCESS),
    Metric(name="process_threads", kind="gauge", help="Number of threads of the process.", origin=_PROCESS),
    Metric(name="process_open_fds", kind="gauge", help="Number of open file descriptors.", origin=_PROCESS),
    Metric(name="process_max_fds", kind="gauge", help="Maximum number of open file descriptors.", origin=_PROCESS),
    Metric(
        name="process_start_time_seconds",
        kind="gauge",
        help="Start time of the process since unix epoch in seconds.",
        origin=_PROCESS,
    ),
)

_HOST = "the host, as /proc and the file system have it"

HOST = (
    Metric(
        name="host_cpu_seconds_total",
        kind="counter",
        help="CPU time of the host, all CPUs together.",
        labels={"mode": frozenset(("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"))},
        origin=_HOST,
    ),
    Metric(name="host_memory_total_bytes", kind="gauge", help="Memory of the host.", origin=_HOST),
    Metric(
        name="host_memory_available_bytes",
        kind="gauge",
        help="Memory of the host that programs can have without swapping.",
        origin=_HOST,
    ),
    Metric(
        name="host_disk_total_bytes",
        kind="gauge",
        help="Size of the file system that holds the path.",
        labels={"path": None},
        origin=_HOST,
    ),
    Metric(
        name="host_disk_free_bytes",
        kind="gauge",
        help="Space that an unprivileged process can still use on the file system that holds the path.",
        labels={"path": None},
        origin=_HOST,
    ),
)

OWN = [*BUS, *LIMITS, *PROCESS, *HOST]
"""All of them."""

ACROSS: Mapping[str, Across] = MappingProxyType(
    {
        "eventcore_handler_breaker_state": "max",
        "process_max_fds": "min",
        "process_start_time_seconds": "min",
        "host_cpu_seconds_total": "max",
        "host_memory_total_bytes": "latest",
        "host_memory_available_bytes": "latest",
        "host_disk_total_bytes": "latest",
        "host_disk_free_bytes": "latest",
    }
)
"""How the values of several processes become one, for metrics that are not simply summed."""

OTEL_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "process_cpu_seconds_total": "process.cpu.time",
        "process_resident_memory_bytes": "process.memory.usage",
        "process_virtual_memory_bytes": "process.memory.virtual",
        "process_threads": "process.thread.count",
        "process_open_fds": "process.unix.file_descriptor.count",
        "host_cpu_seconds_total": "system.cpu.time",
        "host_memory_total_bytes": "system.memory.limit",
        "host_memory_available_bytes": "system.memory.linux.available",
        "host_disk_total_bytes": "system.filesystem.limit",
    }
)
"""Names that OpenTelemetry's semantic conventions have for the same thing; all others follow by rule."""
