"""The linter: every expression of dashboards, rules and guides, held against the series that exist."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from eventcore.errors import EventCoreError
from eventcore_generate.lint_files import SUFFIXES, Found, read
from eventcore_generate.lint_known import Vocabulary
from eventcore_generate.promql import check

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from eventcore.exposition import Exposition
    from eventcore_generate.promql_vectors import KnownSeries

__all__ = ["Finding", "Report", "files_in", "lint"]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One fault: where it is, what is wrong, what to do. ``code`` names the kind of fault."""

    file: str
    line: int
    where: str
    code: str
    message: str
    remedy: str
    expression: str

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{self.file}:{self.line}: {where}{self.message}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was read and what is wrong with it."""

    files: int
    expressions: int
    left_out: int
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        return asdict(self)


def files_in(paths: Iterable[Path]) -> list[Path]:
    """Return the files, and those in folders that can hold expressions."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        else:
            files.append(path)
    return files


def lint(
    paths: Iterable[Path],
    exposition: Exposition,
    *,
    others: Mapping[str, KnownSeries] | None = None,
    elsewhere: Mapping[str, str] | None = None,
    target_labels: Iterable[str] = (),
) -> Report:
    """Return the faults of every expression in the files.

    Recording rules and scrape configurations of any of the files are known to all of them. ``others``: series of other
    exporters. ``elsewhere``: series that could be enabled, and how. ``target_labels``: labels that scraping adds to
    every series, besides ``job``, ``instance`` and those in the scrape configurations. Raises EventCoreError where a
    file cannot be read, or where there is no expression in any.
    """
    found = Found()
    found.targets.labels.update(target_labels)
    files = files_in(paths)
    for path in files:
        read(path, found)
    if not found.queries and not found.unreadable:
        raise EventCoreError(
            f"no PromQL in {', '.join(map(str, files)) or 'these folders'}: give dashboards (JSON), rules (YAML), or "
            "guides (Markdown) with expressions"
        )
    known = Vocabulary(exposition, others=others, recorded=found.recorded, targets=found.targets, elsewhere=elsewhere)
    findings = [
        Finding(each.file, each.line, "", "unreadable", each.reason, "correct it", "") for each in found.unreadable
    ]
    for query in found.queries:
        _, problems = check(query.expression, known, query.labels)
        findings += [
            Finding(
                query.file,
                query.line_of(problem.token),
                query.where,
                problem.code,
                problem.message,
                problem.remedy,
                query.expression.strip(),
            )
            for problem in dict.fromkeys(problems)
        ]
    return Report(
        len(files), len(found.queries), found.left_out, tuple(sorted(findings, key=lambda f: (f.file, f.line)))
    )
