"""What the three signals have in common on the wire, written as bytes.

Protobuf in short: a field is a tag (field number and kind), for text and messages a length, and the content; a message
is its fields one after the other. Building messages of opentelemetry-proto and serialising them takes longer (decision
017); the tests hold what is written here against those messages.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import eventcore as ec
from eventcore_otlp.resource import SCOPE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AttributeValue",
    "Frame",
    "any_value",
    "attributes",
    "delimited",
    "double",
    "fields",
    "fixed64",
    "key_value",
    "varint",
]

AttributeValue = str | bool | int | float | tuple[str | bool | int | float, ...]

fixed64 = struct.Struct("<Q").pack
double = struct.Struct("<d").pack

_VARINTS = 2048
_64_BITS = (1 << 64) - 1
_SMALLEST, _LARGEST = -(1 << 63), (1 << 63) - 1


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


_READY = tuple(_varint(number) for number in range(_VARINTS))


def varint(number: int) -> bytes:
    """Return an unsigned number, seven bits to a byte."""
    return _READY[number] if number < _VARINTS else _varint(number)


def delimited(tag: bytes, content: bytes) -> bytes:
    """Return a field of text, bytes or a message."""
    size = len(content)
    return tag + (_READY[size] if size < _VARINTS else _varint(size)) + content


def any_value(value: Any) -> bytes:  # noqa: PLR0911 - a table of cases
    """Return an ``AnyValue`` without a tag: text, bool, int, float, bytes, None, sequences and mappings of these.

    Integers beyond 64 bits are written as text, since OTLP has no other place for them. TypeError for other values.
    """
    if isinstance(value, str):
        return delimited(b"\x0a", value.encode("utf-8", "replace"))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        if not _SMALLEST <= value <= _LARGEST:
            return delimited(b"\x0a", str(int(value)).encode())
        return b"\x18" + varint(value & _64_BITS)
    if isinstance(value, float):
        return b"\x21" + double(value)
    if value is None:
        return b""
    if isinstance(value, Mapping):
        return delimited(b"\x32", attributes(value, b"\x0a"))
    if isinstance(value, bytes):
        return delimited(b"\x3a", value)
    if isinstance(value, Sequence):
        return delimited(b"\x2a", b"".join([delimited(b"\x0a", any_value(item)) for item in value]))
    raise TypeError(f"OTLP has no type for {type(value).__name__!r}: {value!r}")


def key_value(tag: bytes, key: str, value: Any) -> bytes:
    """Return one attribute: a field ``tag`` with a ``KeyValue``."""
    content = any_value(value)
    return delimited(tag, _key(key) + varint(len(content)) + content)


@functools.lru_cache(maxsize=4096)
def _key(key: str) -> bytes:
    """Return the key of a ``KeyValue``, and the tag of the value behind it."""
    return delimited(b"\x0a", key.encode("utf-8", "replace")) + b"\x12"


def attributes(values: Mapping[str, Any], tag: bytes) -> bytes:
    """Return repeated fields ``tag``, a ``KeyValue`` for each item."""
    return b"".join([key_value(tag, key, value) for key, value in values.items()])


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message: numbers and contents. ValueError for what is no protobuf."""
    position = 0

    def number() -> int:
        nonlocal position
        found = shift = 0
        while True:
            if position >= len(message) or shift > 63:
                raise ValueError("a number is cut off, or too large")
            byte = message[position]
            position += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7

    while position < len(message):
        tag = number()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, number()
            continue
        size = number() if kind == 2 else {1: 8, 5: 4}.get(kind)
        if size is None or position + size > len(message):
            raise ValueError("a field is cut off, or of no known kind")
        yield tag >> 3, message[position : position + size]
        position += size


class Frame:
    """What stands around the items of a request: the resource, and eventcore as the instrumentation scope.

    The field numbers are the same for ``ExportTraceServiceRequest``, ``ExportMetricsServiceRequest`` and
    ``ExportLogsServiceRequest``.
    """

    __slots__ = ("_resource", "_scope", "resource")

    def __init__(self, resource: Mapping[str, AttributeValue]) -> None:
        self.resource = attributes(resource, b"\x0a")
        """A ``Resource`` message, for those who build their requests otherwise."""
        self._resource = delimited(b"\x0a", self.resource)
        scope = delimited(b"\x0a", SCOPE_NAME.encode()) + delimited(b"\x12", ec.__version__.encode())
        self._scope = delimited(b"\x0a", scope)

    def request(self, items: Sequence[bytes]) -> bytes:
        """Return an export request with serialised spans, metrics or log records."""
        fields = [self._scope]
        for item in items:
            size = len(item)
            fields += (b"\x12", _READY[size] if size < _VARINTS else _varint(size), item)
        return delimited(b"\x0a", self._resource + delimited(b"\x12", b"".join(fields)))
