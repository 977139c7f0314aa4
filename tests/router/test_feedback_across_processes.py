"""Feedback that comes to another process than the one that routed, or after it has gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from router.history import History, Known
from router.waiting import LINGER_S
from tests.support.gunicorn import gunicorn_in

PROGRAM = Path(__file__).parents[1] / "programs" / "feedback_worker.py"


class Worker:
    """A process that routes and takes feedback as it is told, one JSON line each way."""

    def __init__(self, history):
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(history)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, **command):
        """Send a command without waiting for the answer."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self):
        """Return the answer to the first command that has none."""
        line = self.process.stdout.readline()
        assert line, f"the worker has ended: {self.process.wait(5)}"
        return json.loads(line)

    def ask(self, **command):
        """Send a command and return its answer."""
        self.tell(**command)
        return self.answer()

    def end(self, number=None):
        """End it as a terminal would, by the end of its input, or by a signal."""
        if number is not None:
            self.process.send_signal(number)
        self.process.stdin.close()
        code = self.process.wait(20)
        self.process.stdout.close()
        return code


@pytest.fixture
def workers(tmp_path):
    """Start processes with one history file between them."""
    started = []

    def start():
        started.append(Worker(tmp_path / "history.db"))
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.end()


def test_feedback_is_taken_by_any_process_with_the_file_and_once(workers):
    """What one process routed, the other learns from, with what was expected; each refuses what the other has taken."""
    one, other = workers(), workers()
    routed = one.ask(route=["r1", "r2"], flush=True)
    assert other.ask(feedback="r1", quality=1.0) == {"status": "accepted", "expected": routed["r1"], "observed": 1}
    assert one.ask(feedback="r1", quality=1.0)["status"] == "DuplicateFeedback"
    assert one.ask(feedback="r2", quality=0.0) == {"status": "accepted", "expected": routed["r2"], "observed": 1}
    assert other.ask(feedback="r2", quality=0.0)["status"] == "DuplicateFeedback"
    assert other.ask(feedback="r3", quality=0.0)["status"] == "UnknownRequest"
    assert other.ask(route=["r1"], flush=True)
    assert one.ask(feedback="r1", quality=1.0)["status"] == "DuplicateFeedback"


def test_requests_are_written_by_themselves(workers):
    """Without being told to, a moment after they were routed."""
    one, other = workers(), workers()
    one.ask(route=["r1"])
    one.ask(wait_s=4 * LINGER_S)
    assert other.ask(feedback="r1", quality=1.0)["status"] == "accepted"


@pytest.mark.parametrize("way", ["end of input", "SIGKILL after flush"])
def test_feedback_is_taken_after_a_restart(workers, way):
    """A process that ends writes what waits; one that is killed has written what it flushed."""
    one = workers()
    one.ask(route=["r1"], flush=way != "end of input")
    assert one.end(None if way == "end of input" else signal.SIGKILL) == (0 if way == "end of input" else -9)
    assert workers().ask(feedback="r1", quality=1.0)["status"] == "accepted"


def test_a_forked_child_leaves_the_parents_requests_to_the_parent(workers):
    """What the parent has not written yet is written once, and the child takes feedback of its own and of the file."""
    one = workers()
    answer = one.ask(route=["r1"], fork=["r2"], flush=True)
    assert answer["child"] == 0
    other = workers()
    assert other.ask(feedback="r1", quality=1.0)["status"] == "accepted"
    assert other.ask(feedback="r2", quality=1.0)["status"] == "accepted"


@pytest.mark.slow
def test_of_many_processes_with_the_same_feedback_one_is_heard(workers, tmp_path):
    """Four processes route and tell of all requests at once: each outcome is there once, and refused three times."""
    team = [workers() for _ in range(4)]
    names = [f"r{number}" for number in range(200)]
    for place, worker in enumerate(team):
        worker.ask(route=names[place::4], flush=True)
    for worker in team:
        worker.tell(feedback=names, quality=1.0)
    answers = [worker.answer() for worker in team]
    assert sum(answer["accepted"] for answer in answers) == 200
    assert sum(answer["DuplicateFeedback"] for answer in answers) == 600
    assert all(worker.end() == 0 for worker in team)
    history = History(tmp_path / "history.db")
    assert history.known() == {"cheap": Known(200, 200.0)}
    assert history.waiting_count == 0
    history.close()


@pytest.fixture
def gunicorn(tmp_path):
    """Start gunicorn with three preloaded workers in ``tmp_path``; return its process and address."""
    with gunicorn_in(tmp_path, "feedback_app:application", PROGRAM.parent, 3) as start:
        yield start


@pytest.mark.slow
def test_any_worker_of_a_server_takes_feedback_on_what_another_routed(gunicorn, tmp_path):
    """Gunicorn's workers, and those of the server started anew, which takes what was routed just before the end."""

    def ask(path, name):
        with urllib.request.urlopen(f"{address}/{path}?{name}", timeout=30) as response:
            return json.loads(response.read())

    process, address = gunicorn()
    routed = {}
    until = time.monotonic() + 30
    with ThreadPoolExecutor(6) as clients:  # at once: of idle workers the kernel may wake the same one every time
        while len(set(routed.values())) < 2:  # the first may be up long before the others
            assert time.monotonic() < until, "one worker has taken all"
            more = [f"r{len(routed) + number}" for number in range(60)]
            answers = clients.map(lambda name: ask("route", name), more)
            routed |= {name: answer["worker"] for name, answer in zip(more, answers, strict=True)}
    names = list(routed)
    time.sleep(4 * LINGER_S)
    with ThreadPoolExecutor(6) as clients:
        asked = [*names, "of%20the%20master"]
        told = dict(zip(asked, clients.map(lambda name: ask("feedback", name), asked), strict=True))
    assert {answer["status"] for answer in told.values()} == {"accepted"}, "what the master routed is written once, too"
    assert any(told[name]["worker"] != routed[name] for name in names)
    assert {ask("feedback", name)["status"] for name in names} == {"DuplicateFeedback"}
    assert ask("feedback", "nobody")["status"] == "UnknownRequest"
    ask("route", "last")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, (tmp_path / "gunicorn.log").read_text()
    process, address = gunicorn()
    assert ask("feedback", "last")["status"] == "accepted"
    assert ask("feedback", "r0")["status"] == "DuplicateFeedback"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
