"""Message templates: fields and envelope facts by name, and a dash for what has no value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventcore.fields import unset

if TYPE_CHECKING:
    from eventcore.envelope import Envelope

__all__ = ["filled_in"]


def filled_in(template: str, envelope: Envelope) -> str:
    """Return ``template`` with the values of fields and envelope facts that it names, ``-`` for what has none."""
    return template.format_map(_Lookup(envelope))


class _Dash(str):
    """Stands in a message for what has no value, whatever its format, attribute or index."""

    __slots__ = ()

    def __format__(self, _spec: str) -> str:
        return "-"

    def __getattr__(self, _name: str) -> _Dash:
        return self

    def __getitem__(self, _index: Any) -> _Dash:
        return self


class _Lookup(dict[str, Any]):
    def __init__(self, envelope: Envelope) -> None:
        super().__init__()
        self._envelope = envelope

    def __missing__(self, key: str) -> Any:
        value = self._envelope.get(key)
        return _Dash("-") if value is unset or value is None else value
