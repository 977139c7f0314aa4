"""Recorded pairs: how a weak and a strong model answered the same prompts.

The form is that of RouteLLM's evaluation files: CSV, gzip-compressed when the name ends in ``.gz``, with the columns
``domain, prompt, weak_correct, strong_correct``; others are left alone.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from router.errors import DataNotFound, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["HEADS", "Pairs", "check_learnable", "read_pairs"]

HEADS = ("weak", "strong")
COLUMNS = ("domain", "prompt", "weak_correct", "strong_correct")
LONGEST = 1 << 24
"""Characters of a prompt; the csv module's own limit, 2¹⁷, is less than what models read."""
_TRUTH = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Prompts and how both models did on them."""

    domains: NDArray[np.str_]
    """(n,)"""
    prompts: tuple[str, ...]
    outcomes: Array
    """(n, 2): 1.0 where the weak, and where the strong model was right."""

    @property
    def gain(self) -> Array:
        """What the strong model is worth on each prompt: 1, 0 or -1, shape (n,)."""
        difference: Array = self.outcomes[:, 1] - self.outcomes[:, 0]
        return difference

    @property
    def harm(self) -> Array:
        """1.0 where sending the prompt to the weak model does harm: it is wrong and the strong one right."""
        worse: Array = (self.gain > 0.5).astype(np.float64)
        return worse

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def take(self, places: NDArray[np.intp]) -> Self:
        """Return the prompts at ``places``."""
        return type(self)(self.domains[places], tuple(self.prompts[i] for i in places), self.outcomes[places])

    def sha256(self) -> str:
        """Return a digest of everything in it, to say in a model file what it was trained on."""
        digest = hashlib.sha256()
        for domain, prompt, (weak, strong) in zip(self.domains, self.prompts, self.outcomes.tolist(), strict=True):
            digest.update(f"{domain}\0{prompt}\0{weak}\0{strong}\n".encode())
        return digest.hexdigest()


def check_learnable(pairs: Pairs) -> None:
    """Raise TrainingError unless the strong model is better on some of the prompts, and not on all."""
    harmed = int(pairs.harm.sum())
    if harmed in {0, len(pairs)}:
        where = "none" if not harmed else "all"
        raise TrainingError(
            f"the weak model is wrong and the strong one right on {where} of these {len(pairs)} prompts: there is "
            f"nothing to learn to tell apart; record outcomes where they differ"
        )


def read_pairs(paths: Sequence[Path]) -> Pairs:
    """Read one or several tables and join them.

    Raises DataNotFound for a file that is absent, TrainingError naming file, line and column for what is no such table.
    """
    rows: list[tuple[str, str, float, float]] = []
    before = csv.field_size_limit(LONGEST)
    try:
        for path in paths:
            rows += _rows_of(path)
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise TrainingError(f"{', '.join(map(str, paths))}: no rows, nothing to learn from")
    domains, prompts, weak, strong = zip(*rows, strict=True)
    return Pairs(np.array(domains), prompts, np.array([weak, strong], dtype=np.float64).T)


def _rows_of(path: Path) -> Iterator[tuple[str, str, float, float]]:
    if path.is_dir():
        raise DataNotFound(f"{path} is a directory: name the tables in it")
    if not path.is_file():
        raise DataNotFound(f"there is no table at {path}: check the path")
    try:
        # Spreadsheets put a mark of byte order before the first column's name, which "utf-8-sig" leaves out.
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            yield from _checked(csv.DictReader(file), path)
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is no table: it is not UTF-8 text ({error}); save it as CSV in UTF-8") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error


def _checked(reader: csv.DictReader[str], path: Path) -> Iterator[tuple[str, str, float, float]]:
    found = reader.fieldnames or ()
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        has = f"its first line is {', '.join(found)[:80]!r}" if found else "it is empty"
        raise TrainingError(f"{path} lacks the column {missing[0]!r}: expected {', '.join(COLUMNS)}; {has}")
    for row in reader:
        if None in row:
            raise TrainingError(f"{path}, line {reader.line_num}: more fields than columns; quote those with commas")
        outcomes = []
        for column in COLUMNS[2:]:
            text = row[column]
            if text is None or text.strip().lower() not in _TRUTH:
                is_what = "missing" if text is None else repr(text[:40])
                raise TrainingError(f"{path}, line {reader.line_num}: {column} is {is_what}, expected True or False")
            outcomes.append(_TRUTH[text.strip().lower()])
        yield row["domain"] or "", row["prompt"] or "", outcomes[0], outcomes[1]
