"""Array fields, ``ec.Array[float]``: what pydantic is told about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

__all__ = ["ArrayOf", "array_of"]


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """Marks an array field and keeps the type of its elements."""

    item: Any


def _freeze(value: Any) -> Any:
    """Copy an array-like value so that the caller may go on changing its own."""
    if hasattr(value, "setflags"):  # a numpy array; numpy is not imported for this
        if value.ndim != 1:
            raise ValueError(f"an array field takes one dimension, not shape {value.shape}")
        frozen = value.copy()
        frozen.setflags(write=False)
        return frozen
    if isinstance(value, str | bytes):
        raise ValueError("an array field takes a sequence of elements, not text")  # noqa: TRY004 - pydantic wants it
    return tuple(value)


def _thaw(value: Any) -> list[Any]:
    return value.tolist() if hasattr(value, "tolist") else list(value)


def array_of(item: Any) -> Any:
    """Return the annotation of a field that holds an array of ``item``."""
    return Annotated[
        Any, PlainValidator(_freeze), PlainSerializer(_thaw), WithJsonSchema({"type": "array"}), ArrayOf(item)
    ]
