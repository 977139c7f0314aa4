"""Errors of eventcore, one tree.

    EventCoreError
    ├── DefinitionError (TypeError)        an event type is declared wrongly
    │   └── InstrumentError                an instrument does not fit its event types
    ├── ConfigurationError (ValueError)    settings, plugins or handlers do not fit together
    │   └── PluginError                    a plugin is missing, broken or unknown
    ├── OperationMisuse (RuntimeError)     an operation was ended twice, or changed after its end
    ├── NotDurable                         an audit-class event was not committed to the journal in time
    ├── BreakerOpen                        a circuit breaker refused a call
    └── PartialFailure                     raised by a batch handler that could deliver only a part

Wrong payload values raise pydantic's own ``ValidationError`` where the event is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

__all__ = [
    "BreakerOpen",
    "ConfigurationError",
    "DefinitionError",
    "EventCoreError",
    "InstrumentError",
    "NotDurable",
    "OperationMisuse",
    "PartialFailure",
    "PluginError",
    "did_you_mean",
    "mistakes",
]


class EventCoreError(Exception):
    """Base of everything that eventcore raises on purpose."""


class DefinitionError(EventCoreError, TypeError):
    """An event type is declared wrongly; raised when the class is made."""


class InstrumentError(DefinitionError):
    """An instrument names a field, label or value that its event types do not have."""


class ConfigurationError(EventCoreError, ValueError):
    """A setting is wrong: the message names file or variable, key, and what was expected."""


class PluginError(ConfigurationError):
    """A plugin cannot be found, imported or used."""


class OperationMisuse(EventCoreError, RuntimeError):
    """An operation was used against its life cycle (ended twice, changed after its end)."""


class NotDurable(EventCoreError):
    """An audit-class event (``durable=True``) is not known to be on the disk: it was refused, failed, or is late."""


class BreakerOpen(EventCoreError):
    """A circuit breaker refused a call; ``retry_after_s`` says when it will probe again."""

    def __init__(self, name: str, retry_after_s: float) -> None:
        super().__init__(f"circuit breaker {name!r} is open; it probes again in {retry_after_s:.1f} s")
        self.name = name
        self.retry_after_s = retry_after_s


class PartialFailure(EventCoreError):
    """Raised by ``handle_batch`` when only some envelopes failed.

    ``failed`` holds the indices, in the batch, of those that were not delivered; the others count as delivered.
    """

    def __init__(self, failed: Iterable[int], cause: BaseException) -> None:
        self.failed = frozenset(failed)
        self.cause = cause
        super().__init__(f"{len(self.failed)} envelopes of the batch failed, first: {cause!r}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a close match, else the list of what is known."""
    import difflib  # where there is a mistake to explain, as with redaction below

    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names) or 'none'}"


def mistakes(error: ValidationError, options: Mapping[str, FieldInfo], where: Callable[[tuple[str, ...]], str]) -> str:
    """Return one sentence per mistake in a configuration: where it was made, which option, what was expected."""
    from eventcore.redaction import scrub_text

    sentences = []
    options = {field.alias or name: field for name, field in options.items()}
    for problem in error.errors(include_url=False):
        path = tuple(str(part) for part in problem["loc"])
        key = ".".join(path)
        expected = problem["msg"].removeprefix("Value error, ")  # pydantic's words for what a validator of ours says
        if not path:
            sentences.append(f"{where(path)} is {scrub_text(repr(problem['input']))}: {expected}")
        elif problem["type"] == "extra_forbidden":
            sentences.append(f"{where(path)}: unknown option {key!r}{did_you_mean(key, options)}")
        elif problem["type"] == "missing":
            about = options[key].description if key in options else None
            sentences.append(f"{where(())}: option {key!r} is missing{f' ({about})' if about else ''}")
        else:
            # A field that is not shown in repr() holds a secret, and so may any text.
            is_shown = path and path[0] in options and options[path[0]].repr
            shown = f"is {scrub_text(repr(problem['input']))}" if is_shown else "is not valid"
            sentences.append(f"{where(path)}: option {key!r} {shown}: {expected}")
    return "; ".join(sentences)
