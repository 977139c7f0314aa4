"""FastGRNN on the USPS digits, the authors' own example: ``python -m router.digits [--data DIR] [--seeds N]``.

An image of 16 × 16 is read row by row, 16 steps of 16 pixels, with 32 hidden units. The table has the test accuracy of
the full network (1,932 numbers) and of the one of rank 5 in W and U (956), in floating point and, trained with
quantSigm and quantTanh, in integers, beside the same in floating point.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from router.errors import DataNotFound, RouterError
from router.fastgrnn import CompiledFastGRNN, FastGRNN, FastGRNNConfig
from router.quantised import IntegerFastGRNN
from router.train_bundled import find_data
from router.training import Examples, TrainingConfig, softmax_cross_entropy, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from router.training import Epoch

    Array = NDArray[np.floating[Any]]

__all__ = ["DIGITS_TRAINING", "Digits", "DigitsResult", "accuracy", "main", "read_digits", "train_digits"]

FILE = Path("digits") / "usps.npz"
HIDDEN_SIZE, RANK = 32, 5
DIGITS_TRAINING = TrainingConfig(
    learning_rate=1e-2, batch_size=100, epochs=100, l2=0.0, input_noise=0.3, schedule="cosine"
)
"""Pixels are from 0 to 1 as they are in the file; the noise is on that scale."""


class Digits(NamedTuple):
    """Images as sequences of rows, shape (images, 16, 16), values 0 to 1, and the digit of each."""

    training: Array
    training_digits: NDArray[np.integer[Any]]
    test: Array
    test_digits: NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class DigitsResult:
    """Test accuracies in percent of one network, and its size; ``integer_accuracy`` None without integers."""

    rank: int | None
    parameters: int
    accuracy: float
    integer_accuracy: float | None = None
    integer_bytes: int | None = None


def read_digits(folder: Path) -> Digits:
    """Return the digits in ``folder``/digits/usps.npz; DataNotFound when they are not there."""
    path = folder / FILE
    if not path.is_file():
        raise DataNotFound(f"there are no digits at {path}: name the data folder with --data or EVENTCORE_DATA")
    with np.load(path) as arrays:
        return Digits(
            arrays["train_x"].reshape(-1, 16, 16),
            arrays["train_y"],
            arrays["test_x"].reshape(-1, 16, 16),
            arrays["test_y"],
        )


def accuracy(logits: Array, digits: NDArray[np.integer[Any]]) -> float:
    """Return how many percent of ``digits`` have the largest of their ``logits``, shape (images, 10)."""
    return 100.0 * float((logits.argmax(axis=1) == digits).mean())


def train_digits(
    digits: Digits,
    *,
    rank: int | None = None,
    integers: bool = False,
    training: TrainingConfig = DIGITS_TRAINING,
    on_epoch: Callable[[Epoch], object] | None = None,
) -> DigitsResult:
    """Train one network and measure it; with ``integers`` one of quantSigm and quantTanh, measured in both forms."""
    config = FastGRNNConfig(16, HIDDEN_SIZE, 10, rank_w=rank, rank_u=rank)
    if integers:
        config = replace(config, gate="quantSigm", update="quantTanh")
    network = FastGRNN.initialise(config, seed=training.seed)
    examples = Examples(digits.training, np.eye(10)[digits.training_digits])
    train(network, examples, None, training, loss=softmax_cross_entropy, on_epoch=on_epoch)
    reached = accuracy(CompiledFastGRNN(network).logits(digits.test), digits.test_digits)
    result = DigitsResult(rank, config.parameter_count, reached)
    if not integers:
        return result
    integer = IntegerFastGRNN.calibrate(network, digits.training)
    in_integers = accuracy(integer.logits(digits.test), digits.test_digits)
    return replace(result, integer_accuracy=in_integers, integer_bytes=integer.size_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m router.digits", description="FastGRNN on the USPS digits.")
    parser.add_argument("--data", help="folder of the data (default: EVENTCORE_DATA, else ../shared/data)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=DIGITS_TRAINING.epochs, help="default: %(default)s")
    given = parser.parse_args(arguments)
    write = sys.stdout.write
    try:
        digits = read_digits(find_data(given.data))
        training = replace(DIGITS_TRAINING, epochs=given.epochs)
        write(f"{'network':<24}{'numbers':>8}{'float32, %':>16}{'integers, %':>16}{'bytes':>8}\n")
        for rank in (None, RANK):
            for integers in (False, True):
                found = [
                    train_digits(digits, rank=rank, integers=integers, training=replace(training, seed=seed))
                    for seed in range(given.seeds)
                ]
                write(_row(found) + "\n")
                sys.stdout.flush()
    except RouterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _row(found: Sequence[DigitsResult]) -> str:
    first = found[0]
    shape = "full" if first.rank is None else f"rank {first.rank}"
    kind = "sigmoid, tanh" if first.integer_bytes is None else "quantised"
    exact = _figures([result.accuracy for result in found])
    rounded = [result.integer_accuracy for result in found if result.integer_accuracy is not None]
    return (
        f"{f'{shape}, {kind}':<24}{first.parameters:>8}{exact:>16}{_figures(rounded) if rounded else '':>16}"
        f"{first.integer_bytes or '':>8}"
    )


def _figures(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
