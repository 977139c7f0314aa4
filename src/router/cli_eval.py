"""``router train``, ``calibrate`` and ``eval``: prompt models on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from router.cli_output import errors, progress, say, stderr, stdout, warn
from router.conformal import control_risk, learn_then_test, required_calibration_size
from router.embedding import open_embedder
from router.errors import ConfigError, NoCalibration, RouterError, TrainingError
from router.evaluation import split_by_prompt
from router.model import Provenance
from router.model_file import BUNDLED_PROMPT_MODEL, library_version, load_prompt_model, save_prompt_model
from router.model_store import check_writable
from router.pairs import HEADS, check_learnable, read_pairs
from router.prompt_model import NeedCalibration, PromptModel, PromptRecipe, need_of
from router.prompts import embed_chunks

if TYPE_CHECKING:
    from router.conformal import Guarantee
    from router.pairs import Pairs
    from router.report import Evaluation

__all__ = [
    "AsJson",
    "ModelFile",
    "calibrate",
    "calibrated_on",
    "evaluate_pairs",
    "guarantee_of",
    "held_out_of",
    "train",
]

Tables = Annotated[list[Path], typer.Argument(help="Tables: CSV with domain, prompt, weak_correct, strong_correct.")]
ModelFile = Annotated[Path, typer.Option("--model", help="A prompt model's file; default: the bundled one.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead.")]
Alpha = Annotated[float, typer.Option(help="The rate of harm that is promised not to be passed.")]

FEWEST_PROMPTS = 20


def train(
    data: Tables,
    out: Annotated[Path, typer.Option(help="Where the model goes.")],
    embedder: Annotated[str, typer.Option(help="hashing, minilm, sentence:NAME or model2vec:NAME.")] = "hashing",
    held_out: Annotated[
        float, typer.Option(help="Share of the prompts kept for calibration.", min=0.05, max=0.9)
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split and the weights.", min=0)] = 0,
) -> None:
    """Train a prompt model on recorded pairs, and calibrate it on prompts that were held out."""
    with errors():
        check_writable(out)
        pairs = read_pairs(data)
        training, calibration = _parts(pairs, held_out, seed)
        check_learnable(pairs.take(training))
        recipe = PromptRecipe.for_prompts(len(training))
        with progress(recipe.training.epochs + 1) as tell:
            tell(f"embedding {len(pairs)} prompts with {embedder}")
            chunks = embed_chunks(pairs.prompts, open_embedder(embedder), recipe.chunk_count)
            known, held = pairs.take(training), pairs.take(calibration)
            model = PromptModel.fit(
                HEADS,
                known.prompts,
                chunks[training],
                known.outcomes,
                embedder=embedder,
                recipe=recipe,
                seed=seed,
                on_epoch=lambda epoch: tell(f"epoch {epoch.number}, loss {epoch.training_loss:.4f}"),
            )
        model = _calibrated(model, held, chunks[calibration])
        provenance = Provenance(
            training_data=", ".join(path.name for path in data),
            training_data_sha256=pairs.sha256(),
            seed=seed,
            library_version=library_version(),
            numpy_version=np.__version__,
            metrics={"prompts": float(len(known)), "calibration_prompts": float(len(held))},
        )
        save_prompt_model(replace(model, provenance=provenance), out)
        _warn_of_few(known)
    say(f"{out}: {model!r}, {out.stat().st_size} bytes")


def calibrate(
    data: Tables,
    model: ModelFile = BUNDLED_PROMPT_MODEL,
    alpha: Alpha = 0.05,
    delta: Annotated[float | None, typer.Option(help="For a promise that holds with probability 1 - delta.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the model with this calibration goes.")] = None,
) -> None:
    """Calibrate a model on prompts it was not trained on, and say what may be promised with it."""
    with errors():
        if out is not None:
            check_writable(out)
        required_calibration_size(alpha)  # refuses an alpha that is none before anything is embedded
        pairs = read_pairs(data)
        calibrated = calibrated_on(load_prompt_model(model), pairs)
        _show_guarantee(guarantee_of(calibrated, alpha, delta))
        if out is not None:
            save_prompt_model(calibrated, out)
        warn_of_known(calibrated, pairs)


def evaluate_pairs(  # noqa: PLR0917 - typer calls it by name
    data: Tables,
    model: Annotated[Path | None, typer.Option("--model", help="Rank this model beside those trained anew.")] = None,
    embedder: Annotated[
        list[str] | None, typer.Option(help="Embedders to train with; may be given again. Default: what is installed.")
    ] = None,
    splits: Annotated[int, typer.Option(help="Halves to train and test on.", min=1)] = 5,
    plots: Annotated[Path | None, typer.Option(help="Folder for PNG plots.")] = None,
    as_json: AsJson = False,  # noqa: FBT002 - typer makes an option of it
) -> None:
    """Measure prompt models against the baselines on any table of recorded pairs."""
    from router.report import evaluate

    with errors():
        pairs = read_pairs(data)
        loaded = None if model is None else load_prompt_model(model)
        if plots is not None:
            _make_folder(plots)
        names = embedder or _installed()
        if loaded is not None and loaded.embedder not in names:
            names = [*names, loaded.embedder]
        with progress() as tell:
            evaluation = evaluate(
                pairs, {name: open_embedder(name) for name in names}, model=loaded, splits=splits, tell=tell
            )
        _warn_of_few(pairs.take(split_by_prompt(pairs, 0)[0]))
        if as_json:
            stdout.print_json(json.dumps(_as_dict(evaluation)))
        else:
            _show(evaluation)
        if plots is not None:
            from router.plots import draw

            for path in draw(evaluation, plots):
                stderr.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"plots cannot be written to {path}: {error.strerror}; name a folder") from None


def _installed() -> list[str]:
    try:
        open_embedder("minilm")
    except RouterError:
        warn("the extra 'encoder' is not installed: only the built-in hashing embedder is evaluated")
        return ["hashing"]
    return ["minilm", "hashing"]


def _warn_of_few(pairs: Pairs) -> None:
    """Say so when what is learned from ``pairs`` counts for less than the order of the lengths."""
    weight = PromptRecipe.for_prompts(len(pairs)).weight_of(pairs.prompts)
    if weight < 0.5:
        warn(
            f"{len(set(pairs.prompts))} different prompts to learn from are few: what is learned counts {weight:.0%}, "
            f"the order of their lengths the rest; from about 300 on learning counts more"
        )


def warn_of_known(model: PromptModel, pairs: Pairs) -> None:
    """Say so when ``model`` was calibrated on the very table that it was trained on."""
    if model.provenance is not None and model.provenance.training_data_sha256 == pairs.sha256():
        warn(
            "it was trained on prompts of this table and knows their answers, so what is promised here does not hold "
            "for others: calibrate on prompts that it has not seen"
        )


def _parts(pairs: Pairs, held_out: float, seed: int) -> tuple[Any, Any]:
    """Return places to train on and to calibrate on; equal prompts are on one side. TrainingError for too few."""
    distinct = {prompt: number for number, prompt in enumerate(sorted(set(pairs.prompts)))}
    if len(distinct) < FEWEST_PROMPTS:
        raise TrainingError(
            f"{len(distinct)} different prompts are too few to train on and to hold some out: a few hundred are a "
            f"beginning, {FEWEST_PROMPTS} the least"
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    chosen = set(order[: round(held_out * len(distinct))].tolist())
    is_held = np.array([distinct[prompt] in chosen for prompt in pairs.prompts])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def calibrated_on(model: PromptModel, pairs: Pairs) -> PromptModel:
    """Return ``model`` with the needs of ``pairs`` as its calibration; RouterError when they cannot be embedded."""
    with progress(1) as tell:
        tell(f"embedding {len(pairs)} prompts with {model.embedder}")
        chunks = embed_chunks(pairs.prompts, open_embedder(model.embedder), model.chunk_count)
    return _calibrated(model, pairs, chunks)


def _calibrated(model: PromptModel, pairs: Pairs, chunks: Any) -> PromptModel:
    need = need_of(model.quality(pairs.prompts, chunks)).astype(np.float32)
    return replace(model, calibration=NeedCalibration(need, pairs.harm.astype(np.uint8)))


def held_out_of(model: PromptModel) -> NeedCalibration:
    """Return what the model was calibrated on; NoCalibration, with the remedy, when it was not."""
    if model.calibration is None:
        raise NoCalibration("the model carries no calibration: router calibrate DATA… --model FILE --out FILE")
    return model.calibration


def guarantee_of(model: PromptModel, alpha: float, delta: float | None) -> Guarantee:
    """Return the threshold for a rate of harm of ``alpha``: on average, or with probability 1 - ``delta``."""
    known = held_out_of(model)
    if delta is None:
        return control_risk(known.need, known.harm, alpha)
    # The places of the thresholds come from one fifth of the prompts, which the test then does not use.
    part = max(1, len(known.need) // 5)
    thresholds = np.quantile(known.need[:part], np.linspace(0.02, 1.0, 50), method="lower")
    return learn_then_test(known.need[part:], known.harm[part:], alpha, delta=delta, thresholds=thresholds)


def _show_guarantee(guarantee: Guarantee) -> None:
    if guarantee.delta is None:
        promise = f"of all requests at most {guarantee.alpha:.1%} are sent to the weak model and harmed, on average"
    else:
        promise = (
            f"among the requests sent to the weak model at most {guarantee.alpha:.1%} are harmed, with probability "
            f"{1 - guarantee.delta:.0%}"
        )
    stdout.print(
        f"threshold {guarantee.threshold:.4f}: {guarantee.share:.1%} of {guarantee.calibration_size} requests go to "
        f"the weak model\npromise: {promise} (seen in calibration: {guarantee.observed_risk:.2%})",
        highlight=False,
        soft_wrap=True,
    )


def _as_dict(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "comparisons": {
            way: {
                name: {
                    "apgr": scores.apgr.round(4).tolist(),
                    "cpt50": scores.cpt50.round(4).tolist(),
                    "cpt80": scores.cpt80.round(4).tolist(),
                }
                for name, scores in comparison.scores.items()
            }
            for way, comparison in evaluation.comparisons.items()
        },
        "ours": evaluation.ours,
        "left_out": dict(evaluation.left_out),
        "promises": [promise._asdict() for promise in evaluation.promises],
        "reliability": {
            head: {"claimed": found.claimed.round(4).tolist(), "observed": found.observed.round(4).tolist()}
            for head, found in evaluation.reliability.items()
        },
    }


def _show(evaluation: Evaluation) -> None:
    for way, comparison in evaluation.comparisons.items():
        table = Table(title=f"{way}: {comparison.prompts} prompts, weak {comparison.weak_accuracy:.1%} right, strong "
                      f"{comparison.strong_accuracy:.1%}")  # fmt: skip
        for heading in ("", "APGR", "over length, paired", "CPT(50 %)", "CPT(80 %)"):
            table.add_column(heading, justify="left" if not heading else "right")
        length = comparison.scores["prompt length, untrained"]
        for name, scores in sorted(comparison.scores.items(), key=lambda item: float(item[1].apgr.mean())):
            over, spread = scores.gain_over(length)
            deviation = float(scores.apgr.std(ddof=1)) if len(scores.apgr) > 1 else 0.0
            table.add_row(
                name,
                f"{scores.apgr.mean():.3f} ± {deviation:.3f}",
                f"{over:+.3f} ± {spread:.3f}",
                f"{scores.cpt50.mean():.0%}",
                f"{scores.cpt80.mean():.0%}",
                style="bold" if name == evaluation.ours else "",
            )
        stdout.print(table)
        stdout.print(_bars(comparison.curves[evaluation.ours], comparison.curves["random"]))
    for way, reason in evaluation.left_out.items():
        say(f"{way}: left out, {reason}")
    table = Table(title=f"Risk control, {evaluation.ours}: sent to the weak model, it wrong and the strong one right")
    for heading in ("promised at most", "mean of 200 splits", "sent to weak"):
        table.add_column(heading, justify="right")
    for promise in evaluation.promises:
        table.add_row(f"{promise.alpha:.3f}", f"{promise.mean_risk:.4f}", f"{promise.weak_share:.0%}")
    stdout.print(table)
    table = Table(title=f"Reliability, {evaluation.ours}: claimed and observed share of right answers, in tenths")
    table.add_column("")
    for number in range(10):
        table.add_column(str(number + 1), justify="right")
    for head, found in evaluation.reliability.items():
        table.add_row(f"{head} claimed", *(f"{value:.2f}" for value in found.claimed))
        table.add_row(f"{head} observed", *(f"{value:.2f}" for value in found.observed))
    stdout.print(table)


def _bars(ours: tuple[Any, ...], coin: tuple[Any, ...]) -> Table:
    """Draw what is recovered at each tenth of strong calls, a coin's beside it."""
    table = Table.grid(padding=(0, 1))
    for tenth in range(1, 10):
        share = tenth / 10
        kept, chance = (
            float(np.mean([np.interp(share, curve.strong_share, curve.recovered) for curve in curves]))
            for curves in (ours, coin)
        )
        table.add_row(
            f"{share:.0%} strong", f"recovers {kept:5.0%}", "█" * round(40 * max(kept, 0.0)), f"(coin {chance:.0%})"
        )
    return table
