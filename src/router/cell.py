"""What both forward passes of FastGRNN share: its configuration, the checks of its input, a product, a sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = [
    "FastGRNNConfig",
    "Gate",
    "Update",
    "check_finite",
    "running_steps",
    "shaped",
    "sigmoid",
    "times",
]

Gate = Literal["sigmoid", "quantSigm"]
Update = Literal["tanh", "quantTanh"]


@dataclass(frozen=True, slots=True)
class FastGRNNConfig:
    """The shape and non-linearities of a FastGRNN.

    ``rank_w`` and ``rank_u`` are None for full matrices, or the inner dimension of ``W = W1 W2`` and ``U = U1 U2``.
    ``quantSigm(v) = clip((v + 1)/2, 0, 1)`` and ``quantTanh(v) = clip(v, -1, 1)`` are the piecewise linear forms that
    integer arithmetic can follow. Raises ConfigError for a size or rank below 1 or an unknown non-linearity.
    """

    input_size: int
    hidden_size: int
    output_size: int = 1
    rank_w: int | None = None
    rank_u: int | None = None
    gate: Gate = "sigmoid"
    update: Update = "tanh"

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("input_size", "hidden_size", "output_size", "rank_w", "rank_u"):
            value = getattr(self, name)
            if value is None and name.startswith("rank_"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"FastGRNN {name} is {value!r}: use a whole number of at least 1")
        for name, known in (("gate", get_args(Gate)), ("update", get_args(Update))):
            if getattr(self, name) not in known:
                raise ConfigError(f"FastGRNN {name} is {getattr(self, name)!r}: use one of {', '.join(known)}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name."""
        d, h, labels = self.input_size, self.hidden_size, self.output_size
        return {
            **_matrix_shapes("W", d, h, self.rank_w),
            **_matrix_shapes("U", h, h, self.rank_u),
            "bias_gate": (h,),
            "bias_update": (h,),
            "zeta": (1,),
            "nu": (1,),
            "head_weight": (h, labels),
            "head_bias": (labels,),
        }

    @property
    def parameter_count(self) -> int:
        """How many numbers are trained, the classifier's included."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


def shaped(inputs: Array, features: int, dtype: np.dtype[Any]) -> Array:
    """Return ``inputs`` as an array of ``dtype``; DimensionMismatch unless it is (batch, time >= 1, features)."""
    sequence = np.asarray(inputs, dtype=dtype)
    if sequence.ndim != 3 or sequence.shape[1] == 0 or sequence.shape[2] != features:
        raise DimensionMismatch(
            f"the input has shape {sequence.shape}, expected (batch, time >= 1, features = {features})"
        )
    return sequence


def check_finite(sequence: Array) -> None:
    """Raise NonFiniteInput, naming the first place, where there is NaN or infinity in (batch, time, features)."""
    # A sum of squares is finite only if all are; if it is not, it may have overflowed. Half the time of `isfinite`;
    # `vdot`, as `dot` warns of the overflow.
    if not math.isfinite(np.vdot(sequence, sequence)) and not np.isfinite(sequence).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(sequence))[0])
        raise NonFiniteInput(
            f"input{list(where)} (batch, time, feature) is {sequence[where]}: leave out or repair what is not finite"
        )


def running_steps(lengths: NDArray[np.integer[Any]], batch: int, steps: int) -> NDArray[np.bool_]:
    """Return whether each sequence goes on at each step, (time, batch); DimensionMismatch for other lengths."""
    lengths = np.asarray(lengths)
    if lengths.shape != (batch,) or lengths.dtype.kind not in "iu":
        raise DimensionMismatch(
            f"lengths are {lengths.dtype}{lengths.shape}, expected a whole number per sequence, shape {(batch,)}"
        )
    if batch and not (lengths.min() >= 1 and lengths.max() <= steps):
        raise DimensionMismatch(
            f"lengths are {lengths.min()} to {lengths.max()}, expected 1 to {steps}, the time axis of the input"
        )
    running: NDArray[np.bool_] = np.arange(steps)[:, None] < lengths
    return running


def times(values: Array, parameters: Mapping[str, Array], name: str) -> Array:
    """Return ``values`` times the matrix ``name``, be it whole or in two factors."""
    if name in parameters:
        return values @ parameters[name]
    return values @ parameters[f"{name}1"] @ parameters[f"{name}2"]


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-values)), by way of tanh, which cannot overflow."""
    squashed: Array = 0.5 + 0.5 * np.tanh(0.5 * values)
    return squashed


def _matrix_shapes(name: str, rows: int, columns: int, rank: int | None) -> dict[str, tuple[int, ...]]:
    return {name: (rows, columns)} if rank is None else {f"{name}1": (rows, rank), f"{name}2": (rank, columns)}
