"""Read a guide: every function, setting, command, endpoint, span, log line, file, query and step that it names.

Each becomes an `Item` of a kind and a text, in the section that names it first. What is left out is prose.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Item", "items_of"]

METRIC = re.compile(r"\b(?:tiny_dancer|orchestrator|tinyllm|dynamic_moe)_[a-z_]+[a-z]\b")
ENDPOINT = re.compile(r"https?://(?:localhost|[a-z-]+(?=:\d))(?::\d+)?[\w/.-]*")
CALL = re.compile(r"(?<![\w\"'/.-])((?:[A-Za-z_]\w*(?:::|\.))*[A-Za-z_]\w*!?)\(")
IMPORTED = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import\s+|use\s+([\w:]+)::\{?)([^;()]*|\([^)]*\))", re.MULTILINE)
KEYWORD = re.compile(r"(?:(?<=\()|(?<=,)|(?<=\s))([a-z_]{3,})(?:=(?!=)|:\s)(?=[\"'\[{\w])")
VARIABLE = re.compile(r"^\s*(?:ENV|-)\s+([A-Z][A-Z_]+)=", re.MULTILINE)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[\w./*-]+\.(?:yml|yaml|json|log|txt|svg|exe)\b|docker-compose\.yml|Dockerfile")
STEPS = {"Troubleshooting", "Debugging Performance Issues", "Common Issues", "Debug Mode"}


class Item(NamedTuple):
    """One thing that a guide names."""

    kind: str
    text: str
    section: str


def items_of(guide: str) -> list[Item]:
    """Return what the Markdown text of a guide names, each once, in the order of its first mention."""
    found: dict[tuple[str, str], Item] = {}
    for section, level_above, body in _sections(guide):
        for kind, text in _named(body, is_steps=bool(STEPS & {section, *level_above})):
            found.setdefault((kind, text), Item(kind, text, section))
    return list(found.values())


def _sections(guide: str) -> Iterator[tuple[str, list[str], str]]:
    """Yield heading, the headings above it, and the text below it; a ``#`` inside a code block is no heading."""
    blanked = FENCE.sub(lambda block: re.sub(r"(?m)^#", "\0", block[0]), guide)
    path: list[tuple[int, str]] = []
    for part in re.split(r"(?m)^(?=#{1,5} )", blanked):
        heading = re.match(r"(#{1,5}) (.+)", part)
        if heading:
            level = len(heading[1])
            path = [*((n, title) for n, title in path if n < level), (level, heading[2].strip())]
        title = path[-1][1] if path else ""
        yield title, [above for _, above in path], part.replace("\0", "#")


def _named(body: str, *, is_steps: bool) -> Iterator[tuple[str, str]]:
    prose = FENCE.sub("", body)
    for _, language, block in FENCE.findall(body):
        yield from _in_block(language, block)
    for name in METRIC.findall(prose):
        yield "metric", name
    for url in ENDPOINT.findall(prose):
        yield "endpoint", url
    for code in re.findall(r"`([^`\n]+)`", prose):
        yield from _in_code_span(code)
    if is_steps:
        for line in re.findall(r"(?m)^\s*(?:[-*]|\d+\.)\s+(.+?):?$|^\*\*(.+?):?\*\*$", prose):
            yield "step", re.sub(r"[*`]", "", line[0] or line[1]).rstrip(":")


def _in_code_span(code: str) -> Iterator[tuple[str, str]]:
    if code.startswith(("curl ", "docker ")):
        yield "command", code
    elif FILE.fullmatch(code):
        yield "file", code
    elif re.fullmatch(r"[a-z]+_[a-z_]+", code) and not METRIC.fullmatch(code):
        yield "span or label", code


def _in_block(language: str, block: str) -> Iterator[tuple[str, str]]:
    for name in METRIC.findall(block):
        yield "metric", name
    for url in ENDPOINT.findall(block):
        yield "endpoint", url
    for name in VARIABLE.findall(block):
        yield "variable", name
    for name in FILE.findall(block):
        yield "file", name
    if language in {"bash", "powershell"}:
        yield from (("command", line) for line in _commands(block))
    elif language == "promql":
        yield from (("query", query) for query in _queries(block))
    elif language in {"python", "rust"}:
        yield from _in_program(block)
    elif language in {"yaml", "json", "dockerfile"}:
        yield from _in_configuration(block)
    elif not language and re.search(r"(?m)^(?:INFO|DEBUG) ", block):
        yield from (("log line", line) for line in block.splitlines() if line)


def _commands(block: str) -> list[str]:
    joined = re.sub(r"\s*\\\n\s*", " ", block)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _queries(block: str) -> list[str]:
    parts = re.split(r"\n\s*\n|^\s*#.*$", block, flags=re.MULTILINE)
    return [" ".join(part.split()) for part in parts if part.strip()]


def _in_program(block: str) -> Iterator[tuple[str, str]]:
    code = re.sub(r"(?m)(?<![:\"'\w/])(?:#|//).*$", "", block)
    for module, package, names in IMPORTED.findall(code):
        yield "module", module or package
        for name in re.findall(r"[A-Za-z_]\w*", names):
            yield "function", name
    for call in CALL.findall(code):
        yield "function", call.split("::")[-1] if call.endswith("!") else call
    for setting in KEYWORD.findall(code):
        yield "setting", setting
    for name in re.findall(r"\b(?:LogEvent|HealthStatus|EventCategory|EventSeverity)\.[A-Z_]+", code):
        yield "function", name


def _in_configuration(block: str) -> Iterator[tuple[str, str]]:
    for name in re.findall(r"(?m)^\s*-?\s*alert: (\w+)", block):
        yield "alert", name
    for query in re.findall(r"(?m)^\s*expr: ([^|\n].*)$", block):
        yield "query", query
    for _, query in re.findall(r"(?m)^( *)expr: \|\n((?:\1 +.*\n)+)", block):
        yield "query", " ".join(query.split())
    for text in re.findall(r'"expr": ("(?:[^"\\]|\\.)*")', block):
        yield "query", json.loads(text)
    for title in re.findall(r'"title": "([^"]+)"', block):
        yield "panel", title
    for image in re.findall(r"(?m)^\s*image: (\S+)", block):
        yield "image", image
    for key in re.findall(
        r"(?m)^\s*(?:- )?\"?(scrape_interval|retention|time|size|path|containerPort|prometheus\.io/\w+|hosts|index|initialDelaySeconds|interval|job_name|type|indices|webhook|gt|status|message|duration_ms|usage_percent|available_bytes|total_checks)\"?: *(\S.*)?$",
        block,
    ):
        yield "key", f"{key[0]}: {key[1]}".rstrip(" ,{[").rstrip(":")
