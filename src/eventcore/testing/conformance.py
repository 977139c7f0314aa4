"""What every handler must do, as tests that its author runs by subclassing one class.

::

    from eventcore.testing import HandlerConformance

    class TestMyHandler(HandlerConformance):
        def make_handler(self, tmp_path):
            return MyHandler(path=tmp_path / "out.jsonl")

        def received(self, handler):
            return [json.loads(line)["id"] for line in handler.path.read_text().splitlines()]
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from unittest import SkipTest

from pydantic import SecretStr

from eventcore.bounded_call import call_bounded
from eventcore.catalog import Catalog
from eventcore.emitter import Emitter
from eventcore.errors import ConfigurationError
from eventcore.handler import Handler
from eventcore.resource import Resource
from eventcore.testing.conformance_events import (
    CARD,
    EVENTS,
    Carried,
    CarriedByWork,
    Paid,
    Poison,
    Poisoned,
    PoisonedWork,
    Stepped,
    SteppedBeside,
    SteppedInChild,
    WorkedBeside,
    WorkedInChild,
    emit_mixture,
    emit_some,
    unencodable_values,
)
from eventcore.testing.forking import in_forked_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from eventcore.envelope import Envelope
    from eventcore.events import Event, Severity
    from eventcore.handler import Sink
    from eventcore.ledger import LedgerRow

__all__ = ["HandlerConformance"]

PATIENCE_S = 20.0
"""When something that must end is given up; nothing is measured by it."""

SUBJECT = "subject"


class HandlerConformance:
    """Subclass it with pytest (``class TestMyHandler(HandlerConformance)``) and define ``make_handler``.

    Define ``received`` where it can be seen what went out; without it, the tests that need it are skipped. What a
    handler does not want (``sink_for``, its filter) is not asked of it.
    """

    keeps_order: ClassVar[bool] = True
    """Whether ``received`` shows things in the order in which they were handled; False for what only adds up."""

    secrets: ClassVar[Sequence[str]] = ()
    """Texts among the options of ``make_handler`` that must never be shown; pydantic's secret fields are found."""

    wrong_options: ClassVar[Mapping[str, Any]] = {}
    """Options of the handler's own, each with a value that must be refused with an error that names the option."""

    def make_handler(self, tmp_path: Path) -> Handler:
        """Return a new handler that takes all events (servers it talks to belong into a fixture)."""
        raise NotImplementedError(f"{type(self).__name__} must define make_handler(self, tmp_path)")

    def received(self, handler: Handler) -> Sequence[str]:  # noqa: ARG002 - for overriding
        """Return what has gone out, oldest first: envelope ids, else span ids (hexadecimal), else event names.

        An envelope that is expanded may be there several times. What was taken directly has no envelope: it goes by its
        event's name.
        """
        raise SkipTest(f"{type(self).__name__} does not define received(self, handler)")

    def make_emitter(self) -> Emitter:
        """Return a new emitter; override it for a handler that needs more, such as instruments in the catalog."""
        return Emitter(resource=Resource("conformance"), catalog=Catalog(events=EVENTS))

    # -- the tests ---------------------------------------------------------------------------------------------------

    def test_nothing_is_started_before_it_is_attached(self, tmp_path: Path) -> None:
        """Making a handler starts no thread, and opens and writes no file and no socket."""
        before = _started(tmp_path)
        handler = self.make_handler(tmp_path)
        new = _started(tmp_path) - before
        _demand(not new, f"making {handler!r} started {sorted(new)}; do that in attached()")

    def test_a_poisoned_envelope_does_not_stop_the_next(self, tmp_path: Path) -> None:
        """An envelope that cannot be looked at costs neither the caller nor its neighbours in the batch anything."""
        with self._running(tmp_path) as run:
            emit_some(run.emitter, 4)
            run.emitter.emit(Poisoned(value=Poison()))
            with run.emitter.operation(PoisonedWork, value=Poison()):
                pass
            emit_some(run.emitter, 4)
            run.flush()
            healthy = [
                row for row in run.rows() if row.event not in ("conformance.poisoned", "conformance.poisoned_work")
            ]
            _assert_delivered(
                healthy, "beside a poisoned envelope; isolate each, or raise ec.PartialFailure(indices, cause)"
            )

    def test_one_threads_events_stay_in_order(self, tmp_path: Path) -> None:
        """Events of one thread go out in the order in which they were emitted, also when two threads emit at once."""
        if not self.keeps_order:
            raise SkipTest("keeps_order = False")
        with self._running(tmp_path) as run:
            beside = threading.Thread(target=emit_some, args=(run.emitter, 40, SteppedBeside, WorkedBeside))
            beside.start()
            emit_some(run.emitter, 40)
            beside.join()
            run.flush()
            out = self._out(run)
            for suffix in ("_beside", ""):
                names = {f"conformance.stepped{suffix}", f"conformance.worked{suffix}"}
                expected = [out.key(envelope) for envelope in run.wanted() if envelope.name in names]
                among = set(expected)
                _demand([key for key in out.keys if key in among] == expected, f"not the order of emission: {out}")

    def test_flush_hands_everything_over(self, tmp_path: Path) -> None:
        """After ``flush`` all that was emitted before has gone out, once; a flush of nothing does nothing."""
        with self._running(tmp_path) as run:
            run.flush()
            emit_some(run.emitter, 30)
            run.flush()
            _assert_delivered(run.rows(), "after flush")
            self._assert_out_once(run)
            run.flush()
            self._assert_out_once(run)

    def test_close_is_idempotent_and_bounded(self, tmp_path: Path) -> None:
        """Closing delivers what waits and ends every thread; closing again, or emitting after it, harms nobody."""
        before = set(threading.enumerate())
        with self._running(tmp_path) as run:
            emit_some(run.emitter, 10)
            report = run.emitter.shutdown(PATIENCE_S)
            _demand(report.is_clean, f"shutdown left something behind: {report}")
            _assert_delivered(run.rows(), "at shutdown")
            for call in (run.handler.closing, run.handler.close, run.handler.close):
                problem = call_bounded(call, PATIENCE_S)
                _demand(not problem, f"{call.__name__}() after the end: {problem}")
            emit_some(run.emitter, 1)
        left = _eventually_empty(lambda: {thread.name for thread in set(threading.enumerate()) - before})
        _demand(not left, f"threads still running after close: {sorted(left)}")

    def test_closing_without_an_event(self, tmp_path: Path) -> None:
        """A handler that never got an event can be flushed and closed."""
        with self._running(tmp_path) as run:
            run.flush()
            report = run.emitter.shutdown(PATIENCE_S)
            _demand(report.is_clean, f"shutdown left something behind: {report}")

    def test_a_forked_child_starts_empty(self, tmp_path: Path) -> None:
        """After a fork the child works and hands over its own events only; nothing of the parent goes out twice."""
        if not hasattr(os, "fork"):
            raise SkipTest("there is no fork here")
        with self._running(tmp_path) as run:
            emit_some(run.emitter, 20)
            problem = in_forked_child(lambda: _child(run), 2 * PATIENCE_S)
            _demand(not problem, f"in the child: {problem}")
            emit_some(run.emitter, 20)
            run.flush()
            _assert_delivered(run.rows(), "in the parent of a fork")
            self._assert_out_once(run)

    def test_describe_is_plain_and_holds_no_secret(self, tmp_path: Path) -> None:
        """``describe()`` can be shown as JSON at any time; neither it nor a ``repr`` shows a secret."""
        with self._running(tmp_path) as run:
            for _ in range(2):
                description = run.handler.describe()
                _demand(isinstance(description, dict), f"describe() returned {description!r}, not a dict")
                shown = json.dumps(description) + repr(run.handler) + repr(run.handler.config)
                for secret in (*self.secrets, *_secrets_of(run.handler)):
                    _demand(secret not in shown, "describe() or a repr shows a secret")
                emit_some(run.emitter, 3)
                run.flush()

    def test_wrong_options_are_refused_clearly(self, tmp_path: Path) -> None:
        """A wrong or unknown option is a ConfigurationError that names it; each option of its own is described."""
        handler = self.make_handler(tmp_path)
        kind, config = type(handler), handler.config
        given = {name: getattr(config, name) for name in config.model_fields_set}
        _demand(type(kind(config)) is kind, "configure() makes a handler from its configuration")
        wrong = {"no_such_option": 1, "min_severity": "no such severity", "batch_size": 0, **self.wrong_options}
        for option, value in wrong.items():
            refusal = _refusal(kind, {**given, option: value})
            _demand(refusal, f"{kind.__name__}({option}={value!r}) was accepted")
            _demand(option in refusal, f"the error does not name the option {option!r}: {refusal}")
        silent = [name for name, field in type(config).model_fields.items() if not field.description]
        _demand(not silent, f"options without a description: {silent}")

    def test_unencodable_values_survive(self, tmp_path: Path) -> None:
        """A value that the output has no form for does not cost its event."""
        with self._running(tmp_path) as run:
            lost = []
            for what, value in unencodable_values():
                before = sum(row.delivered for row in run.rows())
                witnessed = len(run.wanted())
                run.emitter.emit(Carried(value=value))
                with run.emitter.operation(CarriedByWork, value=value):
                    pass
                run.flush()
                if sum(row.delivered for row in run.rows()) - before != len(run.wanted()) - witnessed:
                    lost.append(what)
            _demand(not lost, f"not delivered because of a value in the payload: {', '.join(lost)}")

    def test_takes_whatever_comes(self, tmp_path: Path) -> None:
        """Events of all kinds in one batch: failed, unset, expanded, started, without a class; none is lost or changed.

        Nor does a sensitive value get out.
        """
        with self._running(tmp_path) as run:
            kept = {"list": [1, 2]}
            emit_mixture(run.emitter)
            run.emitter.emit(Carried(value=kept))
            run.flush()
            _assert_delivered(run.rows(), "in a mixed batch")
            _demand(kept == {"list": [1, 2]}, "the handler has changed a value of the caller's")
            last = run.witness.envelopes[-1]
            _demand(dict(last.payload) == {"value": kept}, "the handler has changed the payload that others read, too")
            run.emitter.shutdown(PATIENCE_S)
            _assert_secret_stays(tmp_path)
            out = self._out(run)
            expanded = [e for e in run.wanted() if any(True for _ in e.items())]  # an empty batch may leave no trace
            missing = Counter(out.key(envelope) for envelope in expanded) - Counter(out.keys)
            _demand(not missing, f"did not go out: {dict(missing)}")

    def test_events_taken_directly_go_out_like_others(self, tmp_path: Path) -> None:
        """What ``direct_sink_for`` takes in the caller, from many threads at once, goes out once.

        Nothing secret does, no value in a payload costs its event, and the sink does not emit.
        """
        with self._running_alone(tmp_path) as run:
            threads = [threading.Thread(target=_emit_directly, args=(run.emitter, 50)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            emitted = run.emitter.ledger().emitted
            _demand(emitted == 200, f"200 events were emitted, and its direct sink has emitted {emitted - 200}")
            run.emitter.emit(Paid(way="card", card=CARD))
            for _, value in unencodable_values():
                run.emitter.emit(Carried(value=value))
            run.emitter.emit(Poisoned(value=Poison()))
            _emit_directly(run.emitter, 10)
            run.flush()
            _assert_delivered([r for r in run.rows() if r.event != Poisoned.__event__.name], "that was taken directly")
            run.emitter.shutdown(PATIENCE_S)
            _assert_secret_stays(tmp_path)
            out = Counter(self.received(run.handler))[Stepped.__event__.name]
            _demand(out == 210, f"of 210 events that it has taken directly {out} went out (received by their names)")

    def test_a_forked_child_takes_events_directly(self, tmp_path: Path) -> None:
        """A child that is forked while other threads are in its direct sink can use it: no lock stays held."""
        if not hasattr(os, "fork"):
            raise SkipTest("there is no fork here")
        with self._running_alone(tmp_path) as run:
            over = threading.Event()

            def emit_on() -> None:
                while not over.is_set():
                    _emit_directly(run.emitter, 10)

            beside = threading.Thread(target=emit_on)
            beside.start()
            try:
                for _ in range(5):
                    problem = in_forked_child(lambda: _emit_directly(run.emitter, 5), 2 * PATIENCE_S)
                    _demand(not problem, f"in a child forked while a direct sink was busy: {problem}")
            finally:
                over.set()
                beside.join()

    # -- inside ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _running_alone(self, tmp_path: Path) -> Iterator[_Run]:
        """Run a handler that takes events directly where no other handler wants them; others are skipped."""
        with self._running(tmp_path, is_alone=True) as run:
            if run.handler.direct_sink_for(Stepped, Stepped.__event__.severity) is None:
                raise SkipTest("it takes no event directly")
            yield run

    @contextmanager
    def _running(self, tmp_path: Path, *, is_alone: bool = False) -> Iterator[_Run]:
        emitter = self.make_emitter()
        try:
            handler = self.make_handler(tmp_path)
            # Until a flush nothing is handed over: so it is one batch, and there is something in the queue at a fork.
            handler.config = handler.config.model_copy(update={"linger_s": 1.0})
            emitter.add_handler(handler, name=SUBJECT)
            witness = _Witness()
            if not is_alone:
                emitter.add_handler(witness)
            wants = [
                event_type
                for event_type in EVENTS
                if _accepts(handler, event_type, event_type.__event__.severity, "end")
            ]
            _demand(wants, f"{handler!r} takes none of the kit's events; make_handler must not filter them out")
            yield _Run(emitter, handler, witness)
        finally:
            emitter.shutdown(PATIENCE_S)

    def _out(self, run: _Run) -> _Out:
        return _Out.of(self.received(run.handler), run.witness.envelopes)

    def _assert_out_once(self, run: _Run) -> None:
        out = self._out(run)
        expected = Counter(out.key(envelope) for envelope in run.wanted())
        got = Counter(key for key in out.keys if key in expected)
        _demand(got == expected, f"missing: {dict(expected - got)}, too often: {dict(got - expected)}")


class _Witness(Handler):
    """Keeps what is emitted, without looking at it."""

    delivery: ClassVar[Literal["inline", "queued"]] = "inline"
    kind: ClassVar[str] = "witness"

    def __init__(self) -> None:
        super().__init__(exclude=("eventcore.*",))
        self.envelopes: list[Envelope] = []

    def start_sink_for(self, event_type: type[Event], severity: Severity) -> Sink:  # noqa: ARG002 - as overridden
        return self.handle

    def handle(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)


@dataclass(frozen=True, slots=True)
class _Run:
    """A handler on an emitter, with a witness beside it."""

    emitter: Emitter
    handler: Handler
    witness: _Witness

    def flush(self) -> None:
        _demand(self.emitter.flush(PATIENCE_S), f"flush did not end within {PATIENCE_S:g} s")

    def wanted(self) -> list[Envelope]:
        """Return what was emitted and the handler asked for."""
        return [e for e in self.witness.envelopes if _accepts(self.handler, e.event_type, e.severity, e.phase)]

    def rows(self) -> list[LedgerRow]:
        """Return the account of the handler; of the bus's own events, which report its failures, there is none."""
        return [
            row
            for row in self.emitter.ledger().rows
            if row.handler == SUBJECT and not row.event.startswith("eventcore.")
        ]


@dataclass(frozen=True, slots=True)
class _Out:
    """What has gone out, by the kind of key that the author of the handler gave."""

    keys: list[str]
    kind: Literal["id", "span_id", "name"]

    @classmethod
    def of(cls, received: Sequence[str], envelopes: Sequence[Envelope]) -> _Out:
        kinds: tuple[Literal["id", "span_id"], ...] = ("id", "span_id")
        for kind in kinds:
            if not {getattr(envelope, kind) for envelope in envelopes}.isdisjoint(received):
                return cls(list(received), kind)
        return cls(list(received), "name")

    def key(self, envelope: Envelope) -> str:
        return str(getattr(envelope, self.kind))

    def __str__(self) -> str:
        return f"{self.kind}s {self.keys}"


def _accepts(handler: Handler, event_type: type[Event], severity: Severity, phase: str) -> bool:
    ask = handler.start_sink_for if phase == "start" else handler.sink_for
    return handler.config.admits(event_type.__event__, severity) and ask(event_type, severity) is not None


def _demand(claim: object, otherwise: str) -> None:
    """Assert; a function, because ``python -O`` leaves assert statements out."""
    __tracebackhide__ = True
    if not claim:
        raise AssertionError(otherwise)


def _assert_delivered(rows: Sequence[LedgerRow], when: str) -> None:
    lost = {
        f"{row.event} ({row.phase})": f"{row.delivered} of {row.accepted} delivered, {row.failed} failed, "
        f"{row.pending} pending, dropped {dict(row.dropped)}"
        for row in rows
        if row.delivered != row.accepted
    }
    _demand(not lost, f"not delivered {when}: {lost}")


def _assert_secret_stays(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _demand(CARD.encode() not in path.read_bytes(), f"{path.name} holds the value of a sensitive field")


def _emit_directly(emitter: Emitter, number: int) -> str:
    for index in range(number):
        emitter.emit(Stepped(number=index))
    return ""


def _started(folder: Path) -> Counter[str]:
    """Return the threads, open files and sockets of this process, and the files in ``folder``, as text."""
    started = Counter(f"thread {thread.name}" for thread in threading.enumerate())
    for link in Path("/proc/self/fd").glob("*"):  # empty where there is no /proc
        try:
            target = str(link.readlink())
        except OSError:  # closed meanwhile
            continue
        if not target.endswith("/fd"):  # the folder being listed
            started[f"open file {target}"] += 1
    started.update(f"file {path}" for path in folder.rglob("*"))
    return started


def _eventually_empty(ask: Callable[[], set[str]]) -> set[str]:
    deadline = time.monotonic() + PATIENCE_S
    while (left := ask()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def _refusal(kind: type[Handler], options: Mapping[str, Any]) -> str:
    """Return the message with which a handler refuses options; empty if it takes them."""
    try:
        kind(**options)
    except ConfigurationError as error:
        return str(error)
    return ""


def _secrets_of(handler: Handler) -> list[str]:
    values = [getattr(handler.config, name) for name in type(handler.config).model_fields]
    items = [item for value in values for item in (value if isinstance(value, list | tuple) else (value,))]
    return [item.get_secret_value() for item in items if isinstance(item, SecretStr) and item.get_secret_value()]


def _child(run: _Run) -> str:
    """Use the handler in a forked child; return what was wrong."""
    pending = sum(row.pending for row in run.rows())
    if pending:
        return f"{pending} envelopes of the parent's are pending"
    already = len(run.wanted())
    emit_some(run.emitter, 5, SteppedInChild, WorkedInChild)
    wanted = len(run.wanted()) - already
    if not run.emitter.flush(PATIENCE_S / 2):
        return "flush did not end"
    delivered = sum(row.delivered for row in run.rows() if row.event.endswith("_in_child"))
    report = run.emitter.shutdown(PATIENCE_S / 2)
    if delivered != wanted or not report.is_clean:
        return f"{delivered} of {wanted} events of the child's own were delivered; {report}"
    return ""
