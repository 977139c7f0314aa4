"""What a type checker knows of the answers of ``events``."""

from __future__ import annotations

import subprocess
import sys

import pytest

TYPED = """
from typing import assert_type

import eventcore as ec
from eventcore.testing import Found, Recorder, capture
from eventcore_buffer.testing import EventsBuffer


class Paid(ec.Event, name="shop.paid", category="user"):
    amount: float


def check(events: EventsBuffer) -> None:
    assert_type(events.of(Paid), Found[Paid])
    assert_type(events.of(Paid)[0].amount, float)
    assert_type(events.of(Paid).where(amount=1), Found[Paid])
    assert_type(events.of(Paid).envelopes, list[ec.Envelope])
    assert_type(events.named("shop.*"), Found[ec.Event])
    assert_type(events.last(Paid), Paid)
    assert_type(events.assert_emitted(Paid, times=1, amount=1), Paid)
    assert_type(events.wait_for(Paid, timeout_s=1), Paid)
    assert_type(events.assert_emitted("shop.*"), ec.Event)


with capture() as recorder:
    assert_type(recorder, Recorder)
with capture(into=EventsBuffer()) as buffer:
    assert_type(buffer, EventsBuffer)
"""

WRONG = """
from eventcore_buffer.testing import EventsBuffer

def check(events: EventsBuffer) -> None:
    events.of("shop.paid")
    events.of(int)
    events.assert_emitted(7)
"""


def mypy(code, checkout, tmp_path):
    """Return mypy's exit code and output for ``code``, with the settings of the checkout."""
    path = tmp_path / "checked.py"
    path.write_text(code)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", path]
    done = subprocess.run(command, cwd=checkout, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)  # without a cache, mypy reads pydantic first
def test_answers_are_typed_by_the_class_that_was_asked_for(checkout, tmp_path):
    """``events.of(Paid)`` are ``Paid``, as are the results of ``last``, ``assert_emitted`` and ``wait_for``."""
    assert mypy(TYPED, checkout, tmp_path) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wrong_questions_are_found_by_the_type_checker(checkout, tmp_path):
    """Text where a class belongs, a class that is no event, and a number are type errors."""
    code, output = mypy(WRONG, checkout, tmp_path)
    assert code == 1
    assert output.count(": error:") == 3, output
