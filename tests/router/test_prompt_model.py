from dataclasses import asdict, replace

import numpy as np
import pytest

from router.embedding import HashingEmbedder
from router.errors import (
    ConfigError,
    DimensionMismatch,
    InferenceError,
    ModelFormatError,
    NonFiniteInput,
    TrainingError,
)
from router.model import Provenance
from router.model_file import BUNDLED_MODEL, PROMPT_FORMAT, load_model, load_prompt_model, save_prompt_model
from router.model_store import write_model
from router.pairs import HEADS
from router.prompt_model import PROMPT_TRAINING, NeedCalibration, PromptModel, PromptRecipe, need_of
from router.prompts import SURFACE_NAMES, embed_chunks
from router.quality import area_under_roc

RECIPE = PromptRecipe(
    chunk_count=4,
    components=8,
    hidden_size=8,
    training=replace(PROMPT_TRAINING, epochs=40, input_noise=0.5),
)


def _task(count, seed, lengths=(12, 13)):
    """Prompts of one of two vocabularies; the weak model knows only the first, the strong one both."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 2, count)
    prompts = [" ".join(f"{'ab'[k]}{random.integers(30)}" for _ in range(random.integers(*lengths))) for k in kind]
    weak = random.uniform(size=count) < np.where(kind == 0, 0.9, 0.1)
    strong = random.uniform(size=count) < 0.9
    return prompts, kind, np.stack([weak, strong], axis=1).astype(float)


def _fit(count=300, seed=0, lengths=(12, 13), **given):
    prompts, _, outcomes = _task(count, 1, lengths)
    chunks = embed_chunks(prompts, HashingEmbedder(64), 4)
    return PromptModel.fit(HEADS, prompts, chunks, outcomes, embedder="hashing:64", recipe=RECIPE, seed=seed, **given)


def test_it_learns_which_prompts_need_the_strong_model():
    """On prompts never seen, those that the weak model fails on rank above the others, by far."""
    model = _fit(600)
    prompts, kind, _ = _task(200, 2)
    quality = model.quality_of_text(prompts, HashingEmbedder(64))
    assert quality.shape == (200, 2)
    need = quality[:, 1] - quality[:, 0]
    assert area_under_roc(need, kind.astype(float)) > 0.95
    assert need[kind == 1].mean() - need[kind == 0].mean() > 0.15


def test_the_prior_orders_prompts_by_length_however_long():
    """With a network that says nothing the need rises with the length, far beyond any length in training, too."""
    model = _fit(60, lengths=(5, 40))
    silent = {name: np.zeros_like(array) for name, array in model.network.parameters.items()}
    model = replace(model, network=type(model.network)(model.network.config, silent))
    prompts = ["a", "a" * 10, "a " * 40, "a " * 100, "a " * 1000, "a " * 100_000]
    need = need_of(model.quality_of_text(prompts, HashingEmbedder(64)))
    assert (np.diff(need) > 0.0).all()


def test_the_weakest_head_falls_with_the_length_and_the_strongest_does_not():
    """The prior's slopes go in equal steps from what the recipe says to none; a model needs one for each head."""
    prompts, _, outcomes = _task(40, 1, (5, 40))
    three = np.column_stack([outcomes, outcomes[:, 1]])
    model = PromptModel.fit(
        ("a", "b", "c"),
        prompts,
        embed_chunks(prompts, HashingEmbedder(64), 4),
        three,
        embedder="hashing:64",
        recipe=replace(RECIPE, length_prior=0.4),
    )
    assert model.length_slope.tolist() == pytest.approx([-0.4, -0.2, 0.0])
    with pytest.raises(DimensionMismatch, match="one each"):
        replace(model, length_slope=model.length_slope[:2])


def test_lengths_that_hardly_differ_say_little():
    """The prior's slope for a standard deviation shrinks with it: fixed-form prompts are not ranked by a character."""
    assert _fit(60, lengths=(5, 40)).length_slope[0] == pytest.approx(-RECIPE.length_prior)
    assert -0.1 < _fit(60).length_slope[0] < 0.0


def test_what_is_learned_from_few_prompts_counts_for_little():
    """The more prompts the prior counts as, the nearer all probabilities are to the mean outcome.

    Equal prompts count once: a table of 30 prompts, ten times over, is one of 30.
    """
    prompts, _, outcomes = _task(30, 1)
    chunks = embed_chunks(prompts, HashingEmbedder(64), 4)
    new, _, _ = _task(200, 2)
    spreads = []
    for prior_prompts in (0, 30, 300):
        recipe = replace(RECIPE, prior_prompts=prior_prompts, length_prior=0.0)
        model = PromptModel.fit(
            HEADS, prompts * 10, np.tile(chunks, (10, 1, 1)), np.tile(outcomes, (10, 1)), embedder="x", recipe=recipe
        )
        quality = model.quality(new, embed_chunks(new, HashingEmbedder(64), 4))
        spreads.append(quality[:, 0].std())
        assert recipe.weight_of(prompts * 10) == pytest.approx(1 / (1 + (prior_prompts / 30) ** 2))
    assert spreads[0] > 1.5 * spreads[1] > 3.0 * spreads[2]
    assert abs(quality[:, 0] - outcomes[:, 0].mean()).max() < 0.15


@pytest.mark.parametrize("rates", [(0.02, 0.5), (0.98, 1.0), (0.0, 0.0), (1.0, 1.0)], ids=str)
def test_outcomes_that_are_nearly_all_alike_train_a_model(rates):
    """A weak model that is hardly ever right, or always: probabilities near the rate, no overflow, no error."""
    prompts, _, _ = _task(120, 1, (1, 60))
    random = np.random.default_rng(0)
    outcomes = (random.uniform(size=(120, 2)) < rates).astype(float)
    chunks = embed_chunks(prompts, HashingEmbedder(64), 8)
    model = PromptModel.fit(HEADS, prompts, chunks, outcomes, embedder="hashing:64")
    quality = model.quality(prompts, chunks)
    assert np.abs(quality.mean(axis=0) - outcomes.mean(axis=0)).max() < 0.05


def test_a_few_prompts_are_enough_not_to_fail():
    """Two prompts, one of them empty, train a model that ranks what it reads, whatever it is, by length."""
    prompts = ["", "\u092a\u0939\u0932\u093e \u6570\u5b66 \U0001f600" * 3]
    chunks = embed_chunks(prompts, HashingEmbedder(64), 8)
    model = PromptModel.fit(HEADS, prompts, chunks, np.array([[1.0, 1.0], [0.0, 1.0]]), embedder="hashing:64")
    need = need_of(model.quality_of_text(["x", "\ud800" * 50, "y" * 1_000_000], HashingEmbedder(64)))
    assert np.isfinite(need).all()
    assert (np.diff(need) > 0.0).all()


def test_a_recipe_whose_prior_makes_no_sense_is_refused():
    """Negative or infinite priors are errors that name them."""
    for given in ({"length_prior": -0.1}, {"length_prior": np.inf}, {"prior_prompts": -1}):
        with pytest.raises(ConfigError, match=next(iter(given))):
            PromptRecipe(**given)


def test_training_is_reproducible_bit_for_bit():
    """The same data and seed give the same model; another seed gives another."""
    first, again, other = _fit(), _fit(), _fit(seed=1)
    for name, array in first.network.parameters.items():
        assert array.tobytes() == again.network.parameters[name].tobytes()
    assert first.projection.tobytes() == again.projection.tobytes()
    assert first.network.parameters["W"].tobytes() != other.network.parameters["W"].tobytes()


def test_text_and_stored_chunks_give_the_same():
    """What was embedded before and what is embedded now are scored alike, one prompt or many."""
    model = _fit(60)
    prompts, _, _ = _task(5, 3)
    embedder = HashingEmbedder(64)
    together = model.quality(prompts, embed_chunks(prompts, embedder, 4))
    assert np.allclose(together, model.quality_of_text(prompts, embedder))
    assert np.allclose(together[2:3], model.quality_of_text(prompts[2:3], embedder), atol=1e-6)


def test_the_projection_is_the_principal_components():
    """Projected training chunks have mean 0, uncorrelated components of falling size, mean deviation 1."""
    prompts, _, outcomes = _task(200, 1)
    chunks = embed_chunks(prompts, HashingEmbedder(64), 4)
    model = PromptModel.fit(HEADS, prompts, chunks, outcomes, embedder="hashing:64", recipe=RECIPE)
    projected = (chunks @ model.projection - model.offset).reshape(-1, 8).astype(np.float64)
    covariance = np.cov(projected.T)
    deviations = np.sqrt(np.diag(covariance))
    assert np.abs(projected.mean(axis=0)).max() < 1e-5
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-4
    assert (np.diff(deviations) <= 1e-6).all()
    assert deviations.mean() == pytest.approx(1.0, abs=0.01)


def test_a_file_brings_the_same_model_back(tmp_path):
    """Saved and loaded, everything is as it was, calibration and provenance included; same model, same bytes."""
    prompts, _, _ = _task(50, 2)
    calibration = NeedCalibration(np.linspace(-1, 1, 50, dtype=np.float32), np.arange(50, dtype=np.uint8) % 2)
    provenance = Provenance("made up", "0" * 64, 0, "0", np.__version__, {"apgr": 0.6})
    model = replace(_fit(60), calibration=calibration, provenance=provenance)
    for name in ("one", "two"):
        save_prompt_model(model, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = load_prompt_model(tmp_path / "one")
    embedder = HashingEmbedder(64)
    assert np.array_equal(loaded.quality_of_text(prompts, embedder), model.quality_of_text(prompts, embedder))
    assert np.array_equal(loaded.calibration.harm, calibration.harm)
    assert loaded.provenance == provenance
    assert repr(loaded) == repr(model)
    assert np.array_equal(loaded.length_slope, model.length_slope)


def test_a_file_of_before_the_prior_is_read_as_one_without(tmp_path):
    """Prompt models saved by earlier versions still load: the order of the lengths has no part in what they say."""
    model = _fit(60)
    tensors = {f"network.{name}": array for name, array in model.network.parameters.items()}
    tensors |= {"projection.matrix": model.projection, "projection.offset": model.offset}
    tensors |= {"surface.mean": model.surface_mean, "surface.std": model.surface_std}
    header = {"format": PROMPT_FORMAT, "network": asdict(model.network.config), "heads": model.heads}
    header |= {"embedder": model.embedder, "chunk_count": model.chunk_count, "surface_names": SURFACE_NAMES}
    write_model(tmp_path / "old", header | {"provenance": None}, tensors)
    without = replace(model, length_slope=np.zeros(2, np.float32))
    prompts, _, _ = _task(5, 3)
    embedder = HashingEmbedder(64)
    found = load_prompt_model(tmp_path / "old").quality_of_text(prompts, embedder)
    assert np.array_equal(found, without.quality_of_text(prompts, embedder))


def test_a_file_of_the_other_kind_or_altered_is_refused(tmp_path):
    """A candidate model is no prompt model and the reverse; a changed byte is found; the remedy is named."""
    path = tmp_path / "model"
    save_prompt_model(_fit(60), path)
    with pytest.raises(
        ModelFormatError, match=r"'eventcore-router-prompt-v1', expected 'eventcore-router-fastgrnn-v1'"
    ):
        load_model(path)
    with pytest.raises(
        ModelFormatError, match=r"expected 'eventcore-router-prompt-v1' or .*; use a bundled prompt model or"
    ):
        load_prompt_model(BUNDLED_MODEL)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match="altered"):
        load_prompt_model(path)


def test_arrays_that_do_not_fit_are_refused():
    """Too few prompts, other shapes, NaN, and chunks of another embedder each have an error that says what is wrong."""
    prompts, _, outcomes = _task(20, 1)
    chunks = embed_chunks(prompts, HashingEmbedder(64), 4)

    def fit(prompts, chunks, outcomes):
        PromptModel.fit(HEADS, prompts, chunks, outcomes, embedder="hashing:64", recipe=RECIPE)

    with pytest.raises(TrainingError, match="too few"):
        fit(prompts[:1], chunks[:1], outcomes[:1])
    with pytest.raises(DimensionMismatch, match="expected"):
        fit(prompts, chunks, outcomes[:, :1])
    with pytest.raises(NonFiniteInput, match="embedder"):
        fit(prompts, np.where(chunks > 0.3, np.nan, chunks), outcomes)
    with pytest.raises(DimensionMismatch, match="'hashing:64'"):
        _fit(60).quality(prompts, embed_chunks(prompts, HashingEmbedder(32), 4))


def test_a_model_that_overflows_is_an_error():
    """A score that is no number is never returned."""
    model = _fit(60)
    broken = {name: array.copy() for name, array in model.network.parameters.items()}
    broken["head_weight"][:] = 3e38
    network = type(model.network)(model.network.config, broken)
    prompts, _, _ = _task(3, 1)
    with pytest.raises(InferenceError, match="overflowed"):
        replace(model, network=network).quality_of_text(prompts, HashingEmbedder(64))
