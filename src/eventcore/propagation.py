"""Headers that carry a trace from service to service: W3C's, and B3, which Zipkin and Envoy speak.

Which of them are in use says ``OTEL_PROPAGATORS`` (default ``tracecontext,baggage``), unless the code says it. What is
malformed is left out rather than reported: the header came from somebody else, and the request must go on.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Propagator",
    "b3_headers",
    "format_baggage",
    "header_values",
    "is_baggage_name",
    "parse_b3",
    "parse_baggage",
    "parse_tracestate",
    "propagators",
]

Propagator = Literal["tracecontext", "baggage", "b3", "b3multi"]
"""A kind of headers, by OpenTelemetry's name: ``b3`` is one header, ``b3multi`` are several; both are read alike."""

MAX_TRACESTATE_MEMBERS, MAX_TRACESTATE, LARGE_TRACESTATE_MEMBER = 32, 512, 128
"""Limits of Trace Context (section 3.3.1): members, characters to pass on, and which members go first beyond them."""

MAX_BAGGAGE_ENTRIES, MAX_BAGGAGE = 64, 8192
"""Limits of W3C Baggage (section 3.3.2): entries and bytes that everybody must be able to pass on."""

_STATE = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_B3 = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-([01d])(?:-[0-9a-f]{16})?)?")
_B3_TRACE = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
_B3_SPAN = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_UNQUOTED = "!#$&'()*+/:<=>?@[]^`{|}"  # what a baggage value may hold as it is, beside what quote() never touches


def propagators() -> tuple[Propagator, ...]:
    """Return what ``OTEL_PROPAGATORS`` says; a name that is not known here is warned of once, and left out."""
    return _propagators(os.environ.get("OTEL_PROPAGATORS", ""))


@functools.lru_cache(maxsize=8)
def _propagators(text: str) -> tuple[Propagator, ...]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        return "tracecontext", "baggage"
    known: tuple[Propagator, ...] = get_args(Propagator)
    for name in names:
        if name not in known and name != "none":
            what = f"variable OTEL_PROPAGATORS names {name!r}, which is ignored; known: {', '.join(known)}, none"
            warnings.warn(what, stacklevel=4)
    return tuple(name for name in known if name in names)


def parse_b3(headers: Mapping[str, str]) -> tuple[int, int, bool] | None:
    """Return ``(trace_id, span_id, sampled)`` of B3 headers, the single one first; None without valid ids.

    A sender that leaves the decision open is taken as sampled.
    https://github.com/openzipkin/b3-propagation
    """
    single, traces, spans, decisions, flags = header_values(
        headers, "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"
    )
    if len(single) == 1:
        match = _B3.fullmatch(single[0].strip().lower())
        if match is not None:
            return _b3_ids(match[1], match[2], match[3] or "1")
    if len(traces) == len(spans) == 1 and len(decisions) < 2:
        decision = "d" if flags == ["1"] else decisions[0].strip().lower() if decisions else "1"
        trace, span = traces[0].strip().lower(), spans[0].strip().lower()
        if _B3_TRACE.fullmatch(trace) and _B3_SPAN.fullmatch(span):
            return _b3_ids(trace, span, decision)
    return None


def _b3_ids(trace: str, span: str, decision: str) -> tuple[int, int, bool] | None:
    trace_id, span_id = int(trace, 16), int(span, 16)
    return (trace_id, span_id, decision in {"1", "d", "true"}) if trace_id and span_id else None


def b3_headers(trace_id: int, span_id: int, *, sampled: bool, multi: bool) -> dict[str, str]:
    """Return the headers of B3: the single one, or the several ones."""
    trace, span, decision = f"{trace_id:032x}", f"{span_id:016x}", "1" if sampled else "0"
    if not multi:
        return {"b3": f"{trace}-{span}-{decision}"}
    return {"X-B3-TraceId": trace, "X-B3-SpanId": span, "X-B3-Sampled": decision}


def header_values(headers: Mapping[str, str], *names: str) -> list[list[str]]:
    """Return for each of ``names`` (lower case) the values that ``headers`` has under it, in any case."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for key, value in headers.items():
        values = found.get(key.lower())
        if values is not None:
            values.append(value)
    return list(found.values())


def parse_tracestate(header: str | None) -> str | None:
    """Return ``header`` as it is to be passed on; None if it is empty or invalid, for then all of it is left out.

    Beyond 512 characters, members of more than 128 characters go first, then those at the end.
    """
    members = [member.strip(" \t") for member in (header or "").split(",")]
    members = [member for member in members if member]
    keys = {member.partition("=")[0] for member in members}
    is_valid = len(keys) == len(members) <= MAX_TRACESTATE_MEMBERS and all(map(_STATE.fullmatch, members))
    if not members or not is_valid:
        return None
    text = ",".join(members)
    if len(text) > MAX_TRACESTATE:
        members = [member for member in members if len(member) <= LARGE_TRACESTATE_MEMBER]
        while len(text := ",".join(members)) > MAX_TRACESTATE:
            members.pop()
    return text or None


def parse_baggage(header: str | None) -> dict[str, str]:
    """Return the entries of a ``baggage`` header, decoded; malformed ones and those beyond the limits are left out.

    Properties (behind a semicolon) are not kept.
    """
    header = header or ""
    if len(header) > MAX_BAGGAGE:  # up to the last whole entry
        header = header[: MAX_BAGGAGE + 1].rpartition(",")[0]
    entries: dict[str, str] = {}
    for member in header.split(","):
        name, separator, value = member.partition(";")[0].partition("=")
        name, value = name.strip(" \t"), value.strip(" \t")
        if separator and _NAME.fullmatch(name) and _VALUE.fullmatch(value) and len(entries) < MAX_BAGGAGE_ENTRIES:
            entries[name] = unquote(value)
    return entries


def format_baggage(entries: Mapping[str, str]) -> str | None:
    """Return a ``baggage`` header with as many of ``entries`` as the limits allow, or None without any."""
    members: list[str] = []
    size = -1
    for name, value in entries.items():
        if not is_baggage_name(name):
            continue
        member = f"{name}={quote(value, safe=_UNQUOTED, errors='replace')}"
        if size + 1 + len(member) <= MAX_BAGGAGE and len(members) < MAX_BAGGAGE_ENTRIES:
            members.append(member)
            size += 1 + len(member)
    return ",".join(members) or None


def is_baggage_name(name: str) -> bool:
    """Whether ``name`` can be the name of a baggage entry (a token, as HTTP calls it)."""
    return _NAME.fullmatch(name) is not None
