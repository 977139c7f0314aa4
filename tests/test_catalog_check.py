"""``eventcore catalog --check``: how many series an instrument can make is known before anything is emitted."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from eventcore.cli import app
from router.errors import ERROR_TYPES


@pytest.fixture
def check(tmp_path):
    """Return a function that runs the check with a limit and returns exit code and output."""

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
    assert "10 instruments, 0 over the limit of 1000 series each" in out


def test_each_instrument_over_the_limit_has_a_line_and_the_check_fails(check):
    """One line per instrument that can exceed the limit, with what its labels make of it; exit code 1."""
    code, out = check(3)
    assert code == 1
    lines = " ".join(out.split())
    assert "tiny_dancer_candidates_processed_total: 4 label combinations (batch_size_range 4), the limit is 3" in lines
    assert f"tiny_dancer_errors_total: {len({*ERROR_TYPES, 'unknown'})} label combinations" in lines
    assert "tiny_dancer_routing_requests_total" not in out
    assert "10 instruments, 3 over the limit of 3 series each" in lines


def test_the_check_in_json(check):
    """With --json the same: the limit, what is over it, and what is limited only at run time."""
    code, out = check(3, "--json")
    assert code == 1
    answer = json.loads(out)
    assert answer["max_series"] == 3
    assert {"name": "tiny_dancer_feature_engineering_duration_seconds", "combinations": 4} in answer["over"]
    assert answer["open"] == []
