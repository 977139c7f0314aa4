"""From given values to an event, also where some of them are wrong: an operation or step that happened is delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from eventcore.arrays import NotAligned, check_aligned
from eventcore.events import Event
from eventcore.fields import unset

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["build", "salvage"]

E = TypeVar("E", bound=Event)


def build(event_type: type[E], fields: Mapping[str, Any]) -> E:
    """Return the validated event; raises what its validation raises."""
    # What calling the class comes down to, without BaseModel.__init__, which costs half as much again.
    event = cast("E", event_type.__pydantic_validator__.validate_python(fields))
    if event_type.__event__.each:
        check_aligned(event)
    return event


def salvage(event_type: type[E], fields: Mapping[str, Any], error: Exception) -> tuple[E, tuple[str, ...], str]:
    """Return an event of what is valid, the names of the fields left out (``unset`` there), and why."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False)
        wrong = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
        reason = "; ".join(f"{p['loc'][0] if p['loc'] else '?'}: {p['msg']}" for p in problems)
    elif isinstance(error, NotAligned):
        wrong, reason = error.names, str(error)
    else:  # a validator of the type's own broke: nothing given can be trusted
        wrong, reason = set(fields), f"a validator raised {type(error).__name__}"
    left = {key: value for key, value in fields.items() if key not in wrong}
    known = event_type.model_fields
    try:
        event = event_type(**left)
    except Exception:  # noqa: BLE001 - a required field is among the wrong ones, most likely: the rest stays as given
        missing = {key for key, field in known.items() if field.is_required() and key not in left}
        event = event_type.model_construct(**left, **dict.fromkeys(missing, unset))
    return event.model_copy(update=dict.fromkeys(wrong & known.keys(), unset)), tuple(sorted(wrong)), reason
