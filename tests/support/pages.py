"""Pages of the documentation, as far as they can be run: their files, and their commands with what these print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Page", "masked"]

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARYING = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "<time>"),
    (r"\b[0-9a-f]{32}\b|\b[0-9a-f]{16}\b", "<id>"),
    (r'(duration_ms"?[:=] ?)[\d.e-]+', r"\1<number>"),
)


def masked(text: str) -> str:
    """Return ``text`` with what differs from run to run replaced."""
    for pattern, mark in VARYING:
        text = re.sub(pattern, mark, text)
    return text


class Page:
    """One page, ``docs/<name>``. A file's first line is ``# <its name>``, a command's starts with ``$``."""

    def __init__(self, name: str) -> None:
        self.text = (DOCS / name).read_text(encoding="utf-8")

    @property
    def files(self) -> dict[str, str]:
        """The files that the page shows, by name."""
        shown = [text for kind, text in BLOCK.findall(self.text) if kind in {"toml", "python"}]
        return {text.split("\n", 1)[0].removeprefix("# "): text for text in shown}

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command and what it prints."""
        for kind, text in BLOCK.findall(self.text):
            if kind == "console":
                yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)

    def run(self, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a command in ``folder``, with the page's files there."""
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "PYTHONPATH"}}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        return subprocess.run(
            ["sh", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    def table(self, heading: str) -> dict[str, str]:
        """Return the second column of the table under ``## heading``, by each name in code in the first."""
        section = self.text.split(f"## {heading}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`.*?) \| ?(.*?) ?\|", section, re.MULTILINE)
        return {name: second for names, second in rows for name in re.findall(r"`([\w…]+)`", names)}
