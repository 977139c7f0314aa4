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
from eventcore.redaction import is_secret_key, scrub_item, scrub_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore_span.limits import Limits
    from eventcore_span.span import AttributeValue

__all__ = ["Attributes", "key_of", "text_of"]

MAX_DEPTH = 8
MAX_KEY = 1_000

_REDACTED = "[REDACTED]"
_LARGEST = 1 << 63
_AS_TEXT = (uuid.UUID, decimal.Decimal, pathlib.PurePath)
_CONTAINERS = (Mapping, BaseModel, list, tuple, AbstractSet)


def text_of(text: str, limit: int, *, scrub: bool = True) -> str:
    """Return ``text`` without secrets, cut to ``limit`` characters, and encodable as UTF-8."""
    if scrub:
        # Before it is cut, so that half a secret does not survive the cut; but not through megabytes: the patterns cost
        # about 0.1 ms per 1,000 characters.
        window = 8 * max(limit, 1_000)
        text = scrub_text(text if len(text) <= window else text[:window])
    if len(text) > limit:
        text = text[: limit - 1] + "…" if limit else ""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class Attributes(dict[str, "AttributeValue"]):
    """The attributes of one span or span event, at most ``most``; ``dropped`` counts those beyond."""

    __slots__ = ("dropped", "limits", "most")

    def __init__(self, limits: Limits, most: int) -> None:
        super().__init__()
        self.limits = limits
        self.most = most
        self.dropped = 0

    def put(self, key: str, value: Any, *, scrub: bool = True, depth: int = 0) -> None:
        """Add one value; None and ``ec.unset`` add nothing, a mapping adds its items under ``key.``.

        ``scrub=False`` is for text known to hold no secret.
        """
        kind = value.__class__
        if kind is str:
            self._add(key, text_of(value, self.limits.text, scrub=scrub))
        elif kind is bool or kind is float or (kind is int and -_LARGEST <= value < _LARGEST):
            self._add(key, value)
        elif value is None or value is ec.unset:
            return
        elif isinstance(value, Mapping | BaseModel) and depth < MAX_DEPTH:
            self.flatten(value, f"{key}.", scrub=scrub, depth=depth + 1)
        else:
            plain = _plain(value, self.limits)
            self._add(key, plain)
            if isinstance(plain, tuple) and len(value) > self.limits.elements:
                self._add(f"{key}.length", len(value))

    def flatten(
        self, mapping: Mapping[Any, Any] | BaseModel, prefix: str = "", *, scrub: bool = True, depth: int = 0
    ) -> None:
        """Add the items of a mapping, each under ``prefix`` and its key; values of secret keys are redacted.

        ``scrub=False`` is for mappings that the bus has searched; it does not search models.
        """
        items: Iterable[tuple[Any, Any]]
        if isinstance(mapping, Mapping):
            items = mapping.items()
        else:
            items, scrub = mapping, True
        for name, value in items:
            if value is not None and _is_secret(str(name)):
                self._add(f"{prefix}{name}", _REDACTED)
            else:
                self.put(f"{prefix}{name}", value, scrub=scrub, depth=depth)

    def _add(self, key: str, value: AttributeValue) -> None:
        if len(self) < self.most:
            self.setdefault(key_of(key), value)
        elif key not in self:
            self.dropped += 1


@functools.lru_cache(maxsize=4096)
def key_of(key: str) -> str:
    """Return ``key`` within its bounds."""
    return text_of(key, MAX_KEY, scrub=False)


@functools.lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    """Whether a key, or the last part of a dotted one (``http.request.header.authorization``), names a secret."""
    return is_secret_key(key) or is_secret_key(key.rpartition(".")[2])


def _plain(value: Any, limits: Limits) -> AttributeValue:  # noqa: PLR0911 - a table of cases
    """Return what the wire has a type for: a scalar, or an array of scalars; else text."""
    if isinstance(value, enum.Enum):
        return _plain(value.value, limits)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_LARGEST <= value < _LARGEST else str(int(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return text_of(str(value), limits.text)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, _AS_TEXT):
        return text_of(str(value), limits.text)
    if hasattr(value, "tolist"):  # arrays and scalars of numpy, array.array; no library is imported for this
        listed = value.tolist()
        return _described(value, limits) if hasattr(listed, "tolist") else _plain(listed, limits)
    if isinstance(value, list | tuple | AbstractSet):
        return tuple(_element(item, limits) for _, item in zip(range(limits.elements), value, strict=False))
    return _described(value, limits)


def _element(item: Any, limits: Limits) -> str | bool | int | float:
    if item is None or isinstance(item, _CONTAINERS):
        return _described(item, limits)
    plain = _plain(item, limits)
    return _described(item, limits) if isinstance(plain, tuple) else plain


def _described(value: Any, limits: Limits) -> str:
    """Return the ``repr`` of ``value`` as clean text; a value whose ``repr`` fails is named by its type."""
    try:
        text = repr(scrub_item("", value.model_dump() if isinstance(value, BaseModel) else value))
        return text_of(text, limits.text)
    except Exception:  # noqa: BLE001 - any code may run in __repr__; the span is worth more than this value
        return f"<{type(value).__qualname__}>"
