import threading
from typing import Annotated

import eventcore as ec


class Paid(ec.Event, name="shop.paid", category="user", message="paid {amount}"):
    amount: float = 1.0


class Refused(ec.Event, name="shop.refused", category="security", severity="error"):
    card: Annotated[str, ec.Sensitive] = ec.unset
    reason: str = "expired"


def test_before_configure_warnings_go_to_stderr(capsys):
    """Emitting before ``configure()`` goes to a last-resort stderr handler from WARNING up, and is counted."""
    emitter = ec.get_emitter()
    before = emitter.ledger().handler("last_resort").delivered
    emitter.emit(Paid(amount=3))
    emitter.emit(Paid(amount=4), severity="warning")
    emitter.emit(Refused(card="4111 1111 1111 1111"))
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "WARNING shop.paid: paid 4.0"
    assert lines[1].startswith("ERROR shop.refused: ")
    assert "4111" not in printed.err
    assert len(lines) == 2
    assert emitter.ledger().handler("last_resort").delivered == before + 2


def test_last_resort_lines_cannot_be_forged(capsys):
    """Control characters in a last-resort line are shown, not obeyed."""
    ec.emit_event("x.y", severity="error", message="one\nERROR forged: two\x1b[31m")
    assert capsys.readouterr().err == "ERROR x.y: one\\nERROR forged: two\\x1b[31m\n"


def test_a_broken_stderr_harms_nobody(monkeypatch):
    """A program without stderr (or a broken one) may emit all the same."""
    monkeypatch.setattr("sys.stderr", None)
    ec.get_emitter().emit(Refused())


def test_an_emitter_may_be_put_in_use(emitter):
    """``set_emitter`` puts an emitter in use and gives back the one before; None restores the unconfigured one."""
    before = ec.set_emitter(emitter)
    assert ec.get_emitter() is emitter
    assert ec.set_emitter(None) is emitter
    assert ec.get_emitter() is before


# -- the bus's own troubles, where nobody else is told -----------------------------------------------------------------


class Broken(ec.Handler):
    """Fails on everything."""

    kind = "broken"
    delivery = "queued"

    def handle(self, envelope):
        raise OSError(f"no receiver for {envelope.name} at http://user:hunter2@collector")


class Keeping(ec.Handler):
    """Keeps everything, inline."""

    kind = "keeping"
    delivery = "inline"

    def __init__(self, **options):
        super().__init__(**options)
        self.names = []

    def handle(self, envelope):
        self.names.append(envelope.name)


def test_a_failing_handler_without_others_is_reported_on_stderr_once(emitter, capsys):
    """The report of a failure that no other handler takes is one plain line on stderr, without secrets."""
    emitter.add_handler(Broken())
    for _ in range(3):
        emitter.emit(Paid())
        emitter.flush()
    err = capsys.readouterr().err
    assert err.count("ERROR eventcore.handler: handler broken failed: OSError: no receiver for shop.paid") == 1
    assert "hunter2" not in err


def test_a_failing_handler_with_others_is_reported_to_them_alone(emitter, capsys):
    """Where another handler takes the report, stderr stays as it is."""
    emitter.add_handler(Broken())
    keeping = emitter.add_handler(Keeping())
    emitter.emit(Paid())
    emitter.flush()
    assert "eventcore.handler" in keeping.names
    assert capsys.readouterr().err == ""


def test_what_fails_when_the_log_is_closed_is_said(emitter, capsys):
    """A handler that fails in shutdown, after the others were closed, is still heard of."""

    class Log(Keeping):
        def close(self):
            closed.set()

    class Late(Broken):
        def handle(self, envelope):
            closed.wait(10)
            super().handle(envelope)

    closed = threading.Event()
    emitter.add_handler(Log())
    emitter.add_handler(Late())
    emitter.emit(Paid())
    emitter.shutdown()
    assert "ERROR eventcore.handler: handler broken failed" in capsys.readouterr().err


def test_what_shutdown_leaves_undelivered_is_said(emitter, capsys):
    """A shutdown that runs out of time names the handler and what it did not get."""

    class Hanging(Broken):
        kind = "hanging"

        def handle(self, envelope):
            hold.wait(60)

    hold = threading.Event()
    emitter.add_handler(Hanging())
    for _ in range(3):
        emitter.emit(Paid())
    emitter.shutdown(0.2)
    hold.set()
    assert "ERROR eventcore.stopped: shutdown did not finish: hanging: 3 not delivered" in capsys.readouterr().err


def test_nothing_is_said_when_all_is_well(emitter, capsys):
    """A shutdown that delivers everything writes nothing."""
    keeping = emitter.add_handler(Keeping())
    emitter.emit(Paid())
    emitter.shutdown()
    assert keeping.names == ["shop.paid"]
    assert capsys.readouterr().err == ""
