"""The router's model: features in, success probabilities and their uncertainty out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import ConfigError, DimensionMismatch, InferenceError, NoCalibration
from router.fastgrnn import CompiledFastGRNN, FastGRNN
from router.features import FEATURE_NAMES, FEATURE_WEIGHTS
from router.quantiles import QUANTILES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from router.training import Normalisation
    from router.uncertainty import Calibration

    Array = NDArray[np.floating[Any]]

__all__ = ["Provenance", "RoundedFrom", "RouterModel"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from; kept in its file."""

    training_data: str
    """The name of the data file."""
    training_data_sha256: str
    seed: int
    library_version: str
    """Of this distribution, when the model was trained."""
    numpy_version: str
    metrics: Mapping[str, float]
    """Measured on test data the model has not seen in any form."""


@dataclass(frozen=True, slots=True)
class RoundedFrom:
    """The file of the model in float32 that one in eight bits was made from."""

    name: str
    """Without the folder."""
    sha256: str
    """Of the file's bytes."""
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class RouterModel:
    """A trained FastGRNN with everything that belongs to it; immutable, safe to share between threads.

    Raises ConfigError when the network does not take the router's features or has more than one output,
    DimensionMismatch when normalisation or feature weights do not fit it.
    """

    network: FastGRNN
    normalisation: Normalisation
    feature_weights: tuple[float, ...] = FEATURE_WEIGHTS
    """What `extract_features` multiplied the training features by, and has to be given in serving."""
    calibration: Calibration | None = None
    provenance: Provenance | None = None
    reference: Array | None = None
    """Quantiles of the features it was trained on, (5, 33), see `router.quantiles`; None in files of old."""
    _compiled: CompiledFastGRNN = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the parts fit and compile the network."""
        config = self.network.config
        if config.input_size != len(FEATURE_NAMES) or config.output_size != 1:
            raise ConfigError(
                f"the network takes {config.input_size} features and gives {config.output_size} outputs, "
                f"the router needs {len(FEATURE_NAMES)} features {FEATURE_NAMES} and one output"
            )
        shapes = (self.normalisation.mean.shape, self.normalisation.std.shape, np.shape(self.feature_weights))
        if set(shapes) != {(config.input_size,)}:
            raise DimensionMismatch(
                f"normalisation mean, std and feature weights have shapes {shapes}, expected one number per feature"
            )
        known = self.reference
        if known is not None and not (known.shape == (config.input_size, QUANTILES) and (np.diff(known) >= 0.0).all()):
            raise DimensionMismatch(
                f"the reference of its features, of shape {known.shape}, does not hold {QUANTILES} rising quantiles of "
                f"each of {config.input_size} features: make it with router.quantiles.quantiles_of"
            )
        compiled = CompiledFastGRNN(self.network, self.normalisation.mean, self.normalisation.std)
        object.__setattr__(self, "_compiled", compiled)

    def score(self, features: Array) -> Array:
        """Return the probability of success of each row of ``features``, shape (n, 5) or (n, time, 5), as shape (n,).

        ``features`` are those of `extract_features`, not normalised. Raises DimensionMismatch or NonFiniteInput for
        features that cannot be used, InferenceError when the arithmetic overflows.
        """
        sequence = features[:, None, :] if features.ndim == 2 else features
        with np.errstate(over="ignore", invalid="ignore"):  # reported below, in words
            logits = self._compiled.logits(sequence)[:, 0]
        # One number stands for a look at all: a sum of squares is finite only if each is.
        if not (math.isfinite(np.vdot(logits, logits)) or np.isfinite(logits).all()):
            raise InferenceError("the model's arithmetic overflowed: its weights are too large, train it again")
        scores: Array = 0.5 * logits
        np.tanh(scores, out=scores)
        scores *= 0.5
        scores += 0.5
        return scores

    def uncertainty(self, scores: Array) -> Array:
        """Return how far each score may be from the truth, see `Calibration`; NoCalibration when there is none."""
        if self.calibration is None:
            raise NoCalibration(
                "the model has no calibration, so no score can be trusted: fit a Calibration on held-out outcomes and "
                "save the model with it"
            )
        return self.calibration.of(scores)
