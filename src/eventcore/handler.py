"""The face of a handler author: ``Handler`` and the configuration that every handler has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from eventcore.errors import ConfigurationError, mistakes
from eventcore.events import Category, Event, Severity

if TYPE_CHECKING:
    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore.event_spec import EventSpec

__all__ = ["DirectSink", "Handler", "HandlerConfig", "Sink"]

Sink = Callable[["Envelope"], object]
DirectSink = Callable[[Event], object]


class HandlerConfig(BaseModel):
    """What every handler may be told: which events it gets, and how they are delivered to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: tuple[str, ...] = Field(("*",), description="Globs over event names; an event must match one of them.")
    exclude: tuple[str, ...] = Field((), description="Globs over event names that are left out.")
    categories: tuple[Category, ...] | None = Field(None, description="Only these categories; all when not given.")
    min_severity: Severity = Field(Severity.TRACE, description="Nothing below this severity.")
    sampling: float = Field(1.0, ge=0, le=1, description="Share of the matching events to take.")
    sampling_by: Literal["random", "trace"] = Field(
        "random", description="Draw each event at random, or take and leave all events of a trace together."
    )
    max_per_second: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Most events to take per second, of those that 'sampling' has left; no limit when not given.",
    )
    keep_from: Severity | None = Field(
        None, description="Take every event from this severity on, whatever the sampling and the limit say."
    )
    delivery: Literal["inline", "queued", "durable"] | None = Field(
        None,
        description="In the caller, by a worker of its own, or by way of the journal; the handler's kind decides when "
        "not given.",
    )
    queue_size: int = Field(
        10_000, ge=1, description="Envelopes that may wait in the queue; all of a recorded operation takes one place."
    )
    overflow: Literal["drop_newest", "drop_oldest", "block"] = Field(
        "drop_newest", description="What happens when the queue is full; drops are counted with reason 'full'."
    )
    block_timeout_s: float = Field(1.0, gt=0, description="How long a caller waits with overflow = 'block'.")
    batch_size: int = Field(256, ge=1, description="Most envelopes handed over at once.")
    linger_s: float = Field(0.05, ge=0, le=1, description="How long a worker waits for more before it starts a batch.")

    @field_validator("min_severity", "keep_from", mode="before")
    @classmethod
    def _severity_by_name(cls, value: Any, info: ValidationInfo) -> Severity | None:
        return None if value is None and info.field_name == "keep_from" else Severity.parse(value)

    @field_validator("events", "exclude", "categories", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def least_severity(self, spec: EventSpec) -> Severity:  # noqa: ARG002 - for overriding
        """Return the severity from which on events of this type pass: the same for all, unless a kind knows better."""
        return self.min_severity

    def admits(self, spec: EventSpec, severity: Severity) -> bool:
        """Whether the filter lets events of this type and severity through (sampling aside)."""
        return (
            severity >= self.least_severity(spec)
            and (self.categories is None or spec.category in self.categories)
            and any(fnmatchcase(spec.name, glob) for glob in self.events)
            and not any(fnmatchcase(spec.name, glob) for glob in self.exclude)
        )


class Handler:
    """Consumes envelopes. Override ``handle``, or ``handle_batch`` where a whole batch is cheaper than its parts.

    A subclass with options of its own nests a ``Config`` derived from ``HandlerConfig``; options come as keywords
    (``MyHandler(channel="ops")``) or from the table ``[handlers.<name>]`` of ``eventcore.toml``. Whatever ``handle``
    raises is isolated, counted and reported; it never reaches the code that emitted.
    """

    Config: ClassVar[type[HandlerConfig]] = HandlerConfig
    delivery: ClassVar[Literal["inline", "queued", "durable"]] = "queued"
    kind: ClassVar[str] = ""
    wants_thread = False
    """Whether envelopes shall carry the name of the emitting thread, which is asked for in the caller (0.1 µs)."""
    takes_unsampled: ClassVar[bool] = True
    """Whether it takes operations of traces that are not recorded; where not, they cost nothing, and are counted."""

    config: HandlerConfig
    name: str = ""
    emitter: Emitter

    def __init__(self, config: HandlerConfig | None = None, **options: Any) -> None:
        if config is None:
            try:
                config = self.Config(**options)
            except ValidationError as error:
                raise ConfigurationError(
                    mistakes(error, self.Config.model_fields, lambda _: type(self).__name__)
                ) from None
        self.config = config

    def attached(self, emitter: Emitter) -> None:
        """Learn the emitter that the handler was added to (its catalog, resource and clock)."""
        self.emitter = emitter

    def sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - for overriding
        """Say, once per type and severity, what takes such envelopes; None: not wanted, and nothing is spent on them.

        An inline handler's sink is called in the emitting thread. A queued one only decides by it whether it wants
        them.
        """
        return self.handle

    def start_sink_for(self, event_type: type[Event], severity: Severity) -> Sink | None:  # noqa: ARG002 - for overriding
        """Say likewise what takes the start of operations; None, the default: only their ends matter."""
        return None

    def draw_for(self, event_type: type[Event], severity: Severity) -> Callable[[Envelope], bool] | None:  # noqa: ARG002 - for overriding
        """Say likewise what is asked of each envelope, in the emitting thread, before it takes a place in the queue.

        What it refuses is counted as ``sampled``. None, the default: every envelope is taken.
        """
        return None

    def direct_sink_for(self, event_type: type[Event], severity: Severity) -> DirectSink | None:  # noqa: ARG002 - likewise
        """Say what takes events of a type that no other handler wants, in the caller; None, the default: its queue.

        For a queued handler whose work on such an event is less than queueing it. The sink gets the event alone: no
        envelope is made, nothing is redacted. It may be called by many threads at once, must not emit, and its order
        among the queued envelopes of the handler is not kept.
        """
        return None

    def warn_of_idle(self, options: Sequence[str], why: str) -> None:
        """Warn that options were given to no effect, where another setting may have been laid over them on purpose."""
        named = ", ".join(repr(option) for option in options)
        what = f"handler {self.name!r}: no effect of {named}, since {why}"
        warnings.warn_explicit(what, UserWarning, "settings", 0)  # no line of code is to blame, so none is shown

    def handle(self, envelope: Envelope) -> None:
        """Handle one envelope."""
        raise NotImplementedError(f"{type(self).__name__} must define handle() or handle_batch()")

    def handle_batch(self, envelopes: Sequence[Envelope]) -> None:
        """Handle a batch in order; raise PartialFailure where only some failed."""
        for envelope in envelopes:
            self.handle(envelope)

    def flush(self) -> None:
        """Pass on whatever the handler itself holds back; called by its worker, after all that was accepted before."""

    def closing(self) -> None:
        """Learn that the end is near: give up waiting and retrying, so that what waits can be handled in time.

        Called from another thread than the worker's, before the worker is waited for; must return at once.
        """

    def close(self) -> None:
        """Release what the handler holds; called once, after the last envelope."""

    def describe(self) -> dict[str, Any]:
        """Return facts for people (where the output goes, for example)."""
        return {}

    def inspect(self) -> dict[str, Any]:
        """Return what ``eventcore debug inspect`` shows of it: ``describe()``, unless there is more to say."""
        return self.describe()

    def rehearsed(self, emitter: Emitter) -> None:
        """Learn the emitter as ``attached`` does, but open nothing: somebody asks what would happen."""
        self.emitter = emitter

    def preview(self, envelope: Envelope) -> str | None:  # noqa: ARG002 - for overriding
        """Return what it would put out for an envelope, as text, and put nothing out; None: it cannot say.

        It may be rehearsed only, not attached.
        """
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or self.kind}>"
