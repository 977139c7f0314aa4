"""Sparse FastGRNN: the paper's training in three phases, and the sizes it counts.

A third of the epochs trains all weights. In the second third, every fifteenth mini-batch chooses anew which weights of
W and U stay, the largest share of each by magnitude (iterative hard thresholding), and the others are zero until the
next choice. In the last third the choice stands (Kusupati et al., NeurIPS 2018, and the authors' trainer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import ConfigError, TrainingError
from router.training import Examples, TrainingConfig, binary_cross_entropy, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from router.fastgrnn import FastGRNN
    from router.training import Epoch, Loss, TrainingReport

    Array = NDArray[np.floating[Any]]

__all__ = ["Sparsity", "hard_threshold", "model_bytes", "train_sparse"]

EVERY = 15
"""Mini-batches from one choice to the next."""


@dataclass(frozen=True, slots=True)
class Sparsity:
    """The share of weights that stay, of W (or W1 and W2) and of U; above 0, 1 keeps all. ConfigError otherwise."""

    w: float = 1.0
    u: float = 1.0

    def __post_init__(self) -> None:
        """Check both."""
        for name in ("w", "u"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"sparsity {name} is {getattr(self, name)!r}: use a share above 0 and at most 1")

    def of(self, name: str) -> float:
        """Return the share that stays of the parameter ``name``; 1 for all but the factors of W and U."""
        return {"W": self.w, "U": self.u}.get(name.rstrip("12"), 1.0)


def hard_threshold(matrix: Array, share: float) -> NDArray[np.bool_]:
    """Return which entries of ``matrix`` stay: the ``share`` of largest magnitude; equal ones at the bound all stay.

    The bound is the (1 - share) quantile of the magnitudes, the next higher where it lies between two, so at least one
    entry stays.
    """
    magnitudes = np.abs(matrix)
    bound = np.quantile(magnitudes, 1.0 - share, method="higher")
    kept: NDArray[np.bool_] = magnitudes >= bound
    return kept


def train_sparse(
    network: FastGRNN,
    training: Examples,
    sparsity: Sparsity,
    config: TrainingConfig | None = None,
    *,
    loss: Loss = binary_cross_entropy,
    on_epoch: Callable[[Epoch], object] | None = None,
) -> TrainingReport:
    """Train ``network`` in place in three phases and leave it sparse.

    There is no early stopping: the best epoch would be one before the weights were cut. Raises what `router.training`'s
    ``train`` raises, TrainingError when there are fewer than three epochs.
    """
    config = replace(config or TrainingConfig(), patience=(config or TrainingConfig()).epochs)
    if config.epochs < 3:
        raise TrainingError(f"three phases cannot be trained in {config.epochs} epochs: use at least 3")
    batches = math.ceil(len(training.inputs) / config.batch_size)
    dense, chosen = config.epochs // 3 * batches, config.epochs // 3 * 2 * batches
    support: dict[str, NDArray[np.bool_]] = {}

    def cut(step: int) -> None:
        if step <= dense:
            return
        choose = not support or (step <= chosen and (step - dense) % EVERY == 0)
        for name, array in network.parameters.items():
            if sparsity.of(name) < 1.0:
                if choose:
                    support[name] = hard_threshold(array, sparsity.of(name))
                array[~support[name]] = 0.0

    return train(network, training, None, config, loss=loss, on_epoch=on_epoch, after_step=cut)


def model_bytes(parameters: Mapping[str, Array], sparsity: Sparsity | None = None) -> int:
    """Return the size of a model as the paper counts it, 4 bytes a number, less than half of them kept 8 a kept one.

    A kept number of a sparse matrix brings its place along: below a half that is the smaller way, from a half on the
    whole matrix is stored.
    """
    sparsity = sparsity or Sparsity()
    size = 0
    for name, array in parameters.items():
        is_sparse = sparsity.of(name) < 0.5
        size += 8 * int(np.count_nonzero(array)) if is_sparse else 4 * array.size
    return size
