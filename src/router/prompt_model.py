"""The prompt model: from a prompt to how likely each known model is to answer it well.

Chunks of the prompt are embedded, projected on the principal components of the training chunks, and, with the surface
of the prompt beside them, pooled by a FastGRNN with one head per model. For a weak and a strong one, the difference of
the heads is what the strong one would gain: the *need*. Two heads are better than one that learns "the weak model is
wrong" (measured: 0.04 to 0.07 APGR), because much that the weak model fails on the strong one fails on too.

The network does not begin from nothing. Ranking prompts by their length, untrained, beats many a trained router, so a
*prior* says that a longer prompt is harder for a weaker model, and the network is trained to say what differs from it;
the fewer the prompts it has learned from, the less that counts. Where nothing was learned, on few prompts or on ones
unlike them, the order of the lengths is what remains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from router.errors import ConfigError, DimensionMismatch, InferenceError, NonFiniteInput, TrainingError
from router.fastgrnn import CompiledFastGRNN, FastGRNN, FastGRNNConfig
from router.prompts import SURFACE_NAMES, embed_chunks, surface_features
from router.training import Examples, TrainingConfig, binary_cross_entropy, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from router.embedding import Embedder
    from router.model import Provenance, RoundedFrom
    from router.training import Epoch

    Array = NDArray[np.floating[Any]]

__all__ = ["PROMPT_TRAINING", "NeedCalibration", "PromptModel", "PromptRecipe", "need_of"]

PROMPT_TRAINING = TrainingConfig(
    learning_rate=3e-3, batch_size=64, epochs=30, l2=3e-3, input_noise=1.0, schedule="cosine"
)
"""Chosen on 20 splits of the maths prompts and 3 of MMLU; neighbouring values are within 0.01 APGR."""

FEW_PROMPTS = 2000
FEWEST_STEPS = 500
"""Below it a network is still near its random beginning, which ranks prompts at random."""

USUAL_SPREAD = 0.3
"""Of the logarithm of the length, about as within a subject of MMLU; where lengths differ less, they say less."""

CLIP = 3.0
"""Surface features further than this many standard deviations from the mean are as good as at it."""


@dataclass(frozen=True, slots=True)
class PromptRecipe:
    """How a prompt model is made: how many chunks, principal components and hidden units, and how it is trained.

    ``length_prior`` is by how much the logit of the weakest model's head falls, before anything is learned, for each
    standard deviation (at least 0.3) of the logarithm of the length; the strongest model's does not, those between in
    equal steps.
    ``prior_prompts`` is how many distinct prompts it takes until what the network has learned from them counts half:
    from n it counts n² / (n² + prior_prompts²), because with n both grow, what there is to learn and how sure it is.
    """

    chunk_count: int = 8
    components: int = 32
    hidden_size: int = 32
    training: TrainingConfig = PROMPT_TRAINING
    length_prior: float = 0.2
    prior_prompts: int = 300

    def __post_init__(self) -> None:
        """Check the prior."""
        if not (0.0 <= self.length_prior < math.inf and self.prior_prompts >= 0):
            raise ConfigError(
                f"the recipe's length_prior is {self.length_prior!r} and its prior_prompts {self.prior_prompts!r}: "
                f"neither may be negative"
            )

    @classmethod
    def for_prompts(cls, count: int) -> Self:
        """Return what measured best for about that many prompts: below 2,000 a smaller network, held shorter.

        Twice the hidden units, half the penalty or a third more noise change less than another seed does (0.005 APGR).
        """
        if count >= FEW_PROMPTS:
            return cls()
        batches = math.ceil(max(count, 1) / PROMPT_TRAINING.batch_size)
        epochs = max(60, math.ceil(FEWEST_STEPS / batches))
        training = replace(PROMPT_TRAINING, epochs=epochs, l2=1e-2, input_noise=1.5)
        return cls(hidden_size=16, training=training, length_prior=0.3)

    def weight_of(self, prompts: Sequence[str]) -> float:
        """Return how much what is learned from ``prompts`` counts beside the prior, 0 to 1; equal ones count once."""
        distinct = len(set(prompts))
        return distinct**2 / (distinct**2 + self.prior_prompts**2)


@dataclass(frozen=True, slots=True, eq=False)
class NeedCalibration:
    """What calibrates a need: that of prompts held out from training, and the harm of the weak model on each.

    Kept with the model, so that any level can be promised later, see `router.conformal`. Raises DimensionMismatch when
    the two are not vectors of one length.
    """

    need: Array
    """(n,)"""
    harm: NDArray[np.uint8]
    """(n,): 1 where the weak model is wrong and the strong one right, else 0."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.need.ndim != 1 or self.harm.shape != self.need.shape:
            raise DimensionMismatch(
                f"calibration needs {self.need.shape} and harms {self.harm.shape} have to be vectors of one length"
            )


@dataclass(frozen=True, slots=True, eq=False)
class PromptModel:
    """A trained prompt model; immutable, safe to share between threads.

    ``network`` takes sequences of ``chunk_count`` steps of components + 10 features and has an output for each of
    ``heads``. Raises DimensionMismatch when the parts do not fit.
    """

    heads: tuple[str, ...]
    """The models it knows, weakest first, in the order of the network's outputs, such as ("weak", "strong")."""
    embedder: str
    """The name of the embedder it was trained with, see `router.embedding.open_embedder`; no other will do."""
    chunk_count: int
    projection: Array
    """(dimension, components): principal components of the training chunks, scaled to a mean deviation of 1."""
    offset: Array
    """(components,): where the mean of the training chunks lies in the projection."""
    surface_mean: Array
    """(10,)"""
    surface_std: Array
    """(10,)"""
    length_slope: Array
    """(heads,): the prior: what a standard deviation of the logarithm of the length adds to each head's logit."""
    network: FastGRNN
    calibration: NeedCalibration | None = None
    provenance: Provenance | None = None
    rounded_from: RoundedFrom | None = None
    """What a model in eight bits was made from, see `router.quantised_prompt`; None for one of full precision."""
    _compiled: CompiledFastGRNN = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the parts fit and compile the network."""
        config, components = self.network.config, self.projection.shape[-1]
        surface = len(SURFACE_NAMES)
        shapes = (self.projection.ndim, self.offset.shape, self.surface_mean.shape, self.surface_std.shape)
        if shapes != (2, (components,), (surface,), (surface,)) or config.input_size != components + surface:
            raise DimensionMismatch(
                f"projection {self.projection.shape}, offset {self.offset.shape}, surface {self.surface_mean.shape} "
                f"and a network of {config.input_size} inputs do not fit each other"
            )
        if config.output_size != len(self.heads) or self.chunk_count < 1:
            raise DimensionMismatch(
                f"{len(self.heads)} heads, {config.output_size} outputs, {self.chunk_count} chunks: there has to be an "
                f"output for each head and at least one chunk"
            )
        if self.length_slope.shape != (len(self.heads),):
            raise DimensionMismatch(
                f"the prior has slopes of shape {self.length_slope.shape} for {len(self.heads)} heads: one each"
            )
        object.__setattr__(self, "_compiled", CompiledFastGRNN(self.network))

    @classmethod
    def fit(
        cls,
        heads: Sequence[str],
        prompts: Sequence[str],
        chunks: Array,
        outcomes: Array,
        *,
        embedder: str,
        recipe: PromptRecipe | None = None,
        seed: int = 0,
        on_epoch: Callable[[Epoch], object] | None = None,
    ) -> Self:
        """Train on ``prompts``, their chunks' embeddings (n, chunk_count, dimension) and outcomes (n, heads) in [0, 1].

        ``heads`` name the models from the weakest to the strongest; the prior goes by that. The same data, recipe, seed
        and numpy build give the same model bit for bit. Raises TrainingError for too few prompts, DimensionMismatch or
        NonFiniteInput for arrays that cannot be used.
        """
        recipe = recipe or PromptRecipe.for_prompts(len(prompts))
        if chunks.shape[:2] != (len(prompts), recipe.chunk_count) or outcomes.shape != (len(prompts), len(heads)):
            raise DimensionMismatch(
                f"{len(prompts)} prompts, chunks {chunks.shape} and outcomes {outcomes.shape}: expected "
                f"(prompts, {recipe.chunk_count}, dimension) and (prompts, {len(heads)})"
            )
        if len(prompts) < 2:
            raise TrainingError(f"{len(prompts)} prompts are too few to train on: a few hundred are a beginning")
        if not np.isfinite(chunks).all():
            raise NonFiniteInput("the embeddings hold NaN or infinity: look at the embedder")
        rows = chunks.reshape(-1, chunks.shape[2]).astype(np.float64)
        projection, offset = _principal_components(rows, min(recipe.components, rows.shape[1]))
        surface = surface_features(prompts).astype(np.float64)
        mean, std = surface.mean(axis=0), surface.std(axis=0)
        length_prior = recipe.length_prior * min(float(std[0]) / USUAL_SPREAD, 1.0)
        std = np.where(std < 1e-8, 1.0, std)
        config = FastGRNNConfig(projection.shape[1] + len(SURFACE_NAMES), recipe.hidden_size, len(heads))
        untrained = cls(
            tuple(heads),
            embedder,
            recipe.chunk_count,
            projection=projection.astype(np.float32),
            offset=offset.astype(np.float32),
            surface_mean=mean.astype(np.float32),
            surface_std=std.astype(np.float32),
            length_slope=np.linspace(-length_prior, 0.0, len(heads), dtype=np.float32),
            network=FastGRNN.initialise(config, seed=seed),
        )
        network = untrained.network
        inputs, prior = untrained.inputs(prompts, chunks)
        targets = np.stack([outcomes, prior], axis=2).astype(np.float32)
        train(
            network,
            Examples(inputs, targets),
            None,
            replace(recipe.training, seed=seed),
            loss=_loss_beside_prior,
            on_epoch=on_epoch,
        )
        _weigh(network, recipe.weight_of(prompts), outcomes)
        return replace(untrained, network=network)  # compiled anew

    @property
    def dimension(self) -> int:
        """The length of the vectors that its embedder has to give."""
        return len(self.projection)

    def inputs(self, prompts: Sequence[str], chunks: Array) -> tuple[Array, Array]:
        """Return what the network reads, float32 (n, chunk_count, components + 10), and the prior's logits (n, heads).

        The network sees features up to three standard deviations from the mean; the prior has no such limit, so that
        of two prompts longer than any in training the longer one is still the harder.
        """
        if chunks.shape != (len(prompts), self.chunk_count, self.dimension):
            raise DimensionMismatch(
                f"the chunks of {len(prompts)} prompts have shape {chunks.shape}, expected "
                f"{(len(prompts), self.chunk_count, self.dimension)}: embed them with {self.embedder!r}"
            )
        projected = chunks.astype(np.float32) @ self.projection - self.offset
        surface = (surface_features(prompts) - self.surface_mean) / self.surface_std
        prior = surface[:, :1] * self.length_slope
        np.clip(surface, -CLIP, CLIP, out=surface)
        beside = np.broadcast_to(surface[:, None], (len(prompts), self.chunk_count, len(SURFACE_NAMES)))
        return np.concatenate([projected, beside], axis=2), prior

    def quality(self, prompts: Sequence[str], chunks: Array) -> Array:
        """Return how likely each model is to answer each prompt well, shape (n, heads), from the chunks' embeddings.

        Raises DimensionMismatch for chunks of another shape, InferenceError when the arithmetic overflows.
        """
        inputs, prior = self.inputs(prompts, chunks)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self._compiled.logits(inputs) + prior
        if not np.isfinite(logits).all():
            raise InferenceError("the model's arithmetic overflowed: its weights are too large, train it again")
        probabilities: Array = 0.5 + 0.5 * np.tanh(0.5 * logits)
        return probabilities

    def quality_of_text(self, prompts: Sequence[str], embedder: Embedder) -> Array:
        """Return the same from the text alone; costs an embedding per chunk, by far the dearest part."""
        return self.quality(prompts, embed_chunks(prompts, embedder, self.chunk_count))

    def __repr__(self) -> str:
        """Show what it knows and how large it is."""
        return (
            f"PromptModel(heads {', '.join(self.heads)}; {self.chunk_count} chunks by {self.embedder!r}, "
            f"{self.projection.shape[1]} components, {self.network.config.parameter_count} parameters)"
        )


def need_of(quality: Array) -> Array:
    """Return what the strong model would gain, from qualities (n, 2) of weak and strong, shape (n,)."""
    need: Array = quality[:, 1] - quality[:, 0]
    return need


def _loss_beside_prior(logits: Array, targets: Array) -> tuple[float, Array]:
    """Return the binary cross-entropy of ``logits`` added to the prior's; targets (n, heads, 2) hold outcome, prior."""
    return binary_cross_entropy(logits + targets[:, :, 1], targets[:, :, 0])


def _weigh(network: FastGRNN, weight: float, outcomes: Array) -> None:
    """Draw what ``network`` says, in logits, towards the mean ``outcomes`` (n, heads); at ``weight`` 1 it stays."""
    rates = (outcomes.sum(axis=0) + 0.5) / (len(outcomes) + 1.0)
    network.parameters["head_weight"] *= weight
    network.parameters["head_bias"] *= weight
    network.parameters["head_bias"] += (1.0 - weight) * np.log(rates / (1.0 - rates))


def _principal_components(rows: Array, count: int) -> tuple[Array, Array]:
    """Return projection (dimension, count) and offset (count,) such that rows @ projection - offset has mean 0.

    The components keep their relative sizes; all are divided by their mean standard deviation. Signs are fixed by the
    largest entry of each, so that the same rows give the same components on every LAPACK.
    """
    mean = rows.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((rows - mean).T))
    components = vectors[:, ::-1][:, :count]
    components = components * np.sign(components[np.abs(components).argmax(axis=0), np.arange(count)])
    scale = float(np.sqrt(np.maximum(values[::-1][:count], 0.0)).mean())
    projection = components / (scale if scale > 1e-12 else 1.0)
    return projection, mean @ projection
