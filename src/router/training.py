"""Training: Adam over mini-batches, clipped gradients, early stopping that gives back the best weights.

Everything random comes from one seed, and nothing is summed in an order that may change, so the same data, settings and
numpy build give the same weights bit for bit. A loss is a function from logits and targets to its mean and the gradient
of that mean; `binary_cross_entropy` is the one the router uses, `softmax_cross_entropy` the one for exclusive classes,
and another head needs no more than another function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.fastgrnn import FastGRNN

__all__ = [
    "Adam",
    "Epoch",
    "Examples",
    "Loss",
    "Normalisation",
    "TrainingConfig",
    "TrainingReport",
    "binary_cross_entropy",
    "clip_by_global_norm",
    "softmax_cross_entropy",
    "train",
]

Array = NDArray[np.floating[Any]]
Loss = Callable[[Array, Array], tuple[float, Array]]


def binary_cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Return the mean binary cross-entropy of ``logits`` against ``targets`` in [0, 1], and its gradient.

    Both have shape (batch, outputs). Taken from logits, max(l, 0) - l·y + ln(1 + exp(-|l|)), it neither overflows nor
    needs a clamp; the gradient is (σ(l) - y) / (batch · outputs).
    """
    losses = np.maximum(logits, 0.0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    gradient = (0.5 + 0.5 * np.tanh(0.5 * logits) - targets) / logits.size
    return float(losses.mean()), gradient


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Return the mean cross-entropy of softmax(``logits``) against ``targets``, and its gradient.

    Both have shape (batch, classes); each row of targets is a distribution: one-hot for a known class, a teacher's
    probabilities otherwise. The largest logit is taken off first, so nothing overflows; the gradient is
    (softmax(l) - y) / batch.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, keepdims=True)
    loss = float((targets * (np.log(sums) - shifted)).sum() / len(logits))
    return loss, (powers / sums - targets) / len(logits)


@dataclass(frozen=True, slots=True, eq=False)
class Normalisation:
    """The z-score of each feature, (x - mean) / std, with the figures of the training data; both of shape (features,).

    A feature that does not vary (std below 1e-8) keeps its scale: its std is set to 1.
    """

    mean: Array
    std: Array

    @classmethod
    def fit(cls, inputs: Array) -> Self:
        """Return mean and population standard deviation over all axes of ``inputs`` but the last, in float64.

        Raises TrainingError when there is nothing to average, NonFiniteInput for NaN or infinity.
        """
        rows = np.asarray(inputs, dtype=np.float64).reshape(-1, np.shape(inputs)[-1])
        if not len(rows):
            raise TrainingError("there are no training examples to normalise by: pass at least one")
        if not np.isfinite(rows).all():
            raise NonFiniteInput("the training inputs hold NaN or infinity: leave out or repair those examples")
        std = rows.std(axis=0)
        return cls(rows.mean(axis=0), np.where(std < 1e-8, 1.0, std))

    def apply(self, inputs: Array) -> Array:
        """Return ``inputs``, shape (..., features), normalised, in their own dtype."""
        normalised: Array = ((inputs - self.mean) / self.std).astype(inputs.dtype)
        return normalised


class Examples(NamedTuple):
    """What is learned from; the targets have shape (examples, outputs), or one more axis where the loss wants it."""

    inputs: Array
    """(examples, time, features), already normalised"""
    targets: Array
    lengths: NDArray[np.integer[Any]] | None = None
    """(examples,): where each sequence ends; None when all last to the end"""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train; raises ConfigError for a value outside its range.

    ``l2`` is the factor of the matrices themselves in their gradient (biases, zeta and nu are not decayed);
    ``max_gradient_norm`` bounds the norm of all gradients together; training ends after ``patience`` epochs without a
    lower validation loss, or after ``epochs``. With ``schedule`` "cosine" the learning rate falls from its value to 0
    over the ``epochs`` (Loshchilov & Hutter 2017, without restarts). ``input_noise`` is the standard deviation of
    normal noise added to every input anew at each look: where examples are few it does more against overfitting than
    any penalty.
    """

    learning_rate: float = 1e-3
    batch_size: int = 32
    epochs: int = 100
    patience: int = 10
    max_gradient_norm: float = 5.0
    l2: float = 1e-5
    input_noise: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("learning_rate", "max_gradient_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"training {name} is {getattr(self, name)!r}: use a positive number")
        for name in ("batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training {name} is {getattr(self, name)!r}: use at least 1")
        if not (0.0 <= self.l2 < math.inf and 0.0 <= self.input_noise < math.inf) or self.seed < 0:
            raise ConfigError(
                f"training l2 is {self.l2!r}, input_noise {self.input_noise!r} and seed {self.seed!r}: "
                f"none may be negative"
            )
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"training schedule is {self.schedule!r}: use constant or cosine")


class Epoch(NamedTuple):
    """One pass over the training examples."""

    number: int
    """Counted from 1."""
    training_loss: float
    """Mean over the mini-batches, as seen while the weights changed."""
    validation_loss: float
    """NaN when there are no validation examples."""
    gradient_norm: float
    """The largest before clipping."""
    is_best: bool
    """Whether no earlier epoch had a validation loss as low; without validation examples the latest is the best."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What happened in training; the network holds the weights of ``best``."""

    epochs: tuple[Epoch, ...]
    best: Epoch
    stopped_early: bool


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) with bias correction, over parameters by name, updated in place."""

    __slots__ = ("_mean", "_step", "_variance", "beta1", "beta2", "epsilon", "learning_rate")

    def __init__(
        self, learning_rate: float = 1e-3, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        self.learning_rate, self.beta1, self.beta2, self.epsilon = learning_rate, beta1, beta2, epsilon
        self._step = 0
        self._mean: dict[str, Array] = {}
        self._variance: dict[str, Array] = {}

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return self._step

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """Move every parameter that has a gradient one step down, in place."""
        self._step += 1
        mean_correction = 1.0 - self.beta1**self._step
        variance_correction = 1.0 - self.beta2**self._step
        for name, gradient in gradients.items():
            mean = self._mean.setdefault(name, np.zeros_like(gradient))
            variance = self._variance.setdefault(name, np.zeros_like(gradient))
            mean += (1.0 - self.beta1) * (gradient - mean)
            variance += (1.0 - self.beta2) * (gradient * gradient - variance)
            spread = np.sqrt(variance / variance_correction) + self.epsilon
            parameters[name][...] -= self.learning_rate * (mean / mean_correction) / spread


def clip_by_global_norm(gradients: Mapping[str, Array], max_norm: float) -> float:
    """Scale all ``gradients`` in place so that their norm together is at most ``max_norm``; return it as it was."""
    norm = math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in gradients.values()))
    if norm > max_norm:
        for gradient in gradients.values():
            np.multiply(gradient, max_norm / norm, out=gradient)
    return norm


def train(
    network: FastGRNN,
    training: Examples,
    validation: Examples | None,
    config: TrainingConfig | None = None,
    *,
    loss: Loss = binary_cross_entropy,
    on_epoch: Callable[[Epoch], object] | None = None,
    after_step: Callable[[int], object] | None = None,
) -> TrainingReport:
    """Train ``network`` in place and leave it with the weights of the lowest validation loss.

    Without ``validation`` examples it trains for all epochs and keeps the last weights: with a cosine schedule that
    wastes no example, and a small validation set picks an epoch by chance. ``on_epoch`` is called after each epoch, for
    progress; ``after_step`` after each mini-batch with the number of those made, and may change the network's arrays.
    Raises TrainingError when there are no examples or the loss is no longer finite, DimensionMismatch when
    inputs, targets and network do not fit, NonFiniteInput for NaN or infinity in the data.
    """
    config = config or TrainingConfig()
    training = _checked(network, training, "training")
    validation = None if validation is None else _checked(network, validation, "validation")
    random = np.random.default_rng(config.seed)
    adam = Adam(config.learning_rate)
    steps = config.epochs * math.ceil(len(training.inputs) / config.batch_size)
    best_parameters = {name: array.copy() for name, array in network.parameters.items()}
    best_loss, best_number = math.inf, 0
    epochs: list[Epoch] = []
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is reported below, in words
            for number in range(1, config.epochs + 1):
                training_loss, gradient_norm = _one_pass(
                    network, training, loss, adam, config=config, random=random, steps=steps, after_step=after_step
                )
                validation_loss = math.nan
                if validation is not None:
                    logits = network.run(validation.inputs, lengths=validation.lengths).logits
                    validation_loss, _ = loss(logits, validation.targets)
                if not math.isfinite(training_loss + (0.0 if validation is None else validation_loss)):
                    raise TrainingError(
                        f"training diverged in epoch {number}: the loss is {training_loss}, in validation "
                        f"{validation_loss}; lower learning_rate (now {config.learning_rate:g})"
                    )
                is_best = validation is None or validation_loss < best_loss
                epoch = Epoch(number, training_loss, validation_loss, gradient_norm, is_best)
                epochs.append(epoch)
                if epoch.is_best:
                    best_loss, best_number = validation_loss, number
                    _copy(network.parameters, best_parameters)
                if on_epoch is not None:
                    on_epoch(epoch)
                if number - best_number >= config.patience:
                    break
    finally:  # after divergence or an interrupt too
        _copy(best_parameters, network.parameters)
    return TrainingReport(tuple(epochs), epochs[best_number - 1], stopped_early=len(epochs) < config.epochs)


def _copy(source: Mapping[str, Array], target: Mapping[str, Array]) -> None:
    for name, array in source.items():
        target[name][...] = array


def _one_pass(
    network: FastGRNN,
    training: Examples,
    loss: Loss,
    adam: Adam,
    *,
    config: TrainingConfig,
    random: np.random.Generator,
    steps: int,
    after_step: Callable[[int], object] | None,
) -> tuple[float, float]:
    """Go over the examples once, in a new order; return the mean loss and the largest gradient norm.

    ``steps`` is how many mini-batches there are in all epochs, for the schedule.
    """
    order = random.permutation(len(training.inputs))
    total, largest_norm = 0.0, 0.0
    for start in range(0, len(order), config.batch_size):
        chosen = order[start : start + config.batch_size]
        inputs = training.inputs[chosen]
        if config.input_noise:
            inputs = inputs + config.input_noise * random.standard_normal(inputs.shape, dtype=inputs.dtype)
        if config.schedule == "cosine":
            adam.learning_rate = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * adam.steps / steps))
        lengths = None if training.lengths is None else training.lengths[chosen]
        trace = network.run(inputs, lengths=lengths)
        batch_loss, logit_gradient = loss(trace.logits, training.targets[chosen])
        gradients = network.backward(trace, logit_gradient).parameters
        for name, gradient in gradients.items():
            if network.parameters[name].ndim == 2:
                gradients[name] = gradient + config.l2 * network.parameters[name]
        largest_norm = max(largest_norm, clip_by_global_norm(gradients, config.max_gradient_norm))
        adam.step(network.parameters, gradients)
        if after_step is not None:
            after_step(adam.steps)
        total += batch_loss * len(chosen)
    return total / len(order), largest_norm


def _checked(network: FastGRNN, examples: Examples, which: str) -> Examples:
    inputs = np.asarray(examples.inputs, dtype=network.dtype)
    targets = np.asarray(examples.targets, dtype=network.dtype)
    if not len(inputs):
        raise TrainingError(f"there are no {which} examples: pass at least one")
    if targets.ndim < 2 or targets.shape[:2] != (len(inputs), network.config.output_size):
        raise DimensionMismatch(
            f"{which} targets have shape {targets.shape}, expected (examples, outputs) = "
            f"{(len(inputs), network.config.output_size)}"
        )
    if not np.isfinite(targets).all():
        raise NonFiniteInput(f"{which} targets hold NaN or infinity: leave out or repair those examples")
    if examples.lengths is not None and len(examples.lengths) != len(inputs):
        raise DimensionMismatch(f"{which} has {len(inputs)} sequences and {len(examples.lengths)} lengths: one each")
    return Examples(inputs, targets, examples.lengths)
