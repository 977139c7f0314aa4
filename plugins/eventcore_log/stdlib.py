"""The standard library's ``logging``, both ways, without loops.

In: ``capture_logging`` (or the settings table ``[logging]``) puts a handler on stdlib loggers that makes an event of
each record. Out: a log handler with ``output = "logging"`` gives each line to the stdlib logger of its name.

Three things keep the two from feeding each other. Records that we made carry a mark, and are not taken in again. Events
that came in as records are of a type of their own, which ``output = "logging"`` does not want: they are there already.
And what a handler's own libraries log while it handles (urllib3, while OTLP is sent) is counted and left alone, so that
sending one line does not make another.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator

from eventcore.events import Category, Severity
from eventcore.in_use import get_emitter
from eventcore.service import Service, ServiceConfig
from eventcore.vocabulary import LogRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore_log.line import Line

__all__ = [
    "Capture",
    "CaptureHandler",
    "LoggingOutput",
    "LoggingService",
    "StdlibRecord",
    "capture_logging",
    "to_record",
]

MARK = "from_eventcore"
"""The attribute of records that are events already."""

_LEVELS = {
    Severity.TRACE: 5,
    Severity.DEBUG: logging.DEBUG,
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}
_DOWNWARDS = tuple(sorted(((level, severity) for severity, level in _LEVELS.items()), reverse=True))
_OWN = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName", MARK}
"""Attributes that every record has; what else one has was given as ``extra``."""


class StdlibRecord(LogRecord, name="log.record", category=Category.EXECUTION, message="{text}"):
    """A record of the standard library's ``logging``, as an event."""


_SHOWN = frozenset({"event", "level", "timestamp", "logger", "name", "fields"})
"""What of a line a record tells in its own way."""


# -- in ----------------------------------------------------------------------------------------------------------------


class CaptureHandler(logging.Handler):
    """Emits an event for each record; ``ignored`` counts those made by handlers while they handled."""

    def __init__(self, emitter: Emitter | None = None) -> None:
        super().__init__()
        self._emitter = emitter
        self.ignored = 0

    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record without the lock that stdlib handlers hold: an emit needs none, and may come from anywhere."""
        passes: Any = self.filter(record)  # since Python 3.12 it may be another record
        if passes:
            self.emit(passes if isinstance(passes, logging.LogRecord) else record)
        return bool(passes)

    def emit(self, record: logging.LogRecord) -> None:
        """Emit the record, unless it is an event already, or a handler's doing."""
        if getattr(record, MARK, False):
            return
        emitter = self._emitter or get_emitter()
        if emitter.is_handling:
            self.ignored += 1
            return
        severity = severity_of(record.levelno)
        if not emitter.enabled(StdlibRecord, severity):
            return
        try:
            emitter.emit(_to_event(record), severity=severity)
        except Exception:  # noqa: BLE001 - as every stdlib handler: logging must not harm the caller
            self.handleError(record)


def severity_of(level: int) -> Severity:
    """Return the severity that a stdlib level reaches; TRACE for all below DEBUG."""
    return next((severity for least, severity in _DOWNWARDS if level >= least), Severity.TRACE)


def _to_event(record: logging.LogRecord) -> StdlibRecord:
    data = {key: value for key, value in record.__dict__.items() if key not in _OWN}
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        data.setdefault("error_type", type(error).__qualname__)
        data["exception"] = logging.Formatter().formatException(record.exc_info)
    elif record.exc_text:
        data["exception"] = record.exc_text
    if record.stack_info:
        data["stack_info"] = record.stack_info
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - a wrong number of arguments, most likely; the template still says something
        text = f"{record.msg} {record.args!r}"
    return StdlibRecord(text=text, logger_name=record.name, data=data)


class Capture:
    """Stdlib loggers whose records are taken in; until ``close()``, or the end of the ``with`` block."""

    def __init__(self, loggers: Sequence[str], level: Severity | None, emitter: Emitter | None) -> None:
        self.handler = CaptureHandler(emitter)
        self._loggers = [logging.getLogger(name) for name in loggers]
        self._before = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.addHandler(self.handler)
            if level is not None:
                logger.setLevel(_LEVELS[level])

    def close(self) -> None:
        """Take the handler off, and give the loggers back the levels that they had."""
        for logger, level in zip(self._loggers, self._before, strict=True):
            logger.removeHandler(self.handler)
            logger.setLevel(level)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Capture of {', '.join(logger.name for logger in self._loggers)}>"


def capture_logging(*loggers: str, level: Severity | str | None = None, emitter: Emitter | None = None) -> Capture:
    """Make events of the records of stdlib ``loggers``: by default the root's, to which the others hand theirs on.

    ``level`` is set on these loggers, until ``close()``: without it the root lets pass WARNING and above only, unless
    the program has said otherwise. The emitter in use at the time of each record takes it, unless one is given.
    """
    return Capture(loggers or ("root",), None if level is None else Severity.parse(level), emitter)


class LoggingService(Service):
    """Takes in the records of stdlib loggers while the emitter runs: the settings table ``[logging]``."""

    class Config(ServiceConfig):
        """Options of the table ``[logging]``."""

        loggers: tuple[str, ...] = Field(
            ("root",), description="Stdlib loggers whose records become events; 'root' for all that propagate."
        )
        level: Severity | None = Field(
            Severity.INFO, description="Set on these loggers while the emitter runs; not touched when null."
        )

        @field_validator("level", mode="before")
        @classmethod
        def _severity_by_name(cls, value: Any) -> Any:
            return value if value is None else Severity.parse(value)

        @field_validator("loggers", mode="before")
        @classmethod
        def _one_or_many(cls, value: Any) -> Any:
            return (value,) if isinstance(value, str) else value

    config: Config
    capture: Capture | None = None

    def start(self) -> None:
        """Put a handler on the loggers."""
        self.capture = Capture(self.config.loggers, self.config.level, self.emitter)

    def stop(self) -> None:
        """Take it off again."""
        if self.capture is not None:
            self.capture.close()


# -- out ---------------------------------------------------------------------------------------------------------------


class LoggingOutput:
    """Gives records to the stdlib loggers that they name, for whose handlers and levels they are like any others."""

    is_tty = False

    def write(self, items: Sequence[logging.LogRecord]) -> None:
        """Hand each record to its logger, if that is enabled for its level."""
        for record in items:
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)

    def flush(self) -> None:
        """Do nothing: stdlib handlers flush for themselves."""

    def close(self) -> None:
        """Do nothing: loggers belong to the process."""

    def __repr__(self) -> str:
        return "<logging>"


def to_record(envelope: Envelope, line: Line) -> logging.LogRecord:
    """Return a line as a stdlib record; its fields are attributes, as ``extra`` would make them.

    A field whose name every record has an attribute of (``name``, ``args``) stands in the attribute ``fields``.
    """
    record = logging.LogRecord(line["logger"], _LEVELS[envelope.severity], "", 0, line["event"], None, None)
    record.created = envelope.time_ns / 1e9
    record.msecs = float(envelope.time_ns // 1_000_000 % 1000)
    record.levelname = envelope.severity.name
    record.event_name = line["name"]
    setattr(record, MARK, True)
    taken = dict(line.get("fields", {}))
    for key, value in line.items():
        if key == "exception" and isinstance(value, str):
            record.exc_text = value  # formatters append it
        elif key in _OWN and key not in _SHOWN:
            taken[key] = value
        elif key not in _SHOWN:
            setattr(record, key, value)
    if taken:
        record.fields = taken
    return record
