"""What the lines of one event type have in common, decided once."""

from __future__ import annotations

import string
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from eventcore.fields import unset
from eventcore.redaction import REDACTED
from eventcore.vocabulary import AdHocEvent, AdHocOperation, LogRecord
from eventcore_log.line import Line, OperationLine, put
from eventcore_log.values import NUMBERS, TEXT_AND_NUMBERS, is_secret, plain, scrubbed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.envelope import Envelope
    from eventcore.events import Event, Severity
    from eventcore_log.line import Texts

__all__ = ["START", "Head", "Shape", "Template"]

_MARK = REDACTED[:-1]  # what all marks begin with: [REDACTED], [REDACTED_EMAIL]

START = "start"
"""Stands for the outcome of what has only begun."""

_Place = tuple[str, bool, bool, bool]
"""Under which name a field stands, whether in ``fields``, whether it is a secret, whether its text is searched."""


class Template(NamedTuple):
    """A message with fields in it: their names, those that the line has anyway, and how it may be filled in."""

    text: str
    names: tuple[str, ...]
    said: frozenset[str]
    may_be_plain: bool
    field: str | None
    """The field of free text that it consists of, if it is nothing else."""

    def filled(self, envelope: Envelope, payload: Mapping[str, Any]) -> str | None:
        """Return the message, by the shortest way that shows no secret."""
        if self.may_be_plain:
            if all(payload.get(name).__class__ in TEXT_AND_NUMBERS for name in self.names):
                return self.text.format_map(payload)
            if not any(_holds_more(payload.get(name)) for name in self.names):
                return envelope.message
        return self.text.format_map(_Spoken(envelope, payload, self.said))


@dataclass(frozen=True, slots=True)
class Head:
    """What lines of one type, severity and outcome begin with, and their message where it differs from line to line."""

    fields: Mapping[str, Any]
    template: Template | None


class Shape:
    """What the lines of one event type have in common."""

    __slots__ = (
        "_open",
        "_places",
        "_reserved",
        "_searched_places",
        "_spec",
        "each",
        "heads",
        "is_start_only",
        "line_type",
        "logger",
        "quick",
        "quick_searched",
    )

    def __init__(self, event_type: type[Event]) -> None:
        spec = self._spec = event_type.__event__
        self.logger: str | None = spec.logger
        self.each = spec.each
        self.is_start_only = spec.start_message is not None and spec.message is None
        self.heads: dict[tuple[Severity, str | None], Head] = {}
        self.line_type = OperationLine if spec.is_operation else Line
        self._reserved = self.line_type.reserved
        self._open: str | None = None  # the field that holds what was given without a class; its items stand flat
        shown = {key: key for key in spec.fields}
        if issubclass(event_type, LogRecord):
            self.logger, self._open, shown = None, "data", {}
        elif issubclass(event_type, AdHocEvent):
            self._open = "data"
            shown = {"error_type": "error_type", "error_message": "error_message", "stack_trace": "exception"}
        elif issubclass(event_type, AdHocOperation):
            self._open, shown = "attributes", {}
        self._places = self._places_of(shown, frozenset(spec.texts))
        self._searched_places = self._places_of(shown, frozenset(spec.each))
        self.quick = _quick(self._places)
        self.quick_searched = _quick(self._searched_places)

    def _places_of(self, shown: Mapping[str, str], searched: frozenset[str]) -> Mapping[str, _Place | None]:
        """Return where declared fields stand; in the text of those in ``searched`` secrets are looked for."""
        return {
            **dict.fromkeys(self._spec.fields),
            **{k: (as_, as_ in self._reserved, is_secret(as_), k in searched) for k, as_ in shown.items()},
        }

    def head(self, severity: Severity, outcome: str | None) -> Head:
        """Return what the lines of one severity and outcome (``START``: of the start) begin with."""
        spec = self._spec
        template = spec.start_message if outcome is START else spec.message_of(outcome)
        is_fixed = not template or "{" not in template
        fields = {
            "event": (is_fixed and template) or spec.name,
            "level": severity.name.lower(),
            "timestamp": "",
            "logger": self.logger,
            "name": spec.name,
            "category": spec.category.value,
        }
        head = self.heads[severity, outcome] = Head(
            fields, None if is_fixed or not template else self._template(template)
        )
        return head

    def _template(self, text: str) -> Template:
        names = tuple(_placeholders(text))
        said = frozenset(name for name in names if self._places.get(name))
        may_be_plain = not self.each and not any(is_secret(name) for name in names)
        is_one_text = may_be_plain and names[0] in self._spec.texts and text == f"{{{names[0]}}}"
        return Template(text, names, said, may_be_plain, names[0] if is_one_text else None)

    def put_message(
        self,
        line: Line,
        texts: Texts,
        template: Template,
        envelope: Envelope,
        payload: Mapping[str, Any],
        *,
        is_searched: bool,
    ) -> None:
        """Put into the line what it says; where that cannot be made, its template, or the event's name."""
        if template.field is not None and (text := payload.get(template.field)).__class__ is str:
            is_searched = is_searched and bool(text)
        else:
            is_searched = False  # parts without a secret may make one together: "password={password_hint}"
            try:
                text = template.filled(envelope, payload)
            except Exception:  # noqa: BLE001 - such as a number's format for a result that was never set
                text = _forgiving(template.text, envelope, payload, template.said)
                if text is None:
                    line["event"] = template.text
                    return
        if text:
            line["event"], line.said = text, template.said
            if not is_searched:
                texts.append((line, "event"))

    def put_field(self, line: Line, texts: Texts, key: str, value: Any, *, is_searched: bool) -> None:
        """Put one field of the payload into the line; ``is_searched``: the bus has found the secrets in its text.

        It sees text, and text in lists and mappings. Elements of arrays and what becomes text only here are searched
        in any case.
        """
        places = self._searched_places if is_searched else self._places
        if key not in places:  # of a newer or older shape of the type
            self.put(line, texts, key, value)
        elif value is None:
            return
        elif (place := places[key]) is not None:
            put(line, texts, value, *place)
        elif key == self._open and isinstance(value, Mapping):
            for name, item in value.items():
                self.put(line, texts, name, item, is_searched=is_searched)

    def redacted(self, names: Sequence[str], payload: Mapping[str, Any]) -> list[str]:
        """Return by their names in the line the fields that the bus has redacted: for it, ``data`` is one field."""
        found = []
        for name in names:
            if name == self._open and isinstance(payload.get(name), Mapping):
                found += [key for key, value in payload[name].items() if _MARK in repr(value)]
            else:
                found.append(name)
        return found

    def put(self, line: Line, texts: Texts, key: str, value: Any, *, is_searched: bool = False) -> None:
        """Put a field that the type does not declare into the line, where no more specific one is there."""
        is_reserved = key in self._reserved
        if key not in (line.get("fields", ()) if is_reserved else line):
            put(line, texts, value, key, is_reserved, is_secret(key), not is_searched)


def _quick(places: Mapping[str, _Place | None]) -> Mapping[str, frozenset[type]]:
    """Return by field the types whose values go into a line as they are, with no further question."""
    return {
        key: NUMBERS if is_free else TEXT_AND_NUMBERS
        for key, (as_, is_reserved, holds_secret, is_free) in ((k, p) for k, p in places.items() if p is not None)
        if as_ == key and not is_reserved and not holds_secret
    }


def _placeholders(template: str) -> list[str]:
    return [key for _, key, _, _ in string.Formatter().parse(template) if key]


def _forgiving(template: str, envelope: Envelope, payload: Mapping[str, Any], said: frozenset[str]) -> str | None:
    try:
        return template.format_map(_Spoken(envelope, payload, said))
    except Exception:  # noqa: BLE001 - the template and a value do not fit; the fields still tell all
        return None


def _holds_more(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | AbstractSet | BaseModel)


class _Spoken(dict[str, Any]):
    """Values as a message shows them: those of one element of a batch, without secrets, ``-`` where there is none."""

    def __init__(self, envelope: Envelope, row: Mapping[str, Any], said: frozenset[str]) -> None:
        super().__init__(row)
        self._envelope = envelope
        for key in said & row.keys():
            value = row[key]
            if value is None or value is unset:
                self[key] = _DASH
            elif is_secret(key):
                self[key] = REDACTED
            elif _holds_more(value):
                self[key] = scrubbed(key, plain(value))

    def __missing__(self, key: str) -> Any:
        value = self._envelope.get(key)
        return _DASH if value is unset or value is None else value


class _Dash:
    """Stands for a value that is not there, whatever the format asked for."""

    def __format__(self, _spec: str) -> str:
        return "-"


_DASH = _Dash()
