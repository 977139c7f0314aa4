import numpy as np
import pytest

from router.errors import ConfigError, TrainingError
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.sparsity import Sparsity, hard_threshold, model_bytes, train_sparse
from router.training import Examples, TrainingConfig


def _task(count, seed=1):
    """Two of twelve features decide, the first step's; the other ten are noise."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((count, 4, 12)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0, 3] + inputs[:, 0, 7] > 0.0).astype(np.float32)[:, None])


def _accuracy(network, examples):
    return ((network.run(examples.inputs).logits > 0.0) == (examples.targets > 0.5)).mean()


def test_the_largest_magnitudes_stay():
    """Of ten entries a share of 0.3 keeps the three largest by magnitude, worked out by hand; 1 keeps all."""
    matrix = np.array([[0.1, -0.9, 0.3, 0.0, -0.4], [0.8, 0.2, -0.7, 0.5, -0.6]])
    kept = hard_threshold(matrix, 0.3)
    assert np.argwhere(kept).tolist() == [[0, 1], [1, 0], [1, 2]]
    assert hard_threshold(matrix, 1.0).all()
    assert hard_threshold(matrix, 1e-9).sum() == 1
    assert hard_threshold(np.full((2, 3), -0.5), 0.2).all()  # none is larger than another


@pytest.mark.parametrize("rank", [None, 5])
def test_training_in_three_phases(rank):
    """Dense at first; chosen anew every 15 mini-batches in the second third; the same support all through the last."""
    network = FastGRNN.initialise(FastGRNNConfig(12, 8, rank_w=rank, rank_u=rank), seed=0)
    names = [name for name in network.parameters if name[0] in "WU"]
    seen = []

    def note(epoch):
        seen.append({name: network.parameters[name] != 0.0 for name in names})

    sparsity = Sparsity(w=0.25, u=0.5)
    config = TrainingConfig(learning_rate=2e-2, epochs=12, batch_size=20)
    train_sparse(network, _task(400), sparsity, config, on_epoch=note)
    shares = [{name: support[name].mean() for name in names} for support in seen]
    assert all(share == 1.0 for epoch in shares[:4] for share in epoch.values())
    for epoch in shares[4:]:
        for name, share in epoch.items():
            wanted = sparsity.of(name)
            assert wanted - 0.001 <= share <= wanted + 2 / network.parameters[name].size
    if rank is None:  # the smaller factors of this task have found theirs at once
        assert any((seen[4][name] != seen[7][name]).any() for name in names)
    for support in seen[8:]:
        assert all((support[name] == seen[8][name]).all() for name in names)
    assert (network.parameters["bias_gate"] != 0.0).all()
    assert (network.parameters["head_weight"] != 0.0).all()


def test_a_sparse_network_still_learns():
    """With a fifth of W and half of U it finds the two features that matter and hardly looks at the other ten."""
    network = FastGRNN.initialise(FastGRNNConfig(12, 8), seed=0)
    config = TrainingConfig(learning_rate=2e-2, epochs=30, batch_size=50, schedule="cosine")
    train_sparse(network, _task(1500), Sparsity(w=0.2, u=0.5), config)
    assert _accuracy(network, _task(1000, seed=2)) > 0.93
    kept = (network.parameters["W"] != 0.0).sum(axis=1)
    assert kept[[3, 7]].sum() > kept.sum() / 2


def test_sparse_training_is_reproducible_bit_for_bit():
    """The same data, settings and seed give the same sparse weights."""
    runs = []
    for _ in range(2):
        network = FastGRNN.initialise(FastGRNNConfig(12, 4), seed=0)
        train_sparse(network, _task(100), Sparsity(0.3, 0.3), TrainingConfig(epochs=6))
        runs.append(network.parameters["W"].tobytes())
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("config", "kib"),
    [
        (FastGRNNConfig(32, 100, 12), 57.1),  # Google-12
        (FastGRNNConfig(9, 80, 2), 29.1),  # HAR-2
        (FastGRNNConfig(1, 128, 10), 70.5),  # Pixel-MNIST
        (FastGRNNConfig(32, 32, 2), 8.5),  # Wakeword-2
    ],
)
def test_dense_sizes_are_those_of_the_paper(config, kib):
    """Four bytes a number give the sizes of the uncompressed models, 57, 29, 71 and 8 KB in the paper."""
    assert round(model_bytes(FastGRNN.initialise(config, seed=0).parameters) / 1024, 1) == kib


def test_sparse_sizes_count_eight_bytes_a_kept_number_below_one_half():
    """By hand: of W 24 numbers 6 stay, 8 bytes each; U at one half is stored whole; the rest is 4 bytes a number."""
    parameters = dict(FastGRNN.initialise(FastGRNNConfig(4, 6, 2), seed=0).parameters)
    parameters["W"] = np.where(hard_threshold(parameters["W"], 0.25), parameters["W"], 0.0)
    parameters["U"] = np.where(hard_threshold(parameters["U"], 0.5), parameters["U"], 0.0)
    rest = 4 * (6 + 6 + 1 + 1 + 12 + 2)
    assert model_bytes(parameters, Sparsity(w=0.25, u=0.5)) == 6 * 8 + 36 * 4 + rest
    assert model_bytes(parameters, Sparsity(w=0.25, u=0.49)) == 6 * 8 + 18 * 8 + rest


def test_the_published_compression_of_har_2():
    """H 80, ranks 5 and 40, 0.2 of W and 0.3 of U kept, as the paper's HAR-2, is less than its dense size by half."""
    parameters = dict(FastGRNN.initialise(FastGRNNConfig(9, 80, 2, rank_w=5, rank_u=40), seed=0).parameters)
    sparsity = Sparsity(w=0.2, u=0.3)
    for name, array in parameters.items():
        parameters[name] = np.where(hard_threshold(array, sparsity.of(name)), array, 0.0)
    w, u, rest = 5 * (9 + 80), 40 * (80 + 80), 80 + 80 + 2 + 80 * 2 + 2
    exact = 8 * (0.2 * w + 0.3 * u) + 4 * rest
    assert model_bytes(parameters, sparsity) == pytest.approx(exact, abs=4 * 8)
    assert model_bytes(parameters, sparsity) < 29.1 * 1024 * 0.6


def test_settings_out_of_range_are_named():
    """A share of nothing, more than all, or phases without an epoch each cannot be trained."""
    for name, share in (("w", 0.0), ("u", 1.1), ("u", float("nan"))):
        with pytest.raises(ConfigError, match=f"sparsity {name} is"):
            Sparsity(**{name: share})
    with pytest.raises(TrainingError, match="at least 3"):
        train_sparse(FastGRNN.initialise(FastGRNNConfig(12, 4), seed=0), _task(8), Sparsity(), TrainingConfig(epochs=2))
