"""docs/serving.md: its programs print what it says, its tables name what there is, and its queries return data."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from eventcore.cli import app
from router.events import EVENTS
from router.metrics import ROUTER
from tests.support.pages import DOCS, Page

PAGE = Page("serving.md")


def masked(text):
    """Return ``text`` without the figures that another numpy, or a model trained anew, may make otherwise."""
    return re.sub(r"-?\d+\.\d{4,}(e-\d+)?|\d+ (?=parameters|bytes)|(?<=calibration_size=)\d+", "<number>", text)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the page's commands one after the other in one folder: later ones need what earlier ones wrote."""
    folder = tmp_path_factory.mktemp("serving")
    return {command: PAGE.run(command, folder) for command, _ in PAGE.commands()}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "printed"), list(PAGE.commands()), ids=lambda value: value[:60])
def test_the_pages_commands_print_what_it_says(ran, command, printed):
    """Each command of docs/serving.md, run with the files that the page shows, prints what stands there."""
    done = ran[command]
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout) == masked(printed)


def test_the_page_has_commands():
    """The page's programs are found at all, and none is without a command."""
    run = " ".join(command for command, _ in PAGE.commands())
    assert {name for name in PAGE.files if name.endswith(".py")} - {"serving.py"} == set(re.findall(r"\w+\.py", run))


def names(heading):
    """Return what the first column of the table with that heading names."""
    table = PAGE.text.split(f"| {heading} |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


def test_the_tables_have_every_event_and_every_metric_of_the_pack():
    """And none that there is not."""
    assert names("event | level") == {event.__event__.name for event in EVENTS}
    assert names("metric") == {instrument.name for instrument in ROUTER}


def test_the_pages_queries_resolve():
    """``eventcore lint`` knows every series and label of the page's queries."""
    packs = ("--pack", "tiny_dancer", "--pack", "router")
    done = CliRunner().invoke(app, ["lint", *packs, str(DOCS / "serving.md")])
    assert done.exit_code == 0, done.output
    assert int(re.search(r"0 findings in (\d+) expressions", done.stdout)[1]) >= 6
