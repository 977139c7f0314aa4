"""Train the bundled model on recorded outcomes: ``python -m router.train_bundled --data DIR --out FILE``.

The prompts are split into training, validation (early stopping), calibration (uncertainty) and test parts. What the
test part shows is printed and goes into the file; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from router.embedding import HashingEmbedder
from router.errors import DataNotFound, RouterError
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.features import FEATURE_NAMES, FEATURE_WEIGHTS
from router.model import Provenance, RouterModel
from router.model_file import library_version, save_model
from router.quality import area_under_roc, expected_calibration_error, log_loss
from router.quantiles import quantiles_of
from router.replay import Outcomes, ReplayConfig, Samples, question_of, read_outcomes, replay, split_prompts
from router.training import Examples, Normalisation, TrainingConfig, train
from router.uncertainty import Calibration, is_lightweight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router.training import Epoch

__all__ = ["TABLE", "find_data", "main", "measure", "train_router"]

TABLE = Path("routing") / "routerbench_subset.csv.gz"
SHARES = {"training": 0.5, "validation": 0.15, "calibration": 0.15, "test": 0.2}
HIDDEN_SIZE = 8
TRAINING = TrainingConfig(learning_rate=3e-3, batch_size=256, epochs=100, patience=10)


def find_data(given: str | None) -> Path:
    """Return the data folder: ``given``, else EVENTCORE_DATA, else ``../shared/data`` beside the checkout.

    Raises DataNotFound when it does not exist.
    """
    named = given or os.environ.get("EVENTCORE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        raise DataNotFound(f"there is no data folder at {folder}: name one with --data or EVENTCORE_DATA")
    return folder


def train_router(
    outcomes: Outcomes,
    *,
    seed: int = 0,
    training: TrainingConfig = TRAINING,
    replaying: ReplayConfig | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[RouterModel, dict[str, float]]:
    """Return a calibrated model trained on ``outcomes`` and its metrics on the test prompts; ``say`` shows progress.

    The same outcomes, settings and numpy build give the same model bit for bit.
    """
    embedder = HashingEmbedder()
    say(f"embedding {len(outcomes.prompts)} questions")
    embeddings = np.stack([embedder.embed(question_of(prompt)) for prompt in outcomes.prompts])
    parts = split_prompts(outcomes.prompts, SHARES, seed=seed)
    samples = {}
    for offset, (name, queries) in enumerate(parts.items()):
        samples[name] = replay(
            outcomes,
            embeddings,
            history=parts["training"],
            queries=queries,
            seed=seed * len(parts) + offset,
            config=replaying,
        )
        say(f"replayed {name}: {len(queries)} prompts, {len(samples[name].successes)} rows")
    normalisation = Normalisation.fit(samples["training"].features)
    network = FastGRNN.initialise(FastGRNNConfig(len(FEATURE_NAMES), HIDDEN_SIZE), seed=seed)
    report = train(
        network,
        _examples(samples["training"], normalisation),
        _examples(samples["validation"], normalisation),
        training,
        on_epoch=lambda epoch: say(_line(epoch)),
    )
    say(f"kept epoch {report.best.number}, validation loss {report.best.validation_loss:.5f}")
    held_out = samples["calibration"]
    scores = RouterModel(network, normalisation).score(held_out.features)
    calibration = Calibration.fit(scores, held_out.successes, groups=held_out.prompt_index)
    model = RouterModel(
        network,
        normalisation,
        FEATURE_WEIGHTS,
        calibration,
        reference=quantiles_of(samples["training"].features),
    )
    base_rate = float(samples["training"].successes.mean())
    return model, measure(model, calibration, samples["test"], base_rate=base_rate)


def measure(model: RouterModel, calibration: Calibration, test: Samples, *, base_rate: float) -> dict[str, float]:
    """Return what ``model`` is worth on ``test``, next to what asks nothing of it.

    ``base_rate`` is the success rate in training; always predicting it is the log loss to beat, and ranking by the
    success rate of the candidate alone is the AUC to beat. ``uncertainty_coverage`` is the share of calibration bins
    whose success rate in ``test`` lies within the uncertainty of the bin's mean score.
    """
    scores, successes = model.score(test.features), test.successes
    lightweight = is_lightweight(scores, calibration.of(scores))
    requests = np.unique(test.request_index[lightweight]).size / np.unique(test.request_index).size
    bins = np.minimum(np.searchsorted(calibration.upper, scores), len(calibration) - 1)
    counts = np.bincount(bins, minlength=len(calibration))
    seen = counts > 0
    rates = np.bincount(bins, weights=successes, minlength=len(calibration))[seen] / counts[seen]
    covered = np.abs(rates - calibration.mean_score[seen]) <= calibration.uncertainty[seen]
    metrics = {
        "prompts": float(np.unique(test.prompt_index).size),
        "rows": float(len(scores)),
        "success_rate": float(successes.mean()),
        "auc": area_under_roc(scores, successes),
        "auc_success_rate_alone": area_under_roc(test.features[:, FEATURE_NAMES.index("success")], successes),
        "log_loss": log_loss(scores, successes),
        "log_loss_base_rate": log_loss(np.full(len(scores), base_rate), successes),
        "calibration_error": expected_calibration_error(scores, successes),
        "uncertainty_coverage": float(covered.mean()),
        "lightweight_share": float(lightweight.mean()),
        "lightweight_success_rate": float(successes[lightweight].mean()) if lightweight.any() else 0.0,
        "requests_with_a_lightweight_candidate": requests,
    }
    return {name: round(value, 6) for name, value in metrics.items()}


def _examples(samples: Samples, normalisation: Normalisation) -> Examples:
    return Examples(normalisation.apply(samples.features)[:, None, :], samples.successes[:, None])


def _line(epoch: Epoch) -> str:
    mark = " *" if epoch.is_best else ""
    return f"epoch {epoch.number:3d}  loss {epoch.training_loss:.5f}  validation {epoch.validation_loss:.5f}{mark}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save and report; return the exit code."""
    parser = argparse.ArgumentParser(prog="router.train_bundled", description="Train the bundled routing model.")
    parser.add_argument("--data", help="folder of the data (default: EVENTCORE_DATA, else ../shared/data)")
    parser.add_argument("--out", required=True, type=Path, help="where to write the model")
    parser.add_argument("--seed", type=int, default=0, help="of splits, replay and weights (default: 0)")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except RouterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _run(options: Any) -> None:
    table = find_data(options.data) / TABLE
    outcomes = read_outcomes(table)
    _say(
        f"{table}: {len(outcomes.prompts)} prompts, {len(outcomes.models)} models, {outcomes.skipped_rows} rows skipped"
    )
    model, metrics = train_router(outcomes, seed=options.seed, say=_say)
    provenance = Provenance(
        training_data=table.name,
        training_data_sha256=hashlib.sha256(table.read_bytes()).hexdigest(),
        seed=options.seed,
        library_version=library_version(),
        numpy_version=np.__version__,
        metrics=metrics,
    )
    save_model(replace(model, provenance=provenance), options.out)
    _say(f"on the test prompts, of {options.out} ({options.out.stat().st_size} bytes):")
    for name, value in metrics.items():
        _say(f"  {name:<40}{value:g}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
