"""Print one table of all measurements: ``python -m tests.benchmarks [NAME …]``.

Each group runs in a process of its own, so that a peer's side effects (Logfire hooks into pydantic) reach nobody else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pickle
import platform
import subprocess
import sys

GROUPS = ("dispatch", "startup", "signals", "by_logfire", "load", "guides", "router")
PEERS = ("structlog", "prometheus-client", "opentelemetry-sdk", "blinker", "bubus", "logfire", "pydantic")


def main(names: list[str]) -> int:
    """Run the groups named (default: all) and print the table."""
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; " + ", ".join(_versions())
    )
    print("median of paired rounds; ratio = ours / peer, with the middle half of the rounds' ratios\n")
    heading = f"{'measure':<52}{'ours':>11}  {'peer':<30}{'':>11}{'ratio':>8}  {'middle half':<14}"
    print(heading + f"{'reach':>6}")
    missed = 0
    below: list[str] = []
    for group in names or GROUPS:
        rows, lines = _run(group)
        below += lines
        for row in rows:
            verdict = {True: "", False: "  NOT REACHED", None: ""}[row.is_reached]
            missed += row.is_reached is False
            low, high = row.spread
            reach = "" if row.reach is None else f"{row.reach:.3g}"
            print(
                f"{row.measure:<52}{_figure(row.ours, row.unit):>11}  "
                f"{row.peer_name:<30}{_figure(row.peer, row.unit):>11}"
                f"{row.ratio:>8.3f}  {f'{low:.3f}-{high:.3f}':<14}{reach:>6}{verdict} {row.note}",
                flush=True,
            )
    if missed:
        print(f"\n{missed} not reached")
    if below:
        print("\n" + "\n".join(below))
    print("\nload average " + ", ".join(f"{load:.2f}" for load in os.getloadavg()))
    return 0


def _run(group: str):
    """Return a group's rows and the lines it has below the table."""
    environment = {**os.environ, "PYDANTIC_DISABLE_PLUGINS": "" if group == "by_logfire" else "__all__"}
    code = f"import tests.benchmarks.__main__ as m; m.child({group!r})"
    run = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=False)
    if run.returncode:
        print(f"group {group} failed (exit {run.returncode})")
        return [], []
    return pickle.loads(run.stdout.split(b"\n--rows--\n")[-1])


def child(group: str) -> None:
    """Run one group and write its rows, and its lines below the table, to standard output, pickled."""
    module = importlib.import_module(f"tests.benchmarks.{group}")
    rows = [case() for case in module.CASES]
    flat = [row for made in rows for row in (made if isinstance(made, list) else [made])]
    below = [line for case in getattr(module, "BELOW", ()) for line in (*case(), "")]
    sys.stdout.flush()
    sys.stdout.buffer.write(b"\n--rows--\n" + pickle.dumps((flat, below)))


def _figure(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def _versions():
    for name in PEERS:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} absent"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
