"""Recorded pairs: how a weak and a strong model answered the same prompts.

The form is that of RouteLLM's evaluation files: CSV, gzip-compressed when the name ends in ``.gz``, with the columns
``domain, prompt, weak_correct, strong_correct``; others are left alone.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from router.errors import DataNotFound, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["HEADS", "Pairs", "read_pairs"]

HEADS = ("weak", "strong")
COLUMNS = ("domain", "prompt", "weak_correct", "strong_correct")
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


def read_pairs(paths: Sequence[Path]) -> Pairs:
    """Read one or several tables and join them.

    Raises DataNotFound for a file that is absent, TrainingError naming file, line and column for what is no such table.
    """
    domains: list[str] = []
    prompts: list[str] = []
    outcomes: list[tuple[float, float]] = []
    for path in paths:
        if not path.is_file():
            raise DataNotFound(f"there is no table at {path}")
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8", newline="")
                if path.suffix == ".gz"
                else path.open(encoding="utf-8", newline="") as file
            ):
                _read(csv.DictReader(file), path, domains, prompts, outcomes)
        except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
            raise TrainingError(f"{path} cannot be read: {error}") from error
    if not prompts:
        raise TrainingError(f"{', '.join(map(str, paths))}: no rows, nothing to learn from")
    return Pairs(np.array(domains), tuple(prompts), np.array(outcomes, dtype=np.float64))


def _read(
    reader: csv.DictReader[str], path: Path, domains: list[str], prompts: list[str], outcomes: list[tuple[float, float]]
) -> None:
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise TrainingError(f"{path} lacks the column {missing[0]!r}: expected {', '.join(COLUMNS)}")
    for row in reader:
        values = [_TRUTH.get((row[column] or "").strip().lower()) for column in COLUMNS[2:]]
        if None in values:
            column = COLUMNS[2 + values.index(None)]
            raise TrainingError(f"{path}, line {reader.line_num}: {column} is {row[column]!r}, expected True or False")
        domains.append(row["domain"] or "")
        prompts.append(row["prompt"] or "")
        outcomes.append((values[0] or 0.0, values[1] or 0.0))
