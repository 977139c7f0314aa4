"""A prefork server, for real: gunicorn with two preloaded workers, recycled while requests come in."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections import Counter

import pytest

from tests.chaos.account import PROGRAMS
from tests.support.gunicorn import gunicorn_in

REQUESTS = 120


@pytest.fixture
def gunicorn(tmp_path, monkeypatch):
    """Return a function that starts gunicorn in ``tmp_path`` and returns its process and address."""
    with gunicorn_in(tmp_path, "gunicorn_app:application", PROGRAMS, 2) as start:

        def with_delivery(*options, delivery):
            monkeypatch.setenv("PREFORK_DELIVERY", delivery)
            return start(*options)

        yield with_delivery


def ask(address, numbers):
    """Make a request per number; return which were answered, by the process that did."""
    answered = {}
    for number in numbers:
        with urllib.request.urlopen(f"{address}/?{number}", timeout=30) as response:
            answered[number] = int(response.read())
    return answered


def account_of(folder):
    """Return the events in the log (number, process) and the accounts that the processes wrote when they ended."""
    lines = [json.loads(line) for line in (folder / "log.json").read_text().splitlines()]
    served = Counter((line["n"], line["pid"]) for line in lines if line["event"] == "prefork.served")
    accounts = [json.loads(line) for line in (folder / "accounts.json").read_text().splitlines()]
    return served, {account["pid"]: account for account in accounts}


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["queued", "durable"])
def test_a_prefork_server_loses_and_doubles_nothing(gunicorn, tmp_path, delivery):
    """A forked child starts with fresh threads and empty queues: gunicorn's workers, recycled and stopped gracefully.

    Each event of master and workers is in the log once, and each process's account has its own events and balances.
    """
    process, address = gunicorn("--max-requests", "15", delivery=delivery)
    answered = ask(address, range(REQUESTS))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, (tmp_path / "gunicorn.log").read_text()
    served, accounts = account_of(tmp_path)
    assert served == Counter([*answered.items(), *((n, process.pid) for n in range(-5, 0))])
    workers = set(answered.values())
    assert len(workers) >= REQUESTS // 15, "they were recycled"
    assert workers <= accounts.keys()
    for pid, account in accounts.items():
        own = [n for n, by in served if by == pid]
        assert sorted(account["got"]) == sorted(own), account
        assert account["emitted"] == account["delivered"] == len(own), "its own events alone"
        assert account["balanced"], account
        assert account["recovered"] == account["forked"] <= 5, account
        if pid != process.pid:
            assert account["operations"] == ({"started": len(own), "ended": len(own)} if own else {})
    assert not list(tmp_path.glob("*.fork-*")), "no worker has left a journal behind"
