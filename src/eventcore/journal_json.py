"""The JSON of the journal, which also holds what JSON cannot: bytes that are no UTF-8, and lone surrogates.

Those are rare, so they are looked for only where the encoder has failed. Each becomes an object with one key that
begins with NUL, and comes back as what it was; keys of a payload that begin so get one more.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

__all__ = ["decode", "encode"]

BYTES, TEXT = "\0bytes", "\0text"
_NUL = b'"\\u0000'


def encode(facts: Mapping[str, Any], fallback: Callable[[Any], Any]) -> bytes:
    """Return ``facts`` as JSON; ``fallback`` gives something plainer for a value of a type that it does not know.

    Raises ValueError where that is not enough.
    """
    try:
        body = to_json(facts, fallback=fallback, inf_nan_mode="constants")
    except PydanticSerializationError:
        body = _NUL
    return to_json(_marked(facts), fallback=fallback, inf_nan_mode="constants") if _NUL in body else body


def decode(body: bytes) -> dict[str, Any]:
    """Return what ``encode`` was given, as far as JSON keeps it."""
    found: dict[str, Any] = json.loads(body, object_hook=_unmarked if _NUL in body else None)
    return found


def _marked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_encodable(key) if isinstance(key, str) else key: _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_marked(item) for item in value]
    if isinstance(value, str):
        return value if value.isascii() else _marked_text(value)
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {BYTES: base64.b64encode(value).decode()}
    return value


def _marked_text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        return {TEXT: base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()}
    return text


def _encodable(key: str) -> str:
    key = key.encode("utf-8", "backslashreplace").decode()
    return f"\0{key}" if key.startswith("\0") else key


def _unmarked(found: dict[str, Any]) -> Any:
    if len(found) == 1:
        if BYTES in found:
            return base64.b64decode(found[BYTES])
        if TEXT in found:
            return base64.b64decode(found[TEXT]).decode("utf-8", "surrogatepass")
    return {key.removeprefix("\0"): value for key, value in found.items()}
