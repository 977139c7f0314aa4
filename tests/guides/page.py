"""Build ``docs/from-the-guides.md`` from its data: ``python -m tests.guides.page``.

The data is a row per answer: the guides' own words (``names``), and what answers them. ``status`` is

- ``here``: ``here`` says what to write, run or query instead, ``query`` is PromQL, ``test`` shows that it works;
- ``later``: it comes with an engine that does not exist yet; ``why`` says what with, ``query`` is what will be asked;
- ``not``: there is none, and ``why``;
- ``example``: the guide's own example, no interface.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DATA", "PAGE", "build", "listed", "load", "main"]

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "from-the-guides.yaml"
PAGE = DOCS / "from-the-guides.md"
COMMAND = "python -m tests.guides.page"

TITLES = {
    "tiny-dancer": "Tiny Dancer",
    "tokio-prompt-orchestrator": "tokio-prompt-orchestrator",
    "tinyllm": "TinyLLM",
    "dynamic-moe-router-kit": "dynamic-moe-router-kit",
}
WORDS = {"here": "", "later": "*Later.* ", "not": "*Not here.* ", "example": "*The guide's example.* "}


def load() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the rows by guide and chapter."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return rows


def listed(value: Any) -> list[str]:
    """Return one or several of something, or none, as a list."""
    return value if isinstance(value, list) else [value] if value else []


def build(guides: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return the page."""
    lines = [
        f"<!-- Made by `{COMMAND}` from from-the-guides.yaml; change that, and make it anew. -->",
        "",
        "# Coming from one of the four guides",
        "",
        "Whatever the guides of Tiny Dancer, tokio-prompt-orchestrator, TinyLLM and dynamic-moe-router-kit name, from",
        "functions and settings to queries and troubleshooting steps, is in these tables: what it is here and which",
        "test shows it, or why there is none. `tests/guides` fails where a word of a guide has no row, a test is gone,",
        "a command or a query does not parse. *Later* is what comes with the engines that are not built yet: the",
        "pipeline of the orchestrator and TinyLLM, and the MoE kit's experts.",
        "",
        "| guide | names | here | later | not here | examples |",
        "|---|---|---|---|---|---|",
    ]
    for guide, chapters in guides.items():
        rows = [row for chapter in chapters.values() for row in chapter]
        counts = [sum(len(row["names"]) for row in rows if row["status"] == status) for status in WORDS]
        cells = [f"[{TITLES[guide]}](#{_anchor(TITLES[guide])})", sum(counts), *counts]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for guide, chapters in guides.items():
        lines += ["", f"## {TITLES[guide]}"]
        for chapter, rows in chapters.items():
            lines += ["", f"### {chapter}", "", "| the guide's | here | shown by |", "|---|---|---|"]
            lines += [_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _row(row: dict[str, Any]) -> str:
    names = ", ".join(_code(name) for name in row["names"])
    answer = WORDS[row["status"]] + (row.get("here") or row.get("why") or "").strip().replace("|", r"\|")
    queries = ", ".join(_code(query) for query in listed(row.get("query")) if query not in row["names"])
    if queries and answer:
        answer = f"{answer.rstrip(':')}:"
    tests = ", ".join(f"[{test.split('::')[1]}](../{test.split('::')[0]})" for test in listed(row.get("test")))
    return f"| {names} | {' '.join(part for part in (answer, queries) if part)} | {tests or '–'} |"


def _code(text: str) -> str:
    """Return ``text`` as code in a cell of a table."""
    return f"`{text}`".replace("|", r"\|")


def main() -> None:
    """Write the page."""
    PAGE.write_text(build(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
