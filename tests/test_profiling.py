import asyncio
import mmap
import os
import subprocess
import sys
import time
import tracemalloc

import pytest
from typer.testing import CliRunner

import eventcore as ec
from eventcore import profiling
from eventcore.cli import app
from tests.support.handlers import Collect

MEGABYTE = 1 << 20


@pytest.fixture
def seen():
    """Return a handler that keeps what is emitted while a test runs."""
    handler = Collect(delivery="inline", events=["eventcore.profile", "eventcore.misuse", "inner"])
    ec.configure(handlers={"seen": handler})
    return handler


@pytest.fixture
def tracing():
    """Trace allocations while a test runs."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


# -- in code -----------------------------------------------------------------------------------------------------------


def test_a_block_is_profiled_as_an_operation(seen):
    """``with ec.profile(name)`` emits one operation with duration and CPU time; what is inside belongs to it."""
    with ec.profile("inference") as section:
        time.sleep(0.02)
        ec.emit_event("inner", category="data", message="x")
    inner, done = seen.got
    assert (done.payload["profile"], done.outcome) == ("inference", "success")
    assert done.duration_s >= section.data["duration"] >= 0.02
    assert done.payload["cpu_s"] == section.data["cpu"] < 0.02
    assert (inner.trace_id, inner.span_id) == (done.trace_id, done.span_id)


def test_the_guides_lines_work(seen):
    """``start_profile`` and ``end_profile`` give the MoE guide's ``duration`` and ``memory_delta``."""
    ec.start_profile("inference")
    held = bytearray(1000)
    profile_data = ec.end_profile("inference")
    assert f"Duration: {profile_data['duration']:.3f}s".endswith("s")
    assert f"Memory delta: {profile_data['memory_delta'] / 1024 / 1024:.1f}MB".endswith("MB")
    assert [e.payload["profile"] for e in seen.got] == ["inference"]
    assert len(held) == 1000


def test_memory_is_exact_where_it_is_traced(seen, tracing):
    """With tracemalloc on, the growth is that of Python's objects, to the byte, and the result says so."""
    with ec.profile("held") as section:
        held = bytearray(MEGABYTE)
    assert section.data["memory_source"] == seen.got[0].payload["memory_source"] == "tracemalloc"
    assert MEGABYTE <= section.data["memory_delta"] < MEGABYTE + 20_000
    assert seen.got[0].payload["memory_delta_bytes"] == section.data["memory_delta"]
    with ec.profile("freed") as section:
        del held
    assert section.data["memory_delta"] < -MEGABYTE + 20_000


def test_memory_is_the_process_otherwise(seen):
    """Without tracemalloc it is the growth of the resident memory, and the result says so."""
    with ec.profile("held") as section:
        held = mmap.mmap(-1, 64 * MEGABYTE)  # new pages: what a heap hands out may have been resident before
        for _ in range(64):
            held.write(bytes(b"x" * MEGABYTE))
    assert (section.data["memory_source"], len(held)) == ("resident", 64 * MEGABYTE)
    assert section.data["memory_delta"] > 32 * MEGABYTE
    held.close()


def test_where_memory_cannot_be_read_nothing_is_made_up(seen, monkeypatch, tmp_path):
    """Where neither is to be had, the fields have no value rather than a zero."""
    monkeypatch.setattr(profiling, "_STATM", tmp_path / "none")
    with ec.profile("x") as section:
        pass
    assert (section.data["memory_delta"], section.data["memory_source"]) == (None, None)
    assert seen.got[0].payload.keys() == {"profile", "cpu_s"}


def test_a_block_that_raises_is_a_failure(seen):
    """An exception goes on untouched; the section is emitted as failed, with what it cost."""
    with pytest.raises(OSError, match="refused"), ec.profile("x") as section:
        raise OSError("refused")
    assert (seen.got[0].outcome, seen.got[0].error_type) == ("failure", "OSError")
    assert section.data["duration"] > 0


def test_sections_may_overlap(seen):
    """Begun and ended in any order, and of one name several, each is emitted once; nothing belongs to them."""
    ec.start_profile("a")
    ec.start_profile("b")
    ec.start_profile("a")
    assert ec.current_operation() is None
    first = ec.end_profile("a")
    ec.end_profile("b")
    assert ec.end_profile("a")["duration"] > first["duration"]
    assert [e.payload["profile"] for e in seen.got] == ["a", "b", "a"]


def test_what_is_not_begun_cannot_be_ended(seen):
    """A name nobody has begun, or a section that has ended, is one clear error."""
    with pytest.raises(ec.OperationMisuse, match="no profile 'inference' has begun in this context; begin it with"):
        ec.end_profile("inference")
    section = ec.start_profile("inference")
    with pytest.raises(ec.OperationMisuse, match="did you mean 'inference'"):
        ec.end_profile("inferenze")
    ec.end_profile(section)
    with pytest.raises(ec.OperationMisuse, match="has ended already"):
        ec.end_profile(section)
    assert len(seen.got) == 1


def test_tasks_do_not_end_each_others_sections(seen):
    """Two tasks may profile the same name at once; a section is ended elsewhere by what ``start_profile`` returned."""

    async def work(wait_s):
        ec.start_profile("step")
        await asyncio.sleep(wait_s)
        return ec.end_profile("step")["duration"]

    async def both():
        return await asyncio.gather(work(0.05), work(0.01))

    slow, fast = asyncio.run(both())
    assert slow >= 0.05 > fast >= 0.01
    section = ec.start_profile("elsewhere")
    asyncio.run(asyncio.to_thread(ec.end_profile, section))
    assert section.data["name"] == "elsewhere"


def test_async_blocks(seen):
    """It works as ``async with``."""

    async def work():
        async with ec.profile("x"):
            await asyncio.sleep(0)

    asyncio.run(work())
    assert len(seen.got) == 1


def test_sections_that_are_never_ended_are_bounded(seen, monkeypatch):
    """Beyond a number of sections begun in one context, the oldest end as abandoned, and the misuse is reported."""
    monkeypatch.setattr(profiling, "MAX_OPEN", 3)
    for number in range(5):
        ec.start_profile(f"p{number}")
    assert [e.payload["profile"] for e in seen.got if e.outcome == "abandoned"] == ["p0", "p1"]
    (misuse,) = [e for e in seen.got if e.name == "eventcore.misuse"]
    assert "ec.end_profile('p0')" in misuse.message
    for number in (2, 3, 4):
        ec.end_profile(f"p{number}")


def test_profiling_starts_no_tracing():
    """Profiling neither starts tracemalloc nor imports it: it is not to slow down what it measures."""
    program = (
        "import sys, eventcore as ec",
        "ec.start_profile('x')",
        "ec.end_profile('x')",
        "sys.exit('tracemalloc' in sys.modules)",
    )
    assert subprocess.run([sys.executable, "-c", "\n".join(program)], check=False).returncode == 0


# -- the command -------------------------------------------------------------------------------------------------------

SPIN = """
import time
def spinning():
    end = time.time() + 30
    while time.time() < end:
        sum(range(1000))
spinning()
"""


def run(*arguments):
    """Run ``eventcore profile`` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "eventcore", "profile", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.mark.slow
def test_a_flame_graph_of_a_command(tmp_path):
    """``-- COMMAND`` is run, and its functions are in the flame graph."""
    (tmp_path / "spin.py").write_text(SPIN)
    done = run("--duration", "1", "--output", "flame.svg", "--", sys.executable, "spin.py")
    assert done.returncode == 0, done.stderr
    graph = (tmp_path / "flame.svg").read_text()
    assert graph.startswith("<?xml")
    assert "spinning" in graph
    assert "flame.svg: flame graph" in done.stdout


@pytest.mark.slow
def test_a_flame_graph_of_a_running_process(tmp_path):
    """A process id is looked into from outside."""
    (tmp_path / "spin.py").write_text(SPIN)
    with subprocess.Popen([sys.executable, "spin.py"]) as process:
        try:
            time.sleep(0.5)
            done = run("--duration", "1", str(process.pid))
        finally:
            process.kill()
    if "CAP_SYS_PTRACE" in done.stderr or "ptrace_scope" in done.stderr:
        pytest.skip("this machine does not let a process look into another")
    assert done.returncode == 0, done.stderr
    assert "spinning" in (tmp_path / "profile.svg").read_text()


@pytest.mark.slow
def test_what_held_memory_is_named(tmp_path):
    """``--memory`` names the lines that held memory when most was held, though all was freed before the end."""
    (tmp_path / "holder.py").write_text(
        "import sys, time\n"
        "def hold():\n"
        "    return [bytes(1000) for _ in range(20_000)]\n"
        "held = hold()\n"
        "time.sleep(0.5)\n"
        "del held\n"
        "print('arguments', *sys.argv[1:], __name__)\n"
        "sys.exit(3)\n"
    )
    done = run("--memory", "--top", "1", "--", "python", "holder.py", "a", "-b")
    assert done.returncode == 3
    assert "arguments a -b __main__" in done.stdout
    assert "holder.py:3" in done.stdout
    biggest = max(
        (line.rpartition(" ") for line in (tmp_path / "memory.folded").read_text().splitlines()),
        key=lambda p: int(p[2]),
    )
    assert biggest[0].startswith("holder.py:4;holder.py:3")
    assert int(biggest[2]) > 20_000_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--memory", "123"), 2, "from a program's start only: eventcore profile --memory -- python program.py"),
        (("--memory", "--duration", "3", "--", "python", "x.py"), 2, "leave out --duration"),
        (("--memory", "--", "ls"), 2, "'ls' is no Python program"),
        (("--", "no-such-program"), 2, "there is no such process or program"),
        (("4194303",), 2, "there is no such process"),
        (("--output", "no/such/x.svg", "1"), 2, "--output no/such/x.svg: there is no folder 'no/such'"),
    ],
)
def test_what_cannot_be_profiled_is_one_clear_error(arguments, code, message):
    """Each mistake is one error with a remedy."""
    result = CliRunner().invoke(app, ["profile", *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_without_py_spy_the_extra_is_named(monkeypatch, tmp_path):
    """Where py-spy is not installed the error names the extra."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["profile", "1"])
    assert result.exit_code == 2
    assert "pip install 'eventcore[profile]'" in result.stderr
