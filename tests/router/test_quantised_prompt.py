from dataclasses import asdict, replace

import numpy as np
import pytest

from router.errors import ConfigError, DimensionMismatch
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.model import Provenance
from router.model_file import save_prompt_model
from router.model_store import write_model
from router.prompt_model import PromptModel
from router.prompts import SURFACE_NAMES
from router.quantised_prompt import folded, from_tensors, to_tensors

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


def test_a_file_is_a_quarter_of_the_size(tmp_path):
    """With the default shape the eight-bit file has at most a quarter of the float file's bytes, headers included."""
    origin = Provenance("gsm8k.csv.gz, mmlu.csv.gz", "0" * 64, 0, "0.1.0", "2.4.6", {"prompts": 4749.0})
    model = replace(_model(384, 32, hidden_size=32), provenance=origin)
    save_prompt_model(model, tmp_path / "float")
    header = {"format": "test", "network": asdict(model.network.config), "heads": model.heads}
    header |= {"embedder": model.embedder, "chunk_count": model.chunk_count, "surface_names": SURFACE_NAMES}
    header |= {"provenance": asdict(origin)}
    write_model(tmp_path / "int8", header, to_tensors(model))
    assert (tmp_path / "int8").stat().st_size <= (tmp_path / "float").stat().st_size / 4


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
