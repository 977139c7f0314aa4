"""The ``buffer`` handler: a bounded memory of envelopes, and questions to it."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from fnmatch import fnmatchcase
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from eventcore.errors import did_you_mean
from eventcore.events import Category, Event, Severity
from eventcore.handler import Handler, HandlerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from eventcore.envelope import Envelope

__all__ = ["BufferConfig", "BufferHandler"]

E = TypeVar("E", bound=Event)


class BufferConfig(HandlerConfig):
    """Options of the ``buffer`` handler."""

    max_size: int = Field(1000, ge=1, description="Envelopes to keep; beyond that the oldest are forgotten.")


class BufferHandler(Handler):
    """Keeps the newest envelopes: events, and operations when they have ended.

    Delivery is inline, so an event is there as soon as ``emit`` returns. Sensitive fields are redacted. Bounded by
    ``max_size``; what had to go is counted in ``forgotten``.
    """

    Config: ClassVar[type[HandlerConfig]] = BufferConfig
    config: BufferConfig
    delivery: ClassVar[Literal["inline", "queued"]] = "inline"
    kind: ClassVar[str] = "buffer"

    def __init__(self, config: HandlerConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self._max_size = self.config.max_size
        self._envelopes: deque[Envelope] = deque()
        # Counted per thread: ``handle`` may run in a finalizer or a signal handler, so it takes no lock.
        self._forgotten: dict[int, int] = {}

    def handle(self, envelope: Envelope) -> None:
        """Keep one envelope, and forget the oldest if there are too many."""
        envelope.event  # noqa: B018 - validates an operation now, not when somebody looks, perhaps after shutdown
        envelopes = self._envelopes
        envelopes.append(envelope)
        # Not ``while``: two threads that see one too many would both remove one, and each has only added one.
        if len(envelopes) > self._max_size:
            with suppress(IndexError):  # cleared meanwhile
                envelopes.popleft()
                thread = get_ident()
                self._forgotten[thread] = self._forgotten.get(thread, 0) + 1

    @property
    def forgotten(self) -> int:
        """Envelopes that had to make room for newer ones."""
        return sum(tuple(self._forgotten.values()))

    def get_events(
        self,
        category: Category | str | None = None,
        severity: Severity | int | str | None = None,
        type: type[Event] | str | None = None,
        limit: int | None = None,
        *,
        min_severity: Severity | int | str | None = None,
    ) -> list[Envelope]:
        """Return the envelopes that match all that is given, the newest last.

        ``severity`` is compared for equality, ``min_severity`` is a lower bound; ``type`` is an event class (its
        subclasses count) or a glob over event names; ``limit`` takes the newest so many. Raises ValueError for an
        unknown category or severity and for a negative limit, TypeError for a type that is neither class nor text.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit is a number of envelopes, not {limit}")
        wanted = None if category is None else _category(category)
        exactly = None if severity is None else Severity.parse(severity)
        at_least = Severity.TRACE if min_severity is None else Severity.parse(min_severity)
        is_of = _matcher(type)
        found = [
            envelope
            for envelope in tuple(self._envelopes)
            if (wanted is None or envelope.category is wanted)
            and (exactly is None or envelope.severity == exactly)
            and envelope.severity >= at_least
            and is_of(envelope)
        ]
        return found if limit is None else found[max(0, len(found) - limit) :]

    def of(self, type: type[E]) -> list[E]:
        """Return the events of one class (its subclasses count), typed as such, the newest last."""
        return [envelope.event for envelope in tuple(self._envelopes) if isinstance(envelope.event, type)]

    def clear(self) -> None:
        """Drop what is kept; ``forgotten`` stays."""
        self._envelopes.clear()

    def describe(self) -> dict[str, Any]:
        """Return how much is kept."""
        return {"kept": len(self), "max_size": self._max_size, "forgotten": self.forgotten}

    def __len__(self) -> int:
        return len(self._envelopes)

    def __iter__(self) -> Iterator[Envelope]:
        return iter(tuple(self._envelopes))

    def __repr__(self) -> str:
        kept = f"{len(self)} of {self._max_size}, {self.forgotten} forgotten"
        return f"<{type(self).__name__} {self.name or self.kind}: {kept}>"


def _category(value: Category | str) -> Category:
    try:
        return Category(value)
    except ValueError:
        raise ValueError(f"unknown category {value!r}{did_you_mean(str(value), [c.value for c in Category])}") from None


def _matcher(wanted: Any) -> Callable[[Envelope], bool]:
    if wanted is None:
        return lambda _: True
    if isinstance(wanted, str):
        return lambda envelope: fnmatchcase(envelope.name, wanted)
    if isinstance(wanted, type) and issubclass(wanted, Event):
        return lambda envelope: isinstance(envelope.event, wanted)
    raise TypeError(f"type is an event class or a glob over event names, not {wanted!r}")
