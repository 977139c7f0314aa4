"""Payload fields: their roles, and what the plugins may derive from them.

A role is said once, on the type: ``Annotated[str, Label]``. Metric labels, span attributes, log keys and redaction
all follow from it, so no plugin needs a list of field names of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, final

__all__ = ["Array", "Label", "Measure", "Role", "Sensitive", "unset"]


class Role:
    """What a field is for; a field without a role is an attribute of logs and spans."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"ec.{self.kind.capitalize()}"


@final
class Measure(Role):
    """A number to record; ``unit`` is a UCUM code (``"s"``, ``"By"``, ``"1"`` for plain counts)."""

    __slots__ = ("unit",)

    def __init__(self, *, unit: str) -> None:
        super().__init__("measure")
        self.unit = unit

    def __repr__(self) -> str:
        return f"ec.Measure(unit={self.unit!r})"


Label: Final = Role("label")
"""The field may become a metric label."""

Sensitive: Final = Role("sensitive")
"""The field never leaves the process unredacted, and never becomes a label."""


@final
class _Unset:
    """The value of a result that was not set: no observation, no attribute, never a false zero."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ec.unset"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "unset"


unset: Final[Any] = _Unset()
"""Default of an operation's result field."""


if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    T = TypeVar("T")

    class _HasToList(Protocol):
        """Anything array-like that turns itself into a list: numpy arrays, ``array.array``, tensors."""

        def tolist(self) -> Any:
            """Return the elements as a list."""

    Array = Sequence[T] | _HasToList
else:

    class Array:
        """An array field, ``Array[float]``: any one-dimensional sequence, copied (and read-only) at emit.

        Elements are not validated one by one: an array of 100 scores must not cost 100 checks in the caller. Fields of
        one event that are expanded together (``each=``) must have equal lengths.
        """

        def __class_getitem__(cls, item: Any) -> Any:
            from eventcore.arrays import array_of  # not for those who import an event type only

            return array_of(item)
