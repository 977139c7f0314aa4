"""Commands that plugins contribute to ``eventcore``."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from eventcore.cli import app

PLUGIN = """
import eventcore as ec

@ec.hookimpl
def eventcore_commands():
    return {"greet": "acme_commands:app", "broken": "acme_broken:app", "health": "acme_commands:app"}
"""

COMMANDS = """
import typer

app = typer.Typer(add_completion=False)

@app.command()
def greet(name: str) -> None:
    "Greet somebody."
    print(f"hello {name}")
"""


@pytest.fixture(autouse=True)
def _acme(tmp_path, monkeypatch):
    """Install a plugin with one good command, one that cannot be imported, and one whose name is taken."""
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eventcore.plugins]\nacme = acme_plugin\n")
    (tmp_path / "acme_plugin.py").write_text(PLUGIN)
    (tmp_path / "acme_commands.py").write_text(COMMANDS)
    (tmp_path / "acme_broken.py").write_text("import acme_library_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("acme_plugin", "acme_commands", "acme_broken"):
        sys.modules.pop(name, None)


def run(*arguments):
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(arguments))


def test_a_plugins_command_runs_with_its_arguments():
    """``eventcore NAME …`` runs the application that a plugin offers under that name."""
    result = run("greet", "world")
    assert (result.exit_code, result.stdout) == (0, "hello world\n")


def test_help_lists_the_commands_of_plugins():
    """``eventcore --help`` shows them with their sentence, and of those that cannot run the reason."""
    text = " ".join(run("--help").stdout.replace("│", " ").split())
    assert "greet Greet somebody." in text
    assert "broken Cannot run:" in text
    assert "acme_library_that_is_missing" in text


def test_a_command_that_cannot_be_imported_says_why():
    """Such a command ends with 2 and one error that names what is missing, whatever its arguments."""
    result = run("broken", "--any", "thing")
    assert result.exit_code == 2
    assert "error: command 'broken'" in result.stderr
    assert "acme_library_that_is_missing" in result.stderr


def test_own_commands_keep_their_names():
    """A plugin cannot take the name of one of eventcore's own commands."""
    assert "Run the health checks" in run("health", "--help").stdout


def test_own_commands_import_no_plugins_commands():
    """Running an own command imports nobody else's: the command line starts quickly, and a broken plugin is no bar."""
    code = "import sys; from typer.testing import CliRunner; from eventcore.cli import app; "
    code += "assert CliRunner().invoke(app, ['handlers']).exit_code == 0; assert 'acme_commands' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_command_is_an_error():
    """A name that nobody offers ends with 2 and names it."""
    result = run("gret")
    assert result.exit_code == 2
    assert "gret" in result.stderr
