"""Grafana's variables, which are no PromQL: what stands for them while an expression is parsed.

``$name``, ``${name}``, ``${name:format}`` and ``[[name]]`` can be anything when the dashboard is looked at. In ranges
they are durations; elsewhere a name that is recognised afterwards, so that nothing is claimed about it; where that does
not parse, a number.
"""

from __future__ import annotations

import re

__all__ = ["VARIABLE", "as_names", "as_numbers"]

VARIABLE = "grafana_variable"
"""Stands for a variable in names, labels and values."""

_VARIABLE = re.compile(r"\$\{\w+(?:\.\w+)*(?::[^}]*)?\}|\$[A-Za-z_]\w*|\[\[\w+(?::\w+)?\]\]")
_IN_RANGE = re.compile(rf"([\[:]\s*|\boffset\s+-?)(?:{_VARIABLE.pattern})")
_NUMBERS = re.compile(r"\$\{?__(?:range|interval)_(?:s|ms)\}?")


def as_names(text: str) -> str:
    """Return the expression with variables as names."""
    return _VARIABLE.sub(VARIABLE, _durations(text))


def as_numbers(text: str) -> str:
    """Return the expression with variables as numbers."""
    return _VARIABLE.sub("1", _durations(text))


def _durations(text: str) -> str:
    return _NUMBERS.sub("1", _IN_RANGE.sub(r"\g<1>5m", text))
