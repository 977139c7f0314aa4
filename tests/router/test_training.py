import math

import numpy as np
import pytest

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput, TrainingError
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.training import (
    Adam,
    Examples,
    Normalisation,
    TrainingConfig,
    binary_cross_entropy,
    clip_by_global_norm,
    softmax_cross_entropy,
    train,
)


def _memory_task(count, seed, steps=8):
    """Say at the end whether the first number of the sequence was positive; the rest is noise."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((count, steps, 1))
    return Examples(inputs, (inputs[:, 0] > 0.0).astype(float))


def _small_run(seed=0, epochs=12, patience=20, **settings):
    network = FastGRNN.initialise(FastGRNNConfig(1, 6), seed=seed)
    config = TrainingConfig(learning_rate=1e-2, epochs=epochs, patience=patience, seed=seed, **settings)
    return network, train(network, _memory_task(200, 1), _memory_task(100, 2), config)


def test_what_needs_memory_is_learned():
    """Gradients reach through time: a trained network recalls the first of eight numbers, which no last step shows."""
    network = FastGRNN.initialise(FastGRNNConfig(1, 8), seed=0)
    train(network, _memory_task(600, 1), _memory_task(200, 2), TrainingConfig(learning_rate=2e-2, epochs=60))
    held_out = _memory_task(500, 3)
    right = (network.run(held_out.inputs).logits > 0.0) == (held_out.targets > 0.5)
    assert right.mean() > 0.93


def test_sequences_of_unequal_length_are_learned_from_where_they_end():
    """With lengths, what stands after a sequence's end is not learned from: the same weights come out of other fill."""
    random = np.random.default_rng(1)
    lengths = random.integers(1, 9, 60)
    task = _memory_task(60, 1)
    weights = []
    for fill in (0.0, 7.0):
        inputs = np.where(np.arange(8)[None, :, None] < lengths[:, None, None], task.inputs, fill)
        examples = Examples(inputs, task.targets, lengths)
        network = FastGRNN.initialise(FastGRNNConfig(1, 4), seed=0)
        report = train(network, examples, examples, TrainingConfig(epochs=3))
        weights.append((network.parameters["U"].tobytes(), report.best.validation_loss))
    assert weights[0] == weights[1]
    with pytest.raises(DimensionMismatch, match="one each"):
        train(network, Examples(task.inputs, task.targets, lengths[:5]), None)


def test_every_step_is_told_with_its_number():
    """The hook after each mini-batch sees all of them, counted from 1 through the epochs."""
    seen = []
    network = FastGRNN.initialise(FastGRNNConfig(1, 4), seed=0)
    train(network, _memory_task(70, 1), None, TrainingConfig(epochs=2), after_step=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_training_is_reproducible_bit_for_bit():
    """The same data, settings and seed give the same weights and the same history; another seed gives others."""
    (first, report), (second, again), (other, _) = _small_run(), _small_run(), _small_run(seed=1)
    assert report == again
    for name, array in first.parameters.items():
        assert array.tobytes() == second.parameters[name].tobytes()
    assert first.parameters["U"].tobytes() != other.parameters["U"].tobytes()


def test_a_cosine_schedule_without_validation_uses_every_epoch_and_comes_to_rest():
    """Without validation examples all epochs are trained, the last is kept, and the last steps hardly move."""
    network = FastGRNN.initialise(FastGRNNConfig(1, 6), seed=0)
    moves = []
    before = {name: a.copy() for name, a in network.parameters.items()}

    def note(epoch):
        nonlocal before
        moves.append(sum(float(np.abs(a - before[name]).sum()) for name, a in network.parameters.items()))
        before = {name: a.copy() for name, a in network.parameters.items()}

    config = TrainingConfig(learning_rate=1e-2, epochs=20, patience=1, schedule="cosine")
    report = train(network, _memory_task(200, 1), None, config, on_epoch=note)
    assert len(report.epochs) == 20
    assert report.best is report.epochs[-1]
    assert not report.stopped_early
    assert math.isnan(report.best.validation_loss)
    assert moves[-1] < 0.05 * max(moves)


def test_noise_on_the_inputs_keeps_a_network_from_learning_its_examples_by_heart():
    """Forty examples of pure chance are learned by heart without noise, and not with it; both are reproducible."""
    random = np.random.default_rng(0)
    chance = Examples(random.standard_normal((40, 2, 6)), (random.uniform(size=(40, 1)) < 0.5).astype(float))

    def loss(noise):
        network = FastGRNN.initialise(FastGRNNConfig(6, 16), seed=0)
        config = TrainingConfig(learning_rate=2e-2, epochs=150, input_noise=noise, schedule="cosine", l2=0.0)
        train(network, chance, None, config)
        return binary_cross_entropy(network.run(chance.inputs.astype(np.float32)).logits, chance.targets)[0]

    assert loss(0.0) < 0.05
    assert loss(1.5) > 0.2
    assert loss(1.5) == loss(1.5)


def test_the_best_weights_come_back():
    """After training, the network's validation loss is the lowest that any epoch reached, not the last one's."""
    network = FastGRNN.initialise(FastGRNNConfig(1, 8), seed=0)
    training, validation = _memory_task(24, 1), _memory_task(200, 2)  # too few examples: it will overfit
    report = train(network, training, validation, TrainingConfig(learning_rate=3e-2, epochs=150, patience=30))
    losses = [epoch.validation_loss for epoch in report.epochs]
    assert report.best.validation_loss == min(losses) < losses[-1]
    now, _ = binary_cross_entropy(network.run(validation.inputs).logits, validation.targets.astype(np.float32))
    assert now == report.best.validation_loss


def test_training_stops_when_patience_is_out():
    """After `patience` epochs without a lower validation loss training ends, and the report says that it did."""
    network = FastGRNN.initialise(FastGRNNConfig(1, 8), seed=0)
    config = TrainingConfig(learning_rate=3e-2, epochs=150, patience=5)
    report = train(network, _memory_task(24, 1), _memory_task(200, 2), config)
    assert report.stopped_early
    assert len(report.epochs) == report.best.number + 5
    _, full = _small_run(epochs=3)
    assert (len(full.epochs), full.stopped_early) == (3, False)


def test_progress_is_reported_epoch_by_epoch():
    """The callback sees each epoch as it ends, in order, the best ones marked."""
    seen = []
    network = FastGRNN.initialise(FastGRNNConfig(1, 4), seed=0)
    config = TrainingConfig(epochs=4)
    report = train(network, _memory_task(40, 1), _memory_task(20, 2), config, on_epoch=seen.append)
    assert tuple(seen) == report.epochs
    assert [epoch.number for epoch in seen] == [1, 2, 3, 4]
    assert seen[0].is_best


def test_an_interrupt_leaves_the_best_weights_so_far():
    """Whoever stops a long training has the best network found until then."""
    network = FastGRNN.initialise(FastGRNNConfig(1, 6), seed=0)
    validation, best = _memory_task(100, 2), []

    def stop_in_the_eighth(epoch):
        best.append(epoch.validation_loss)
        if epoch.number == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network, _memory_task(200, 1), validation, TrainingConfig(epochs=50), on_epoch=stop_in_the_eighth)
    now, _ = binary_cross_entropy(network.run(validation.inputs).logits, validation.targets.astype(np.float32))
    assert now == min(best)


def test_a_diverging_training_is_an_error_not_a_model():
    """When the loss is no longer finite, training says so and names the setting to lower."""
    network = FastGRNN.initialise(FastGRNNConfig(1, 4), seed=0)
    with pytest.raises(TrainingError, match=r"diverged in epoch \d+.*learning_rate"):
        train(network, _memory_task(64, 1), _memory_task(20, 2), TrainingConfig(learning_rate=1e38, epochs=50))


def test_l2_shrinks_the_matrices_and_spares_the_rest():
    """Without any signal in the data, decay draws the matrices to zero, not the biases, zeta and nu."""
    network = FastGRNN.initialise(FastGRNNConfig(1, 4), seed=0)
    before = {name: np.abs(array).mean() for name, array in network.parameters.items()}
    silence = Examples(np.zeros((64, 3, 1)), np.full((64, 1), 0.5))
    train(network, silence, silence, TrainingConfig(learning_rate=1e-2, l2=1.0, epochs=40, patience=40))
    after = {name: np.abs(array).mean() for name, array in network.parameters.items()}
    assert after["W"] < 0.2 * before["W"]
    assert after["U"] < 0.2 * before["U"]
    assert after["bias_gate"] > 0.5 * before["bias_gate"]
    assert after["zeta"] > 0.5 * before["zeta"]


def test_cross_entropy_is_the_textbook_one_and_its_gradient_too():
    """From logits the loss is -y ln p - (1 - y) ln(1 - p), soft targets included; the gradient is its slope."""
    random = np.random.default_rng(0)
    logits, targets = random.standard_normal((6, 2)), random.uniform(size=(6, 2))
    loss, gradient = binary_cross_entropy(logits, targets)
    p = 1.0 / (1.0 + np.exp(-logits))
    assert loss == pytest.approx(-(targets * np.log(p) + (1.0 - targets) * np.log(1.0 - p)).mean(), rel=1e-14)
    for index in np.ndindex(logits.shape):
        moved = logits.copy()
        moved[index] += 1e-6
        high, _ = binary_cross_entropy(moved, targets)
        moved[index] -= 2e-6
        low, _ = binary_cross_entropy(moved, targets)
        assert gradient[index] == pytest.approx((high - low) / 2e-6, abs=1e-9)


def test_cross_entropy_survives_extreme_logits():
    """A logit of ±1000 gives a finite loss and gradient, where the sigmoid form would take the logarithm of zero."""
    loss, gradient = binary_cross_entropy(np.array([[1000.0], [-1000.0]]), np.array([[0.0], [0.0]]))
    assert loss == 500.0
    np.testing.assert_allclose(gradient, [[0.5], [0.0]])


def test_softmax_cross_entropy_is_its_formula_and_its_gradient_the_derivative():
    """Loss -Σ y·log softmax(l), averaged over the batch; gradient as by finite differences; extremes do no harm."""
    random = np.random.default_rng(1)
    logits, targets = random.standard_normal((5, 4)), random.dirichlet(np.ones(4), 5)
    loss, gradient = softmax_cross_entropy(logits, targets)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-(targets * np.log(probabilities)).sum() / 5)
    for index in np.ndindex(logits.shape):
        moved = logits.copy()
        moved[index] += 1e-5
        high, _ = softmax_cross_entropy(moved, targets)
        moved[index] -= 2e-5
        low, _ = softmax_cross_entropy(moved, targets)
        assert gradient[index] == pytest.approx((high - low) / 2e-5, abs=1e-9)
    loss, gradient = softmax_cross_entropy(np.array([[1000.0, -1000.0]]), np.array([[0.0, 1.0]]))
    assert loss == 2000.0
    np.testing.assert_allclose(gradient, [[1.0, -1.0]])


def test_adam_takes_the_published_steps():
    """With bias correction the first step is the learning rate against the gradient's sign; the next follow alg. 1."""
    parameters, adam = {"w": np.array([1.0, 1.0])}, Adam(0.1)
    m = v = np.zeros(2)
    expected = np.array([1.0, 1.0])
    for t, gradient in enumerate(([3.0, -0.01], [-1.0, 0.02], [0.5, 0.0]), start=1):
        adam.step(parameters, {"w": np.array(gradient)})
        m = 0.9 * m + 0.1 * np.array(gradient)
        v = 0.999 * v + 0.001 * np.array(gradient) ** 2
        expected = expected - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(parameters["w"], expected, rtol=1e-12)
        if t == 1:
            np.testing.assert_allclose(parameters["w"], [0.9, 1.1], rtol=1e-5)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    """Gradients longer than the bound are scaled down as one vector, shorter ones are left as they are."""
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert clip_by_global_norm(gradients, 10.0) == 5.0
    assert gradients["b"][0, 0] == 4.0
    assert clip_by_global_norm(gradients, 5.0) == 5.0
    assert gradients["b"][0, 0] == 4.0
    assert clip_by_global_norm(gradients, 4.0) == 5.0
    assert clip_by_global_norm(gradients, 1.0) == pytest.approx(4.0)
    np.testing.assert_allclose(gradients["a"], [0.6, 0.0])
    np.testing.assert_allclose(gradients["b"], [[0.8]])


def test_normalisation_is_the_z_score_of_the_training_data():
    """Normalised training data have mean 0 and deviation 1; a constant feature is centred and not blown up."""
    inputs = np.random.default_rng(0).normal([5.0, -2.0, 3.0], [2.0, 0.1, 0.0], size=(400, 1, 3))
    normalisation = Normalisation.fit(inputs)
    normalised = normalisation.apply(inputs)
    np.testing.assert_allclose(normalised.mean(axis=(0, 1)), 0.0, atol=1e-12)
    np.testing.assert_allclose(normalised.std(axis=(0, 1)), [1.0, 1.0, 0.0], atol=1e-12)
    assert normalisation.std[2] == 1.0
    assert normalisation.apply(inputs.astype(np.float32)).dtype == np.float32


def test_data_that_cannot_be_trained_on_are_refused():
    """Empty, misshapen and non-finite examples are named before the first step."""
    network, good = FastGRNN.initialise(FastGRNNConfig(1, 4), seed=0), _memory_task(8, 0)
    empty = Examples(good.inputs[:0], good.targets[:0])
    with pytest.raises(TrainingError, match="no training examples"):
        train(network, empty, good)
    with pytest.raises(TrainingError, match="no validation examples"):
        train(network, good, empty)
    with pytest.raises(DimensionMismatch, match="training targets"):
        train(network, Examples(good.inputs, good.targets[:, 0]), good)
    with pytest.raises(DimensionMismatch, match="features = 1"):
        train(network, Examples(np.zeros((8, 3, 2)), good.targets), good)
    with pytest.raises(NonFiniteInput, match="validation targets"):
        train(network, good, Examples(good.inputs, np.full((8, 1), math.nan)))
    with pytest.raises(TrainingError, match="normalise"):
        Normalisation.fit(np.empty((0, 1, 3)))
    with pytest.raises(NonFiniteInput, match="training inputs"):
        Normalisation.fit(np.full((2, 1, 3), math.inf))


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"max_gradient_norm": -1.0},
        {"batch_size": 0},
        {"epochs": 0},
        {"patience": 0},
        {"l2": -1.0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_named(settings):
    """A training configuration that cannot work is refused where it is made."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        TrainingConfig(**settings)
