"""docs/logs.md: its programs run, its commands print what it says, and its table has every option."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eventcore.handler import HandlerConfig
from eventcore_log.config import _ALIASES, LogConfig

DOCS = Path(__file__).parents[2] / "docs" / "logs.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARYING = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "<time>"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
    (r"\b[0-9a-f]{32}\b|\b[0-9a-f]{16}\b", "<id>"),
    (r'(duration_ms"?[:=])[\d.e-]+', r"\1<number>"),
    (r'File "[^"]*/', 'File "'),
]


def masked(text):
    """Return text with what differs from run to run replaced."""
    for pattern, mark in VARYING:
        text = re.sub(pattern, mark, text)
    return text


def files():
    """Return the files that the page shows, by name."""
    blocks = BLOCK.findall(DOCS.read_text())
    return {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in blocks if kind in {"toml", "python"}}


def commands():
    """Return the commands of the page, each with what it prints."""
    found = []
    for kind, text in BLOCK.findall(DOCS.read_text()):
        if kind == "console":
            found += re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
    return found


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize(("command", "printed"), commands(), ids=lambda value: value[:60])
def test_the_pages_commands_print_what_it_says(tmp_path, command, printed):
    """Each command of docs/logs.md, run with the files that the page shows, prints what stands there."""
    if "jq " in command and shutil.which("jq") is None:
        pytest.skip("jq is not installed (Debian package jq)")
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    environment = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "PYTHONPATH"}}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout) == masked(printed)


def test_the_page_has_commands():
    """The page's examples are found at all."""
    assert len(commands()) == 9
    assert set(files()) == {"eventcore.toml", "shop.py", "levels.py", "calls.py", "bridge.py"}


def test_the_table_has_every_option_with_its_default():
    """Options that only log handlers have stand in the table; and it names none that there is not."""
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", DOCS.read_text().split("## Options")[1].split("## ")[0], re.MULTILINE)
    named = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    fields = {field.alias or name: field for name, field in LogConfig.model_fields.items()}
    own = {name for name in fields if name not in HandlerConfig.model_fields}
    assert own <= named.keys()
    assert named.keys() <= fields.keys() | _ALIASES.keys()
    for name in ("format", "schema", "output", "backups", "sampling"):
        assert named[name] == f"`{fields[name].default!r}`".replace("'", '"')
