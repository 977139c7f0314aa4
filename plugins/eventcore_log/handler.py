"""The handler of kind ``log``: events as lines on a stream or in a file, as OTLP, or for the standard library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventcore.errors import PartialFailure
from eventcore.events import Category, Event, Severity
from eventcore.handler import Handler, Sink
from eventcore.vocabulary import LogRecord
from eventcore_log.config import NO_FILES, STREAMS, LogConfig
from eventcore_log.files import FileOutput, Rotation
from eventcore_log.formats import console_format, json_format
from eventcore_log.lines import Lines
from eventcore_log.outputs import Output, Shortfall, StreamOutput
from eventcore_log.stdlib import LoggingOutput, LoggingService, StdlibRecord, to_record
from eventcore_otlp import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore_log.levels import Levels
    from eventcore_log.line import Line
    from eventcore_log.otlp import OtlpOutput

__all__ = ["LogConfig", "LogHandler"]


class LogHandler(Handler):
    """Writes a line per event, one per element for batches, and one more at the start of operations that ask for it.

    ``console`` lines and what goes to the standard library's loggers are written in the caller unless the configuration
    says otherwise, so that they do not reorder with ``print`` and other loggers; ``json`` lines and OTLP records by a
    worker.
    """

    Config = LogConfig
    kind = "log"

    config: LogConfig

    def __init__(self, config: LogConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        output = self.config.output
        is_inline = output == "logging" or (self.config.format == "console" and output != "otlp")
        self.delivery = "inline" if is_inline else "queued"  # type: ignore[misc]  # here the options decide
        self.wants_thread = self.config.format == "json" and self.config.schema_ in {"moe", "ecs"}
        self.is_disabled = output == "otlp" and environment.flag("OTEL_SDK_DISABLED")
        self._otlp: OtlpOutput | None = None
        self._of_logger: dict[str, Severity] = {}

    def attached(self, emitter: Emitter) -> None:
        """Open the output; ConfigurationError where it cannot be written."""
        super().attached(emitter)
        if self.config.is_schema_idle:
            self.warn_of_idle(["schema"], "format is 'console'")  # by LOG_FORMAT, perhaps
        self._lines = Lines(emitter.resource)
        self._output: Output
        self._items: Callable[[Envelope], list[Any]]
        output = self.config.output
        if output == "otlp":
            from eventcore_log.otlp import Limits, OtlpOutput, log_record

            limits = Limits.from_environment()
            self._output = self._otlp = OtlpOutput(self.config, emitter.resource)
            self._items = lambda envelope: [log_record(envelope, line, limits) for line in self._lines.of(envelope)]
            return
        if output == "logging":
            self._output = LoggingOutput()
            self._items = lambda envelope: [to_record(envelope, line) for line in self._lines.of(envelope)]
            return
        self._output = StreamOutput(output) if output in STREAMS else self._file(emitter)
        render = self._renderer(colors=_wants_colors(self._output))
        lines_of = self._lines_with_thread if self.wants_thread else self._lines.of

        def items(envelope: Envelope) -> list[bytes]:
            lines = lines_of(envelope)
            return [render(lines[0])] if len(lines) == 1 else [render(line) for line in lines]

        self._items = items

    def sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - the base's
        """Take every event; for the standard library's loggers, but those that it has logged itself."""
        is_echo = self.config.output == "logging" and issubclass(event_type, StdlibRecord)
        return None if is_echo or self.is_disabled else self.handle

    def draw_for(self, event_type: type[Event], severity: Severity) -> Callable[[Envelope], bool] | None:
        """Ask each line of a logger whether its logger's level lets it pass, where there is one that may not."""
        if not self.config.levels or not issubclass(event_type, LogRecord):
            return None
        spec, levels = event_type.__event__, self.levels
        highest = max(levels.of(spec.category, spec.name), *levels.by_name.values())
        return self._is_shown if severity < highest else None

    def start_sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - the base's
        """Take the start of operations whose type has a message for it."""
        return self.handle if event_type.__event__.start_message and not self.is_disabled else None

    def handle(self, envelope: Envelope) -> None:
        """Write the envelope's line or lines."""
        self._output.write(self._items(envelope))

    def handle_batch(self, envelopes: Sequence[Envelope]) -> None:
        """Write the lines of a batch at once."""
        items: list[Any] = []
        ends: list[int] = []  # of each envelope's items
        failed: dict[int, Exception] = {}
        items_of = self._items
        for index, envelope in enumerate(envelopes):
            try:
                items += items_of(envelope)
            except Exception as error:  # noqa: BLE001 - one envelope that makes no line must not cost the others theirs
                failed[index] = error
            ends.append(len(items))
        try:
            self._output.write(items)
        except Shortfall as error:
            failed.update({index: error for index, end in enumerate(ends) if end > error.written})
        if failed:
            raise PartialFailure(failed, next(iter(failed.values())))

    def flush(self) -> None:
        """Pass on what the stream holds back."""
        self._output.flush()

    def closing(self) -> None:
        """Give up waiting for an OTLP receiver in time for what else waits."""
        if self._otlp is not None:
            self._otlp.hurry(self.emitter.shutdown_timeout_s / 2)

    def close(self) -> None:
        """Flush a stream, close a file or a connection."""
        self._output.close()

    def _lines_with_thread(self, envelope: Envelope) -> list[Line]:
        lines = self._lines.of(envelope)
        for line in lines:
            line.thread = getattr(envelope, "thread", None)  # not there in what comes from a journal
        return lines

    # -- levels ------------------------------------------------------------------------------------------------------

    @property
    def levels(self) -> Levels:
        """From which severity on events are shown: in general, by category, by name."""
        return self.config.severities

    def set_level(
        self, level: Severity | str | None, *, name: str | None = None, category: Category | str | None = None
    ) -> None:
        """Show events from ``level`` on, as of now: all, or those of a ``name`` or ``category``.

        A name is an event's or a logger's, and speaks of all below it too, or it is a glob. None takes back what was
        said of a name or category. ValueError for a level or category that there is not, or for None without either.
        """
        severity = None if level is None else Severity.parse(level)
        if name is not None and category is not None:
            raise ValueError("a level is set for a name or for a category, not for both at once")
        levels = self.levels
        if name is not None:
            levels = levels.with_name(name, severity)
        elif category is not None:
            levels = levels.with_category(Category.parse(category), severity)
        elif severity is not None:
            levels = levels.with_general(severity)
        else:
            raise ValueError("None takes back the level of a name or a category; which one?")
        self.config = self.config.model_copy(
            update={
                "min_severity": levels.general,
                "levels": dict(levels.by_name),
                "category_levels": dict(levels.by_category),
            }
        )
        self._of_logger = {}
        if hasattr(self, "emitter"):
            self.emitter.recompile()

    def _is_shown(self, envelope: Envelope) -> bool:
        """Whether a logger's level lets its line pass; of all other events the routes know it."""
        event = envelope.event
        assert isinstance(event, LogRecord)  # noqa: S101 - draw_for has seen to it; for the type checker
        least = self._of_logger.get(event.logger_name)
        if least is None:
            least = self.levels.of(envelope.category, envelope.name, event.logger_name)
            if len(self._of_logger) < MAX_LOGGERS:
                self._of_logger[event.logger_name] = least
        return envelope.severity >= least

    # -- what it says of itself ----------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return format and output (a path is absolute)."""
        output = self.config.output
        if self._otlp is not None:
            disabled = {"disabled": "by OTEL_SDK_DISABLED"} if self.is_disabled else {}
            return {"output": output, **self._otlp.describe(), **disabled}
        if output == "logging":
            return {"output": output}
        return {"format": self.config.format, "output": output if output in NO_FILES else str(_path(output))}

    def inspect(self) -> dict[str, Any]:
        """Return the same, what an event passes on its way to a line, and the levels of names and categories."""
        text = () if self.config.output in {"otlp", "logging"} else (self.config.format, "output")
        schema = self.config.schema_ if "json" in text and self.config.schema_ != "tinyllm" else None
        levels = {
            f"{name} (category)" if isinstance(name, Category) else name: level.name.lower()
            for name, level in (*self.levels.by_name.items(), *self.levels.by_category.items())
        }
        steps = ("redact", "fields", "scrub", *((schema,) if schema else ()), *(text or (self.config.output,)))
        return {
            **self.describe(),
            "processors": steps,
            **({"levels": levels} if levels else {}),
            **self._captured(),
        }

    def _captured(self) -> dict[str, int]:
        """Return how many stdlib records were left alone because a handler made them, where they are taken in."""
        service = self.emitter.services.get("logging") if hasattr(self, "emitter") else None
        capture = service.capture if isinstance(service, LoggingService) else None
        return {} if capture is None else {"stdlib_records_left_alone": capture.handler.ignored}

    def preview(self, envelope: Envelope) -> str:
        """Return the envelope's line or lines, without colours."""
        render = self._renderer(colors=False)
        return b"".join(map(render, Lines(self.emitter.resource).of(envelope))).decode().removesuffix("\n")

    # -- opening -------------------------------------------------------------------------------------------------------

    def _renderer(self, *, colors: bool) -> Callable[[Line], bytes]:
        return json_format(self.config.schema_) if self.config.format == "json" else console_format(colors=colors)

    def _file(self, emitter: Emitter) -> FileOutput:
        config = self.config
        is_rotating = config.max_bytes is not None or config.rotate_every_s is not None
        rotation = Rotation(config.max_bytes, config.rotate_every_s, config.backups) if is_rotating else None
        return FileOutput(_path(config.output), rotation, time_ns=emitter.time_ns)


MAX_LOGGERS = 10_000
"""Loggers whose level is remembered; that of others is looked up for each line."""


def _path(output: str) -> Path:
    return Path(output).expanduser().absolute()


def _wants_colors(output: Output) -> bool:
    """Whether to colour lines: never files; NO_COLOR and FORCE_COLOR (not empty) decide for streams, else a terminal.

    Conventions: https://no-color.org and https://force-color.org; where both are set, NO_COLOR wins, as in Python.
    """
    if isinstance(output, FileOutput) or os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (output.is_tty and os.environ.get("TERM") != "dumb")
