"""A real notebook: cells are run again, the kernel is restarted, and the kernel is killed."""

from __future__ import annotations

import json
from collections import Counter

import pytest

SETUP = """
import asyncio
import eventcore as ec

class Ran(ec.Event, name="notebook.ran", category="user"):
    cell: str

class Step(ec.Operation, name="notebook.step", category="execution"):
    cell: str

def configure(**options):
    return ec.configure(service="notebook", handlers={"log": {"format": "json", "output": "log.json"}}, **options)
"""
AGAIN = """
emitter = configure(replace=True)
emitter.emit(Ran(cell="{cell}"))
async with emitter.operation(Step, cell="{cell}"):
    await asyncio.sleep(0)
"""
FLUSH = "print(emitter.flush(10), emitter.ledger().is_settled, ec.current_operation())"


@pytest.fixture
def notebook(tmp_path):
    """Return a function that runs a cell in a kernel whose folder is ``tmp_path``, and the client of that kernel."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook()
    client = nbclient.NotebookClient(book, timeout=60, resources={"metadata": {"path": str(tmp_path)}})

    def run(source):
        book.cells.append(nbformat.v4.new_code_cell(source))
        cell = client.execute_cell(book.cells[-1], len(book.cells) - 1)
        return "".join(output.get("text", "") for output in cell.outputs)

    with client.setup_kernel():
        yield run, client


def logged(tmp_path):
    """Return which cells have their event, and which their operation, in the log, and how often."""
    lines = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    return Counter((line["event"].partition(".")[2], line["cell"]) for line in lines if "cell" in line)


@pytest.mark.slow
def test_a_notebook_may_configure_again_and_restart(notebook, tmp_path):
    """A second ``configure()`` is an error unless ``replace=True``; what was emitted before it, or a restart, is there.

    A kernel that is restarted ends as any process does; one that is killed has lost nothing that was flushed.
    """
    sync = pytest.importorskip("jupyter_core.utils").run_sync
    run, client = notebook
    run(SETUP)
    run("emitter = configure()")
    refused = run("try:\n    configure()\nexcept ec.ConfigurationError as error:\n    print('refused:', error)")
    assert refused.startswith("refused:")
    assert "replace=True" in refused
    for cell in ("first", "again"):
        run(AGAIN.format(cell=cell))
    assert run(FLUSH).split() == ["True", "True", "None"]
    expected = Counter((kind, cell) for kind in ("ran", "step") for cell in ("first", "again"))
    assert logged(tmp_path) == expected, "each once, although its emitter was replaced"

    run(AGAIN.format(cell="not flushed"))
    sync(client.km.restart_kernel)()
    sync(client.kc.wait_for_ready)(timeout=60)
    expected += Counter([("ran", "not flushed"), ("step", "not flushed")])
    assert logged(tmp_path) == expected, "the end of the kernel has delivered what waited"

    run(SETUP)
    run(AGAIN.format(cell="flushed"))
    run(FLUSH)
    sync(client.km.restart_kernel)(now=True)
    sync(client.kc.wait_for_ready)(timeout=60)
    expected += Counter([("ran", "flushed"), ("step", "flushed")])
    assert logged(tmp_path) == expected
