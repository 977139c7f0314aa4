"""Read a guide: every function, setting, command, endpoint, span, log line, file, query and step that it names.

Each becomes an `Item` of a kind and a text, under the chapter that names it first. Code is read by its language: Python
and YAML by their parsers, the rest line by line; of the prose, lists, tables and what is set as code. Left out are
running text, contents and references, and what belongs to the language: keywords, built-ins, the standard library.
"""

from __future__ import annotations

import ast
import builtins
import re
from typing import TYPE_CHECKING, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Item", "chapters_of", "items_of"]

METRIC = re.compile(
    r"\b(?:tiny_dancer|orchestrator|tinyllm|dynamic_moe)_[a-z_]+[a-z]\b(?!\.yml|:)(?:\{[^{}=]*(?:=\"[^\"]*\")?\})?"
)
DERIVED = re.compile(r"_(?:bucket|sum|count)$")
ENDPOINT = re.compile(r"(?:https?://)?(?:localhost|0\.0\.0\.0|(?<=//)(?:jaeger|model-api)):\d{4,5}[\w/-]*")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LISTED = re.compile(r"(?m)^\s*(?:[-*]|\d+\.)\s+(.+?)$|^(\*\*[^*]+\*\*)$")
LABELLED = re.compile(r"\b(\w+=\"[\w-]+\")")
SKIPPED = {"Table of Contents", "Reference"}
FILE = re.compile(r"(?m)^# (\S+\.ya?ml|Dockerfile)$|\"([\w/-]+\.(?:log|json|svg))\"")
STANDARD = {
    *("std::time", "std::error::Error", "Duration", "Instant", "Instant::now", "start.elapsed", "Some", "Ok", "main"),
    *("println!", "to_string", "unwrap_or_default", "init", "with", "tx.capacity"),
    *(*dir(builtins), "__init__", "h.__class__", "os.getpid", "subprocess", "subprocess.run", "time.time", "uuid"),
    *("uuid.uuid4", ""),
}
CHOICES = {"exporter", "exporter_type", "log_format", "log_level", "hash_based"}
MOJIBAKE = {"\xe2\u2020\u2019": "→", "\xce\xbc": "μ"}
"""UTF-8 that was read as Windows-1252, in the orchestrator's guide."""


class Item(NamedTuple):
    """One thing that a guide names."""

    kind: str
    text: str
    chapter: str


def items_of(guide: str) -> list[Item]:
    """Return what the Markdown text of a guide names, each once, in the order of its first mention."""
    for wrong, right in MOJIBAKE.items():
        guide = guide.replace(wrong, right)
    found: dict[str, Item] = {}
    for chapter, section, body in _sections(guide):
        if section not in SKIPPED:
            for kind, text in _named(body):
                found.setdefault(text, Item(kind, text, chapter))
    defined = {text.split("{")[0] for text, item in found.items() if item.kind == "metric" and "{" in text}
    listed = {text.split("{")[0] for text in found if "{" in text and "=" not in text}
    return [item for item in found.values() if not _is_repeated(item, defined, listed)]


def chapters_of(guide: str) -> list[str]:
    """Return the guide's headings of the second level."""
    return list(dict.fromkeys(chapter for chapter, _, _ in _sections(guide)))


def _is_repeated(item: Item, defined: set[str], listed: set[str]) -> bool:
    """Tell whether a metric is one that is defined with its labels: bare, a series of a histogram, or one sample."""
    if item.kind != "metric":
        return False
    name, brace, labels = item.text.partition("{")
    if brace:
        return "=" in labels and DERIVED.sub("", name) in listed
    return name in defined or DERIVED.sub("", name) in defined


def _sections(guide: str) -> Iterator[tuple[str, str, str]]:
    """Yield chapter, heading, and the text below it; a ``#`` inside a code block is no heading."""
    blanked = FENCE.sub(lambda block: re.sub(r"(?m)^#", "\0", block[0]), guide)
    chapter = title = ""
    for part in re.split(r"(?m)^(?=#{1,5} )", blanked):
        heading = re.match(r"(#{1,5}) (.+)", part)
        if heading:
            title = heading[2].strip()
            chapter = title if len(heading[1]) <= 2 else chapter
        yield chapter, title, part.replace("\0", "#")


def _named(body: str) -> Iterator[tuple[str, str]]:
    for _, language, block in FENCE.findall(body):
        yield from _in_block(language, block)
    prose = FENCE.sub("", body)
    yield from _in_tables(prose)
    for name in METRIC.findall(prose):
        yield "metric", name
    for url in ENDPOINT.findall(prose):
        yield "endpoint", url
    for code in re.findall(r"`([^`\n]+)`", prose):
        if not METRIC.fullmatch(code) and not ENDPOINT.fullmatch(code):
            yield "name", code
    for listed, bold in LISTED.findall(prose):
        text = _plain(listed or bold)
        if text and not re.search(r"^\[|\w\?$|!$", text):  # no links, questions, exclamations
            yield "point", text


def _plain(text: str) -> str:
    """Return a point of a list: its head where that is set apart in bold or as code, else all of it."""
    head = re.match(r"\*\*(.+?)\*\*|`(\w+)`: ", text)
    return re.sub(r"[*`]", "", head[1] or head[2] if head else text).rstrip(":").strip()


def _in_tables(prose: str) -> Iterator[tuple[str, str]]:
    """Yield the metrics of a table with their labels, and the buckets of histograms."""
    for line in re.findall(r"(?m)^\| `.+", prose):
        metric, labels, *further = (cell.strip().replace("`", "") for cell in line.strip("| \n").split(" | "))
        yield "metric", f"{metric}{{{labels}}}"
        if len(further) == 2:
            yield "buckets", f"{metric}: {further[0]}"


def _in_block(language: str, block: str) -> Iterator[tuple[str, str]]:
    yield from READERS.get(language, _in_output)(block)
    yield from (("metric", name) for name in METRIC.findall(block))
    yield from (("endpoint", url) for url in ENDPOINT.findall(block))
    yield from (("file", commented or quoted) for commented, quoted in FILE.findall(block))


def _in_output(block: str) -> Iterator[tuple[str, str]]:
    """Yield lines of logs and commands, comments and labels of an exposition, words of a drawing."""
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    if "─" in block:
        yield from (("component", word) for word in re.findall(r"│ +(/?[A-Z][A-Za-z /]*?) +│", block))
    elif "{" in block:
        yield from (("output", line) for line in lines if line.startswith("#"))
        if "# TYPE" in block:
            yield from (("label", text) for text in LABELLED.findall(block) if not text.startswith("le="))
    else:
        yield from (("output", line) for line in lines if not METRIC.fullmatch(line))


def _in_shell(block: str) -> Iterator[tuple[str, str]]:
    joined = re.sub(r"\s*\\\n\s*", " ", block)
    for line in joined.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield "command", line.strip()


def _in_promql(block: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"\n\s*\n|^\s*#.*$", block, flags=re.MULTILINE):
        if part.strip():
            yield "query", " ".join(part.split())


def _in_dockerfile(block: str) -> Iterator[tuple[str, str]]:
    yield from (("line", line.split("  #")[0]) for line in block.splitlines() if re.match("ENV|EXPOSE", line))


def _in_python(block: str) -> Iterator[tuple[str, str]]:
    try:
        tree = compile(block, "<guide>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        if all(line.startswith("#") or METRIC.fullmatch(line) for line in block.splitlines() if line):
            return  # the MoE guide prints its metrics in blocks that it calls Python
        raise
    for node in ast.walk(tree):
        for kind, text in _in_node(node):
            if text not in STANDARD:
                yield kind, text


def _in_node(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Import(names=names):
            yield from (("module", alias.name) for alias in names)
        case ast.ImportFrom(module=module, names=names):
            yield "module", module or ""
            yield from (("function", alias.name) for alias in names)
        case ast.ClassDef(name=name, bases=bases):
            yield "function", name
            yield from (("function", ast.unparse(base)) for base in bases)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield "function", name
        case ast.Call():
            yield from _in_call(node)
        case ast.Attribute(value=ast.Name(id=owner), attr=attribute) if owner != "self":
            yield "name", f"{owner}.{attribute}"
        case ast.Subscript(slice=ast.Constant(value=str())):
            yield "field", ast.unparse(node)
        case ast.Dict(keys=keys):
            yield from (("field", key.value) for key in keys if isinstance(key, ast.Constant))


def _in_call(call: ast.Call) -> Iterator[tuple[str, str]]:
    function = ast.unparse(call.func)
    if "(" not in function:
        yield "function", function
    for keyword in call.keywords:
        yield "setting", keyword.arg or ""
        if keyword.arg in CHOICES:
            yield "setting", f"{keyword.arg}={ast.unparse(keyword.value)}"
    if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
        yield "text", call.args[0].value


def _in_rust(block: str) -> Iterator[tuple[str, str]]:
    code = re.sub(r"(?m)(?<![:\"'\w/])//.*$|\"[^\"\n]*\"", '""', block)
    for module, names in re.findall(r"(?m)^use ([\w:]+?)(?:::\{([^}]*)\})?;", code):
        if module not in STANDARD:
            yield "module", module
            yield from (("function", name.split("::")[-1].strip()) for name in names.split(",") if name.strip())
    code = re.sub(r"(?ms)^use .*?;|^#\[.*?\]", "", code)
    for call in re.findall(r"(?<![\w\"/])((?:[A-Za-z_]\w*(?:::|\.))*[A-Za-z_]\w*!?)\(", code):
        if call not in STANDARD:
            yield "function", call
    yield from (("setting", name) for name in re.findall(r"(?m)^\s+([a-z_]{3,}): ", code))
    yield from (("name", name) for name in re.findall(r"(?<![\w.])([a-z_]+\.[a-z_]+)(?![\w(.!])", code))
    for name in re.findall(r"(?<!\w)((?:\w+::)+[A-Z]\w*)(?!\w|\(|::)", code):
        if name not in STANDARD:
            yield "name", name


def _in_configuration(block: str) -> Iterator[tuple[str, str]]:
    yield from _in_yaml(yaml.compose(block), "")


def _in_yaml(node: yaml.Node | None, path: str) -> Iterator[tuple[str, str]]:
    """Yield every leaf with its path; repeated keys, as guides print alternatives, are all there."""
    match node:
        case yaml.MappingNode(value=pairs):
            for key, value in pairs:
                yield from _in_yaml(value, f"{path}.{key.value}".lstrip("."))
        case yaml.SequenceNode(value=nodes):
            for value in nodes:
                yield from _in_yaml(value, path)
        case yaml.ScalarNode(value=text):
            kind = {"expr": "query", "alert": "alert", "title": "panel"}.get(path.rsplit(".", maxsplit=1)[-1], "key")
            value = " ".join(text.split())
            yield kind, value if kind != "key" else f"{path}: {value}"


READERS = {
    "bash": _in_shell,
    "powershell": _in_shell,
    "promql": _in_promql,
    "python": _in_python,
    "rust": _in_rust,
    "yaml": _in_configuration,
    "json": _in_configuration,
    "dockerfile": _in_dockerfile,
}
