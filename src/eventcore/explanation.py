"""What would become of an event: which handlers take it, what stops it at the others, and what each would put out.

The example is built from the type's fields and shown to each handler's ``preview``, which puts nothing out.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from eventcore.errors import did_you_mean
from eventcore.events import Severity
from eventcore.example import example_envelope
from eventcore.inspection import delivery_of, event_type_of, head_of, plain, sampling_of
from eventcore.redaction import scrub_text

if TYPE_CHECKING:
    from eventcore.dispatch import Attachment
    from eventcore.emitter import Emitter
    from eventcore.envelope import Envelope
    from eventcore.event_spec import EventSpec
    from eventcore.handler import HandlerConfig

__all__ = ["explain", "explain_envelope", "stopped_by"]


def explain(emitter: Emitter, name: str, severity: Severity | str | None = None) -> dict[str, Any]:
    """Return, fit for JSON, what would become of the event called ``name``.

    Keys, beside those of every answer: ``event`` (name, category, severity, operation, durable), ``severity`` (asked
    for), ``example`` (payload, redacted), ``example_problem``, ``problem`` (why an emit would fail, or null), and
    ``handlers``: name, kind, ``takes``, ``passed`` (clause to what let it pass), ``stopped_by`` (clauses with the
    reason), ``sampling`` (null: takes all), ``sampling_ratio`` (of traces), delivery, queue, breaker, ``start``
    (whether it takes the start of the operation, too), ``output`` (null: it offers no preview). UnknownEvent: no such
    type here; ValueError: no such severity.
    """
    event_type = event_type_of(emitter, name)
    spec = event_type.__event__
    asked = spec.severity if severity is None else Severity.parse(severity)
    envelope, problem = example_envelope(event_type, asked, emitter.resource)
    handlers = [
        explain_envelope(attachment, envelope, is_enabled=emitter.is_enabled) for attachment in emitter.attachments
    ]
    return {
        **head_of(emitter),
        "enabled": emitter.is_enabled,
        "event": {
            "name": spec.name,
            "category": spec.category.value,
            "severity": spec.severity.name.lower(),
            "operation": spec.is_operation,
            "durable": spec.durable,
        },
        "severity": asked.name.lower(),
        "example": plain(dict(envelope.payload)),
        "example_problem": problem or None,
        "handlers": handlers,
        "problem": _problem(spec, handlers),
    }


def stopped_by(config: HandlerConfig, spec: EventSpec, severity: Severity) -> dict[str, str]:
    """Return the clauses of a filter that stop events of this type and severity, each with the reason."""
    clauses: dict[str, str] = {}
    least = config.least_severity(spec)
    if severity < least:
        clauses["min_severity"] = f"{severity.name.lower()} is below {least.name.lower()}"
    if config.categories is not None and spec.category not in config.categories:
        clauses["categories"] = f"{spec.category.value!r} is not among {_quoted(c.value for c in config.categories)}"
    if not any(fnmatchcase(spec.name, glob) for glob in config.events):
        near = did_you_mean(spec.name, config.events)
        hint = near if "mean" in near else ""
        clauses["events"] = f"no pattern matches: {_quoted(config.events) or 'there is none'}{hint}"
    excluding = [glob for glob in config.exclude if fnmatchcase(spec.name, glob)]
    if excluding:
        clauses["exclude"] = f"matches {_quoted(excluding)}"
    if not clauses and not config.admits(spec, severity):
        clauses["filter"] = "the handler's own filter does not admit it"
    return clauses


def _passed(config: HandlerConfig, spec: EventSpec, severity: Severity) -> dict[str, str]:
    passed = {"events": _quoted(glob for glob in config.events if fnmatchcase(spec.name, glob))}
    if config.exclude:
        passed["exclude"] = f"matches none of {_quoted(config.exclude)}"
    if config.categories is not None:
        passed["categories"] = spec.category.value
    passed["min_severity"] = f"{severity.name.lower()} is not below {config.least_severity(spec).name.lower()}"
    return passed


def explain_envelope(attachment: Attachment, envelope: Envelope, *, is_enabled: bool = True) -> dict[str, Any]:
    """Return what becomes of an envelope at one handler, as in the ``handlers`` of ``explain``."""
    event_type, spec, severity = envelope.event_type, envelope.spec, envelope.severity
    handler, config = attachment.handler, attachment.handler.config
    stopped = {} if is_enabled else {"enabled": "the emitter is switched off"}
    stopped |= stopped_by(config, spec, severity)
    starts = False
    if not stopped:
        try:
            wants = handler.sink_for(event_type, severity) is not None
            starts = spec.is_operation and handler.start_sink_for(event_type, spec.severity) is not None
        except Exception as error:  # noqa: BLE001 - a handler's fault is the answer
            stopped["handler"] = scrub_text(f"asking it failed: {type(error).__name__}: {error}")
        else:
            if not wants:
                stopped["handler"] = "it has no use for events of this type"
    queue = attachment.queue
    return {
        "name": attachment.name,
        "kind": handler.kind,
        "takes": not stopped,
        "passed": {} if stopped else _passed(config, spec, severity),
        "stopped_by": [{"clause": clause, "why": why} for clause, why in stopped.items()],
        "sampling": sampling_of(config) if attachment.sampler.takes(severity) is not None else None,
        "sampling_ratio": getattr(handler, "sampling_ratio", None),
        "delivery": delivery_of(attachment),
        "queue": None if queue is None else {"depth": queue.size, "capacity": queue.capacity},
        "breaker": attachment.quarantine.breaker.state.value,
        "start": starts,
        "output": None if stopped else _output(attachment, envelope),
    }


def _problem(spec: EventSpec, handlers: list[dict[str, Any]]) -> str | None:
    if not spec.durable or any(h["takes"] and h["delivery"] == "durable" and h["sampling"] is None for h in handlers):
        return None
    return "declared durable=True, but no durable handler takes it, unsampled: an emit raises ConfigurationError"


def _output(attachment: Attachment, envelope: Envelope) -> str | None:
    try:
        output: str | None = attachment.handler.preview(envelope)
    except Exception as error:  # noqa: BLE001 - somebody else's code; shown instead of its answer
        return scrub_text(f"(preview failed: {type(error).__name__}: {error})")
    return None if output is None else output.rstrip("\n")


def _quoted(names: Any) -> str:
    return ", ".join(f"{name!r}" for name in names)
