"""Emitting without a class, for the passing need: ``emit_event``, ``emit_error_event``, ``span``, ``traced``, loggers.

Each name becomes an event type of its own, made once, so filters, routes and the ledger treat it like any other. Names
are guarded: beyond ``MAX_NAMES`` of a kind, further ones share the name ``other``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload
from urllib.parse import unquote_plus

from eventcore.context import SCOPE, Scope, parse_id
from eventcore.decoration import decorated
from eventcore.events import Category, Event, Operation, Severity
from eventcore.in_use import get_emitter
from eventcore.operation import LiveOperation
from eventcore.redaction import REDACTED, scrub_mapping, scrub_text
from eventcore.vocabulary import AdHocEvent, AdHocOperation, LogRecord

__all__ = ["Logger", "emit_error_event", "emit_event", "get_logger", "log_request", "passing_event", "span", "traced"]

MAX_NAMES = 1000
F = TypeVar("F", bound=Callable[..., Any])

_types: dict[tuple[type[Event], str, Category], type[Event]] = {}
_making = threading.RLock()
os.register_at_fork(after_in_child=lambda: globals().update(_making=threading.RLock()))  # it may have been held
_FORM = re.compile(r"[^\s=&{}\[\]]+=[^\s&]*(?:&[^\s=&]+=[^\s&]*)*")
_UNFIT = re.compile(r"[^a-z0-9_.]+")


def _type_for(base: type[Any], name: str, category: Category | str, **keywords: Any) -> type[Any]:
    """Return the event type for an ad-hoc name; made on first use, bounded in number."""
    key = (base, name, Category.parse(category))
    found = _types.get(key)
    if found is not None:
        return found
    with _making:
        if key not in _types and sum(1 for kind, _, _ in _types if kind is base) >= MAX_NAMES:
            key = (base, "other", key[2])
        if key not in _types:
            dotted = _dotted(key[1])
            metaclass: Any = type(base)
            namespace = {"__module__": __name__, "__qualname__": f"{base.__name__}[{dotted}]", "__doc__": base.__doc__}
            made = metaclass(base.__name__, (base,), namespace, name=dotted, category=key[2], **keywords)
            _types[key] = made
        return _types[key]


def _dotted(name: str) -> str:
    """Return ``name`` as a dotted lower-case event name."""
    parts = [part.strip("_") for part in _UNFIT.sub("_", name.lower()).split(".")]
    text = ".".join(part for part in parts if part) or "unnamed"
    return text if text[0].isalpha() else f"n{text}"


def emit_event(  # noqa: PLR0917 - the guides call it with positions
    event_type: str,
    category: Category | str = Category.SYSTEM,
    severity: Severity | str = Severity.INFO,
    message: str = "",
    data: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    trace_id: str | None = None,
) -> None:
    """Emit an event that has no class of its own.

    ``trace_id`` (32 hex digits) puts it into a trace other than the current one.
    """
    event_class = _type_for(AdHocEvent, event_type, category, message="{text}")
    _emit_in(trace_id, event_class(text=message, data=dict(data or {})), severity, tags)


def emit_error_event(  # noqa: PLR0917 - as emit_event
    message: str,
    error: BaseException | None = None,
    category: Category | str = Category.SYSTEM,
    severity: Severity | str = Severity.ERROR,
    data: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    trace_id: str | None = None,
) -> None:
    """Emit ``<category>.error`` with the error's type, message and stack (without local variables)."""
    event_class = _type_for(
        AdHocEvent, f"{Category(category)}.error", category, severity=Severity.ERROR, message="{text}"
    )
    _emit_in(trace_id, event_class(text=message, data=dict(data or {}), **_about(error)), severity, tags)


def passing_event(name: str, *, data: Mapping[str, Any] | None = None, error: BaseException | None = None) -> Event:
    """Return an event that has no class of its own, for those who emit it themselves (adapters of other systems)."""
    event_class = _type_for(AdHocEvent, name, Category.EXECUTION, message="{text}")
    made: Event = event_class(text=_text_of(error) if error else name, data=dict(data or {}), **_about(error))
    return made


def _about(error: BaseException | None) -> dict[str, str]:
    if error is None:
        return {}
    return {
        "error_type": type(error).__qualname__,
        "error_message": _text_of(error),
        "stack_trace": "".join(traceback.format_exception(error)),
    }


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception whose own text fails must not hide itself
        return "<its str() failed>"


def _emit_in(trace_id: str | None, event: Event, severity: Severity | str, tags: Sequence[str]) -> None:
    emitter = get_emitter()
    if trace_id is None:
        emitter.emit(event, severity=severity, tags=tags)
        return
    number = parse_id(trace_id, 32)
    here = SCOPE.get()
    if here.trace_id == number:
        emitter.emit(event, severity=severity, tags=tags)
        return
    token = SCOPE.set(Scope(number, 0, here.sampled, None, here.carried, here.is_remote))
    try:
        emitter.emit(event, severity=severity, tags=tags)
    finally:
        SCOPE.reset(token)


class _Span(LiveOperation[Any]):
    """An operation without a class: whatever it is given is an attribute."""

    __slots__ = ()

    def set(self, **results: Any) -> None:
        """Set attributes, of any names."""
        super().set(attributes={**self.fields["attributes"], **results})


def span(
    name: str,
    /,
    *,
    category: Category | str = Category.EXECUTION,
    attributes: Mapping[str, Any] | Any = None,
    **more: Any,
) -> LiveOperation[Any]:
    """Return an operation without a class of its own: ``with ec.span("load", path=…) as op``; ``op.set`` adds to it.

    Attributes are given as keywords, or, where a name is no identifier, as a mapping ``attributes={"http.route": …}``
    (what is no mapping is an attribute of that name).
    """
    given = attributes if isinstance(attributes, Mapping) else {} if attributes is None else {"attributes": attributes}
    return _span(name, category, {**given, **more})


def _span(name: str, category: Category | str, attributes: Mapping[str, Any]) -> LiveOperation[Any]:
    operation_type = _type_for(AdHocOperation, name, category, span=name, severity=Severity.DEBUG)
    return _Span(get_emitter(), operation_type, {"attributes": dict(attributes)})


@overload
def traced(function: F, /) -> F: ...
@overload
def traced(
    name: str | type[Operation] | None = None,
    /,
    *,
    category: Category | str = ...,
    attributes: Mapping[str, Any] | None = ...,
    **fields: Any,
) -> Callable[[F], F]: ...
def traced(
    name: Any = None,
    /,
    *,
    category: Category | str = Category.EXECUTION,
    attributes: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """Run each call of a function as an operation.

    Written as ``@ec.traced``, ``@ec.traced("load", path=…)`` or ``@ec.traced(LoadModel, …)``.
    Works on functions, coroutine functions, generators and async generators. Without a name, the function's own is
    used; with an operation type, ``fields`` are its fields. The emitter in use at the time of the call takes it.
    """
    if isinstance(name, type) and issubclass(name, Operation):
        LiveOperation(
            get_emitter(), name, fields
        )  # a field that the type does not have is an error here, not at a call
    given = {**(attributes or {}), **fields}

    def wrap(function: F) -> F:
        def fresh() -> LiveOperation[Any]:
            if isinstance(name, type):
                return LiveOperation(get_emitter(), name, dict(fields))
            label = name if isinstance(name, str) else function.__qualname__.replace("<locals>.", "")
            return _span(label, category, given)

        return decorated(function, fresh)

    if callable(name) and not isinstance(name, type):
        function, name = name, None
        return wrap(function)
    return wrap


class Logger:
    """A structured logger whose lines are events: ``logger.info("task_started", task_id="abc")``."""

    def __init__(self, name: str, bound: Mapping[str, Any]) -> None:
        self.name = name
        self._bound = dict(bound)

    def bind(self, **fields: Any) -> Logger:
        """Return a logger with further fields on every line."""
        return Logger(self.name, {**self._bound, **fields})

    def log(self, severity: Severity | str, text: str, /, **fields: Any) -> None:
        """Write one line.

        ``exc_info`` (True, an exception, or the triple of ``sys.exc_info()``) adds the error's type and its stack.
        What a mapping ``extra`` holds, nested as it may be, is taken for fields, as by the standard library's loggers.
        """
        emitter = get_emitter()
        level = Severity.parse(severity)
        if not emitter.enabled(LogRecord, level):
            return
        error = _exception_of(fields.pop("exc_info", None))
        if isinstance(fields.get("extra"), Mapping):
            fields = {**fields.pop("extra"), **fields}
        data = {**self._bound, **fields}
        if error is not None:
            data.setdefault("error_type", type(error).__qualname__)
            data["exception"] = "".join(traceback.format_exception(error)).rstrip()
        emitter.emit(LogRecord(text=text, logger_name=self.name, data=data), severity=level)

    def trace(self, text: str, /, **fields: Any) -> None:
        """Write a line of severity TRACE."""
        self.log(Severity.TRACE, text, **fields)

    def debug(self, text: str, /, **fields: Any) -> None:
        """Write a line of severity DEBUG."""
        self.log(Severity.DEBUG, text, **fields)

    def info(self, text: str, /, **fields: Any) -> None:
        """Write a line of severity INFO."""
        self.log(Severity.INFO, text, **fields)

    def warning(self, text: str, /, **fields: Any) -> None:
        """Write a line of severity WARNING."""
        self.log(Severity.WARNING, text, **fields)

    def error(self, text: str, /, **fields: Any) -> None:
        """Write a line of severity ERROR."""
        self.log(Severity.ERROR, text, **fields)

    def critical(self, text: str, /, **fields: Any) -> None:
        """Write a line of severity CRITICAL."""
        self.log(Severity.CRITICAL, text, **fields)

    def exception(self, text: str, /, **fields: Any) -> None:
        """Write a line of severity ERROR with the exception being handled."""
        self.log(Severity.ERROR, text, **{"exc_info": True, **fields})

    def __repr__(self) -> str:
        return f"<Logger {self.name} {self._bound!r}>"


def _exception_of(given: Any) -> BaseException | None:
    if isinstance(given, BaseException):
        return given
    found = given if isinstance(given, tuple) else sys.exc_info() if given else ()
    return next((item for item in found if isinstance(item, BaseException)), None)


def get_logger(name: str, /, **bound: Any) -> Logger:
    """Return a structured logger with ``bound`` fields on every line."""
    return Logger(name, bound)


def log_request(
    request_id: str,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
) -> None:
    """Write a line about an HTTP request, with secrets redacted by their key: in headers, body and the path's query.

    A body that is JSON or form data, as text or bytes, is looked into.
    """
    emitter = get_emitter()
    if not emitter.enabled(LogRecord):
        return
    resource, mark, query = path.partition("?")
    data: dict[str, Any] = {
        "request_id": request_id,
        "method": method,
        "path": scrub_text(f"{resource}{mark}{_scrubbed_form(query)}"),
    }
    if headers is not None:
        data["headers"] = scrub_mapping(headers)
    if body is not None:
        data["body"] = scrub_mapping({"body": _scrubbed_body(body)})["body"]
    emitter.emit(LogRecord(text="http_request", logger_name="eventcore.request", data=data))


def _scrubbed_body(body: Any) -> Any:
    """Return text or bytes without the secrets that their structure shows; what has none, or no structure, as it is."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes | bytearray) else body
    if not isinstance(text, str):
        return body
    if text.lstrip()[:1] in {"{", "["}:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return body
        scrubbed = scrub_mapping({"body": found})["body"]
        return body if scrubbed == found else json.dumps(scrubbed, ensure_ascii=False)
    clean = _scrubbed_form(text) if _FORM.fullmatch(text) else text
    return body if clean == text else clean


def _scrubbed_form(text: str) -> str:
    """Return ``key=value&key=value`` without the values of secret keys."""
    pairs = [part.partition("=") for part in text.split("&")]
    return "&".join(
        f"{key}={REDACTED}"
        if value and scrub_mapping({unquote_plus(key): "-"}).popitem()[1] != "-"
        else key + sign + value
        for key, sign, value in pairs
    )
