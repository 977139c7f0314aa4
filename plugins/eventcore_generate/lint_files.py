"""Finds the PromQL in files, with the line that each expression is on.

Rules (Prometheus' YAML, or a Kubernetes ``PrometheusRule``), dashboards (Grafana's JSON, bare or within
``{"dashboard": …}``, their variables included), scrape configurations (for the names of jobs), and guides in Markdown
with any of these, or plain queries, in their code blocks. LogQL, which rule files of Loki and dashboards hold too, is
left out.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from eventcore.errors import EventCoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["SUFFIXES", "Found", "Query", "Recorded", "Targets", "Unreadable", "queries_in", "read"]

SUFFIXES = (".json", ".md", ".yaml", ".yml")
_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`|#.*')
"""Strings and comments of an expression."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression: where it is, and what it is for.

    ``labels``: labels of its result that are named beside it, and by whom: a legend, the texts of an alert, Grafana's
    ``label_values(expression, label)``.
    """

    file: str
    line: int
    where: str
    expression: str
    has_own_lines: bool = False
    labels: tuple[tuple[str, str], ...] = ()

    def line_of(self, token: str) -> int:
        """Return the line of a part of the expression: where it stands as a word, else within a string."""
        if not token or not self.has_own_lines:
            return self.line
        word = re.compile(rf"(?<![\w:]){re.escape(token)}(?![\w:])" if token[-1].isalnum() else re.escape(token))
        found = word.search(_blanked(self.expression)) or word.search(_blanked(self.expression, strings=False))
        return self.line + (self.expression.count("\n", 0, found.start()) if found else 0)


def _blanked(expression: str, *, strings: bool = True) -> str:
    """Return the expression with comments, and strings if asked, made blank."""
    return _TEXTS.sub(
        lambda text: re.sub(r"[^\n]", " ", text[0]) if strings or text[0].startswith("#") else text[0], expression
    )


@dataclass(frozen=True, slots=True)
class Recorded:
    """A series that a recording rule makes."""

    name: str
    expression: str
    labels: dict[str, str]


@dataclass(slots=True)
class Targets:
    """What scrape configurations say of targets: the jobs (None: no configuration was read) and further labels.

    ``is_open``: relabelling or discovery may add labels that are not known here.
    """

    jobs: frozenset[str] | None = None
    labels: set[str] = field(default_factory=set)
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file, or a code block in it, that is not what it says it is."""

    file: str
    line: int
    reason: str


@dataclass(slots=True)
class Found:
    """What the files hold."""

    queries: list[Query] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    targets: Targets = field(default_factory=Targets)
    unreadable: list[Unreadable] = field(default_factory=list)
    left_out: int = 0


class Text(str):
    """A string that knows the line it begins on, and whether its line breaks are those of the file."""

    __slots__ = ("has_own_lines", "line")
    line: int
    has_own_lines: bool

    @classmethod
    def at(cls, value: str, line: int, *, has_own_lines: bool = False) -> Text:
        """Return the string with its place."""
        text = cls(value)
        text.line, text.has_own_lines = line, has_own_lines
        return text


def read(path: Path, found: Found) -> None:
    """Add what one file holds. EventCoreError: it cannot be read, or has a suffix that means nothing here."""
    if path.suffix.lower() not in SUFFIXES and path.exists():
        raise EventCoreError(f"{path}: what is in it is told by its suffix; name it {' or '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EventCoreError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise EventCoreError(f"{path} cannot be read: {error}; save it as UTF-8") from None
    queries_in(str(path), path.suffix.lower(), text, found)


def queries_in(file: str, suffix: str, text: str, found: Found) -> None:
    """Add what a text of this kind holds."""
    if suffix == ".md":
        _read_markdown(file, text, found)
    elif suffix == ".json":
        _read_data(file, _json, text, 1, found)
    else:
        _read_data(file, _yaml, text, 1, found)


def _read_data(file: str, load: Any, text: str, line: int, found: Found) -> None:
    try:
        documents = load(text)
    except (ValueError, yaml.YAMLError) as error:
        at, reason = _mistake(error)
        found.unreadable.append(Unreadable(file, line + at, reason))
        return
    for document in documents:
        _Reader(file, line - 1, found).document(document)


def _mistake(error: Exception) -> tuple[int, str]:
    """Return the line of a mistake, from 0, and what it is."""
    if isinstance(error, json.JSONDecodeError):
        return error.lineno - 1, f"this is no JSON: {error.msg} at column {error.colno}"
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or error
    return (mark.line if mark is not None else 0), f"this is no YAML: {what}"


# -- data with lines ---------------------------------------------------------------------------------------------------

_JSON_EXPRESSION = re.compile(r'"(?:expr|query)"\s*:\s*("(?:[^"\\]|\\.)*")')


def _json(text: str) -> list[Any]:
    """Parse JSON into data whose expressions know their line."""
    lines: defaultdict[str, deque[int]] = defaultdict(deque)
    document = json.loads(text)
    for match in _JSON_EXPRESSION.finditer(text):
        lines[json.loads(match[1], strict=False)].append(text.count("\n", 0, match.start(1)) + 1)
    return [_located(document, lines)]


def _located(node: Any, lines: Mapping[str, deque[int]]) -> Any:
    """Give expressions their lines, which are in the order of the document."""
    if isinstance(node, list):
        return [_located(each, lines) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: Text.at(value, lines[value].popleft())
        if key in ("expr", "query") and isinstance(value, str)
        else _located(value, lines)
        for key, value in node.items()
    }


class _Loader(yaml.SafeLoader):
    """SafeLoader, whose strings know their line."""


def _construct(loader: _Loader, node: yaml.ScalarNode) -> Text:
    is_block = node.style == "|"
    return Text.at(loader.construct_scalar(node), node.start_mark.line + 1 + is_block, has_own_lines=is_block)


_Loader.add_constructor("tag:yaml.org,2002:str", _construct)


def _yaml(text: str) -> list[Any]:
    """Parse YAML into data whose strings know their line."""
    return list(yaml.load_all(text, Loader=_Loader))


# -- documents ---------------------------------------------------------------------------------------------------------

_LABEL_VALUES = re.compile(r"\s*label_values\(\s*(?:(?P<expression>.*\S)\s*,\s*)?(?P<label>[\w$]+)\s*\)\s*", re.DOTALL)
_QUERY_RESULT = re.compile(r"\s*query_result\((?P<expression>.*)\)\s*", re.DOTALL)
_LEGEND = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_IN_TEXT = re.compile(r'\$labels\.(\w+)|\bindex\s+\$labels\s+"(\w+)"')


class _Reader:
    """Collects from one document."""

    def __init__(self, file: str, offset: int, found: Found) -> None:
        self._file = file
        self._offset = offset
        self._found = found

    def document(self, document: Any) -> None:
        self._targets(document)
        self._walk(document, "", is_prometheus=True)

    def _walk(self, node: Any, where: str, *, is_prometheus: bool) -> None:
        if isinstance(node, list):
            for each in node:
                self._walk(each, where, is_prometheus=is_prometheus)
            return
        if not isinstance(node, dict):
            return
        where = _where(node, where)
        is_prometheus = _is_prometheus(node.get("datasource"), otherwise=is_prometheus)
        expression = node.get("expr")
        if isinstance(expression, Text) and expression.strip():
            self._add(expression, where, is_prometheus=is_prometheus, labels=_named_beside(node))
            if isinstance(node.get("record"), str):
                labels = {str(label): str(value) for label, value in (node.get("labels") or {}).items()}
                self._found.recorded.append(Recorded(node["record"], expression, labels))
        if node.get("type") == "query" and "name" in node:
            self._variable(node, is_prometheus=is_prometheus)
        for key, value in node.items():
            if key != "annotations" or not isinstance(node.get("alert"), str):  # their texts are templates, not queries
                self._walk(value, where, is_prometheus=is_prometheus)

    def _variable(self, node: dict[str, Any], *, is_prometheus: bool) -> None:
        query = node.get("query")
        text = query.get("query") if isinstance(query, dict) else query
        if not isinstance(text, Text):
            return
        where = f"variable {node['name']!r}"
        values, result = _LABEL_VALUES.fullmatch(text), _QUERY_RESULT.fullmatch(text)
        if values is not None and values["expression"]:
            self._add(
                text,
                where,
                is_prometheus=is_prometheus,
                part=values["expression"],
                labels=(("label_values", values["label"]),),
            )
        elif result is not None:
            self._add(text, where, is_prometheus=is_prometheus, part=result["expression"])

    def _add(
        self,
        text: Text,
        where: str,
        *,
        is_prometheus: bool,
        part: str | None = None,
        labels: tuple[tuple[str, str], ...] = (),
    ) -> None:
        if not is_prometheus or "|" in _blanked(text):  # only LogQL pipes
            self._found.left_out += 1
            return
        expression = str(text) if part is None else part
        line = text.line + self._offset
        self._found.queries.append(Query(self._file, line, where, expression, text.has_own_lines, labels))

    def _targets(self, document: Any) -> None:
        configs = document.get("scrape_configs") if isinstance(document, dict) else None
        for config in configs if isinstance(configs, list) else ():
            if not isinstance(config, dict) or "job_name" not in config:
                continue
            targets = self._found.targets
            targets.jobs = (targets.jobs or frozenset()) | {str(config["job_name"])}
            for static in config.get("static_configs") or ():
                targets.labels |= {str(label) for label in (static.get("labels") or {})}
            relabels = [*(config.get("relabel_configs") or ()), *(config.get("metric_relabel_configs") or ())]
            targets.labels |= {str(each["target_label"]) for each in relabels if "target_label" in each}
            if any(str(key).endswith("_sd_configs") for key in config) or any(
                each.get("action") == "labelmap" for each in relabels
            ):
                targets.is_open = True


def _where(node: dict[str, Any], where: str) -> str:
    """Name a node as its reader would: the alert, the recording rule, the panel."""
    for key, what in (("alert", "alert"), ("record", "rule")):
        if isinstance(node.get(key), str) and "expr" in node:
            return f"{what} {node[key]!r}"
    if isinstance(node.get("title"), str) and node["title"]:
        return f"{'panel' if 'targets' in node else 'dashboard'} {node['title']!r}"
    return where


def _named_beside(node: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the labels that the legend of a panel's query, or the texts of an alert, take from the result."""
    named = [("legendFormat", label) for label in _LEGEND.findall(str(node.get("legendFormat") or ""))]
    for key in ("annotations", "labels") if isinstance(node.get("alert"), str) else ():
        texts = node.get(key)
        for name, text in texts.items() if isinstance(texts, dict) else ():
            found = (match[1] or match[2] for match in _IN_TEXT.finditer(str(text)))
            named += [(f"{key.removesuffix('s')} {name!r}", label) for label in found]
    return tuple(dict.fromkeys(each for each in named if each[1] != "__name__"))


def _is_prometheus(datasource: Any, *, otherwise: bool) -> bool:
    kind = datasource.get("type") if isinstance(datasource, dict) else None
    return kind == "prometheus" if isinstance(kind, str) and kind else otherwise


# -- Markdown ----------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*(\w*)[^`]*$")


def _read_markdown(file: str, text: str, found: Found) -> None:
    """Read the code blocks; of YAML and JSON only those that hold an expression or a scrape configuration."""
    for language, line, block in _blocks(text):
        if language in ("promql", "prometheus"):
            for at, query in _paragraphs(block):
                found.queries.append(Query(file, line + at, "query", query, has_own_lines=True))
        elif language in ("yaml", "yml") and re.search(r"\bexpr\s*:|\bscrape_configs\s*:", block):
            _read_data(file, _yaml, block, line, found)
        elif language == "json" and '"expr"' in block:
            _read_data(file, _json, block, line, found)


def _blocks(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield language, line of the first line inside, and text of each fenced block, less its indentation."""
    lines = text.splitlines()
    opened: tuple[str, str, str, int] | None = None
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened = (fence[1], fence[2], fence[3].lower(), number + 1)
        elif opened is not None and line.strip().startswith(opened[1]) and not line.strip().strip(opened[1][0]):
            indent, _, language, first = opened
            yield language, first, "\n".join(each.removeprefix(indent) for each in lines[first - 1 : number - 1])
            opened = None


def _paragraphs(block: str) -> Iterator[tuple[int, str]]:
    """Yield the queries of a block and their lines, from 0: they are parted by empty lines and comments."""
    part: list[str] = []
    for number, line in enumerate([*block.splitlines(), ""]):
        if line.strip() and not line.lstrip().startswith("#"):
            part.append(line)
        elif part:
            yield number - len(part), "\n".join(part)
            part = []
