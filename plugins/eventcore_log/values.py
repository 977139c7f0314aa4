"""Values as log lines show them: plain JSON data, whatever an event carries, and without secrets.

``plain`` never raises: what has no JSON form becomes its ``repr``. Secrets are looked for in what comes out of it, so
that they are found inside models, arrays and reprs too.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from eventcore.redaction import scrub_item

__all__ = ["NUMBERS", "TEXT_AND_NUMBERS", "encodable", "is_numeric_array", "is_secret", "plain", "scrubbed"]

MAX_DEPTH = 20
"""How deep containers are followed; what lies deeper is shown by its ``repr``."""

NUMBERS = frozenset({int, float, bool})
"""Types whose values are shown as they are and hold no text."""

TEXT_AND_NUMBERS = NUMBERS | {str}
_SCALARS = TEXT_AND_NUMBERS | {type(None)}
_SHOWN_BY_STR = (uuid.UUID, decimal.Decimal, pathlib.PurePath)
_NUMERIC_KINDS = "biuf"


def plain(value: Any) -> Any:
    """Return ``value`` as str, int, float, bool, None, or lists and string-keyed dictionaries of them.

    Enums become their values, dates ISO 8601 text, durations seconds, bytes text, sets sorted lists, pydantic models
    and dataclasses dictionaries, arrays lists.
    """
    return value if type(value) in _SCALARS else _plain(value, ())


def scrubbed(key: str, value: Any) -> Any:
    """Return a plain ``value`` without secrets; hidden altogether where ``key`` names a secret."""
    return scrub_item(key, value)


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether values under ``key`` are hidden; asked of the core, so that there is one list of such keys."""
    return bool(scrubbed(key, "-") != "-")


def is_numeric_array(value: Any) -> bool:
    """Whether ``value`` is a numpy array of numbers, which needs no look at each element (numpy is not imported)."""
    try:
        return value.dtype.kind in _NUMERIC_KINDS and hasattr(value, "tolist")
    except Exception:  # noqa: BLE001 - no array, or one that does not work
        return False


def encodable(value: Any) -> Any:
    """Mend the rest that JSON encoders refuse in plain data: integers beyond 64 bits, halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(1 << 63) <= value < 1 << 64 else _text(value)
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [encodable(item) for item in value]
    return value


def _plain(value: Any, path: tuple[int, ...]) -> Any:
    if type(value) in _SCALARS:
        return value
    if id(value) in path:
        return f"<circular {type(value).__name__}>"
    if len(path) >= MAX_DEPTH:
        return _text(value)
    try:
        return _convert(value, (*path, id(value)))
    except Exception:  # noqa: BLE001 - a value's own methods may raise anything; the line is worth more than the value
        return _text(value)


def _convert(value: Any, path: tuple[int, ...]) -> Any:  # noqa: C901, PLR0911, PLR0912 - a table of cases
    if isinstance(value, enum.Enum):
        return _plain(value.value, path)
    for scalar in (str, bool, int, float):
        if isinstance(value, scalar):  # a subclass, such as numpy.float64
            return scalar(value)
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, path) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(warnings=False), path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), path) for field in dataclasses.fields(value)}
    if isinstance(value, AbstractSet):
        return [_plain(item, path) for item in sorted(value, key=repr)]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if is_numeric_array(value):
        return value.tolist()
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), path)
    if isinstance(value, Sequence) and not isinstance(value, range):
        return [_plain(item, path) for item in value]
    if isinstance(value, dt.datetime | dt.date | dt.time):
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, _SHOWN_BY_STR):
        return str(value)
    return _text(value)


def _key(key: Any) -> str:
    if type(key) is str:
        return key
    shown = plain(key)
    return shown if isinstance(shown, str) else _text(shown)


def _text(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__} without repr>"
