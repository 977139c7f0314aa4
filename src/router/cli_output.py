"""What the commands of ``router`` share: where they write, how they fail, how they show that they are at work."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from router.errors import RouterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["errors", "progress", "say", "stderr", "stdout", "warn"]

stdout = Console()
stderr = Console(stderr=True)


@contextmanager
def errors() -> Iterator[None]:
    """End with exit code 2 and one line for what went wrong."""
    try:
        yield
    except RouterError as error:
        line = " ".join(str(error).split())  # a library's reason may have several
        stderr.print(f"error: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


@contextmanager
def progress(total: int | None = None) -> Iterator[Callable[[str], None]]:
    """Show what is being done; every message is a step. Nothing is shown where nobody looks."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as shown:
        task = shown.add_task("", total=total)

        def tell(message: str) -> None:
            shown.update(task, description=message, advance=1)

        yield tell


def warn(line: str) -> None:
    """Print a line beside the result that its reader should know."""
    stderr.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line as it is, however long."""
    stdout.print(line, markup=False, highlight=False, soft_wrap=True)
