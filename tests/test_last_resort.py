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
