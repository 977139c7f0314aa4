"""Keeping secrets in: keys that hold secrets, and patterns of secrets in free text.

Keys are compared as whole words (``api_key``, ``x-api-key``, ``Authorization``), never as substrings: ``author`` and
``max_tokens`` are no secrets.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import is_dataclass
from traceback import TracebackException
from typing import Any

from pydantic import BaseModel

__all__ = ["REDACTED", "is_secret_key", "scrub", "scrub_error", "scrub_item", "scrub_mapping", "scrub_text"]

REDACTED = "[REDACTED]"

_SECRET_KEYS = frozenset(
    {
        "access_token",
        "api_key",
        "apikey",
        "auth_token",
        "authorization",
        "aws_secret_access_key",
        "bearer",
        "client_secret",
        "cookie",
        "credit_card",
        "credentials",
        "id_token",
        "passphrase",
        "passwd",
        "password",
        "private_key",
        "proxy_authorization",
        "refresh_token",
        "secret",
        "secret_key",
        "session_token",
        "set_cookie",
        "token",
        "x_api_key",
        "x_auth_token",
    }
)

_PATTERNS = (
    (
        ("private key",),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "PRIVATE_KEY",
    ),
    (("bearer", "basic"), re.compile(r"(?i)\b(?:bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), "TOKEN"),
    (("sk-",), re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), "API_KEY"),
    (("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "AWS_KEY"),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"), "API_KEY"),
    (
        ("key", "passw", "secret"),
        re.compile(r"(?i)\b(?:api[_-]?key|password|passwd|secret)[\"']?\s*[=:]\s*[\"']?[^\s,;&\"'}]+"),
        "SECRET",
    ),
    (("://",), re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"), "SECRET"),
    (("@",), re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+\b"), "EMAIL"),
)
"""What must occur in the text (in lower case), the pattern, and its name; the first is much cheaper to look for."""

_CARD = re.compile(r"(?<![\w-])[2-6](?:[ -]?\d){12,18}(?![\w-])")  # no part of a UUID, no Unix time in ms
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SHORTEST = 6
MAX_DEPTH = 20
_HOLD_NO_TEXT = frozenset({int, float, bool, type(None)})
_NUMERIC_KINDS = "biufcmM"
_CONTAINERS = (Mapping, list, tuple, set, frozenset)


def scrub_text(text: str) -> str:
    """Return ``text`` with secrets replaced by ``[REDACTED_<KIND>]``; the same object where there are none."""
    if len(text) < _SHORTEST:
        return text
    lower = text.lower()
    for needles, pattern, kind in _PATTERNS:
        for needle in needles:
            if needle in lower:
                text = pattern.sub(f"[REDACTED_{kind}]", text)
                break
    if _CARD.search(text):
        text = _CARD.sub(lambda match: "[REDACTED_CARD]" if _luhn(match[0]) else match[0], text)
    return text


def scrub_mapping(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``data``, nested too, without the values of secret keys and without secrets in text."""
    return _scrub_entries(data, (id(data),))


def scrub(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Return ``value`` without secrets in its text, nested too; the same object where there are none.

    Nested are also keys of mappings, pydantic models and dataclasses: of these a copy is changed, not validated again.
    ``around`` are the ids of the containers it is in. What is nested deeper than ``MAX_DEPTH`` is not looked at, so it
    is hidden.
    """
    if value.__class__ in _HOLD_NO_TEXT:  # first: arrays have hundreds of them
        return value
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, bytes):
        text = value.decode("latin-1")
        scrubbed = scrub_text(text)
        return value if scrubbed is text else scrubbed.encode("latin-1")
    if isinstance(value, _CONTAINERS):
        return _nested(_scrub_container, value, around)
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        return _nested(_scrub_record, value, around)
    return _scrub_array(value, around)


class ScrubbedError(TracebackException):
    """An exception without secrets in its text and notes, nor in the source lines of its stack when it is formatted."""

    def format(self, *, chain: bool = True, **options: Any) -> Generator[str, None, None]:
        """Yield the lines that the interpreter would print, without secrets."""
        yield from map(scrub_text, super().format(chain=chain, **options))


def scrub_error(error: TracebackException) -> bool:
    """Take secrets out of an exception, and of those that it came from or holds, in place; whether there were any."""
    found, seen, waiting = False, set(), [error]
    while waiting:
        error = waiting.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        parts = vars(error)  # str() of it gives one of them, and there is no other way to replace it
        text, notes = scrub_text(parts["_str"]), scrub(parts.get("__notes__"))
        found = found or text is not parts["_str"] or notes is not parts.get("__notes__")
        parts["_str"] = text
        if notes:
            parts["__notes__"] = notes
        if error.__class__ is TracebackException:
            error.__class__ = ScrubbedError
        waiting += [e for e in (error.__cause__, error.__context__, *(error.exceptions or ())) if e is not None]
    return found


def _scrub_array(value: Any, around: tuple[int, ...]) -> Any:
    """Return an array (of numpy or alike, which is not imported) as a list without secrets; others as they are."""
    try:
        items = value.tolist() if value.dtype.kind not in _NUMERIC_KINDS else None
    except Exception:  # noqa: BLE001 - no array, or one that does not work
        return value
    scrubbed = scrub(items, around)
    return value if scrubbed is items else scrubbed


def _nested(scrub_kind: Callable[[Any, tuple[int, ...]], Any], value: Any, around: tuple[int, ...]) -> Any:
    if id(value) in around:
        return f"<circular {type(value).__name__}>"
    return REDACTED if len(around) >= MAX_DEPTH else scrub_kind(value, (*around, id(value)))


def _scrub_container(value: Any, around: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping):
        entries = _scrub_entries(value, around)
        is_same = entries.keys() == value.keys() and all(entries[key] is item for key, item in value.items())
        return value if is_same else entries
    items = [scrub(item, around) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return tuple(items) if isinstance(value, tuple) else items


def _scrub_entries(mapping: Mapping[Any, Any], around: tuple[int, ...]) -> dict[Any, Any]:
    entries: dict[Any, Any] = {}
    for key, item in mapping.items():
        name = clean = scrub_text(key) if isinstance(key, str) else key
        number = 2
        while name is not key and (name in entries or name in mapping):  # of two secrets the values are both kept
            name, number = f"{clean}_{number}", number + 1
        entries[name] = scrub_item(key, item, around)
    return entries


def _scrub_record(value: Any, around: tuple[int, ...]) -> Any:
    """Scrub a pydantic model or a dataclass, by the names of its fields, too."""
    held = getattr(value, "__dict__", None)
    if held is None:  # a dataclass with slots
        held = {name: getattr(value, name) for name in value.__dataclass_fields__ if hasattr(value, name)}
    held = {**held, **(getattr(value, "__pydantic_extra__", None) or {})}
    changes = {key: new for key, item in held.items() if (new := scrub_item(key, item, around)) is not item}
    if not changes:
        return value
    if isinstance(value, BaseModel):
        return value.model_copy(update=changes)
    changed = copy.copy(value)
    for key, new in changes.items():
        object.__setattr__(changed, key, new)
    return changed


def scrub_item(key: Any, value: Any, around: tuple[int, ...] = ()) -> Any:
    """Return what stands under ``key``: as ``scrub`` does, and hidden altogether where the key names a secret."""
    return REDACTED if is_secret_key(key) and not _is_empty(value) else scrub(value, around)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes | int | float | Mapping | list | tuple) and not value)


def is_secret_key(key: Any) -> bool:
    """Whether a key names a secret, such as ``api_key``, ``X-API-Key`` or ``apiKey``."""
    if not isinstance(key, str):
        return False
    if key.isupper() or key.islower():
        return key.replace("-", "_").replace(" ", "_").lower() in _SECRET_KEYS
    return _HUMP.sub("_", key).replace("-", "_").replace(" ", "_").lower() in _SECRET_KEYS


def _luhn(digits: str) -> bool:
    total = 0
    for index, digit in enumerate(int(c) for c in reversed(digits) if c.isdigit()):
        doubled = digit * 2 if index % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0
