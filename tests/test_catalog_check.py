"""``eventcore catalog --check``: how many series an instrument can make is known before anything is emitted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from eventcore import by_hand
from eventcore.cli import app
from router.errors import ERROR_TYPES


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Return a function that runs the check with a limit and returns exit code and output."""
    monkeypatch.setattr(by_hand, "_declared", {})  # other tests' metrics by hand are of this process, too

    def run(max_series, *arguments):
        path = tmp_path / "eventcore.toml"
        path.write_text(f"[handlers.metric]\nmax_series = {max_series}\n")
        result = CliRunner().invoke(app, ["catalog", "--check", "--config", str(path), *arguments])
        return result.exit_code, result.stdout

    return run


def test_instruments_within_the_limit_pass(check):
    """What can make no more label combinations than the limit passes, and the summary says how many there are."""
    code, out = check(1000)
    assert code == 0
    assert "25 instruments, 0 over the limit of 1000 series each" in out


def test_each_instrument_over_the_limit_has_a_line_and_the_check_fails(check):
    """One line per instrument that can exceed the limit, with what its labels make of it; exit code 1."""
    code, out = check(3)
    assert code == 1
    lines = " ".join(out.split())
    assert "tiny_dancer_candidates_processed_total: 4 label combinations (batch_size_range 4), the limit is 3" in lines
    assert f"tiny_dancer_errors_total: {len({*ERROR_TYPES, 'unknown'})} label combinations" in lines
    assert "tiny_dancer_routing_requests_total" not in out
    assert "25 instruments, 5 over the limit of 3 series each" in lines


def test_the_check_in_json(check):
    """With --json the same: the limit, what is over it, and what is limited only at run time."""
    code, out = check(3, "--json")
    assert code == 1
    answer = json.loads(out)
    assert answer["max_series"] == 3
    assert {"name": "tiny_dancer_feature_engineering_duration_seconds", "combinations": 4} in answer["over"]
    assert answer["open"] == ["router_breaker_state"]


SHOP = """
from typing import Annotated, Literal
import eventcore as ec

class Sold(ec.Event, name="till.sold", category="user"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    shop: Annotated[Literal["a", "b", "c"], ec.Label]
    customer: Annotated[str, ec.Label]

METRICS = [
    ec.Counter("till_sold_total", on=Sold, labels={"currency": "currency", "shop": "shop"}, help="Sold."),
    ec.Counter("till_customers_total", on=Sold, labels={"customer": "customer"}, help="Sold, by customer."),
]
OPEN = ec.gauge("till_open", labels={"till": ["1", "2", "3", "4"]}, help="Tills that are open.")
"""


def test_instruments_of_an_application_are_checked_before_it_runs(tmp_path):
    """``--instruments`` names the list that ``configure()`` is given; metrics by hand of its module count."""
    (tmp_path / "till_check.py").write_text(SHOP)
    (tmp_path / "eventcore.toml").write_text("[handlers.metric]\nmax_series = 3\n")
    command = [sys.executable, "-m", "eventcore", "catalog", "--check", "--json", "--instruments", "till_check:METRICS"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert {"name": "till_sold_total", "combinations": 6} in answer["over"]
    assert {"name": "till_open", "combinations": 4} in answer["over"]
    assert answer["open"] == ["router_breaker_state", "till_customers_total"]


@pytest.mark.parametrize("path", ["no_such:METRICS", "json:loads", "os:sep", "eventcore.errors:__all__"])
def test_a_path_without_instruments_is_one_clear_error(path):
    """A path that leads to no instruments is named, exit code 2."""
    result = CliRunner().invoke(app, ["catalog", "--check", "--instruments", path])
    assert result.exit_code == 2
    assert f"--instruments {path}" in " ".join(result.stderr.split())


def test_the_catalog_needs_no_secrets(tmp_path):
    """A build has no secrets of production: catalog, snapshot and checks do without what the settings name."""
    (tmp_path / "eventcore.toml").write_text(
        '[handlers.metric]\n[handlers.oncall]\nuse = "webhook"\nurl = "https://example.com"\nsecret = "env:NO_SUCH"\n'
        '[http]\ntoken = "env:NO_SUCH"\n'
    )
    for options in (["--check"], ["--json"], ["--save", "catalog.json"], ["--compare", "catalog.json"]):
        command = [sys.executable, "-m", "eventcore", "catalog", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
