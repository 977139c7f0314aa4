"""Distillation: a network learns from another's logits, not from the outcomes alone (Hinton et al. 2015).

A teacher's probabilities say how sure it is, which a single outcome does not; a temperature above one brings out the
smaller ones. The loss is ``α·T²·soft + (1 - α)·hard``: soft is the student's loss at temperature T against the
teacher's probabilities at T, hard that against the outcomes, and T² keeps the two gradients of one size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput
from router.training import Examples, binary_cross_entropy, softmax_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from router.training import Loss

    Array = NDArray[np.floating[Any]]

__all__ = ["Distillation", "mean_logits"]


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student learns: the temperature T > 0, the weight α in [0, 1] of the teacher, and what the logits mean.

    With ``exclusive`` the outputs are classes of which one holds (softmax), else each output is a claim by itself
    (sigmoid). Raises ConfigError for values out of range.
    """

    temperature: float = 2.0
    alpha: float = 0.5
    exclusive: bool = False

    def __post_init__(self) -> None:
        """Check both numbers."""
        if not 0.0 < self.temperature < math.inf:
            raise ConfigError(f"distillation temperature is {self.temperature!r}: use a positive number")
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"distillation alpha is {self.alpha!r}: use a number from 0 (outcomes) to 1 (teacher)")

    @property
    def hard(self) -> Loss:
        """The loss against outcomes."""
        return softmax_cross_entropy if self.exclusive else binary_cross_entropy

    def probabilities(self, logits: Array) -> Array:
        """Return what ``logits``, shape (batch, outputs), say at the temperature."""
        cooled = logits / self.temperature
        if not self.exclusive:
            claims: Array = 0.5 + 0.5 * np.tanh(0.5 * cooled)
            return claims
        powers = np.exp(cooled - cooled.max(axis=1, keepdims=True))
        classes: Array = powers / powers.sum(axis=1, keepdims=True)
        return classes

    def examples(self, examples: Examples, teacher_logits: Array) -> Examples:
        """Return ``examples`` with the teacher's probabilities beside the outcomes, targets (examples, outputs, 2).

        Raises DimensionMismatch when the logits do not fit the targets, NonFiniteInput for NaN or infinity in them.
        """
        if teacher_logits.shape != examples.targets.shape:
            raise DimensionMismatch(
                f"the teacher's logits have shape {teacher_logits.shape}, the targets {examples.targets.shape}: a "
                f"teacher says something about every output of every example"
            )
        if not np.isfinite(teacher_logits).all():
            raise NonFiniteInput("the teacher's logits hold NaN or infinity: train it again")
        soft = self.probabilities(teacher_logits)
        return examples._replace(targets=np.stack([examples.targets, soft], axis=2))

    def loss(self, logits: Array, targets: Array) -> tuple[float, Array]:
        """Return the loss and its gradient for ``targets`` as `examples` makes them; to be given to ``train``."""
        hard_loss, hard_gradient = self.hard(logits, targets[:, :, 0])
        soft_loss, soft_gradient = self.hard(logits / self.temperature, targets[:, :, 1])
        a, t = self.alpha, self.temperature
        # By the chain rule the soft gradient is divided by T once, and T² times that is T.
        return a * t * t * soft_loss + (1.0 - a) * hard_loss, a * t * soft_gradient + (1.0 - a) * hard_gradient


def mean_logits(probabilities: Sequence[Array]) -> Array:
    """Return the logits of several teachers' mean probability, each of shape (examples, outputs), values in (0, 1).

    Averaging what they say, not their logits, keeps one that is too sure of itself from outvoting the others.
    """
    mean = np.clip(np.mean(probabilities, axis=0), 1e-6, 1.0 - 1e-6)
    logits: Array = np.log(mean) - np.log1p(-mean)
    return logits
