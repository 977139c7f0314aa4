"""Reads requests and candidates, and says what is wrong with a line or a file that cannot be used."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from router import Candidate, CandidatePool, HashingEmbedder, RouterError, RoutingRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

EXAMPLES = Path(__file__).parents[1]
EMBEDDER = HashingEmbedder()
Value = str | bool | int | float


class BadInput(ValueError):
    """A file of candidates, or a line of requests, that is not what it should be."""


class CandidateEntry(BaseModel):
    """A candidate as a table: its ``id``, and a ``description`` or an ``embedding``; the rest may be left out."""

    model_config = ConfigDict(extra="forbid")

    id: str
    description: str | None = None
    embedding: list[float] | None = None
    metadata: dict[str, Value] = {}
    age_s: float = 0.0
    access_count: int = 0
    success_rate: float = 0.0
    price_per_1k: float | None = None

    @model_validator(mode="after")
    def _can_be_embedded(self) -> CandidateEntry:
        if self.description is None and self.embedding is None:
            raise ValueError(f"candidate {self.id!r} has neither a description nor an embedding")
        return self

    def candidate(self, now: float, served: Mapping[str, np.ndarray]) -> Candidate:
        """Return the candidate; without an embedding of its own it has that of what its task has ``served``."""
        embedding = served.get(str(self.metadata.get("task", "")))
        if self.embedding is not None or embedding is None:
            embedding = _embedded(self.embedding, self.description or "")
        return Candidate(
            id=self.id,
            embedding=embedding,
            metadata=self.metadata,
            created_at=now - self.age_s,
            access_count=self.access_count,
            success_rate=self.success_rate,
            price=self.price_per_1k,
        )


class CandidateFile(BaseModel):
    """A file such as ``examples/candidates.toml``."""

    candidates: list[CandidateEntry]


class RequestEntry(BaseModel):
    """A line of requests; candidates are ids of the file, or tables."""

    prompt: str | None = None
    embedding: list[float] | None = None
    candidates: list[str | CandidateEntry]
    metadata: dict[str, Value] = {}
    id: str | int | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> RequestEntry:
        if self.prompt is None and self.embedding is None:
            raise ValueError('it needs "prompt" (text) or "embedding" (numbers), and "candidates"')
        return self


def read_lines(source: str) -> Iterator[tuple[str, str]]:
    """Yield ``(where, line)`` for each line that is not blank, from a file or from standard input (``-``)."""
    if source == "-":
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from _numbered("standard input", sys.stdin)
        return
    path = Path(source)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a file of JSON lines, or - for standard input")
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from _numbered(str(path), file)


def _numbered(name: str, file: TextIO) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"{name}:{number}", line


def _embedded(embedding: list[float] | None, text: str) -> np.ndarray:
    """Return an embedding that was given, else that of the text."""
    return EMBEDDER.embed(text) if embedding is None else np.asarray(embedding, dtype=np.float32)


def _served_by_task() -> dict[str, np.ndarray]:
    """Return the mean embedding of the example prompts, by task and over all (``general``).

    The model was trained on candidates that are known by the prompts they answered well, so the demo knows its
    candidates by the example prompts of their task. A description alone is too unlike a prompt to say much.
    """
    embedded: dict[str, list[np.ndarray]] = {}
    for line in (EXAMPLES / "requests.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for task in (entry["metadata"]["task"], "general"):
            embedded.setdefault(task, []).append(EMBEDDER.embed(entry["prompt"]))
    return {task: np.mean(vectors, axis=0) for task, vectors in embedded.items()}


def _why(error: ValidationError) -> str:
    """Return the place and the reason of the mistake that lies deepest: of a union, that of what was meant."""
    worst = max(reversed(error.errors()), key=lambda each: len(each["loc"]))
    # Pydantic adds the member of a union that it has tried.
    place = ".".join(str(part) for part in worst["loc"] if part != "str" and "CandidateEntry" not in str(part))
    reason = worst["msg"].removeprefix("Value error, ")
    if worst["type"] == "model_type":
        reason = f"expected {'an id or a table' if place else 'an object'}, not {json.dumps(worst['input'])[:40]}"
    return f"{place}: {reason}" if place else reason


class Intake:
    """Turns lines into requests; candidates named together often are laid out once. BadInput for an unusable file."""

    def __init__(self, path: Path = EXAMPLES / "candidates.toml") -> None:
        now, served = time.time(), _served_by_task()
        try:
            table = CandidateFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
            pool = CandidatePool([entry.candidate(now, served) for entry in table.candidates])
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}; give a file such as candidates.toml") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: not valid TOML: {error}") from None
        except ValidationError as error:
            raise BadInput(f"{path}: {_why(error)}; see {EXAMPLES / 'candidates.toml'}") from None
        except RouterError as error:
            raise BadInput(f"{path}: {error}") from None
        self._known = {candidate.id: candidate for candidate in pool.candidates}
        self._pools: dict[tuple[str, ...], CandidatePool] = {}

    def parse(self, where: str, line: str) -> RoutingRequest:
        """Return the request of one JSON line; BadInput says where, what and what to do."""
        try:
            entry = RequestEntry.model_validate(json.loads(line))
            candidates = self._candidates(entry.candidates)
            query = _embedded(entry.embedding, entry.prompt or "")
        except json.JSONDecodeError as error:
            raise BadInput(f"{where}: not JSON ({error.msg} at column {error.colno}); one request per line") from None
        except ValidationError as error:
            raise BadInput(f"{where}: no request: {_why(error)}") from None
        except KeyError as error:
            raise BadInput(f"{where}: unknown candidate {error}: name one of the file of candidates") from None
        except (RouterError, ValueError, RecursionError) as error:
            raise BadInput(f"{where}: {error}") from None
        return RoutingRequest(
            query, candidates, entry.metadata, request_id=str(where if entry.id is None else entry.id)
        )

    def _candidates(self, entries: list[str | CandidateEntry]) -> CandidatePool | list[Candidate]:
        names = tuple(entry for entry in entries if isinstance(entry, str))
        if len(names) == len(entries) > 0:
            if names not in self._pools:
                self._pools[names] = CandidatePool([self._known[name] for name in names])
            return self._pools[names]
        now = time.time()
        return [self._known[entry] if isinstance(entry, str) else entry.candidate(now, {}) for entry in entries]
