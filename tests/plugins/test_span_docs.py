"""docs/spans.md: its programs run, its commands print what it says, its tables have every option and variable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eventcore_otlp
import eventcore_span
from eventcore.handler import HandlerConfig
from eventcore_span.config import SpanConfig
from tests.support.pages import Page, masked

PAGE = Page("spans.md")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "printed"), list(PAGE.commands()), ids=lambda value: value[:60])
def test_the_pages_commands_print_what_it_says(tmp_path, command, printed):
    """Each command of docs/spans.md, run with the files that the page shows, prints what stands there."""
    done = PAGE.run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout) == masked(printed)


def test_the_page_has_commands():
    """The page's examples are found at all."""
    assert len(list(PAGE.commands())) == 7
    assert set(PAGE.files) == {
        "eventcore.toml",
        "collector.toml",
        "shop.py",
        "call.py",
        "batch.py",
        "chat.py",
        "recorded.py",
    }


def test_the_table_has_every_option_with_its_default():
    """Options that only span handlers have stand in the table, with their defaults; and it names none that is not."""
    named = PAGE.table("Options")
    own = SpanConfig.model_fields.keys() - HandlerConfig.model_fields.keys()
    assert own <= named.keys() <= SpanConfig.model_fields.keys()
    for name in ("exporter", "conventions", "interop", "batch_size", "linger_s", "parent_based", "span_events"):
        default = SpanConfig.model_fields[name].default
        assert named[name] == f"`{default!r}`".replace("'", '"').replace("True", "true").replace("False", "false")


def test_every_variable_that_is_read_is_on_the_page():
    """Each OTEL_* variable that the code names stands in the table of variables."""
    section = PAGE.text.split("## Variables\n")[1].split("\n## ")[0]
    folders = [Path(package.__file__).parent for package in (eventcore_span, eventcore_otlp)]
    code = "".join(path.read_text() for folder in folders for path in folder.glob("*.py"))
    read = set(re.findall(r'"(OTEL_[A-Z_]*[A-Z])"', code))
    assert len(read) >= 15
    assert [name for name in sorted(read) if name not in section] == []
