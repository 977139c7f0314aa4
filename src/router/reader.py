"""A prompt model in service, with the embedder it reads through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from router.embedding import open_embedder
from router.errors import DimensionMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from router.embedding import Embedder
    from router.prompt_model import PromptModel

    Array = NDArray[np.floating[Any]]

__all__ = ["Reader"]

_REHEARSAL = "What is 2 + 2?"


class Reader(NamedTuple):
    """A prompt model with what it needs to read; swapped as one."""

    model: PromptModel
    embedder: Embedder
    heads: Mapping[str, int]
    """The places of the models it knows among its outputs."""

    @classmethod
    def of(cls, model: PromptModel, embedder: Embedder | None = None) -> Self:
        """Return a reader after one prompt has been read; the embedder defaults to the one the model names.

        Raises DimensionMismatch for an embedder of another dimension, InferenceError when the model cannot read,
        ConfigError when its embedder cannot be opened.
        """
        embedder = embedder or open_embedder(model.embedder)
        if embedder.dimension != model.dimension:
            raise DimensionMismatch(
                f"the embedder gives {embedder.dimension} dimensions, the prompt model reads {model.dimension}: use "
                f"{model.embedder!r}, with which it was trained"
            )
        model.quality_of_text([_REHEARSAL], embedder)
        return cls(model, embedder, {head: place for place, head in enumerate(model.heads)})

    def assess(self, prompt: str, ids: Sequence[str], otherwise: Array) -> Array:
        """Return the quality of each candidate on ``prompt``, float64 (candidates,); ``otherwise`` of those unknown."""
        found = self.model.quality_of_text([prompt], self.embedder)[0]
        quality: Array = otherwise.astype(np.float64)
        for place, name in enumerate(ids):
            head = self.heads.get(name)
            if head is not None:
                quality[place] = found[head]
        return quality

    def need(self, ids: Sequence[str], quality: Array) -> float | None:
        """Return what the second of two models it knows would gain over the first; None unless both are candidates."""
        if len(self.heads) != 2 or not self.heads.keys() <= set(ids):
            return None
        weak, strong = (ids.index(head) for head in self.model.heads)
        return float(quality[strong] - quality[weak])
