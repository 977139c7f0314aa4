"""The stream of events as a table, for the message of an assertion and the report of a failed test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eventcore.envelope import Envelope

__all__ = ["table", "text_of"]

SHOWN = 50
WIDTH = 240
VALUE_WIDTH = 60

_HEAD = ("#", "severity", "name", "outcome", "trace", "payload")


def table(envelopes: Sequence[Envelope], *, forgotten: int = 0) -> str:
    """Return the newest envelopes as text, a line each: sequence, severity, name, outcome, trace and payload.

    ``outcome`` has the duration with it; ``trace`` is the beginning of the trace id and of the span id. ``forgotten``
    is how many older ones are not even in ``envelopes``.
    """
    if not envelopes:
        return "(no events)"
    shown = envelopes[-SHOWN:]
    rows = [_HEAD, *(_row(envelope) for envelope in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [_clipped("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True))) for row in rows]
    earlier = len(envelopes) - len(shown) + forgotten
    return "\n".join([f"({earlier} earlier ones are not shown)", *lines] if earlier else lines)


def text_of(value: Any, width: int = VALUE_WIDTH) -> str:
    """Return a value on one line of at most ``width`` characters, whatever its ``repr`` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # noqa: BLE001 - the message of a failed test must not fail itself
        return f"<{type(value).__name__}: repr() raised {type(error).__name__}>"
    return text if len(text) <= width else f"{text[: width - 1]}…"


def payload_text(items: Iterable[tuple[str, Any]]) -> str:
    """Return fields as ``name=value``."""
    return " ".join(f"{key}={text_of(value)}" for key, value in items)


def _row(envelope: Envelope) -> tuple[str, ...]:
    outcome = "start" if envelope.is_start else "-"
    if envelope.outcome is not None and envelope.duration_s is not None:
        outcome = f"{envelope.outcome} {envelope.duration_s:.3f} s"
    if envelope.error_type:
        outcome += f" {envelope.error_type}"
    trace = f"{(envelope.trace_id or '')[:6]}/{(envelope.span_id or '')[:6]}" if envelope.trace_id else "-"
    payload = payload_text(envelope.payload.items())
    return str(envelope.sequence), envelope.severity.name, envelope.name, outcome, trace, payload


def _clipped(line: str) -> str:
    line = line.rstrip()
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
