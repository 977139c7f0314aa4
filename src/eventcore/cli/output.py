"""How commands speak: text in the terminal's width, JSON as it is, errors on stderr.

Colours are rich's, which honours NO_COLOR. Text may come from another process or from events, so control characters
are shown escaped, and nothing in it is markup.
"""

from __future__ import annotations

import json
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AsJson", "fail", "note", "say", "say_about", "say_json", "say_table"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; keys may be added, none is renamed or removed.")]


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def say(text: str = "", *, indent: int = 0, style: str = "") -> None:
    """Print text, wrapped and indented."""
    console = _console()
    for line in text.split("\n"):
        for part in wrap(printable(line), max(20, console.width - indent), break_on_hyphens=False) or [""]:
            console.print(Text(" " * indent + part, style=style), soft_wrap=True)


def say_about(label: str, text: str, *, indent: int = 2, width: int = 10) -> None:
    """Print ``text`` beside a label, its further lines below each other."""
    console = _console()
    room = max(20, console.width - indent - width)
    lines = [part for line in text.split("\n") for part in wrap(printable(line), room, break_on_hyphens=False) or [""]]
    for number, line in enumerate(lines):
        console.print(Text(" " * indent + f"{label if number == 0 else '':<{width}}{line}".rstrip()), soft_wrap=True)


def say_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], *, title: str = "") -> None:
    """Print a table; columns whose name begins with ``#`` are numbers, set to the right."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(
            column.removeprefix("#"), justify="right" if column.startswith("#") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    _console().print(table)


def say_json(answer: Any) -> None:
    """Print JSON."""
    typer.echo(json.dumps(answer, indent=2, default=str))


def fail(error: object, code: int = 2) -> NoReturn:
    """Print one error and end: 2 where there is no answer, 1 for a bad one."""
    _console(stderr=True).print(Text(printable(f"error: {error}"), style="red"), soft_wrap=True)
    raise typer.Exit(code)


def note(text: str) -> None:
    """Print a remark on stderr, beside an answer that others read."""
    _console(stderr=True).print(Text(printable(text)), soft_wrap=True)


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
