"""One line: a dictionary of plain values, and how a value of any kind gets into it without its secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from eventcore.redaction import REDACTED, scrub_text
from eventcore_log.values import NUMBERS, is_numeric_array, plain, scrubbed

if TYPE_CHECKING:
    from eventcore.operation import LiveOperation

__all__ = ["RESERVED", "RESERVED_BY_OPERATIONS", "Line", "OperationLine", "Texts", "put", "put_error", "scrub"]

_NONE: frozenset[str] = frozenset()


class Line(dict[str, Any]):
    """What one line shows, by name and in order.

    ``said`` are the fields whose values its message shows already, ``redacted`` those that held secrets; what most
    lines do not have stays on the class.
    """

    said: frozenset[str] = _NONE
    redacted: tuple[str, ...] = ()
    reserved: ClassVar[frozenset[str]]
    """Names in it that are ours, not the payload's."""
    thread: str | None = None
    """The name of the thread that emitted, where somebody asked for it."""


RESERVED = frozenset(
    {
        "app",
        "category",
        "correlation_id",
        "environment",
        "event",
        "fields",
        "id",
        "level",
        "logger",
        "name",
        "redacted",
        "span_id",
        "tags",
        "timestamp",
        "trace_id",
        "version",
        # structlog's renderers give these two a meaning of their own.
        "exc_info",
        "stack",
    }
)
"""Names that a payload field cannot have in a line; it is found under ``fields`` instead."""

RESERVED_BY_OPERATIONS = RESERVED | {"duration_ms", "error_type", "exception", "outcome"}
"""The same, for the fields of operations."""

Line.reserved = RESERVED


class OperationLine(Line):
    """A line about an operation."""

    reserved = RESERVED_BY_OPERATIONS


Texts = list[tuple[dict[str, Any], str]]
"""Where the free texts of one line stand that must be searched: in which dictionary, under which key."""


def put(  # noqa: PLR0917 - called for every field
    line: Line,
    texts: Texts,
    value: Any,
    key: str,
    is_reserved: bool = False,  # noqa: FBT001, FBT002 - as above
    holds_secret: bool = False,  # noqa: FBT001, FBT002 - as above
    is_free: bool = True,  # noqa: FBT001, FBT002 - as above
) -> None:
    """Put ``value`` into the line as plain data, without its secrets, under ``key`` or in ``fields``."""
    into = line.setdefault("fields", {}) if is_reserved else line
    kind = type(value)
    if kind is str and not holds_secret:
        into[key] = value
        if is_free:
            texts.append((into, key))
    elif kind in NUMBERS and not holds_secret:
        into[key] = value
    elif is_numeric_array(value) and not holds_secret:
        into[key] = value.tolist()
    else:
        shown = plain(value)
        clean = into[key] = REDACTED if holds_secret and shown else scrubbed(key, shown)
        if clean is not shown and clean != shown:
            line.redacted += (key,)


def put_error(line: Line, texts: Texts, span: LiveOperation[Any]) -> None:
    """Put the error that an operation ended with into its line, with the stack if it failed."""
    line["error_type"] = span.error_type
    if span.error is not None and span.outcome == "failure":
        line["exception"] = "".join(span.error.format()).rstrip()
        texts.append((line, "exception"))


def scrub(line: Line, texts: Texts) -> None:
    """Take secrets out of the free texts of a line; almost no line has any, so they are searched in one go.

    What the patterns leave unchanged in all texts, joined by newlines, they leave unchanged in each.
    """
    whole = "\n".join([into[key] for into, key in texts])
    if scrub_text(whole) != whole:
        for into, key in texts:
            text = into[key]
            into[key] = scrub_text(text)
            if into[key] != text:
                line.redacted += (key,)
