"""The log plugin and the standard library's ``logging``: records become events, events records, and neither loops."""

from __future__ import annotations

import contextlib
import io
import logging
import threading

import pytest

import eventcore as ec
from eventcore_log.stdlib import CaptureHandler, capture_logging, severity_of
from tests.support.log_lines import FILE, Bare, Keep, Note, Work, configure, read
from tests.support.otlp_receiver import OtlpReceiver


@pytest.fixture(autouse=True)
def _clean_loggers():
    """See to it that stdlib loggers are left as they were."""
    loggers = [logging.getLogger(name) for name in ("root", "shop", "shop.db")]
    before = [logger.level for logger in loggers]
    yield
    ec.shutdown()
    loggers[1].propagate = True
    assert [logger.level for logger in loggers] == before
    assert not [handler for logger in loggers for handler in logger.handlers if isinstance(handler, CaptureHandler)]


class Shown(logging.Handler):
    """Keeps stdlib records, as any other library's handler would get them."""

    def __init__(self, logger="root"):
        super().__init__()
        self.got = []
        self._logger = logging.getLogger(logger)

    def emit(self, record):
        self.format(record)
        self.got.append(record)

    def __enter__(self):
        self._before = self._logger.level
        self._logger.addHandler(self)
        self._logger.setLevel(1)
        return self

    def __exit__(self, *_):
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)


# -- in ----------------------------------------------------------------------------------------------------------------


def test_stdlib_records_become_events():
    """Logger, message, level, ``extra`` and exception stand in the line, and the trace around it."""
    with configure(format="json", output=FILE) as emitter, capture_logging(level="debug"):
        with emitter.operation(Work):
            logging.getLogger("shop.db").warning("slow query: %d ms", 250, extra={"table": "orders", "name_": {"a": 1}})
        try:
            {}["k"]
        except KeyError:
            logging.getLogger("shop").exception("lookup failed")
        logging.getLogger("shop").log(35, "between", stack_info=True)
    slow, work, failed, between = read()
    assert (slow["event"], slow["level"], slow["logger"]) == ("slow query: 250 ms", "warning", "shop.db")
    assert (slow["table"], slow["name_"], slow["span_id"]) == ("orders", {"a": 1}, work["span_id"])
    assert (failed["level"], failed["error_type"]) == ("error", "KeyError")
    assert failed["exception"].endswith("KeyError: 'k'")
    assert between["level"] == "warning"
    assert between["stack_info"].startswith("Stack (most recent call last):")
    assert not {"args", "lineno", "msg", "processName"} & slow.keys()


def test_the_settings_table_logging_takes_records_in(tmp_path, capsys):
    """``[logging]`` captures from ``configure()`` to ``shutdown()``, and leaves the loggers as they were."""
    (tmp_path / "eventcore.toml").write_text(
        '[handlers.log]\nformat = "json"\noutput = "log.json"\nevents = "log.record"\nmin_severity = "debug"\n'
        '[logging]\nloggers = ["shop"]\nlevel = "debug"\n'
    )
    with ec.configure():
        logging.getLogger("shop.db").debug("inside")
        logging.getLogger("other").error("not asked for")
    logging.getLogger("shop").error("after")
    assert [line["event"] for line in read()] == ["inside"]
    assert logging.getLogger("shop").level == logging.NOTSET


def test_wrong_settings_of_logging_are_clear_errors():
    """A level that there is not is named with its table."""
    with pytest.raises(ec.ConfigurationError, match=r"logging.*level.*unknown severity 'inof'; did you mean 'info'"):
        ec.configure(logging={"level": "inof"})


@pytest.mark.parametrize(
    ("level", "severity"),
    [(0, "TRACE"), (5, "TRACE"), (9, "TRACE"), (10, "DEBUG"), (20, "INFO"), (29, "INFO"), (30, "WARNING"),
     (40, "ERROR"), (50, "CRITICAL"), (99, "CRITICAL")],
)  # fmt: skip
def test_levels_have_a_severity(level, severity):
    """A level between two counts as the lower one."""
    assert severity_of(level).name == severity


def test_a_record_with_wrong_arguments_is_shown_as_it_is(capsys):
    """A message that cannot be formatted is told with its arguments, and does not reach the caller."""
    logging.getLogger("shop").propagate = False  # other handlers, pytest's among them, may raise
    with configure(format="json", output=FILE), capture_logging("shop"):
        logging.getLogger("shop").error("%d items", "many")
    (line,) = read()
    assert line["event"] == "%d items ('many',)"


def test_secrets_in_records_stay_in():
    """Text, extras and exceptions of other libraries are searched as all else is."""
    with configure(format="json", output=FILE), capture_logging():
        logging.getLogger("shop").error("Bearer abcdef1234567890", extra={"password": "hunter2", "n": {"token": "t0k"}})
    text = FILE.read_text()
    assert not [secret for secret in ("abcdef1234567890", "hunter2", "t0k") if secret in text]


def test_records_below_what_anybody_wants_cost_no_event():
    """A record that no handler takes is not made into an event."""
    keep = Keep()
    with configure(format="json", output=FILE, min_severity="error") as emitter, capture_logging(level="debug"):
        logging.getLogger("shop").info("quiet")
        assert not keep.kept
        assert emitter.ledger().handler("log").accepted == 0


# -- out ---------------------------------------------------------------------------------------------------------------


def test_events_are_given_to_the_loggers_of_their_names():
    """Name, level, message, time, fields and exception arrive at any stdlib handler."""

    def code(emitter):
        with ec.bound(user="u-1"):
            emitter.emit(Note(text="100 % sure"), severity="trace")
        ec.get_logger("shop.db").warning("slow", args=3, name="n")
        with contextlib.suppress(LookupError), emitter.operation(Work):
            raise LookupError("gone")

    with Shown() as shown, configure(output="logging") as emitter:
        code(emitter)
    note, slow, work = shown.got
    assert (note.name, note.levelno, note.levelname, note.getMessage()) == ("note", 5, "TRACE", "100 % sure")
    assert (note.event_name, note.user, note.text) == ("note", "u-1", "100 % sure")
    assert abs(note.created - slow.created) < 60
    assert (slow.name, slow.levelno, slow.fields) == ("shop.db", logging.WARNING, {"args": 3, "name": "n"})
    assert (work.levelno, work.outcome) == (logging.ERROR, "failure")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.handle(work)
    assert stream.getvalue().endswith("LookupError: gone\n")


def test_stdlib_levels_are_heeded():
    """A logger that is not enabled for a level does not get it."""
    with Shown() as shown, configure(output="logging") as emitter:
        logging.getLogger("note").setLevel(logging.ERROR)
        try:
            emitter.emit(Note(text="no"))
            emitter.emit(Note(text="yes"), severity="error")
        finally:
            logging.getLogger("note").setLevel(logging.NOTSET)
    assert [record.getMessage() for record in shown.got] == ["yes"]


def test_records_are_written_in_the_emitting_thread():
    """What goes to stdlib loggers does not reorder with what they log themselves, and carries the caller's thread."""
    with Shown() as shown, configure(output="logging") as emitter:

        def work():
            logging.getLogger("shop").info("one")
            emitter.emit(Note(text="two"))
            logging.getLogger("shop").info("three")

        thread = threading.Thread(target=work, name="worker-7")
        thread.start()
        thread.join()
    assert [record.getMessage() for record in shown.got] == ["one", "two", "three"]
    assert {record.threadName for record in shown.got} == {"worker-7"}


# -- both --------------------------------------------------------------------------------------------------------------


def test_both_ways_at_once_make_no_loop_and_no_echo():
    """An event is one record, a record one event, and neither comes back."""
    with Shown() as shown, configure(output="logging") as emitter, capture_logging(level="trace"):
        keep = emitter.add_handler(Keep())
        emitter.emit(Note(text="event"))
        logging.getLogger("shop").error("record")
        ec.get_logger("shop").error("line")
    assert [record.getMessage() for record in shown.got] == ["event", "record", "line"]
    kept = [envelope.message for envelope in keep.kept if not envelope.name.startswith("eventcore.")]
    assert kept == ["event", "record", "line"]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_what_handlers_log_while_they_handle_makes_no_events(delivery):
    """A handler, or its library, that logs for each event cannot feed itself or another one; it is counted."""

    class Chatty(ec.Handler):
        kind = "chatty"

        def handle(self, envelope):
            logging.getLogger("shop").error("handled %s", envelope.name)

    with configure(format="json", output=FILE) as emitter, capture_logging() as capture:
        emitter.add_handler(Chatty(delivery=delivery, exclude="eventcore.*"))
        emitter.add_handler(Chatty(delivery=delivery, exclude="eventcore.*"))
        for _ in range(5):
            emitter.emit(Bare())
        assert emitter.flush()
    assert [line["name"] for line in read()] == ["bare.fact"] * 5
    assert capture.handler.ignored == 10


def test_records_left_alone_are_seen_from_outside():
    """``eventcore debug inspect --component logs`` tells how many records the table ``[logging]`` has not taken in."""

    class Chatty(ec.Handler):
        kind = "chatty"

        def handle(self, envelope):
            logging.getLogger("shop").error("handled %s", envelope.name)

    options = {"format": "json", "output": FILE}
    chatty = Chatty(events="bare.*")
    with ec.configure(handlers={"log": options, "chatty": chatty}, logging={"loggers": "shop"}) as emitter:
        emitter.emit(Bare())
        assert emitter.flush()
        assert emitter.handler("log").inspect()["stdlib_records_left_alone"] == 1


def test_sending_otlp_while_everything_is_captured_ends():
    """urllib3's own DEBUG records do not become further log records to send."""
    with OtlpReceiver() as receiver:
        with configure(output="otlp", endpoint=receiver.endpoint) as emitter, capture_logging(level="trace") as capture:
            emitter.emit(Bare())
            assert emitter.flush()
            assert emitter.flush()
            assert capture.handler.ignored > 0
        names = [
            r.event_name
            for q in receiver.requests
            for g in q.message.resource_logs
            for s in g.scope_logs
            for r in s.log_records
        ]
    assert names == ["bare.fact"]


def test_a_handler_in_a_stdlib_configuration_takes_the_emitter_of_the_moment():
    """``CaptureHandler`` needs no emitter: ``logging.config`` can name it before ``configure()`` runs."""
    with capture_logging("shop"), configure(format="json", output=FILE):
        logging.getLogger("shop").error("now")
    assert [line["event"] for line in read()] == ["now"]
