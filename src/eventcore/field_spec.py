"""What is known of one payload field, read from its annotation when an event class is made."""

from __future__ import annotations

import enum
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from eventcore.arrays import ArrayOf
from eventcore.errors import DefinitionError
from eventcore.fields import Label, Measure, Role

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["FieldSpec", "finite_values"]


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
        array = next((item for item in info.metadata if isinstance(item, ArrayOf)), None)
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
