"""The W3C headers ``tracestate`` and ``baggage``, read and written within their limits.

What is malformed is left out rather than reported: the header came from somebody else, and the request must go on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["format_baggage", "header_values", "is_baggage_name", "parse_baggage", "parse_tracestate"]

MAX_TRACESTATE_MEMBERS, MAX_TRACESTATE, LARGE_TRACESTATE_MEMBER = 32, 512, 128
"""Limits of Trace Context (section 3.3.1): members, characters to pass on, and which members go first beyond them."""

MAX_BAGGAGE_ENTRIES, MAX_BAGGAGE = 64, 8192
"""Limits of W3C Baggage (section 3.3.2): entries and bytes that everybody must be able to pass on."""

_STATE = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_UNQUOTED = "!#$&'()*+/:<=>?@[]^`{|}"  # what a baggage value may hold as it is, beside what quote() never touches


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
