"""Payload fields: their roles, and what the plugins may derive from them.

A role is said once, on the type: ``Annotated[str, Label]``. Metric labels, span attributes, log keys and redaction
all follow from it, so no plugin needs a list of field names of its own.
"""

from __future__ import annotations

import enum
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar, Union, final, get_args, get_origin

from pydantic import BaseModel, PlainSerializer, PlainValidator, WithJsonSchema

from eventcore.errors import DefinitionError

__all__ = ["Array", "FieldSpec", "Label", "Measure", "Role", "Sensitive", "finite_values", "unset"]

T = TypeVar("T")


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


class _HasToList(Protocol):
    """Anything array-like that turns itself into a list: numpy arrays, ``array.array``, tensors."""

    def tolist(self) -> Any:
        """Return the elements as a list."""


@dataclass(frozen=True, slots=True)
class _ArrayOf:
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


if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic.fields import FieldInfo

    Array = Sequence[T] | _HasToList
else:

    class Array:
        """An array field, ``Array[float]``: any one-dimensional sequence, copied (and read-only) at emit.

        Elements are not validated one by one: an array of 100 scores must not cost 100 checks in the caller. Fields of
        one event that are expanded together (``each=``) must have equal lengths.
        """

        def __class_getitem__(cls, item: Any) -> Any:
            return Annotated[
                Any, PlainValidator(_freeze), PlainSerializer(_thaw), WithJsonSchema({"type": "array"}), _ArrayOf(item)
            ]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What is known of one payload field: role, unit, and its finite set of values if it has one."""

    name: str
    role: Role | None
    values: tuple[Any, ...] | None
    is_array: bool
    required: bool
    annotation: Any

    @property
    def unit(self) -> str | None:
        """The unit of a measure, else None."""
        return self.role.unit if isinstance(self.role, Measure) else None

    @property
    def is_plain(self) -> bool:
        """Whether its values are immutable scalars, which nobody can change after the emit."""
        return not self.is_array and (self.values is not None or _is_scalar(self.annotation))

    @property
    def may_hold_text(self) -> bool:
        """Whether its values may hold free text, in which secrets are looked for."""
        return self.values is None and self.annotation not in (bool, int, float)

    @property
    def is_label(self) -> bool:
        """Whether the field may become a metric label: by role, or because its values are a finite set."""
        return self.role is Label or (self.role is None and self.values is not None)

    @classmethod
    def of(cls, owner: str, name: str, info: FieldInfo) -> FieldSpec:
        """Read the roles that ``Annotated`` carries for one field of the class named ``owner``."""
        roles = [item for item in info.metadata if isinstance(item, Role)] or _roles_of_optional(owner, name, info)
        if any(item is Measure for item in info.metadata):
            raise DefinitionError(f"{owner}.{name}: write ec.Measure(unit=…); a measure without a unit means nothing")
        if len(roles) > 1:
            raise DefinitionError(f"{owner}.{name}: a field has one role, not {roles}")
        array = next((item for item in info.metadata if isinstance(item, _ArrayOf)), None)
        annotation = array.item if array else info.annotation
        return cls(
            name=name,
            role=roles[0] if roles else None,
            values=finite_values(annotation),
            is_array=array is not None,
            required=info.is_required(),
            annotation=annotation,
        )


def finite_values(annotation: Any) -> tuple[Any, ...] | None:  # noqa: PLR0911 - a table of cases
    """Return all values of a ``Literal``, ``Enum`` or ``bool`` (also ``… | None``), or None if they are not finite."""
    if annotation is bool:
        return (False, True)
    if annotation is None or annotation is type(None):
        return (None,)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return tuple(member.value for member in annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return get_args(annotation)
    if origin is Annotated:
        return finite_values(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        parts = [finite_values(part) for part in get_args(annotation)]
        if any(part is None for part in parts):
            return None
        return tuple(value for part in parts if part for value in part)
    return None


def _roles_of_optional(owner: str, name: str, info: FieldInfo) -> list[Role]:
    """Return the role said inside ``Annotated[…] | None``; anywhere deeper it would be ignored, so it is refused."""
    parts = get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else ()
    some = [part for part in parts if part is not type(None)]
    if len(some) == 1 and get_origin(some[0]) is Annotated:
        return [item for item in get_args(some[0])[1:] if isinstance(item, Role)]
    if _holds_role(info.annotation):
        raise DefinitionError(f"{owner}.{name}: say the role of the whole field: Annotated[{info.annotation}, role]")
    return []


def _holds_role(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(
            any(isinstance(item, Role) for item in field.metadata) or _holds_role(field.annotation)
            for field in annotation.model_fields.values()
        )
    return isinstance(annotation, Role) or any(_holds_role(part) for part in get_args(annotation))


def _is_scalar(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_scalar(part) for part in get_args(annotation))
    return annotation in (bool, int, float, str, bytes, type(None)) or finite_values(annotation) is not None
