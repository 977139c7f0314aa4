"""eventcore: emit one typed event; logs, metrics, spans and more follow by configuration.

``import eventcore as ec`` gives everything below; names are imported when they are first used, so importing an event
type into a library costs little more than importing pydantic.
"""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventcore.adhoc import Logger as Logger
    from eventcore.adhoc import emit_error_event as emit_error_event
    from eventcore.adhoc import emit_event as emit_event
    from eventcore.adhoc import get_logger as get_logger
    from eventcore.adhoc import log_request as log_request
    from eventcore.adhoc import span as span
    from eventcore.adhoc import traced as traced
    from eventcore.breaker import Breaker as Breaker
    from eventcore.breaker import BreakerState as BreakerState
    from eventcore.by_hand import counter as counter
    from eventcore.by_hand import gauge as gauge
    from eventcore.by_hand import histogram as histogram
    from eventcore.catalog import Catalog as Catalog
    from eventcore.context import baggage as baggage
    from eventcore.context import bind_context as bind_context
    from eventcore.context import bound as bound
    from eventcore.context import continue_trace as continue_trace
    from eventcore.context import current_operation as current_operation
    from eventcore.context import current_trace as current_trace
    from eventcore.context import in_context as in_context
    from eventcore.context import inject as inject
    from eventcore.context import unbind_context as unbind_context
    from eventcore.emitter import Emitter as Emitter
    from eventcore.envelope import Envelope as Envelope
    from eventcore.errors import BreakerOpen as BreakerOpen
    from eventcore.errors import ConfigurationError as ConfigurationError
    from eventcore.errors import DefinitionError as DefinitionError
    from eventcore.errors import EventCoreError as EventCoreError
    from eventcore.errors import InstrumentError as InstrumentError
    from eventcore.errors import NotDurable as NotDurable
    from eventcore.errors import OperationMisuse as OperationMisuse
    from eventcore.errors import PartialFailure as PartialFailure
    from eventcore.errors import PluginError as PluginError
    from eventcore.events import Category as Category
    from eventcore.events import Event as Event
    from eventcore.events import Operation as Operation
    from eventcore.events import Severity as Severity
    from eventcore.fields import Array as Array
    from eventcore.fields import Label as Label
    from eventcore.fields import Measure as Measure
    from eventcore.fields import Sensitive as Sensitive
    from eventcore.fields import unset as unset
    from eventcore.handler import Handler as Handler
    from eventcore.handler import HandlerConfig as HandlerConfig
    from eventcore.health import HealthCheck as HealthCheck
    from eventcore.health import HealthResult as HealthResult
    from eventcore.health import HealthStatus as HealthStatus
    from eventcore.health import ModelHealthCheck as ModelHealthCheck
    from eventcore.http import HttpRequest as HttpRequest
    from eventcore.http import HttpResponse as HttpResponse
    from eventcore.http import HttpRoute as HttpRoute
    from eventcore.ids import Ids as Ids
    from eventcore.in_use import get_emitter as get_emitter
    from eventcore.in_use import set_emitter as set_emitter
    from eventcore.instruments import Counter as Counter
    from eventcore.instruments import Gauge as Gauge
    from eventcore.instruments import Histogram as Histogram
    from eventcore.instruments import bins as bins
    from eventcore.instruments import codes as codes
    from eventcore.instruments import const as const
    from eventcore.instruments import rename as rename
    from eventcore.operation import LiveOperation as LiveOperation
    from eventcore.plugins import hookimpl as hookimpl
    from eventcore.profiling import end_profile as end_profile
    from eventcore.profiling import profile as profile
    from eventcore.profiling import start_profile as start_profile
    from eventcore.recording import Past as Past
    from eventcore.recording import Recording as Recording
    from eventcore.resource import Resource as Resource
    from eventcore.service import Service as Service
    from eventcore.service import ServiceConfig as ServiceConfig
    from eventcore.setup import configure as configure
    from eventcore.setup import shutdown as shutdown
    from eventcore.setup import shutdown_on_signals as shutdown_on_signals

_MODULES = {
    "adhoc": "Logger emit_error_event emit_event get_logger log_request span traced",
    "breaker": "Breaker BreakerState",
    "by_hand": "counter gauge histogram",
    "catalog": "Catalog",
    "context": "baggage bind_context bound continue_trace current_operation current_trace in_context inject "
    "unbind_context",
    "emitter": "Emitter",
    "envelope": "Envelope",
    "errors": "BreakerOpen ConfigurationError DefinitionError EventCoreError InstrumentError NotDurable "
    "OperationMisuse PartialFailure PluginError",
    "events": "Category Event Operation Severity",
    "fields": "Array Label Measure Sensitive unset",
    "handler": "Handler HandlerConfig",
    "health": "HealthCheck HealthResult HealthStatus ModelHealthCheck",
    "http": "HttpRequest HttpResponse HttpRoute",
    "in_use": "get_emitter set_emitter",
    "profiling": "end_profile profile start_profile",
    "recording": "Past Recording",
    "resource": "Resource",
    "ids": "Ids",
    "instruments": "Counter Gauge Histogram bins codes const rename",
    "operation": "LiveOperation",
    "plugins": "hookimpl",
    "service": "Service ServiceConfig",
    "setup": "configure shutdown shutdown_on_signals",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605 - one table serves both


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eventcore' has no attribute {name!r}")
    collects = gc.isenabled()
    gc.disable()  # what an import makes is no garbage; looking for some among it took a tenth of the time
    try:
        value = getattr(importlib.import_module(f"eventcore.{_HOME[name]}"), name)
    finally:
        if collects:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
