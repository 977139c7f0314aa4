"""Events as lines of JSON, read back: what a log handler wrote, or another program in the same shape.

A line has the event's ``name``, and its fields beside it or in ``fields``. Further keys, all optional: ``level`` or
``severity``, ``timestamp`` (ISO 8601 or Unix seconds), ``tags``, ``trace_id``, ``span_id``, and for operations
``duration_s`` or ``duration_ms``, ``outcome`` and ``error_type``. The line of an operation without a duration is its
start, and says nothing that counts. Unlike what the journal stores, a line is not known to be ours: fields that do not
fit are a mistake, not something to be kept.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eventcore.catalog import Catalog
from eventcore.errors import EventCoreError, did_you_mean
from eventcore.events import OUTCOMES, Severity
from eventcore.journal import JournalRow
from eventcore.journal_record import Replay
from eventcore.vocabulary import AdHocEvent, LogRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.envelope import Envelope
    from eventcore.events import Event

__all__ = ["EventLines", "UnknownName", "WrongLine"]

_OWN_KEYS = """
    app category correlation_id duration_ms duration_s environment error_type event exception fields id level logger
    name outcome redacted severity span_id tags timestamp trace_id version
"""
_OWN = frozenset(_OWN_KEYS.split())
"""Keys that are the line's; a field of that name stands in ``fields``."""


class WrongLine(EventCoreError):
    """A line that is no event: what is wrong with it."""


class UnknownName(WrongLine):
    """A line of an event type that is not known here."""


class EventLines:
    """Makes envelopes of lines; ``events`` are the types it knows, by name."""

    def __init__(self, events: Mapping[str, type[Event]]) -> None:
        self._events = dict(events)
        self._replay = Replay(Catalog(events=self._events.values()))

    def envelope(self, line: str | bytes) -> Envelope | None:
        """Return what a line says as an envelope, None for the start of an operation; raises WrongLine."""
        said = _object(line)
        event_type = self._type(said)
        spec = event_type.__event__
        duration_s = _duration_s(said) if spec.is_operation else None
        if spec.is_operation and duration_s is None:
            return None
        facts: dict[str, Any] = {
            "type": f"{event_type.__module__}.{event_type.__qualname__}",
            "base": "Operation" if spec.is_operation else "Event",
            "category": spec.category.value,
            "message": str(said.get("event", spec.name)),
            "payload": _payload(said, event_type),
            "tags": _list(said, "tags"),
            "redacted": _list(said, "redacted"),
            "scope": _scope(said),
        }
        time_ns = _time_ns(said)
        if duration_s is not None:
            facts["operation"] = _operation(said, spec.name, duration_s, time_ns, facts["scope"]["span_id"])
        row = JournalRow(
            spec.name,
            "end",
            time_ns,
            int(_severity(said, spec.severity)),
            str(said.get("id", "")),
            json.dumps(facts).encode(),
        )
        try:
            return self._replay.envelope(row)
        except Exception as error:  # noqa: BLE001 - ids that are none, numbers that are none: somebody else's line
            raise WrongLine(f"{spec.name}: {error}") from None

    def _type(self, said: Mapping[str, Any]) -> type[Event]:
        name = said.get("name")
        if not isinstance(name, str):
            raise WrongLine("no 'name' of an event")
        if name not in self._events:
            raise UnknownName(f"no event type {name!r} is known here{did_you_mean(name, self._events)}")
        return self._events[name]


def _object(line: str | bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise WrongLine(f"no JSON: {error}") from None
    if not isinstance(said, dict):
        raise WrongLine(f"no JSON object, but a {type(said).__name__}")
    return said


def _payload(said: Mapping[str, Any], event_type: type[Event]) -> dict[str, Any]:
    known = event_type.model_fields
    nested = said.get("fields")
    payload = {key: value for key, value in said.items() if key in known and key not in _OWN}
    payload |= {key: value for key, value in (nested if isinstance(nested, dict) else {}).items() if key in known}
    if issubclass(event_type, LogRecord | AdHocEvent) and "text" not in payload:  # lines show them as text and data
        payload |= {"text": said.get("event"), "data": {k: v for k, v in said.items() if k not in known.keys() | _OWN}}
        payload |= {"logger_name": said.get("logger", "")} if "logger_name" in known else {}
    try:
        event_type(**payload)
    except ValidationError as error:
        hidden = set(_list(said, "redacted"))
        for problem in error.errors(include_url=False, include_input=False):
            where = str(problem["loc"][0]) if problem["loc"] else ""
            if where not in hidden:  # what was redacted need not be of its field's type
                raise WrongLine(f"{event_type.__event__.name}: field {where!r}: {problem['msg']}") from None
    return payload


def _list(said: Mapping[str, Any], key: str) -> list[str]:
    found = said.get(key)
    return [str(item) for item in found] if isinstance(found, list) else []


def _severity(said: Mapping[str, Any], default: Severity) -> Severity:
    text = said.get("severity") or said.get("level")
    try:
        return default if text is None else Severity.parse(str(text).lower())
    except ValueError as error:
        raise WrongLine(str(error)) from None


def _time_ns(said: Mapping[str, Any]) -> int:
    stamp = said.get("timestamp")
    if isinstance(stamp, int | float) and not isinstance(stamp, bool):
        return int(stamp * 1e9)
    try:
        return int(datetime.fromisoformat(stamp).timestamp() * 1e9) if isinstance(stamp, str) else time.time_ns()
    except ValueError:
        raise WrongLine(f"timestamp {stamp!r} is neither ISO 8601 nor Unix seconds") from None


def _duration_s(said: Mapping[str, Any]) -> float | None:
    for key, unit in (("duration_s", 1.0), ("duration_ms", 1e-3)):
        number = said.get(key)
        if number is not None:
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e12:
                raise WrongLine(f"{key} is {number!r}: expected a number of at least 0")
            return number * unit
    return None


def _scope(said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trace_id": said.get("trace_id"),
        "span_id": said.get("span_id"),
        "sampled": True,
        "bound": {},
        "correlation_id": said.get("correlation_id"),
        "baggage": {},
        "tracestate": "",
        "is_remote": False,
    }


def _operation(said: Mapping[str, Any], name: str, duration_s: float, end_ns: int, span_id: Any) -> dict[str, Any]:
    outcome = said.get("outcome", "success")
    if outcome not in OUTCOMES:
        raise WrongLine(f"{name}: outcome is {outcome!r}: expected one of {', '.join(OUTCOMES)}")
    duration_ns = round(duration_s * 1e9)
    return {
        "span_id": span_id or "",
        "parent_span_id": None,
        "parent_is_remote": False,
        "start_ns": end_ns - duration_ns,
        "duration_ns": duration_ns,
        "outcome": outcome,
        "error_type": said.get("error_type"),
        "error": None,
        "links": [],
        "invalid": [],
    }
