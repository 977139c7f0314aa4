"""From lines to text: structlog renders them for people (``console``), orjson for machines (``json``).

One line of output is one line, whatever is in an event: control characters (C0, C1, DEL), Unicode line separators and
characters that reorder text are escaped in both formats. In ``console`` an exception follows as an indented block, so
that no text in it passes for a line of the log.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import orjson
from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter, plain_traceback

from eventcore_log.schemas import SCHEMAS
from eventcore_log.tracebacks import highlighter
from eventcore_log.values import encodable

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore_log.line import Line
    from eventcore_log.schemas import SchemaName

    Format = Callable[[Line], bytes]

__all__ = ["console_format", "json_format", "to_json"]

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_KEY = re.compile(r"[\w.:/@-]+")
_DELETE = 0x7F  # looked for as a number: as bytes it costs fifteen times as much
_LONGEST_LEVEL = len("critical")

_LEFT_OUT = frozenset({"app", "version", "environment", "name", "category", "id"})
"""What a person is not shown: the same on every line, or of use to machines only."""

_AT_THE_END = ("correlation_id", "trace_id", "span_id")


def json_format(schema: SchemaName = "tinyllm") -> Format:
    """Return what renders lines as one JSON object each, with a schema's names; NaN and infinities become null."""
    dumps, record_of = orjson.dumps, SCHEMAS[schema]

    def render(line: Line) -> bytes:
        record = line if record_of is None else record_of(line)
        try:
            text = dumps(record, repr)
        except TypeError:
            text = dumps(encodable(record), repr)
        # The sum is a copy, as long as the line: orjson's own was allocated with 1 kB, and a batch of such, kept until
        # it is written, has malloc ask the system for memory again and again (4 µs a line, where this takes 0.4).
        return (text if text.isascii() and _DELETE not in text else _safe(text.decode()).encode()) + b"\n"

    return render


def to_json(value: Any) -> str:
    """Return plain data as JSON on one line, free of characters that would break it or steer a terminal."""
    try:
        text = orjson.dumps(value, repr).decode()
    except TypeError:
        text = orjson.dumps(encodable(value), repr).decode()
    return text if text.isascii() and "\x7f" not in text else _safe(text)


def _safe(text: str) -> str:
    """Escape in JSON what orjson has left: it escapes below U+0020 only."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def console_format(*, colors: bool) -> Format:
    """Return what renders lines as ``<time> <LEVEL> <logger>: <message> <key>=<value>…``.

    Values are written as in JSON. Left out are fields that the message shows, what is the same on every line, names,
    categories and ids of events, and ``outcome="success"``.
    """
    highlight = highlighter() if colors else None
    style = ConsoleRenderer.get_default_column_styles(colors)
    level_styles = ConsoleRenderer.get_default_level_styles(colors)

    def level(key: str, value: object) -> str:  # noqa: ARG001 - the name is structlog's
        text = str(value)
        return f"{style.bright}{level_styles.get(text, '')}{text.upper():>{_LONGEST_LEVEL}}{style.reset}"

    def logger(key: str, value: object) -> str:  # noqa: ARG001 - the name is structlog's
        return f"{style.logger_name}{_printable(str(value))}:{style.reset}"

    def message(key: str, value: object) -> str:  # noqa: ARG001 - the name is structlog's
        return f"{style.bright}{_printable(str(value))}{style.reset}"

    renderer = ConsoleRenderer(
        columns=[
            Column("timestamp", KeyValueColumnFormatter(None, style.timestamp, style.reset, value_repr=_milliseconds)),
            Column("level", level),
            Column("logger", logger),
            Column("event", message),
            Column("", KeyValueColumnFormatter(style.kv_key, style.kv_value, style.reset, value_repr=_value)),
        ],
        exception_formatter=plain_traceback,
        sort_keys=False,
    )

    def render(line: Line) -> bytes:
        return f"{renderer(None, '', _for_people(line, highlight))}\n".encode()

    return render


def _for_people(line: Line, highlight: Callable[[str], str] | None) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, value in line.items():
        if key == "fields":
            shown.update({f"fields.{k}": item for k, item in value.items() if k not in line.said})
        elif key not in _LEFT_OUT and key not in line.said and key not in _AT_THE_END and key != "exception":
            shown[key] = value
    if shown.get("outcome") == "success":
        del shown["outcome"]
    shown = {key if _KEY.fullmatch(key) else to_json(key): value for key, value in shown.items()}
    shown.update({key: line[key] for key in _AT_THE_END if key in line})
    if "exception" in line:
        shown["exception"] = _block(line["exception"], highlight)
    return shown


def _block(value: Any, highlight: Callable[[str], str] | None) -> str:
    text = value.rstrip() if isinstance(value, str) else to_json(value)
    text = "\n".join(map(_printable, text.split("\n")))  # before colours, so that the only escapes are ours
    return "\n".join(f"    {part}" for part in (highlight(text) if highlight else text).split("\n"))


def _milliseconds(value: object) -> str:
    return f"{str(value)[:-4]}Z"


def _value(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return to_json(value)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
