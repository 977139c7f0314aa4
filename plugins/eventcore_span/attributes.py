"""Payload values as span attributes: flat, typed, without secrets, and bounded.

Nested mappings are flattened by dots. What OpenTelemetry has no type for is written as text. The first to take a name
keeps it; attributes beyond the limit are counted, cut text ends in an ellipsis, a cut array is followed by its length.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import functools
import pathlib
import uuid
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

import eventcore as ec
from eventcore.redaction import scrub_mapping, scrub_text

if TYPE_CHECKING:
    from eventcore_span.span import AttributeValue

__all__ = ["MAX_ATTRIBUTES", "MAX_ELEMENTS", "MAX_TEXT", "Attributes", "text_of"]

MAX_ATTRIBUTES = 128
MAX_TEXT = 1_000
MAX_ELEMENTS = 1_000
MAX_DEPTH = 8

# Secrets are looked for before text is cut, so that half a secret does not survive the cut; but not through megabytes:
# the patterns cost about 0.1 ms per 1,000 characters.
_WINDOW = 8 * MAX_TEXT

_REDACTED = "[REDACTED]"
_LARGEST = 1 << 63
_AS_TEXT = (uuid.UUID, decimal.Decimal, pathlib.PurePath)
_CONTAINERS = (Mapping, BaseModel, list, tuple, AbstractSet)


def text_of(text: str, *, scrub: bool = True) -> str:
    """Return ``text`` without secrets, cut to ``MAX_TEXT`` characters, and encodable as UTF-8."""
    if scrub:
        text = scrub_text(text if len(text) <= _WINDOW else text[:_WINDOW])
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class Attributes(dict[str, "AttributeValue"]):
    """The attributes of one span or span event; ``dropped`` counts those beyond ``MAX_ATTRIBUTES``."""

    __slots__ = ("dropped",)

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def put(self, key: str, value: Any, *, scrub: bool = True, depth: int = 0) -> None:
        """Add one value; None and ``ec.unset`` add nothing, a mapping adds its items under ``key.``.

        ``scrub=False`` is for text known to hold no secret.
        """
        kind = value.__class__
        if kind is str:
            self._add(key, text_of(value, scrub=scrub))
        elif kind is bool or kind is float or (kind is int and -_LARGEST <= value < _LARGEST):
            self._add(key, value)
        elif value is None or value is ec.unset:
            return
        elif isinstance(value, Mapping | BaseModel) and depth < MAX_DEPTH:
            self.flatten(value, f"{key}.", depth + 1)
        else:
            plain = _plain(value)
            self._add(key, plain)
            if isinstance(plain, tuple) and len(value) > MAX_ELEMENTS:
                self._add(f"{key}.length", len(value))

    def flatten(self, mapping: Mapping[Any, Any] | BaseModel, prefix: str = "", depth: int = 0) -> None:
        """Add the items of a mapping, each under ``prefix`` and its key; values of secret keys are redacted."""
        for name, value in mapping.items() if isinstance(mapping, Mapping) else mapping:
            if value is not None and _is_secret(str(name)):
                self._add(f"{prefix}{name}", _REDACTED)
            else:
                self.put(f"{prefix}{name}", value, depth=depth)

    def _add(self, key: str, value: AttributeValue) -> None:
        if len(self) < MAX_ATTRIBUTES:
            self.setdefault(text_of(key, scrub=False), value)
        elif key not in self:
            self.dropped += 1


@functools.lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    """Whether a key, or the last part of a dotted one (``http.request.header.authorization``), names a secret."""
    return any(scrub_mapping({part: True})[part] is not True for part in {key, key.rpartition(".")[2]})


def _plain(value: Any) -> AttributeValue:  # noqa: PLR0911 - a table of cases
    """Return what the wire has a type for: a scalar, or an array of scalars; else text."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_LARGEST <= value < _LARGEST else str(int(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return text_of(str(value))
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, _AS_TEXT):
        return text_of(str(value))
    if hasattr(value, "tolist"):  # arrays and scalars of numpy, array.array; no library is imported for this
        listed = value.tolist()
        return _described(value) if hasattr(listed, "tolist") else _plain(listed)
    if isinstance(value, list | tuple | AbstractSet):
        return tuple(_element(item) for _, item in zip(range(MAX_ELEMENTS), value, strict=False))
    return _described(value)


def _element(item: Any) -> str | bool | int | float:
    if item is None or isinstance(item, _CONTAINERS):
        return _described(item)
    plain = _plain(item)
    return _described(item) if isinstance(plain, tuple) else plain


def _described(value: Any) -> str:
    """Return the ``repr`` of ``value`` as clean text; a value whose ``repr`` fails is named by its type."""
    try:
        return text_of(repr(scrub_mapping({"": value.model_dump() if isinstance(value, BaseModel) else value})[""]))
    except Exception:  # noqa: BLE001 - any code may run in __repr__; the span is worth more than this value
        return f"<{type(value).__qualname__}>"
