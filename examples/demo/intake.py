"""Reads requests and candidates, and says what is wrong with a line that cannot be used."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from router import Candidate, CandidatePool, HashingEmbedder, RouterError, RoutingRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[1]
EMBEDDER = HashingEmbedder()


class BadLine(ValueError):
    """A line of the input is no request."""


def candidate_from(entry: dict[str, Any], now: float) -> Candidate:
    """Return a candidate from its table: ``id`` and either ``description`` or ``embedding``; the rest is optional."""
    return Candidate(
        id=entry["id"],
        embedding=embedding_from(entry, "description"),
        metadata=entry.get("metadata", {}),
        created_at=now - entry.get("age_s", 0.0),
        access_count=entry.get("access_count", 0),
        success_rate=entry.get("success_rate", 0.0),
        price=entry.get("price_per_1k"),
    )


def embedding_from(entry: dict[str, Any], text_key: str) -> np.ndarray:
    """Return the entry's own embedding, else that of its text."""
    if "embedding" in entry:
        return np.asarray(entry["embedding"], dtype=np.float32)
    return EMBEDDER.embed(entry[text_key])


def read_lines(source: str) -> Iterator[tuple[str, str]]:
    """Yield ``(where, line)`` for each line that is not blank, from a file or from standard input (``-``)."""
    if source == "-":
        yield from _numbered("standard input", sys.stdin)
        return
    path = Path(source)
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; give a file of JSON lines, or - for standard input")
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from _numbered(str(path), file)


def _numbered(name: str, file: TextIO) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"{name}:{number}", line


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


class Intake:
    """Turns lines into requests; candidates named together often are laid out once."""

    def __init__(self, path: Path = EXAMPLES / "candidates.toml") -> None:
        now = time.time()
        table = tomllib.loads(path.read_text(encoding="utf-8"))["candidates"]
        served = _served_by_task()
        for entry in table:
            history = served.get(entry.get("metadata", {}).get("task", ""))
            if history is not None:
                entry.setdefault("embedding", history)
        self._known = {entry["id"]: candidate_from(entry, now) for entry in table}
        self._pools: dict[tuple[str, ...], CandidatePool] = {}

    def parse(self, where: str, line: str) -> RoutingRequest:
        """Return the request of one JSON line; BadLine says where, what and what to do."""
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadLine(f"{where}: not JSON ({error.msg} at column {error.colno}); one request per line") from None
        if not isinstance(entry, dict) or not ({"prompt", "embedding"} & entry.keys()):
            raise BadLine(f'{where}: no request; it needs "prompt" (text) or "embedding" (numbers), and "candidates"')
        names = entry.get("candidates")
        if not isinstance(names, list):
            raise BadLine(f'{where}: "candidates" must be a list of ids from candidates.toml, or of tables')
        try:
            candidates = self._candidates(names)
            query = embedding_from(entry, "prompt")
        except KeyError as error:
            raise BadLine(f"{where}: unknown candidate or missing key {error}") from None
        except (TypeError, ValueError, RouterError) as error:
            raise BadLine(f"{where}: {error}") from None
        return RoutingRequest(query, candidates, entry.get("metadata", {}), request_id=str(entry.get("id", where)))

    def _candidates(self, names: list[Any]) -> CandidatePool | list[Candidate]:
        if not all(isinstance(name, str) for name in names):
            return [self._known[name] if isinstance(name, str) else candidate_from(name, time.time()) for name in names]
        if not names:
            return []
        key = tuple(names)
        if key not in self._pools:
            self._pools[key] = CandidatePool([self._known[name] for name in key])
        return self._pools[key]
