"""What a PromQL expression can return, as far as its labels tell: worked out, not queried.

A ``Vector`` says which labels the elements of an instant vector can bear, with which values, and of which series they
are made. Series that nobody knows make an *open* vector, about which nothing is claimed: a finding must be true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["OPEN", "SCALAR_VECTOR", "KnownSeries", "Role", "Values", "Vector", "union"]

Values = frozenset[str] | None
"""All values of a label, or None where they are an open set."""

Role = Literal["counter", "gauge", "bucket", "sum", "count", "unknown"]
"""What a series is of its metric; bucket, sum and count are those of histograms, and counters themselves."""


@dataclass(frozen=True, slots=True)
class Vector:
    """The elements of an instant vector.

    ``labels``: those that elements can bear. ``certain``: those that every element bears, with a value that is not
    empty. ``is_open``: there may be labels that are not listed. ``made_of``: names of the series inside, with their
    role.
    """

    labels: Mapping[str, Values] = field(default_factory=dict)
    certain: frozenset[str] = frozenset()
    is_open: bool = False
    made_of: Mapping[str, Role] = field(default_factory=dict)

    def may_bear(self, label: str) -> bool:
        """Whether an element can have this label."""
        return self.is_open or label in self.labels

    def values(self, label: str) -> Values:
        """Return all values of a label, None where they are not known."""
        return self.labels.get(label)

    def only(self, labels: Iterable[str]) -> Vector:
        """Return what aggregating ``by`` these labels leaves."""
        kept = [label for label in labels if self.may_bear(label)]
        return Vector({label: self.values(label) for label in kept}, self.certain & set(kept), made_of=self.made_of)

    def without(self, labels: Iterable[str]) -> Vector:
        """Return what aggregating ``without`` these labels leaves."""
        gone = set(labels)
        kept = {label: values for label, values in self.labels.items() if label not in gone}
        return Vector(kept, self.certain - gone, self.is_open, self.made_of)

    def with_label(self, label: str, values: Values, *, is_certain: bool = True) -> Vector:
        """Return the vector with a label set on its elements."""
        certain = self.certain | {label} if is_certain else self.certain - {label}
        return Vector({**self.labels, label: values}, certain, self.is_open, self.made_of)

    def also_made_of(self, *others: Vector) -> Vector:
        """Return the vector, computed from the series of others besides."""
        made_of = dict(self.made_of)
        for other in others:
            made_of.update(other.made_of)
        return Vector(self.labels, self.certain, self.is_open, made_of)


OPEN = Vector(is_open=True, made_of={"": "unknown"})
"""A vector of which nothing is known."""

SCALAR_VECTOR = Vector()
"""A vector of one element without labels."""


@dataclass(frozen=True, slots=True)
class KnownSeries:
    """A series that exists: its name, what it is of its metric, and the labels it has where it is queried.

    ``states``: all values it can have, where it shows states as numbers.
    """

    name: str
    role: Role
    vector: Vector
    states: tuple[float, ...] = ()


def union(vectors: Iterable[Vector]) -> Vector:
    """Return a vector whose elements come from any of these."""
    parts = list(vectors)
    labels: dict[str, Values] = {}
    for part in parts:
        for label, values in part.labels.items():
            before = labels.get(label, frozenset())
            labels[label] = None if values is None or before is None else before | values
    certain = frozenset.intersection(*(part.certain for part in parts)) if parts else frozenset()
    first = Vector(labels, certain, any(part.is_open for part in parts))
    return first.also_made_of(*parts)
