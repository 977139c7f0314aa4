"""What the prompt model reads of a prompt: chunks of its text, to be embedded, and features of its surface.

A prompt is cut into a fixed number of chunks of words, so that a long one is not boiled down to one vector. The chunks
keep their order, but measurements showed that shuffling them costs nothing: the network pools them, it does not
understand a sequence.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from router.embedding import Embedder

    Array = NDArray[np.floating[Any]]

__all__ = ["SURFACE_NAMES", "chunks_of", "embed_chunks", "surface_features"]

SURFACE_NAMES = (
    "log_characters",
    "log_words",
    "digit_share",
    "log_digits",
    "lines",
    "log_symbols",
    "questions",
    "capital_share",
    "word_length",
    "numbers",
)
"""What `surface_features` gives, in order."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SYMBOLS = frozenset("$\\={}<>;")
"""Of formulas and program code."""


def chunks_of(text: str, count: int) -> list[str]:
    """Return ``count`` runs of words that together are ``text``, of about equal length; empty ones if it is short."""
    words = text.split()
    ends = [round(part * len(words) / count) for part in range(count + 1)]
    return [" ".join(words[start:end]) for start, end in itertools.pairwise(ends)]


def embed_chunks(texts: Sequence[str], embedder: Embedder, count: int) -> Array:
    """Return the embeddings of the chunks of ``texts``, float32 of shape (texts, count, dimension).

    An embedder that has ``embed_many`` is given all distinct chunks at once, shortest first, so that it can batch them.
    """
    chunks = [chunk for text in texts for chunk in chunks_of(text, count)]
    distinct = sorted(set(chunks), key=len)
    embed_many = getattr(embedder, "embed_many", None)
    if embed_many is not None:
        vectors = embed_many(distinct)
    else:
        vectors = np.array([embedder.embed(chunk) for chunk in distinct], dtype=np.float32)
    places = {chunk: place for place, chunk in enumerate(distinct)}
    found: Array = vectors.reshape(len(distinct), embedder.dimension)[[places[chunk] for chunk in chunks]]
    return found.reshape(len(texts), count, embedder.dimension)


def surface_features(texts: Sequence[str]) -> Array:
    """Return what can be seen of ``texts`` without reading them, float32 of shape (texts, 10), see `SURFACE_NAMES`."""
    rows = []
    for text in texts:
        length, words = max(len(text), 1), text.split()
        digits = sum(map(str.isdigit, text))
        rows.append(
            (
                np.log1p(len(text)),
                np.log1p(len(words)),
                digits / length,
                np.log1p(digits),
                text.count("\n"),
                np.log1p(sum(character in _SYMBOLS for character in text)),
                text.count("?"),
                sum(map(str.isupper, text)) / length,
                sum(map(len, words)) / max(len(words), 1),
                len(_NUMBER.findall(text)),
            )
        )
    return np.array(rows, dtype=np.float32).reshape(len(texts), len(SURFACE_NAMES))
