"""docs/metrics.md: its program prints what it says, and its tables name all options and all own metrics."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventcore.handler import HandlerConfig
from eventcore_metric.config import MetricConfig
from eventcore_metric.declared import OWN
from eventcore_otlp import OtlpOptions

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_pages_program_prints_what_it_says(tmp_path):
    """The settings and the program of the page, run as they stand, print the series that the page shows."""
    for _, text in BLOCK.findall(PAGE):
        name = text.split("\n", 1)[0].removeprefix("# ")
        if name in {"eventcore.toml", "shop.py"}:
            (tmp_path / name).write_text(text)
    ((command, printed),) = re.findall(r"^\$ ([^\n]*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


def names(section):
    """Return what the first column of a section's table names."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE.split(f"## {section}")[1].split("\n## ")[0], re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_table_has_every_option():
    """Options that only metric handlers have stand in the table; and it names none that there is not."""
    others = {*HandlerConfig.model_fields, *OtlpOptions.model_fields}
    assert names("Options") == set(MetricConfig.model_fields) - others


def test_the_table_has_every_own_metric():
    """Every metric that is no instrument stands in the table of the bus's own; and no other."""
    assert names("The bus's own metrics") == {metric.name for metric in OWN}
