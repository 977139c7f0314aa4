"""Shared by the tests of ``eventcore generate``."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

from eventcore.cli import app

SETTINGS = """
service = "tiny-dancer"
version = "1.2.3"

[handlers.metric]
packs = ["tiny_dancer", "router"]

[http]
port = 9090
"""


@pytest.fixture(autouse=True)
def _nothing_by_hand(monkeypatch):
    """Forget the metrics by hand that other tests of this process declared: a program has its own alone."""
    monkeypatch.setattr("eventcore.by_hand._declared", {})


@pytest.fixture
def amtool():
    """Return the path of amtool (Debian: prometheus-alertmanager), or skip."""
    path = shutil.which("amtool")
    if path is None:
        pytest.skip("amtool is not installed (Debian package prometheus-alertmanager)")
    return path


@pytest.fixture
def settings(tmp_path):
    """Write settings of a service with the Tiny Dancer pack; return their path."""
    file = tmp_path / "eventcore.toml"
    file.write_text(SETTINGS)
    return file


@pytest.fixture
def generate(settings):
    """Return a function that runs ``eventcore generate`` with these settings; it returns standard output."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["generate", *map(str, arguments), "--config", str(settings)])
        assert result.exit_code == code, result.output
        return result.stderr if code else result.stdout

    return run
