"""The handler of kind ``log``: events as lines on a stream or in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from eventcore.errors import PartialFailure
from eventcore.events import Event, Severity
from eventcore.handler import Handler, HandlerConfig, Sink
from eventcore_log.formats import console_format, json_format
from eventcore_log.lines import Lines
from eventcore_log.outputs import FileOutput, Output, Shortfall, StreamOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope

__all__ = ["LogConfig", "LogHandler"]


_ALIASES = {"sample_rate": "sampling", "hash_based": "sampling_by"}
_BY = {"true": "trace", "1": "trace", "false": "random", "0": "random"}


class LogConfig(HandlerConfig):
    """Options of a log handler.

    Sampling has the names of the TinyLLM guide too: ``sample_rate`` is ``sampling``, ``hash_based = true`` is
    ``sampling_by = "trace"``; ``max_per_second`` is the same in both.
    """

    format: Literal["console", "json"] = Field(
        "console", description="Lines for people ('console'), or one JSON object per line ('json')."
    )
    output: str = Field(
        "stderr",
        min_length=1,
        description="'stderr', 'stdout', or the path of a file to append to; missing folders are made.",
    )
    min_severity: Severity = Field(Severity.INFO, description="Nothing below this severity.")

    @model_validator(mode="before")
    @classmethod
    def _names_of_the_guide(cls, options: Any) -> Any:
        if not isinstance(options, Mapping):
            return options
        options = dict(options)
        for alias, name in _ALIASES.items():
            if alias in options:
                if name in options:
                    raise ValueError(f"{alias!r} and {name!r} are two names of one option; give one of them")
                options[name] = options.pop(alias)
                if alias == "hash_based":
                    options[name] = _BY.get(str(options[name]).lower(), options[name])
        return options

    @field_validator("output", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value


class LogHandler(Handler):
    """Writes a line per event, one per element for batches, and one more at the start of operations that ask for it.

    ``console`` lines are written in the caller unless the configuration says otherwise, so that they do not reorder
    with ``print``; ``json`` lines by a worker.
    """

    Config = LogConfig
    kind = "log"

    config: LogConfig

    def __init__(self, config: LogConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        is_console = self.config.format == "console"
        self.delivery = "inline" if is_console else "queued"  # type: ignore[misc]  # here the format decides

    def attached(self, emitter: Emitter) -> None:
        """Open the output; ConfigurationError where it cannot be written."""
        super().attached(emitter)
        self._lines = Lines(emitter.resource)
        self._output = self._open()
        if self.config.format == "json":
            self._render = json_format()
        else:
            self._render = console_format(colors=_wants_colors(self._output))

    def start_sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - the base's
        """Take the start of operations whose type has a message for it."""
        return self.handle if event_type.__event__.start_message else None

    def handle(self, envelope: Envelope) -> None:
        """Write the envelope's line or lines."""
        self._output.write(self._text(envelope))

    def handle_batch(self, envelopes: Sequence[Envelope]) -> None:
        """Write the lines of a batch at once."""
        texts: list[bytes] = []
        failed: dict[int, Exception] = {}
        for index, envelope in enumerate(envelopes):
            try:
                texts.append(self._text(envelope))
            except Exception as error:  # noqa: BLE001 - one envelope that makes no line must not cost the others theirs
                failed[index] = error
                texts.append(b"")
        try:
            self._output.write(b"".join(texts))
        except Shortfall as error:
            ends = enumerate(accumulate(map(len, texts)))
            failed.update({index: error for index, end in ends if end > error.written})
        if failed:
            raise PartialFailure(failed, next(iter(failed.values())))

    def flush(self) -> None:
        """Pass on what the stream holds back."""
        self._output.flush()

    def close(self) -> None:
        """Flush a stream, close a file."""
        self._output.close()

    def describe(self) -> dict[str, Any]:
        """Return format and output (a path is absolute)."""
        output = self.config.output
        return {"format": self.config.format, "output": output if output in _STREAMS else str(_path(output))}

    def inspect(self) -> dict[str, Any]:
        """Return the same, and what an event passes on its way to a line."""
        return {**self.describe(), "processors": ("redact", "fields", "scrub", self.config.format, "output")}

    def preview(self, envelope: Envelope) -> str:
        """Return the envelope's line or lines, without colours."""
        render = json_format() if self.config.format == "json" else console_format(colors=False)
        return b"".join(map(render, Lines(self.emitter.resource).of(envelope))).decode().removesuffix("\n")

    def _text(self, envelope: Envelope) -> bytes:
        lines = self._lines.of(envelope)
        return self._render(lines[0]) if len(lines) == 1 else b"".join(map(self._render, lines))

    def _open(self) -> Output:
        output = self.config.output
        return StreamOutput(output) if output in _STREAMS else FileOutput(_path(output))


_STREAMS = ("stderr", "stdout")


def _path(output: str) -> Path:
    return Path(output).expanduser().absolute()


def _wants_colors(output: Output) -> bool:
    """Whether to colour lines: never files; NO_COLOR and FORCE_COLOR (not empty) decide for streams, else a terminal.

    Conventions: https://no-color.org and https://force-color.org; where both are set, NO_COLOR wins, as in Python.
    """
    if isinstance(output, FileOutput) or os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (output.is_tty and os.environ.get("TERM") != "dumb")
