"""A stranger's plugin: ``examples/custom_handler`` is installed like any package, and works by configuration alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)  # a fresh environment downloads what it needs
def test_a_distribution_of_its_own_receives_events_by_configuration_alone(tmp_path, checkout):
    """After ``pip install`` its handler is listed, and a program that does not know it has its events tallied."""
    example = checkout / "examples" / "custom_handler"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EVENTCORE_", "VIRTUAL_ENV"))}

    def run(*command):
        done = subprocess.run(
            [str(part) for part in command],
            cwd=tmp_path,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "venv")
    python = tmp_path / "venv" / "bin" / "python"
    quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(python, *quiet, "-c", checkout / "constraints.txt", f"{checkout}[cli]", example)

    listed = json.loads(run(tmp_path / "venv" / "bin" / "eventcore", "handlers", "--json"))
    (desk,) = [row for row in listed if row["kind"] == "desk"]
    assert (desk["plugin"], desk["version"], desk["problem"]) == ("desk", "0.1.0", "")
    assert "desk" in run(python, "-m", "eventcore", "handlers")

    for name in ("eventcore.toml", "program.py"):
        shutil.copy(example / name, tmp_path)
    run(python, "program.py")
    sheet = {(line := json.loads(text))["event"]: line for text in (tmp_path / "tally.jsonl").read_text().splitlines()}
    assert {name: (line["count"], line["worst"], line["message"]) for name, line in sheet.items()} == {
        "shop.sold": (2, "info", "chair sold"),
        "system.error": (1, "error", "the till is jammed"),
    }
