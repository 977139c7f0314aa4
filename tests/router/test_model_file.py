import json
import math
import os

import numpy as np
import pytest
from safetensors import numpy as safetensors

from router.errors import (
    ConfigError,
    DimensionMismatch,
    InferenceError,
    ModelError,
    ModelFormatError,
    ModelNotFound,
    NoCalibration,
    NonFiniteInput,
)
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.features import FEATURE_WEIGHTS
from router.model import Provenance, RouterModel
from router.model_file import BUNDLED_MODEL, FORMAT, load_model, save_model
from router.model_store import _digest
from router.training import Normalisation
from router.uncertainty import Calibration, is_lightweight

ENTRY = "eventcore.router"


def _model(seed=0, *, rank=None, dtype=np.float32, calibrated=True):
    random = np.random.default_rng(seed)
    network = FastGRNN.initialise(FastGRNNConfig(5, 8, rank_w=rank, rank_u=rank), seed=seed, dtype=dtype)
    normalisation = Normalisation(random.uniform(0.0, 0.2, 5), random.uniform(0.05, 0.2, 5))
    calibration = None
    if calibrated:
        scores = random.uniform(0.3, 0.95, 500)
        calibration = Calibration.fit(scores, (random.uniform(size=500) < scores).astype(float), max_bins=5)
    provenance = Provenance("table.csv", "00" * 32, seed, "1.2.3", np.__version__, {"auc": 0.66})
    reference = np.sort(random.uniform(size=(5, 33)), axis=1).astype(np.float32) if calibrated else None
    return RouterModel(network, normalisation, FEATURE_WEIGHTS, calibration, provenance, reference)


def _features(count=20, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, 5)).astype(np.float32) * np.float32(0.2)


def _forged(tmp_path, change):
    """A file with a valid digest whose header and arrays went through `change` first."""
    path = tmp_path / "forged.safetensors"
    save_model(_model(), path)
    data = path.read_bytes()
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][ENTRY])
    header.pop("sha256")
    tensors = safetensors.load(data)
    change(header, tensors)
    text = json.dumps(header | {"sha256": _digest(header, tensors)}, sort_keys=True)
    path.write_bytes(safetensors.save(tensors, {ENTRY: text}))
    return path


@pytest.mark.parametrize("model", [_model(), _model(rank=3), _model(dtype=np.float64), _model(calibrated=False)])
def test_a_model_comes_back_as_it_was_saved(tmp_path, model):
    """Every part of the model survives the file exactly, in either precision, of full or low rank."""
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    assert loaded.network.config == model.network.config
    assert loaded.network.dtype == model.network.dtype
    for name, array in model.network.parameters.items():
        np.testing.assert_array_equal(loaded.network.parameters[name], array)
    np.testing.assert_array_equal(loaded.score(_features()), model.score(_features()))
    assert loaded.feature_weights == model.feature_weights
    assert loaded.provenance == model.provenance
    if model.calibration is None:
        assert loaded.calibration is None
        assert loaded.reference is None
    else:
        scores = np.linspace(0.0, 1.0, 101)
        np.testing.assert_array_equal(loaded.uncertainty(scores), model.uncertainty(scores))
        assert repr(loaded.calibration) == repr(model.calibration)
        np.testing.assert_array_equal(loaded.reference, model.reference)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    """Files can be compared and hashed: nothing random or dated goes in."""
    for name in ("first", "second"):
        save_model(_model(), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_saving_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path):
    """A model is overwritten in one step, readable by all, with no temporary file left."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"something else")
    save_model(_model(), path)
    load_model(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_model_that_cannot_be_written_says_where_and_why(tmp_path):
    """The error of the file system arrives with the path and what to do."""
    with pytest.raises(ModelError, match=r"missing.*No such file.*writable path"):
        save_model(_model(), tmp_path / "missing" / "model.safetensors")


def test_a_model_does_not_take_the_place_of_what_is_no_file(tmp_path):
    """A pipe or a folder at the path stays what it is: a model is renamed into place, which would remove a device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, reason in (("pipe", "it is no regular file"), ("folder", "it is a directory")):
        with pytest.raises(ModelError, match=f"{name}: {reason}; choose a writable path"):
            save_model(_model(), tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_model_that_is_not_finite_is_not_written(tmp_path):
    """A file that load would refuse is not made in the first place."""
    model = _model()
    model.network.parameters["W"][0, 0] = math.nan
    with pytest.raises(NonFiniteInput, match=r"network\.W"):
        save_model(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_error_and_never_a_random_model(tmp_path):
    """Without a file there is no router; the message has the path and two ways out."""
    path = tmp_path / "absent.safetensors"
    with pytest.raises(ModelNotFound, match=r"absent\.safetensors.*bundled model of candidates or train one"):
        load_model(path)
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1, -200])
def test_a_truncated_file_is_refused(tmp_path, length):
    """Wherever the file ends too early, it is refused with path, reason and remedy."""
    path = tmp_path / "model.safetensors"
    save_model(_model(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelFormatError, match=r"model\.safetensors is refused: it is truncated.*train one"):
        load_model(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    """Text, another program's safetensors file, a newer format and a folder are each named for what they are."""
    path = tmp_path / "model.safetensors"
    path.write_text("weights = [1, 2, 3]" * 10)
    with pytest.raises(ModelFormatError, match="no safetensors file"):
        load_model(path)
    path.write_bytes(safetensors.save({"w": np.zeros(3, np.float32)}))
    with pytest.raises(ModelFormatError, match="of something else"):
        load_model(path)
    path.write_bytes(safetensors.save({"w": np.zeros(3, np.float32)}, {ENTRY: "[1]"}))
    with pytest.raises(ModelFormatError, match="of something else"):
        load_model(path)
    newer = FORMAT.replace("v1", "v9")
    path.write_bytes(safetensors.save({"w": np.zeros(3, np.float32)}, {ENTRY: json.dumps({"format": newer})}))
    with pytest.raises(ModelFormatError, match=rf"'{newer}', expected '{FORMAT}'"):
        load_model(path)
    with pytest.raises(ModelFormatError, match="directory"):
        load_model(tmp_path)


def test_no_altered_byte_goes_unnoticed(tmp_path):
    """A flipped bit anywhere, be it in a weight, gives an error and not a model that scores a little differently."""
    path = tmp_path / "model.safetensors"
    save_model(_model(), path)
    sound = path.read_bytes()
    for position in range(0, len(sound), 7):
        altered = bytearray(sound)
        altered[position] ^= 0x04
        path.write_bytes(altered)
        with pytest.raises(ModelFormatError, match="is refused"):
            load_model(path)
    path.write_bytes(sound)
    load_model(path)


def _set(tensors, name, value):
    tensors[name] = value


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (r"missing \['U'\]", lambda _, tensors: tensors.pop("network.U")),
        ("network.V|not expected", lambda _, tensors: _set(tensors, "network.V", np.zeros(3, np.float32))),
        ("not part of a model", lambda _, tensors: _set(tensors, "other.V", np.zeros(3, np.float32))),
        (r"W is float32\(8, 5\)", lambda _, tensors: _set(tensors, "network.W", np.zeros((8, 5), np.float32))),
        ("int32", lambda _, tensors: _set(tensors, "network.head_bias", np.zeros(1, np.int32))),
        ("nu holds NaN", lambda _, tensors: _set(tensors, "network.nu", np.full(1, math.nan, np.float32))),
        ("mean holds NaN", lambda _, tensors: _set(tensors, "normalisation.mean", np.full(5, math.inf))),
        ("std is not positive", lambda _, tensors: _set(tensors, "normalisation.std", np.zeros(5))),
        ("one number per feature", lambda _, tensors: _set(tensors, "normalisation.std", np.ones(4))),
        ("header is incomplete", lambda _, tensors: tensors.pop("normalisation.std")),
        ("calibration is incomplete", lambda _, tensors: tensors.pop("calibration.upper")),
        ("calibration is incomplete", lambda header, _: header.update(calibration=None)),
        ("one length", lambda _, tensors: _set(tensors, "calibration.upper", np.ones(2))),
        ("out of order", lambda _, tensors: _set(tensors, "calibration.upper", np.linspace(1.0, 0.0, 5))),
        ("outside", lambda _, tensors: _set(tensors, "calibration.uncertainty", np.full(5, 1.5))),
        ("header is incomplete", lambda header, _: header.pop("provenance")),
        ("header is incomplete", lambda header, _: header["network"].pop("hidden_size")),
        ("header is incomplete", lambda header, _: header["network"].update(layers=2)),
        ("hidden_size is 0", lambda header, _: header["network"].update(hidden_size=0)),
        ("trained on the features", lambda header, _: header.update(feature_names=["length"])),
        ("33 rising quantiles", lambda _, tensors: _set(tensors, "reference.quantiles", np.zeros((5, 9)))),
        (
            "33 rising quantiles",
            lambda _, tensors: _set(tensors, "reference.quantiles", np.full((5, 33), range(33, 0, -1), float)),
        ),
        ("feature weights|one number per feature", lambda header, _: header.update(feature_weights=[1.0])),
    ],
)
def test_a_file_with_unsound_parts_is_refused(tmp_path, reason, change):
    """Missing, foreign, misshapen and non-finite parts are each named, even when the digest is right."""
    path = _forged(tmp_path, change)
    with pytest.raises(ModelFormatError, match=rf"forged\.safetensors is refused: .*(?:{reason})"):
        load_model(path)


def test_an_unchanged_forgery_loads(tmp_path):
    """The files of the test above are refused for what was changed in them, not for how they were made."""
    load_model(_forged(tmp_path, lambda *_: None))


def test_scores_are_probabilities_one_per_row():
    """A row of features gives one score in (0, 1) in the model's precision; no rows give no scores."""
    model = _model()
    scores = model.score(_features())
    assert (scores.shape, scores.dtype) == ((20,), np.float32)
    assert ((scores > 0.0) & (scores < 1.0)).all()
    assert model.score(np.empty((0, 5), np.float32)).shape == (0,)
    np.testing.assert_array_equal(model.score(_features()[:, None, :]), scores)


def test_scores_follow_the_plain_network():
    """The serving pass with folded normalisation gives what normalising and running the equations gives."""
    model = _model(dtype=np.float64)
    trace = model.network.run(model.normalisation.apply(_features().astype(np.float64))[:, None, :])
    np.testing.assert_allclose(model.score(_features()), 1.0 / (1.0 + np.exp(-trace.logits[:, 0])), rtol=1e-12)


def test_features_that_cannot_be_scored_are_errors():
    """A wrong number of features, NaN, and weights so large that the arithmetic overflows are told apart."""
    model = _model()
    with pytest.raises(DimensionMismatch, match="features = 5"):
        model.score(np.zeros((3, 4), np.float32))
    with pytest.raises(NonFiniteInput, match=r"input\[1, 0, 2\]"):
        model.score(np.array([[0.0] * 5, [0.0, 0.0, math.nan, 0.0, 0.0]]))
    model.network.parameters["head_weight"][...] = 3e38
    steep = RouterModel(model.network, model.normalisation)
    with pytest.raises(InferenceError, match=r"overflowed.*train it again"):
        steep.score(_features())


def test_a_model_without_calibration_claims_no_certainty():
    """Asking it for an uncertainty is an error that says how to get one."""
    with pytest.raises(NoCalibration, match="fit a Calibration"):
        _model(calibrated=False).uncertainty(np.array([0.9]))


def test_parts_that_do_not_fit_make_no_model():
    """The network takes the router's features and gives one score."""
    normalisation = Normalisation(np.zeros(5), np.ones(5))
    with pytest.raises(ConfigError, match="takes 4 features"):
        RouterModel(FastGRNN.initialise(FastGRNNConfig(4, 8), seed=0), normalisation)
    with pytest.raises(ConfigError, match="2 outputs"):
        RouterModel(FastGRNN.initialise(FastGRNNConfig(5, 8, 2), seed=0), normalisation)
    with pytest.raises(DimensionMismatch, match="one number per feature"):
        RouterModel(FastGRNN.initialise(FastGRNNConfig(5, 8), seed=0), normalisation, (1.0, 1.0))


# Raw features (similarity, recency, frequency, success, overlap) before weighting, and what the bundled model says.
REFERENCE = [
    ([0.65, 0.3, 0.55, 0.9, 1.0], 0.9078753),
    ([0.65, 0.3, 0.55, 0.6, 0.0], 0.6038934),
    ([0.25, 0.1, 0.6, 0.7, 0.0], 0.5277575),
    ([0.0, 1.0, 0.0, 0.5, 0.0], 0.6637306),
    ([0.8, 0.0, 0.7, 0.8, 0.5], 0.8710520),
    ([0.4, 0.9, 0.2, 0.75, 1.0], 0.8057682),
]


def test_the_bundled_model_gives_the_stored_scores():
    """The file that ships is the file that was measured: known input, known scores, and no file of 50 kB or more."""
    model = load_model()
    rows = np.array([row for row, _ in REFERENCE]) * np.array(model.feature_weights)
    np.testing.assert_allclose(model.score(rows.astype(np.float32)), [score for _, score in REFERENCE], atol=2e-6)
    assert BUNDLED_MODEL.stat().st_size < 50_000


def test_the_bundled_model_knows_where_it_comes_from():
    """Data, seed, versions and test metrics are in the file, and the metrics beat what asks nothing of a model."""
    provenance = load_model().provenance
    assert provenance.training_data == "routerbench_subset.csv.gz"
    assert len(provenance.training_data_sha256) == 64
    metrics = provenance.metrics
    assert metrics["log_loss"] < metrics["log_loss_base_rate"]
    assert metrics["auc"] > metrics["auc_success_rate_alone"]


def test_the_bundled_model_decides_both_ways():
    """With the default limits a proven, similar candidate is lightweight, and a weak or unknown one is not."""
    model = load_model()
    proven = [0.7, 0.2, 0.5, 0.92, 1.0]
    weak = [0.7, 0.2, 0.5, 0.5, 0.0]
    unlike = [0.1, 0.2, 0.5, 0.92, 0.0]
    scores = model.score((np.array([proven, weak, unlike]) * model.feature_weights).astype(np.float32))
    assert is_lightweight(scores, model.uncertainty(scores)).tolist() == [True, False, False]
