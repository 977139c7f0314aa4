"""``eventcore profile``: where a process spends its time, as a flame graph; or what holds its memory.

Time is sampled by py-spy from outside, so the process needs no change and hardly slows down. Memory cannot be seen from
outside: ``--memory`` runs a program under tracemalloc from its first line, which costs it about half its speed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from eventcore.cli.output import fail, note, say, say_table

__all__ = ["profile"]

FRAMES = 25
"""Frames of each stack that --memory keeps."""

_REMEDIES = {
    "Permission denied": "it may not look into other processes: run it as the same user with CAP_SYS_PTRACE (in Docker "
    "--cap-add SYS_PTRACE; in Kubernetes securityContext.capabilities.add), or as root",
    "Operation not permitted": "it may not look into other processes: run it as root, or allow it with "
    "kernel.yama.ptrace_scope = 0 (in Docker --cap-add SYS_PTRACE)",
    "No such file or directory": "there is no such process or program",
    "No such process": "there is no such process",
    "Failed to find python version": "that is no Python process that it knows",
}

CONTEXT = {"allow_interspersed_args": False}

_RUNNER = Path(__file__).with_name("memory_run.py")
"""Run by its path, so that the program's interpreter need not have eventcore installed."""


def profile(
    target: Annotated[
        list[str], typer.Argument(metavar="PID | -- COMMAND", help="A process id, or a command to run, after --.")
    ],
    *,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="profile.svg, or memory.folded.")
    ] = None,
    duration: Annotated[
        int | None, typer.Option("--duration", "-d", min=1, metavar="SECONDS", help="How long; of a process 30 s.")
    ] = None,
    rate: Annotated[int, typer.Option("--rate", "-r", min=1, max=1000, help="Samples per second.")] = 100,
    memory: Annotated[bool, typer.Option("--memory", help="Memory instead of time; takes a Python command.")] = False,
    top: Annotated[int, typer.Option(min=1, help="With --memory: lines to print.")] = 15,
) -> None:
    """Record a flame graph (SVG) of a process or a command; with --memory, what held memory when most was held.

    Exit code 2 where nothing could be recorded; with --memory the command's own.
    """
    is_process = len(target) == 1 and target[0].isdigit()
    path = Path(output or ("memory.folded" if memory else "profile.svg"))
    if not path.parent.is_dir():
        fail(f"--output {path}: there is no folder {str(path.parent)!r}")
    if memory:
        if is_process:
            fail("memory can be traced from a program's start only: eventcore profile --memory -- python program.py")
        if duration is not None:
            fail("--memory runs the command to its end; leave out --duration")
        raise typer.Exit(_memory(target, path, top))
    _time(target, path, (duration or 30) if is_process else duration, rate, is_process)


def _time(target: list[str], output: Path, duration: int | None, rate: int, is_process: bool) -> None:  # noqa: FBT001 - private, and named by its caller
    arguments = [_py_spy(), "record", "--format", "flamegraph", "--output", str(output), "--rate", str(rate)]
    if duration is not None:
        arguments += ["--duration", str(duration)]
    arguments += ["--pid", target[0]] if is_process else ["--", *target]
    output.unlink(missing_ok=True)
    # The output of a command is the user's to see; py-spy itself speaks on stderr.
    done = subprocess.run(arguments, check=False, stderr=subprocess.PIPE, text=True)  # noqa: S603 - what the user asked for
    said = done.stderr
    if not output.exists():
        reason = next((line.strip() for line in said.splitlines() if line.strip()), f"status {done.returncode}")
        remedy = next((text for sign, text in _REMEDIES.items() if sign in said), "see py-spy record --help")
        fail(f"py-spy recorded nothing: {reason.removeprefix('Error: ')}; {remedy}")
    say(f"{output}: flame graph; open it in a browser")


def _py_spy() -> str:
    found = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    return found or fail("py-spy is not installed; pip install 'eventcore[profile]'")


def _memory(command: list[str], output: Path, top: int) -> int:
    interpreter, rest = _python(command)
    with TemporaryDirectory(prefix="eventcore-") as folder:
        found = Path(folder) / "memory.json"
        runner = [interpreter, "-P", str(_RUNNER), str(found), str(FRAMES), *rest]
        code = subprocess.run(runner, check=False).returncode  # noqa: S603 - what the user asked for
        if not found.exists():
            fail(f"{command[0]} ended with status {code} before its memory could be looked at")
        facts: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    output.write_text("".join(_folded(facts["stacks"])), encoding="utf-8")
    lines: Counter[tuple[str, int]] = Counter()
    blocks: Counter[tuple[str, int]] = Counter()
    for stack in facts["stacks"]:
        place = tuple(stack["frames"][-1])
        lines[place] += stack["bytes"]
        blocks[place] += stack["blocks"]
    say_table(
        ("#KiB", "#blocks", "allocated at"),
        [(f"{size / 1024:.1f}", blocks[place], f"{place[0]}:{place[1]}") for place, size in lines.most_common(top)],
        title=f"Python objects: {facts['peak_bytes'] / 1e6:.1f} MB at most; "
        f"below, where {facts['snapshot_bytes'] / 1e6:.1f} MB of them came from",
    )
    note(f"{output}: stacks and bytes, for speedscope or flamegraph.pl; memory of C libraries is not in it")
    return code


def _python(command: list[str]) -> tuple[str, list[str]]:
    """Return the interpreter and what it shall run."""
    name = Path(command[0]).name
    if name.startswith("python") and len(command) > 1:
        return shutil.which(command[0]) or command[0], command[1:]
    path = command[0] if Path(command[0]).is_file() else shutil.which(command[0])
    if path is None or not _is_script(Path(path)):
        fail(f"{command[0]!r} is no Python program: write python -m module, python script.py, or a script's path")
    return sys.executable, [path, *command[1:]]


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(200)
    return path.suffix == ".py" or (first.startswith(b"#!") and b"python" in first)


def _folded(stacks: list[dict[str, Any]]) -> list[str]:
    return [
        ";".join(f"{Path(file).name}:{line}" for file, line in stack["frames"]) + f" {stack['bytes']}\n"
        for stack in stacks
    ]
