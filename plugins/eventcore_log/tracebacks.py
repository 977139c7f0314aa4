"""Tracebacks in colour, by rich, where it is installed (it comes with ``eventcore[cli]``).

What is coloured is the text that stands in every other output: without locals, searched for secrets, its control
characters escaped. rich's own ``Traceback`` would read the source anew, and show whole lines around each frame that
nobody has searched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["highlighter"]


def highlighter() -> Callable[[str], str] | None:
    """Return what colours the text of a traceback and leaves every line of it in its place; None without rich."""
    try:
        from rich.console import Console
        from rich.syntax import Syntax
    except ModuleNotFoundError:
        return None
    console = Console(force_terminal=True, color_system="standard", no_color=False, legacy_windows=False)
    syntax = Syntax("", "pytb", theme="ansi_dark", background_color="default")

    def highlighted(text: str) -> str:
        with console.capture() as captured:
            console.print(syntax.highlight(text), end="", soft_wrap=True, markup=False, emoji=False, highlight=False)
        return captured.get().rstrip("\n")

    return highlighted
