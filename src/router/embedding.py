"""Text to vector: the protocol the router asks for, and an embedder that needs nothing but numpy.

A learned sentence encoder gives better vectors and takes tens of milliseconds a prompt. `HashingEmbedder` is the other
end: no model file, no download, well under a millisecond, and the same vector for the same text in every process and
on every platform. It sees shared words and spellings, not meaning. Anything with ``dimension`` and ``embed`` can take
its place, as long as queries and candidates use the same one.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from router.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DEFAULT_DIMENSION", "Embedder", "HashingEmbedder", "open_embedder"]

DEFAULT_DIMENSION = 384

_WORD = re.compile(r"\w+")
# Seeds that keep the three families of features apart: the word "abc" and the 3-gram "abc" are different features.
_WORD_SEED, _PAIR_SEED, _TRIGRAM_SEED = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9


@runtime_checkable
class Embedder(Protocol):
    """What turns a prompt into the vector that is compared with the candidates' embeddings."""

    @property
    def dimension(self) -> int:
        """The length of every vector this embedder gives."""
        ...

    def embed(self, text: str) -> NDArray[np.float32]:
        """Return the vector of ``text``, shape ``(dimension,)``, finite, of length one or (no content) zero."""
        ...


def open_embedder(name: str) -> Embedder:
    """Return the embedder called ``name``, as model files name the one they need.

    ``hashing`` or ``hashing:DIMENSION`` is built in; ``minilm`` is all-MiniLM-L6-v2 from its package; ``sentence:NAME``
    is any model of sentence-transformers and ``model2vec:NAME`` one of model2vec, by name or folder. Raises ConfigError
    for another name, and where the extra that it needs is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "hashing":
        if rest and not rest.isdecimal():
            raise ConfigError(f"embedder {name!r}: the dimension has to be a whole number, as in 'hashing:384'")
        return HashingEmbedder(int(rest)) if rest else HashingEmbedder()
    from router.encoders import Model2VecEmbedder, SentenceEmbedder

    if kind == "minilm" and not rest:
        return SentenceEmbedder.minilm()
    if kind == "sentence" and rest:
        return SentenceEmbedder(rest)
    if kind == "model2vec" and rest:
        return Model2VecEmbedder(rest)
    raise ConfigError(
        f"there is no embedder {name!r}: use hashing, hashing:DIMENSION, minilm, sentence:NAME or model2vec:NAME"
    )


class HashingEmbedder:
    """Signed feature hashing of word 1-grams, word 2-grams and character 3-grams into ``dimension`` buckets.

    Each distinct feature that occurs ``n`` times adds ``±(1 + ln n)`` to the bucket its hash selects; the sign is a
    further bit of the hash, so that collisions cancel on average (Weinberger et al. 2009, section 2). The sum is
    scaled to length one. Text is lower-cased; words are runs of letters, digits and underscores. Text without any
    visible character gives the zero vector, whose cosine with every other vector is 0.

    Raises ConfigError when ``dimension`` is below 2.
    """

    __slots__ = ("_dimension",)

    def __init__(self, dimension: int = DEFAULT_DIMENSION) -> None:
        """Make an embedder of vectors of length ``dimension``."""
        if dimension < 2:
            raise ConfigError(
                f"embedding dimension {dimension} is too small: use at least 2 (the default is {DEFAULT_DIMENSION})"
            )
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """The length of every vector this embedder gives."""
        return self._dimension

    def __repr__(self) -> str:
        """Show the dimension."""
        return f"HashingEmbedder(dimension={self._dimension})"

    def embed(self, text: str) -> NDArray[np.float32]:
        """Return the vector of ``text``, float32 of shape ``(dimension,)``; InvalidRequest when it is not a string."""
        if not isinstance(text, str):
            raise InvalidRequest(f"only text can be embedded, got {type(text).__name__}: pass the prompt as str")
        features, counts = np.unique(_feature_hashes(text.lower()), return_counts=True)
        weights = 1.0 + np.log(counts)
        weights[(features & np.uint64(1)).astype(bool)] *= -1.0
        buckets = (features >> np.uint64(1)) % np.uint64(self._dimension)
        vector = np.bincount(buckets.astype(np.intp), weights=weights, minlength=self._dimension)
        norm = float(np.sqrt(vector @ vector))
        return (vector / norm if norm > 0.0 else vector).astype(np.float32)


def _feature_hashes(text: str) -> NDArray[np.uint64]:
    """Return the 64-bit hash of every feature of ``text``, with repetitions."""
    words = _WORD.findall(text)
    codes = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], dtype=np.uint64)
    # One space on either side lets a trigram see where the text begins and ends, and gives short text a feature.
    joined = " ".join(text.split())
    points = np.frombuffer(f" {joined} ".encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    # A code point has 21 bits, so three of them fit one 64-bit number without loss.
    trigrams = points[:-2] | points[1:-1] << np.uint64(21) | points[2:] << np.uint64(42)
    if not joined:
        trigrams = trigrams[:0]
    pairs = _mix(codes[:-1], _PAIR_SEED) + codes[1:]
    return np.concatenate([_mix(codes, _WORD_SEED), _mix(pairs, _PAIR_SEED), _mix(trigrams, _TRIGRAM_SEED)])


def _mix(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Spread 64-bit numbers evenly: the finaliser of SplitMix64 (Steele et al. 2014), started at ``seed``."""
    z = values + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
