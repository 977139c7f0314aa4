"""Array fields, ``ec.Array[float]``: what pydantic is told about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from eventcore.fields import unset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.events import Event

__all__ = ["ArrayOf", "NotAligned", "array_of", "check_aligned", "validator_of_aligned"]

E = TypeVar("E", bound="Event")


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


class NotAligned(ValueError):
    """Arrays of a batch differ in length; ``names`` are those unlike the first, which was given when it began."""

    def __init__(self, names: set[str], lengths: Mapping[str, int]) -> None:
        super().__init__(f"aligned array fields differ in length: {dict(lengths)}")
        self.names = names


def check_aligned(event: E) -> E:
    """Return an event whose ``each`` arrays have equal lengths, as far as they are set; else raise NotAligned."""
    arrays = ((key, event.__dict__.get(key, unset)) for key in event.__event__.each)
    lengths = {key: len(array) for key, array in arrays if array is not unset and array is not None}
    first = next(iter(lengths.values()), 0)
    wrong = {key for key, length in lengths.items() if length != first}
    if wrong:
        raise NotAligned(wrong, lengths)
    return event


def validator_of_aligned() -> Any:
    """Return the validator that an event class with ``each`` gets; operations are checked when they are built."""
    return model_validator(mode="after")(_aligned)


def _aligned(event: E) -> E:
    return event if event.is_abstract() else check_aligned(event)
