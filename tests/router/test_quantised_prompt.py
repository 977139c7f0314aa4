import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router.embedding import HashingEmbedder
from router.errors import ConfigError, DimensionMismatch
from router.evaluation import gain_curve, split_by_prompt
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.model import Provenance, RoundedFrom
from router.pairs import HEADS, read_pairs
from router.prompt_model import NeedCalibration, PromptModel, need_of
from router.prompts import SURFACE_NAMES, embed_chunks
from router.quantised_prompt import folded, from_tensors, rounded, to_tensors

DATA = Path(os.environ.get("EVENTCORE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "routing"
PROMPTS = ["What is 12 times 7?", "Name the capital of France.", "Write a sort in Python:\n\ndef sort(xs):"]


def _model(dimension=40, components=6, **network):
    """A prompt model with weights as training leaves them, of the default shape but smaller."""
    random = np.random.default_rng(1)
    config = FastGRNNConfig(components + len(SURFACE_NAMES), **({"hidden_size": 5, "output_size": 2} | network))
    cell = FastGRNN.initialise(config, seed=1)
    for array in cell.parameters.values():
        array[...] += (0.3 * random.standard_normal(array.shape)).astype(np.float32)
    return PromptModel(
        heads=("weak", "strong"),
        embedder="hashing:40",
        chunk_count=3,
        projection=random.standard_normal((dimension, components)).astype(np.float32),
        offset=random.standard_normal(components).astype(np.float32),
        surface_mean=random.standard_normal(10).astype(np.float32),
        surface_std=random.uniform(0.5, 2.0, 10).astype(np.float32),
        length_slope=np.array([-0.3, 0.1], dtype=np.float32),
        network=cell,
    )


SHAPES = [{}, {"hidden_size": 9}, {"rank_w": 3}, {"rank_u": 2}, {"rank_w": 7, "rank_u": 2}]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def _chunks(dimension=40):
    chunks = np.random.default_rng(2).standard_normal((len(PROMPTS), 3, dimension)).astype(np.float32)
    return chunks / np.linalg.norm(chunks, axis=2, keepdims=True)


def _again(model, tensors):
    return from_tensors(
        tensors,
        heads=model.heads,
        embedder=model.embedder,
        chunk_count=model.chunk_count,
        network=model.network.config,
    )


@every_shape
def test_folding_changes_nothing_but_the_rounding(shape):
    """With W folded into the projection a model says what it said, be W whole, thin or too wide to be folded."""
    model = _model(**shape)
    small = folded(model)
    np.testing.assert_allclose(small.quality(PROMPTS, _chunks()), model.quality(PROMPTS, _chunks()), atol=2e-6)
    assert small.projection.shape[1] <= model.projection.shape[1]


@every_shape
@pytest.mark.parametrize("per", ["tensor", "column"])
def test_in_eight_bits_a_model_says_nearly_the_same(shape, per):
    """What comes back from the arrays is a prompt model of the same heads whose probabilities differ by a hundredth."""
    model = _model(**shape)
    again = _again(model, to_tensors(model, per=per))
    assert (again.heads, again.embedder, again.chunk_count) == (model.heads, model.embedder, model.chunk_count)
    assert again.dimension == model.dimension
    difference = np.abs(again.quality(PROMPTS, _chunks()) - model.quality(PROMPTS, _chunks()))
    assert 0.0 < difference.max() < 0.02


@every_shape
def test_what_is_in_eight_bits_is_in_eight_bits_again(shape):
    """Rounding a rounded model gives the same arrays to the last bit, so that its file may be loaded and saved."""
    tensors = to_tensors(_model(**shape))
    again = to_tensors(_again(_model(**shape), tensors))
    assert set(again) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_what_is_said_of_a_calibration_goes_with_it():
    """A rounded model names its source and its training data, and neither has a calibration nor counts its prompts."""
    origin = Provenance("a.csv", "0" * 64, 0, "0.1.0", "2.4.6", {"prompts": 9.0, "calibration_prompts": 3.0})
    calibration = NeedCalibration(np.zeros(3, np.float32), np.zeros(3, np.uint8))
    source = RoundedFrom("float.safetensors", "1" * 64, 99)
    small = rounded(replace(_model(), provenance=origin, calibration=calibration), source)
    assert small.calibration is None
    assert small.provenance == replace(origin, metrics={"prompts": 9.0})
    assert small.rounded_from == source
    with pytest.raises(ConfigError, match=r"int8 is in eight bits already, made from float\.safetensors"):
        rounded(small, RoundedFrom("int8", "2" * 64, 9))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not there: name their folder in EVENTCORE_DATA")
def test_eight_bits_cost_next_to_nothing_on_real_prompts():
    """Learned from half of the shared maths prompts, a model ranks the other half as well in them, to 0.005 APGR."""
    pairs = read_pairs([DATA / "gsm8k.csv.gz"])
    training, test = split_by_prompt(pairs, 0)
    known, new = pairs.take(training), pairs.take(test)
    embedder = HashingEmbedder()
    chunks = embed_chunks(known.prompts, embedder, 8)
    model = PromptModel.fit(HEADS, known.prompts, chunks, known.outcomes, embedder="hashing")
    small = rounded(model, RoundedFrom("float.safetensors", "1" * 64, 99))
    exact, eight_bits = (
        gain_curve(need_of(one.quality_of_text(new.prompts, embedder)), new.gain).apgr for one in (model, small)
    )
    assert exact != eight_bits
    assert abs(exact - eight_bits) < 0.005


def test_arrays_that_are_no_prompt_model_are_refused():
    """Missing or foreign arrays, too few or too many numbers or weights, a scale of zero: each has its error."""
    model = _model()
    good = to_tensors(model)
    with pytest.raises(DimensionMismatch, match=r"expected weights in int8"):
        _again(model, {"weights": good["weights"]})
    with pytest.raises(DimensionMismatch, match=r"expected weights in int8"):
        _again(model, good | {"weights": good["weights"].astype(np.float32)})
    with pytest.raises(DimensionMismatch, match="make no projection"):
        _again(model, good | {"weights": good["weights"][:-1]})
    with pytest.raises(DimensionMismatch, match="make no projection"):
        _again(model, good | {"weights": good["weights"][:20]})
    with pytest.raises(DimensionMismatch, match="too many"):
        _again(model, good | {"numbers": np.concatenate([good["numbers"], np.ones(90, np.float32)])})
    with pytest.raises(DimensionMismatch, match="expected at least"):
        _again(model, good | {"numbers": good["numbers"][:-1]})
    other = replace(model.network.config, hidden_size=4)
    with pytest.raises(DimensionMismatch, match="make no projection"):
        from_tensors(good, heads=model.heads, embedder="hashing:40", chunk_count=3, network=other)
    with pytest.raises(ConfigError, match="quantise anew"):
        _again(model, good | {"numbers": np.append(good["numbers"][:-1], np.float32(0.0))})
