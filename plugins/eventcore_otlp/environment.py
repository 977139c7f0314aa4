"""``OTEL_*`` variables, read by OpenTelemetry's rules.

Empty is unset, only ``true`` (in any case) is true, and a bad value is warned of and ignored.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["OtelVariableWarning", "choice", "flag", "milliseconds", "number", "pairs", "ratio", "text"]


_WARNED: dict[Any, Any] = {}
"""What ``warnings`` remembers, to say each thing once."""


class OtelVariableWarning(UserWarning):
    """An ``OTEL_*`` variable has a value that it cannot have, and is ignored."""


def text(*names: str) -> str | None:
    """Return the value of the first of the variables that is set and not empty."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)


def flag(name: str) -> bool:
    """Whether the variable is ``true``, in any case; everything else is false, and warned of if it is not ``false``."""
    value = (text(name) or "false").lower()
    if value not in ("true", "false"):
        _ignored(name, value, "true or false")
    return value == "true"


def number(*names: str) -> int | None:
    """Return the first of the variables that holds a number (whole, not negative)."""
    for name in names:
        value = text(name)
        if value is not None:
            if value.isascii() and value.isdecimal():
                return int(value)
            _ignored(name, value, "a whole number that is not negative")
    return None


def milliseconds(*names: str) -> float | None:
    """Return a duration, given in milliseconds, in seconds; 0, which the specification calls no limit, is an hour."""
    value = number(*names)
    return None if value is None else value / 1000 or 3600.0


def ratio(name: str, default: float) -> float:
    """Return a number from 0 to 1."""
    value = text(name)
    if value is None:
        return default
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        _ignored(name, value, "a number from 0 to 1")
        return default
    return found


def choice(known: Collection[str], *names: str) -> str | None:
    """Return the first of the variables that holds one of the ``known`` words."""
    for name in names:
        value = text(name)
        if value is not None:
            if value.lower() in known:
                return value.lower()
            _ignored(name, value, f"one of {', '.join(sorted(known))}")
    return None


def pairs(*names: str) -> dict[str, str]:
    """Return ``key=value,key=value`` of the first variable that is set, decoded as W3C Baggage is.

    One that is malformed is ignored whole, as OpenTelemetry asks.
    """
    for name in names:
        value = text(name)
        if value is None:
            continue
        found: dict[str, str] = {}
        for member in filter(None, (part.strip() for part in value.split(","))):
            key, separator, rest = member.partition("=")
            if not separator or not key.strip():
                _ignored(name, "…", "a list of key=value, separated by commas, special characters percent-encoded")
                return {}
            found[unquote(key.strip())] = unquote(rest.strip())
        return found
    return {}


def _ignored(name: str, value: str, expected: str) -> None:
    """Warn of a variable, at the variable: no line of code is to blame, so none is shown."""
    what = f"variable {name} is {value!r} and is ignored: expected {expected}"
    warnings.warn_explicit(what, OtelVariableWarning, "environment", 0, registry=_WARNED)
